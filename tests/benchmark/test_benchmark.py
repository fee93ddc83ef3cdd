"""The command: what it refuses, what it prints, and that its last line is the figures."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT

from jaxseg.benchmark.__main__ import main, parse


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give --model and --backbone, or --config"),
        ("--model=unet --config=configs/camvid.py", "give --model and --backbone, or --config"),
        ("--model=unet", "--model wants a --backbone"),
        ("--model=unet --backbone=resnet18 --mode=input", "--mode=input wants a --config"),
        ("--model=unet --backbone=resnet18 --batch=0", "--batch is 0: it must be at least 1"),
        ("--model=unet --backbone=resnet18 --sise=64", "--sise=64: no such argument"),
        ("--model=unet --backbone=resnet18 --mode=trian", "invalid choice: 'trian'"),
    ],
)
def test_mistakes_are_told_by_name(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(words.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def figures(capsys, *words: str) -> tuple[dict, str]:
    main(list(words))
    out = capsys.readouterr().out
    return json.loads(out.splitlines()[-1]), out


def test_a_network_is_measured_and_its_longest_operations_are_named(capsys, tmp_path):
    result, out = figures(
        capsys,
        "--model=unet",
        "--backbone=plain",
        "--size=32",
        "--batch=2",
        "--classes=3",
        "--rounds=2",
        "--mode=infer",
        f"--profile={tmp_path}",
    )
    assert out.startswith("unet on plain, 2 x 32x32, float32, infer; ")
    ours = result["contenders"]["jaxseg"]
    assert ours["images_per_second"] == pytest.approx(2000 / ours["step_ms"])
    # 193.0 G at 512x512, which a 32x32 image has the 256th part of.
    assert result["multiply_adds"] == pytest.approx(2 * 193.01e9 / 256, rel=0.01)
    share = result["multiply_adds"] / ours["step_ms"] * 1000 / (1e9 * result["matmul_gmacs"])
    assert ours["share_of_matmul_rate"] == pytest.approx(share)
    assert ours["memory"] > 4 * 31e6  # its parameters alone
    assert "| images a second |" in out and "conv" in out.split("longest operations")[1]
    assert list(tmp_path.rglob("*.xplane.pb")) and list(tmp_path.rglob("*.trace.json.gz"))


def test_a_config_is_measured_with_its_flags():
    words = ["--config=configs/reproduce/c_segnet.py", "--config.model.options.width=4", "--config.data.crop_size=32"]
    command = [sys.executable, "-m", "jaxseg.benchmark", *words, "--batch=2", "--rounds=1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert (result["model"], result["backbone"], result["classes"]) == ("segnet", "constant", 2)
    assert (result["size"], result["batch"], result["mode"]) == (32, 2, "train")
    assert result["multiply_adds"] < 1e7  # of 40 channels, its default, they are nearly a hundred times as many

    command = [sys.executable, "-m", "jaxseg.benchmark", words[0], "--config.data.crop_sise=32"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("error: there is no field --config.data.crop_sise: did you mean data.crop_size")
    assert run.stderr.count("\n") == 1
