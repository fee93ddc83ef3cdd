"""What a run must survive: each mistake ends in one readable message, and nothing that was saved is lost."""

import os
import pathlib
import stat

import cv2
import jax
import numpy as np
import pytest
from helpers import TinyBackbone, flags_of, one_error, rows, saved, steps, write_camvid
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import train as running
from jaxseg.checkpoint import Checkpoints
from jaxseg.errors import UserError
from jaxseg.models import pretrained
from jaxseg.step import create_mesh
from jaxseg.train import train

pytest_plugins = ["tiny_runs"]


def refused(config, workdir) -> str:
    """The message of a run that can't be; one line unless it lists things."""
    with pytest.raises(UserError) as error:
        train(config, workdir, log=lambda line: None)
    assert not (workdir / "checkpoints").exists() or not any((workdir / "checkpoints").rglob("_METADATA"))
    return str(error.value)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """A data folder to spoil, prepared beside it."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    return write_camvid(tmp_path / "data")


def with_data(tiny, monkeypatch, folder, **overrides):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder.parent / "prepared"))
    config = tiny.config(**overrides)
    config.data.dir = str(folder)
    return config


# ------------------------------------------------------------------------------------------------------------- data


def test_a_data_folder_that_is_missing(tiny, tmp_path):
    message = refused(tiny.config(data__dir=str(tmp_path / "nowhere")), tmp_path / "run")
    assert message.startswith(f"the data folder {tmp_path / 'nowhere'} does not exist: pass the right one with --")


def test_an_empty_split(tiny, folder, tmp_path, monkeypatch):
    for name in ("val", "valannot"):
        for path in (folder / name).iterdir():
            path.unlink()
    message = refused(with_data(tiny, monkeypatch, folder), tmp_path / "run")
    assert message.startswith(f"the split 'val' of {folder} is empty")


def test_a_jpeg_that_is_cut_short(tiny, folder, tmp_path, monkeypatch):
    png = folder / "train" / "train_3.png"
    path = png.with_suffix(".jpg")
    Image.open(png).save(path, quality=95)
    png.unlink()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = refused(with_data(tiny, monkeypatch, folder), tmp_path / "run")
    assert message.startswith(f"cannot decode {path}: ") and "cut short" in message


def test_a_mask_of_another_size(tiny, folder, tmp_path, monkeypatch):
    path = folder / "valannot" / "val_1.png"
    Image.fromarray(np.zeros((24, 64), np.uint8)).save(path)
    message = refused(with_data(tiny, monkeypatch, folder), tmp_path / "run")
    assert str(path) in message and "24x64" in message and "48x64" in message


def test_a_label_beyond_the_classes(tiny, folder, tmp_path, monkeypatch):
    path = folder / "trainannot" / "train_5.png"
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    mask[20, 30:33] = 37
    cv2.imwrite(str(path), mask)
    message = refused(with_data(tiny, monkeypatch, folder), tmp_path / "run")
    assert "train_5" in message
    assert "has label 37 in 3 pixels, but camvid has 11 classes: labels must be 0..10, or 255" in message


# --------------------------------------------------------------------------------------------------- sizes and files


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__batch_size": 3}, "data.batch_size is 3, which 2 devices don't divide: take 2 or 4"),
        ({"data__batch_size": 1}, "data.batch_size is 1, which 2 devices don't divide: take 2"),
        ({"data__eval_batch_size": 5}, "data.eval_batch_size is 5, which 2 devices don't divide: take 4 or 6"),
        ({"data__batch_size": -4}, "data.batch_size is -4: "),
        ({"optim__warmup_steps": 12}, "optim.warmup_steps is 12 of 12 steps: it must be at least 0 and less than all"),
        (
            {"train__accumulate": 2},
            "data.batch_size is 2, which 2 devices times train.accumulate 2 don't divide: take 4",
        ),
        ({"train__best": "mean_iuo"}, "unknown score (train.best) 'mean_iuo': did you mean mean_iou"),
        ({"train__best": "iou/bycicle"}, "unknown score (train.best) 'iou/bycicle': did you mean iou/bicyclist"),
        (
            {"train__best": "boundary_f2", "eval__boundary_tolerance": 2.0},
            "unknown score (train.best) 'boundary_f2': did",
        ),
        ({"train__best": "pixels"}, "unknown score (train.best) 'pixels'"),
        ({"data__mean": (124.0, 116.0, 104.0)}, "data.mean is [124.0, 116.0, 104.0]: "),
        ({"model__output_stride": 7}, "model.output_stride is 7: "),
    ],
)
def test_numbers_that_do_not_fit(fields, message, tiny, tmp_path):
    assert refused(tiny.config(**fields), tmp_path / "run").startswith(message)
    assert not (tmp_path / "run").exists()


def test_weights_that_are_no_weights(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(pretrained.torchvision.BACKBONES, TinyBackbone, lambda backbone: iter(()))
    path = tmp_path / "weights.safetensors"
    config = tiny.config(model__weights=str(path))
    assert str(path) in refused(config, tmp_path / "run")
    path.write_bytes(b"these are no weights, whatever the name says")
    message = refused(config, tmp_path / "run")
    assert message.startswith(f"weights: {path} can't be read as safetensors") and "another kind of file" in message


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_workdir_that_is_no_folder(below, tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    workdir = tmp_path / "file" / below
    with pytest.raises(UserError, match=rf"the workdir {workdir} can't be written \(.+\): choose another --workdir"):
        train(tiny.config(), workdir, log=lambda line: None)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_that_may_not_be_written(tiny, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    workdir = tmp_path / "closed"
    workdir.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match=r"can't be written \(Permission denied\)"):
        train(tiny.config(), workdir / "run", log=lambda line: None)


def test_class_weights_of_another_number_of_classes(tiny, tmp_path):
    message = refused(tiny.config(loss__class_weights="0.5,2"), tmp_path / "run")
    assert message.startswith("loss.class_weights has 2 numbers, and camvid 11 classes: give one for each of sky, ")


def with_options(config, **options):
    with config.unlocked():
        config.model.options = ConfigDict(options)
    return config


PLAIN = {"model__name": "unet", "model__backbone": "plain"}


def test_a_backbone_to_freeze_that_is_not_there(tiny, tmp_path):
    config = with_options(tiny.config(**PLAIN, optim__freeze_backbone=True), width=2, depth=1)
    assert refused(config, tmp_path / "run") == "optim.freeze_backbone is set, but unet on plain has none"


def test_a_network_that_no_memory_holds(tiny, tmp_path):
    message = refused(with_options(tiny.config(**PLAIN, data__crop_size=64), width=8192, depth=6), tmp_path / "run")
    assert " GiB" in message and "data.batch_size, which is 2" in message


def test_an_evaluation_that_no_memory_holds(tiny, tmp_path):
    config = tiny.config(eval__protocol="resize", eval__size=(16384,), eval__scales=(1.0, 8.0))
    message = refused(config, tmp_path / "run")
    assert " GiB" in message and "eval.size" in message


@pytest.mark.parametrize(("batch", "slices"), [(1, 1), (2, 2)])
def test_a_norm_over_one_value_is_refused_before_the_first_step(batch, slices, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "create_mesh", lambda: create_mesh(jax.devices()[:1]))
    config = tiny.config(
        model__name="pspnet", model__backbone="resnet18", data__batch_size=batch, train__accumulate=slices
    )
    message = refused(with_options(config, norm_one_window=True, features=8), tmp_path / "run")
    assert message.startswith("the norm pyramid/bins_1/bn ") and "data.batch_size" in message


# -------------------------------------------------------------------------------------------------- while it goes on


def test_a_loss_that_is_no_number_names_step_images_and_checkpoint(tiny, tmp_path):
    config = tiny.config(model__name="bursting", train__log_every=100, train__checkpoint_every=1)
    with pytest.raises(UserError) as error:
        train(config, tmp_path, log=lambda line: None)
    message = str(error.value)
    start, _, rest = message.partition("; its batch holds ")
    assert start.startswith("the loss of step ") and start.endswith((" is nan", " is inf"))
    step = int(start.split()[4])
    names, _, advice = rest.partition(". ")
    assert len(names.split(", ")) == 2
    assert set(names.split(", ")) <= {f"train_{index}" for index in range(8)}
    assert step > 1, "the first loss is taken before anything was learnt"
    assert advice.startswith(f"The last good checkpoint is step {step - 1}; a lower optim.learning_rate")
    assert steps(tmp_path, "latest") == [step - 1]


def test_a_loss_that_is_no_number_before_any_checkpoint(tiny, tmp_path):
    config = tiny.config(model__name="bursting", train__checkpoint_every=12, train__eval_every=0)
    with pytest.raises(UserError, match=r"No checkpoint was saved before it; a lower optim.learning_rate"):
        train(config, tmp_path, log=lambda line: None)
    assert steps(tmp_path, "latest") == []
    assert [row for row in rows(tmp_path) if row.get("train/loss") is None] == []


# The disk is full from the first save of step 6 on: no file may grow beyond some bytes.
FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save = helpers.running.checkpoint.Checkpoints.save
def full(self, kind, state, progress):
    if int(state.step) >= 6:
        self.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
    save(self, kind, state, progress)
helpers.running.checkpoint.Checkpoints.save = full
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_run_and_leaves_what_was_saved(tiny, finished, tmp_path):
    pytest.importorskip("resource")
    config = tiny.config(train__eval_every=0)
    arguments = ["jaxseg.main", *flags_of(config), f"--workdir={tmp_path}"]
    message = one_error(*tiny.run(*arguments, before="helpers.without_tensorflow()\n" + FULL)[::2])
    assert message.startswith(f"error: checkpoints can't be written to {tmp_path / 'checkpoints'} (")
    assert "step 3 is safe there: make room or choose another --workdir, then start again" in message
    assert steps(tmp_path, "latest") == [3]
    lines = []
    train(config, tmp_path, log=lines.append)
    assert "going on from step 3" in lines
    left, right = saved(tmp_path, "latest"), saved(finished, "latest")
    for name in left.keys() - {"progress"}:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.mark.parametrize("name", ["metrics.jsonl", "figures", "curves.png"])
def test_a_disk_that_is_full_where_anything_else_is_written(name, tiny, tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device", str(tmp_path / name))

    target = {
        "metrics.jsonl": "jaxseg.writers._FileWriters.scalars",
        "figures": "jaxseg.figures.write_png",
        "curves.png": "jaxseg.figures.curves",
    }[name]
    monkeypatch.setattr(target, full)
    with pytest.raises(UserError, match=rf"^{tmp_path / name} can't be read or written \(No space left on device\)"):
        train(tiny.config(), tmp_path, log=lambda line: None)
    monkeypatch.undo()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == {"metrics.jsonl": None, "figures": 3, "curves.png": 12}[name]


# ------------------------------------------------------------------------------------------------------ as a command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/quickstar.py"], "there is no config file configs/quickstar.py: did you mean configs/quick"),
        ([], "--config is missing, for example --config=configs/quickstart.py; --help tells the rest"),
        (["--config=pyproject.toml"], "pyproject.toml is no config"),
        (["--config=configs/quickstart.py:voc"], "configs/quickstart.py takes no argument, but ':voc' came"),
        (["--config=configs/deeplab.py:vox"], "unknown backbone of deeplabv3plus or data set 'vox': did you mean voc?"),
        (
            ["--config=configs/quickstart.py", "--config.optim.learning_rat=1"],
            "there is no field --config.optim.learning_rat: did you mean optim.learning_rate",
        ),
        (["--config", "configs/quickstart.py", "--config.optim.learning_rat=1"], "there is no field --config.optim."),
        (["--mode", "eval", "--workdir", "x", "--sweep", "train.seed=0,1"], "--sweep trains: leave --mode=eval out"),
        (
            ["--config=configs/quickstart.py", "--workdri=x"],
            "Unknown command line flag 'workdri'. Did you mean: workdir",
        ),
        (
            ["--config=configs/quickstart.py", "--mode=evaluate"],
            "flag --mode=evaluate: value should be one of <train|eval>",
        ),
    ],
)
def test_a_command_line_that_can_not_be(flags, message, monkeypatch):
    from absl import flags as absl_flags

    from jaxseg import main

    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    values = absl_flags.FLAGS
    before = {name: values[name].value for name in ("workdir", "mode", "checkpoint", "split")}
    try:
        with pytest.raises(UserError) as error:
            main.parse(["main", *flags])
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)
    finally:
        for name, value in before.items():
            values[name].value = value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.dir=/no/such/folder"], "error: the data folder /no/such/folder does not exist"),
        (["--config.data.batch_size=2.5"], "error: flag --config.data.batch_size=2.5: invalid literal for int()"),
        (["--config.data.crop_size=256.0"], "error: data.crop_size is 256.0: "),
        (
            ["--config.model.options.separables=False"],
            "error: deeplabv3plus has no option 'separables'",
        ),
        (["--config.model.bakbone=resnet18"], "error: there is no field --config.model.bakbone: did you mean model.b"),
    ],
)
def test_the_command_ends_in_one_line_and_status_1(flags, message, tiny, tmp_path):
    arguments = ["--config=configs/camvid.py", *flags, f"--workdir={tmp_path / 'run'}"]
    status, out, err = tiny.run("jaxseg.main", *arguments)
    assert one_error(status, err).startswith(message)
    assert out == "" and not (tmp_path / "run").exists()
