"""What a step moves: counted, found in compiled programs, and what it asks of a network."""

import json

import pytest

from jaxseg.benchmark import scaling
from jaxseg.benchmark.__main__ import main
from jaxseg.benchmark.networks import random_batch
from jaxseg.models import create_model
from jaxseg.models.cost import num_params

PROGRAM = """
  %all-reduce.1 = f32[64,3]{1,0} all-reduce(%x), channel_id=1
  %all-reduce.2 = (f32[10]{0}, s32[]) all-reduce(%a, %b), channel_id=2
  %all-gather-start = (bf16[8]{0}) all-gather-start(%p), dimensions={0}
  %all-reduce-done = f32[64]{0} all-reduce-done(%y)
  %add = f32[64]{0} add(%all-reduce.1, %y)
"""


def test_the_bytes_of_a_programs_collectives():
    assert scaling.collectives(PROGRAM) == {"all-reduce": 4 * 64 * 3 + 4 * 10 + 4, "all-gather": 16}


@pytest.fixture(scope="module")
def network():
    return create_model("segnet", backbone="constant", width=12, num_classes=3)


@pytest.mark.parametrize("fsdp", [False, True])
def test_what_is_counted_is_what_the_compiled_step_exchanges(fsdp, network):
    batch = random_batch(4, (64, 64), 3)
    moved, found = scaling.counted(network, batch, 2, fsdp), scaling.found(network, batch, fsdp)
    reduced = found["all-reduce"] + 2 * found["reduce-scatter"]
    assert reduced == moved["gradients"] + moved["statistics"] + moved["loss"]
    assert found["all-gather"] == moved["gathered"]
    assert bool(found["all-gather"]) == fsdp
    assert moved["input"] == 4 * 64 * 64 * 4


def test_more_devices_send_little_more_each_and_want_more_of_the_disk():
    moved = {"gradients": 1000, "statistics": 20, "loss": 4, "gathered": 0, "input": 1}
    two, eight = (scaling.needs(moved, 0.5, n, images=4, image_bytes=100.0) for n in (2, 8))
    assert two["sent"] == 1024 and eight["sent"] == 2 * 1024 * 7 / 8
    assert two["network"] == pytest.approx(1024 / (2 / 3 * 0.5))
    assert (two["batch"], eight["batch"]) == (8, 32)
    assert eight["disk"] == 4 * two["disk"] == 8 * 4 / 0.5 * 100
    assert scaling.needs({**moved, "gathered": 800}, 0.5, 2, 4, 0.0)["sent"] == 1024 + 400


def test_the_command_prints_a_table_over_devices(capsys):
    main(["--mode=scaling", "--model=segnet", "--backbone=constant", "--classes=2", "--step_seconds=0.1"])
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert [line.split("|")[1].strip() for line in lines[-3:]] == ["8", "64", "512"]
    assert any("1.0000 times what was counted is summed" in line for line in lines)
    assert result["devices"]["64"]["batch"] == 256

    network = create_model("segnet", backbone="constant", num_classes=2)
    assert result["moved"]["gradients"] == 4 * num_params(network)[0]


def test_a_flag_of_another_mode_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--model=unet", "--backbone=resnet18", "--step_seconds=1"])
    assert "want --mode=scaling" in capsys.readouterr().err
