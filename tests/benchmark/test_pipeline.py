"""The input pipeline's figures: whole numbers of batches over their time, and the parts of an image's."""

import pytest
from helpers import tiny_config, write_camvid

from jaxseg import config as configs
from jaxseg.benchmark import pipeline
from jaxseg.models.pretrained import IMAGENET_MEAN, IMAGENET_STD


@pytest.mark.parametrize("against_torch", [False, pytest.param(True, marks=pytest.mark.peers)])
def test_batches_are_counted(against_torch, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(pipeline, "SECONDS", 0.2)
    config = configs.with_normalisation(tiny_config(), IMAGENET_MEAN, IMAGENET_STD)
    config.data.dir = str(write_camvid(tmp_path / "camvid"))
    lines = []
    result = pipeline.measure(config, rounds=1, against_torch=against_torch, log=lines.append)
    rates = result["images_per_second"]
    assert list(rates) == ["jaxseg"] + ["PyTorch DataLoader"] * against_torch
    assert min(rates.values()) > 1
    assert result["workers"]["jaxseg"] == 0 and (not against_torch or result["workers"]["PyTorch DataLoader"] > 0)
    assert list(result["milliseconds_an_image"]) == ["read and decode", "resize and augment", "batch"]
    assert min(result["milliseconds_an_image"].values()) > 0
    if against_torch:
        assert result["times_as_fast"]["median"] == pytest.approx(rates["jaxseg"] / rates["PyTorch DataLoader"])
    assert any(f"{rates['jaxseg']:.1f}" in line for line in lines)


def test_batches_on_the_device_are_counted_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(pipeline, "SECONDS", 0.2)
    config = configs.with_normalisation(tiny_config(data__on_device=True), IMAGENET_MEAN, IMAGENET_STD)
    config.data.dir = str(write_camvid(tmp_path / "camvid"))
    lines = []
    result = pipeline.measure(config, rounds=1, against_torch=False, log=lines.append)
    assert result["images_per_second"]["jaxseg"] > 1
    assert any("8 images are on the device" in line for line in lines)


def test_a_rate_counts_what_comes_after_what_was_read_ahead(monkeypatch):
    monkeypatch.setattr(pipeline, "SECONDS", 1.0)
    clock, taken = [100.0], []

    def batches():
        for i in range(1000):
            clock[0] += 0.1 if i >= 3 else 0.0
            taken.append(i)
            yield i

    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: clock[0])
    assert pipeline._rate(batches(), batch_size=4, ahead=3) == pytest.approx(40.0)
    assert 13 <= len(taken) <= 14
