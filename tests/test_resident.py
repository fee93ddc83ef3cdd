"""Images kept on the device: cut and changed there as the host does it, from the same chance."""

import itertools

import jax
import numpy as np
import pytest
from helpers import assert_same_run, rows

from jaxseg import build, resident
from jaxseg import config as configs
from jaxseg.data import open_dataset, transforms
from jaxseg.errors import UserError
from jaxseg.models.pretrained import IMAGENET_MEAN, IMAGENET_STD
from jaxseg.step import create_mesh
from jaxseg.train import train

pytest_plugins = ["tiny_runs"]

FILL = (124, 116, 104)
SHAPES = [(60, 90), (90, 70), (40, 48)]
CROP = 56
BATCH = 16


class Source:
    """Smooth colours with blocks of labels, of three sizes."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.records = []
        for i, (height, width) in enumerate(SHAPES):
            coarse = rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)
            labels = np.kron(rng.integers(0, 21, (9, 9)), np.ones((12, 12), int))[:height, :width].astype(np.uint8)
            image, _ = transforms.resize(coarse, coarse[..., 0], (height, width))
            self.records.append({"images": image, "labels": labels, "id": str(i)})

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def open_source(**frame):
    sizes = np.array(SHAPES)
    return resident.Resident(Source(), sizes, create_mesh(), crop_size=CROP, fill=FILL, **frame)


def both(resize_to=(), **changes):
    """A batch cut on the device, and the same cut by the host."""
    images, source = open_source(resize_to=resize_to), Source()
    places = resident.Places(images)
    records = [resident.draw(places[i % 3], np.random.default_rng(i), crop_size=CROP, **changes) for i in range(BATCH)]
    batch = {name: np.stack([record[name] for record in records]) for name in records[0] if name != "id"}
    device = jax.device_get(images(batch))
    frame = {"crop_size": CROP, "resize_to": resize_to, "fill": FILL}
    host = [transforms.augment(source[i % 3], np.random.default_rng(i), **frame, **changes) for i in range(BATCH)]
    return device, {name: np.stack([record[name] for record in host]) for name in ("images", "labels")}


@pytest.mark.parametrize("resize_to", [(), (50, 64)], ids=["own sizes", "resized first"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"vertical_flip": True, "rotate90": True}, {"center_crop": True, "flip": False}],
    ids=["crop and flip", "all flips and turns", "centre"],
)
def test_what_only_moves_pixels_is_the_hosts_exactly(changes, resize_to):
    device, host = both(resize_to, **changes)
    np.testing.assert_array_equal(device["images"], host["images"])
    np.testing.assert_array_equal(device["labels"], host["labels"])
    assert (host["labels"] == 255).any()  # beyond the smallest image


@pytest.mark.parametrize(
    ("changes", "levels"),
    [
        ({"scale": (0.5, 2.0)}, 1),
        ({"jitter": 0.4}, 1),
        ({"stain": 0.2}, 1),
        ({"grid_distortion": 0.3}, 2),
        ({"elastic": 4.0}, 2),
        (
            {
                "scale": (0.5, 2.0),
                "vertical_flip": True,
                "rotate90": True,
                "grid_distortion": 0.3,
                "elastic": 3.0,
                "jitter": 0.3,
                "stain": 0.1,
            },
            4,
        ),
    ],
    ids=["scale", "jitter", "stain", "grid_distortion", "elastic", "all"],
)
def test_what_is_computed_is_the_hosts_but_for_its_rounding(changes, levels):
    device, host = both(**changes)
    apart = np.abs(device["images"].astype(int) - host["images"])
    # At an edge of the image a place may round to the outside on one side alone.
    assert np.mean(apart > levels) < 2e-3 and apart.mean() < 0.5
    assert np.mean(device["labels"] != host["labels"]) < 1e-2
    assert device["images"].dtype == device["labels"].dtype == np.uint8


@pytest.mark.parametrize(
    "changes",
    [
        {"elastic": 12.0, "jitter": 0.8, "stain": 0.3, "scale": (0.3, 1.5), "rotate90": True},
        {"grid_distortion": 0.6, "jitter": 0.5, "stain": 0.3, "scale": (0.3, 2.0)},
    ],
    ids=["elastic", "grid_distortion"],
)
def test_beyond_the_picture_there_is_the_fill_as_on_the_host(changes, monkeypatch):
    def without_void(self):
        init(self)
        for record in self.records:
            record["labels"] = np.zeros_like(record["labels"])

    init = Source.__init__
    monkeypatch.setattr(Source, "__init__", without_void)
    device, host = both(**changes)
    for batch in (device, host):
        beyond = batch["labels"] == 255
        assert beyond.any() and (batch["images"][beyond] == FILL).all()
    inside = (device["labels"] == 0) & (host["labels"] == 0)
    assert np.mean(device["labels"] != host["labels"]) < 1e-2
    apart = np.abs(device["images"].astype(int) - host["images"])[inside]
    assert np.mean(apart > 4) < 5e-3, "the mean luma is of the picture on both"


def batches(config, dataset, start, count, images=None):
    return list(itertools.islice(build.train_batches(config, dataset, start, images), count))


def test_a_step_sees_the_images_that_the_host_would_give_it(tiny):
    config = configs.with_normalisation(tiny.config(), IMAGENET_MEAN, IMAGENET_STD)
    dataset, mesh = open_dataset("camvid", directory=config.data.dir), create_mesh()
    images = build.open_resident(config, dataset, mesh)
    host = batches(config, dataset, 0, 10)
    for start in (0, 5):
        for due, places in zip(host[start:], batches(config, dataset, start, 10 - start, images), strict=True):
            assert places["ids"] == due["ids"]
            batch = jax.device_get(images(places))
            np.testing.assert_array_equal(batch["labels"], due["labels"])
            assert np.abs(batch["images"].astype(int) - due["images"]).max() <= 2


def test_a_run_goes_on_bit_for_bit_and_loses_as_the_hosts_does(finished, tiny, tmp_path, monkeypatch):
    config, lines = tiny.config(data__on_device=True), []
    train(config, tmp_path / "unbroken", log=lines.append)
    assert any("8 training images, 0 MiB, decoded on the device" in line for line in lines)

    count, cut = itertools.count(1), resident.Resident.__call__

    def crash(images, batch):
        if next(count) == 5:
            raise RuntimeError("the machine went away")
        return cut(images, batch)

    with monkeypatch.context() as patch:
        patch.setattr(resident.Resident, "__call__", crash)
        with pytest.raises(RuntimeError, match="went away"):
            train(config, tmp_path / "broken", log=lambda line: None)
    train(config, tmp_path / "broken", log=lambda line: None)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")

    ours, hosts = (
        [row["train/loss"] for row in rows(run) if "train/loss" in row] for run in (tmp_path / "unbroken", finished)
    )
    np.testing.assert_allclose(ours, hosts, rtol=0.05)
    assert ours != hosts


def test_images_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(resident, "SHARE", 1e-9)
    with pytest.raises(UserError, match=r"3 images of up to 90x90 take .* GiB.*data.resize"):
        open_source()


def test_variants_are_the_hosts(tiny):
    with pytest.raises(UserError, match=r"data.on_device is set, and data.variants is"):
        configs.validate(tiny.config(data__on_device=True, data__variants=("identity", "flip")))
