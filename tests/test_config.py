"""What is refused before any data is read, what may change when a run goes on, and epochs as steps."""

import json
import math
import pathlib

import pytest
from helpers import ROOT, tiny_config
from ml_collections import ConfigDict, config_flags

from configs import default
from jaxseg import config as configs
from jaxseg import fields, files
from jaxseg.config import (
    MAY_DIFFER,
    backbone_and_data,
    check_same,
    class_weights,
    eval_every,
    flatten,
    lower_is_better,
    num_steps,
    validate,
)
from jaxseg.errors import UserError
from jaxseg.losses import LOSSES

pytest_plugins = ["tiny_runs"]

FIELDS = flatten(default.get_config())


def quickstart(**overrides):
    config = default.get_config()
    config.train.num_steps = 10
    with config.ignore_type():
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in overrides.items()})
    return config


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_there_is_can_be_run(path):
    namespace = {}
    exec(compile(path.read_text(), path, "exec"), namespace)
    config = namespace["get_config"]()
    if path.stem == "default":
        config.train.num_steps = 1  # left to whoever runs it
    validate(config)
    assert flatten(config).keys() >= FIELDS.keys()
    with pytest.raises(AttributeError):
        config.train.num_step = 1  # locked


def test_every_field_of_the_config_is_in_the_table_and_no_other():
    assert fields.FIELDS.keys() == FIELDS.keys()
    assert set(MAY_DIFFER) <= FIELDS.keys()


NUMBERS = {name: kind for name, kind in fields.FIELDS.items() if isinstance(kind, fields.Number)}


@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_beyond_its_bounds_is_refused_by_name_and_its_bounds_are_not(field):
    kind, besides = NUMBERS[field], {"loss__dice": 1.0, "optim__name": "sgd"}
    alone = {"loss.cross_entropy": {}, "train.num_epochs": {"train__num_steps": 0}, "optim.warmup_steps": {}}
    for value in (kind.low, kind.high, *([0] if kind.or_zero else [])):
        value = value if kind.whole else float(value)
        open_end = (kind.open_low and value == kind.low) or (kind.open_high and value == kind.high)
        overrides = {**besides, **alone.get(field, {}), field.replace(".", "__"): value}
        try:
            validate(quickstart(**overrides))
            assert not open_end
        except UserError as error:
            # What two fields ask of each other is another matter.
            assert open_end == ("it must be a " in str(error)), error
    for value in (kind.low - 1, kind.high * 2, math.inf, -math.inf, math.nan, 1e308, "1", None, (1,)):
        with pytest.raises(UserError) as refusal:
            validate(quickstart(**{**besides, field.replace(".", "__"): value}))
        assert str(refusal.value).startswith(f"{field} is ") and len(str(refusal.value)) < 300
    for value in (1.5, 10**400) if kind.whole else ():
        with pytest.raises(UserError, match=f"^{field} is 1.*: it must be a whole number"):
            validate(quickstart(**{field.replace(".", "__"): value}))


OTHERS = {name: kind for name, kind in fields.FIELDS.items() if not isinstance(kind, fields.Number)}


@pytest.mark.parametrize("field", OTHERS)
def test_a_value_of_another_form_is_refused_by_name(field):
    odd = {
        fields.Flag: (0, 1, "True", None, (), math.nan),
        fields.Text: (0, None, True, ("a",), "x" * 100_000, "a\0b"),
        fields.Path: (0, None, True, ("a",), "x" * 5000, "x" * 300, "a\0b", "\ud800"),
        fields.Name: (0, None, True, ("a",), "x" * 5000, "a\0b\x1b[2J", "nonsense"),
        fields.Choice: (-1, 1, 64, 8.0, "8", None, (8,), True),
        fields.Several: (0, None, True, "abc", ("a", "b"), (math.nan,) * 3, (1e308,) * 2, ((),), (None,), (-1, -1)),
        fields.Either: (0, None, True, "abc", (), (32,), (32, 31), (32.0, 32.0), 32.5, 10**8, (10**8, 32)),
    }[type(OTHERS[field])]
    for value in odd:
        with pytest.raises(UserError) as refusal:
            validate(quickstart(**{field.replace(".", "__"): value}))
        message = str(refusal.value)
        assert field in message and len(message) < 600
        assert message.isprintable()


@pytest.mark.parametrize(
    "overrides",
    [
        {"data.crop_size": 100_000_000},
        {"data.batch_size": 10**9},
        {"data.batch_size": 10**6, "train.accumulate": 10**6},
        {"data.batch_size": 2**16, "data.crop_size": 512},
        {"data.resize": (1_000_000, 1_000_000)},
        {"data.resize": (16384, 16384)},
        {"data.resize": (1, 1)},
        {"data.jitter": math.inf},
        {"data.elastic": math.inf},
        {"data.scale": ("a", "b")},
        {"data.scale": (1e-300, 1e300)},
        {"data.scale": (1000, 1000)},
        {"data.std": (1e-30, 1, 1)},
        {"data.workers": 10**6},
        {"data.variants": ("identity", "identity")},
        {"train.num_steps": 2**31},
        {"train.num_epochs": math.inf},
        {"train.eval_epochs": math.inf},
        {"train.seed": 2**64},
        {"train.seed": 2**32},
        {"eval.scales": (1, 1, 1)},
        {"eval.scales": (1, 1.0)},
        {"eval.protocol": "slide", "eval.size": (1_000_000,)},
        {"optim.plateau_factor": 1e-300},
        {"optim.learning_rate": 1e30},
        {"optim.learning_rate": 1.0},
        {"optim.learning_rate": 0.1, "optim.name": "adamw", "optim.backbone_lr_scale": 10},
        {"optim.learning_rate": 0.5, "optim.name": "sgd", "loss.dice": 50.0},
        {"optim.momentum": 1.0},
        {"optim.weight_decay": 1e308},
        {"optim.clip_norm": math.inf},
        {"optim.poly_power": 1e308},
        {"eval.boundary_tolerance": 1e308},
        {"loss.class_weights": "1,１,1"},
        {"loss.class_weights": "1e-300,0"},
        {"loss.class_weights": "1,inf"},
        {"model.weights": "w" * 300},
        {"data.dir": "d/" * 2100},
        *({f"loss.{name}": value} for name in LOSSES for value in (1e308, math.inf, 1e-300)),
    ],
    ids=str,
)
def test_nonsense_is_refused_by_the_name_of_its_field(overrides):
    with pytest.raises(UserError) as refusal:
        validate(quickstart(**{field.replace(".", "__"): value for field, value in overrides.items()}))
    assert any(field in str(refusal.value) for field in overrides)
    assert "\n" not in str(refusal.value)


def test_a_config_that_lacks_a_field_or_has_one_too_many_is_refused():
    config = default.get_config()
    config.train.num_steps = 1
    with config.unlocked():
        config.optim.learning_rat = 1.0
    with pytest.raises(UserError, match=r"no field optim.learning_rat: did you mean optim.learning_rate"):
        validate(config)
    with config.unlocked():
        del config.optim["learning_rat"], config.optim["learning_rate"]
    with pytest.raises(UserError, match=r"optim.learning_rate"):
        validate(config)
    for group in ("optim", "model.options", "published"):
        config = ConfigDict(quickstart().to_dict(), type_safe=False)
        config.update_from_flattened_dict({group: 5}) if "." in group else setattr(config, group, 5)
        with pytest.raises(UserError, match=f"^{group} is 5"):
            validate(config)
    for value in (None, {}, 5):
        with pytest.raises(UserError):
            validate(value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.name", "camvit", r"unknown data set \(data.name\) 'camvit': did you mean camvid"),
        ("model.name", "deeplab", r"unknown model \(model.name\) 'deeplab': did you mean .*deeplabv3plus"),
        ("model.backbone", "resnet51", "unknown backbone of deeplabv3plus 'resnet51': did you mean .*resnet50"),
        ("model.dtype", "float16", r"unknown dtype \(model.dtype\) 'float16': did you mean .*float32"),
        ("optim.name", "adan", r"unknown optimizer \(optim.name\) 'adan': did you mean adam"),
        ("optim.schedule", "cosin", r"unknown schedule \(optim.schedule\) 'cosin': did you mean cosine"),
        ("loss.class_weights", "median", r"unknown kind of class weights .* did you mean median_frequency"),
        ("eval.protocol", "slides", r"unknown protocol \(eval.protocol\) 'slides': did you mean slide"),
        ("eval.published", "f", r"unknown project's definition of scores \(eval.published\) 'f': there are , a, b, c"),
    ],
)
def test_an_unknown_name_names_the_field_and_the_nearest(field, value, message):
    with pytest.raises(UserError, match=message):
        validate(quickstart(**{field.replace(".", "__"): value}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train__num_epochs": 2.0}, "train.num_steps is 10 and train.num_epochs 2.0: set one of them"),
        ({"train__num_steps": 0}, "train.num_steps is 0 and train.num_epochs 0.0: set one of them"),
        ({"data__crop_size": 31}, "data.crop_size is 31"),
        ({"loss__label_smoothing": 1.0}, "loss.label_smoothing is 1.0"),
        ({"optim__learning_rate": float("nan")}, "optim.learning_rate is nan"),
        ({"loss__cross_entropy": 0.0}, "no loss is left to train on: set one of loss.cross_entropy, loss.binary_cr"),
        ({"optim__plateau_factor": 1.0}, "optim.plateau_factor is 1.0"),
        ({"optim__plateau_floor": 0.1}, "optim.plateau_floor is 0.1: it must be at most optim.learning_rate, 0.001"),
        ({"train__ema_decay": 1.0}, "train.ema_decay is 1.0"),
        (
            {"train__patience": 2},
            "train.patience is 2, which goes by evaluations: set train.eval_every or train.eval_epochs",
        ),
        (
            {"train__eval_every": 5, "train__eval_epochs": 1.0},
            "eval_every is 5 and train.eval_epochs 1.0: set one of them",
        ),
        ({"loss__class_weights": "1,nan"}, "loss.class_weights"),
        ({"loss__class_weights": "0,0"}, "loss.class_weights is 0,0"),
        ({"optim__schedule": "plateau"}, "optim.schedule is plateau, which goes by evaluations: set train.eval_every"),
        ({"data__scale": (2.0, 0.5)}, r"data.scale is \(2.0, 0.5\): it must be \(lowest, highest\)"),
        ({"data__scale": (0.0, 1.0)}, r"data.scale is"),
        ({"data__scale": (1.0,)}, r"data.scale is"),
        ({"data__scale": ()}, r"data.scale is"),
        ({"data__rotate90": True, "data__crop_size": (32, 64)}, r"data.rotate90 is set.*\(32, 64\): .* square crop"),
        ({"data__resize": (32,)}, r"data.resize is"),
        ({"data__resize": (32, 0)}, r"data.resize is"),
        ({"data__variants": ("flip", "fliq")}, r"unknown variant \(data.variants\) 'fliq': did you mean flip"),
        ({"data__stain": 1.0}, "data.stain is 1.0"),
        ({"data__grid_distortion": 1.5}, "data.grid_distortion is 1.5"),
    ],
)
def test_values_that_make_no_sense_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        validate(quickstart(**overrides))


@pytest.mark.parametrize(("text", "due"), [("48", 48), ("(32,48)", (32, 48))])
def test_a_crop_is_a_number_or_two_in_a_file_and_as_a_flag(text, due, monkeypatch):
    from absl import flags

    config = quickstart()
    config.data.crop_size = due
    validate(config)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    argv = ["program", f"--config={ROOT / 'configs' / 'quickstart.py'}", f"--config.data.crop_size={text}"]
    monkeypatch.setattr("sys.argv", argv)  # where the fields that are set are looked for
    values(argv)
    assert values["config"].value.data.crop_size == due


@pytest.mark.parametrize("crop", [(32,), (32, 31), (32, 32, 3), (32.0, 32.0)])
def test_a_crop_has_two_sides_of_32_or_more(crop):
    config = quickstart()
    config.data.crop_size = crop
    with pytest.raises(UserError, match=r"data.crop_size is"):
        validate(config)
    config.data.crop_size = (32, 64)
    validate(config)


@pytest.mark.parametrize(
    ("steps", "epochs", "images", "batch", "due"),
    [(7, 0.0, 100, 4, 7), (0, 3.0, 8, 2, 12), (0, 0.5, 100, 10, 5), (0, 1.0, 10, 4, 2), (0, 0.01, 8, 4, 1)],
)
def test_epochs_become_steps(steps, epochs, images, batch, due):
    config = quickstart(train__num_steps=steps, train__num_epochs=epochs, data__batch_size=batch)
    assert num_steps(config, images) == due


def test_more_steps_than_are_counted_are_refused():
    config = quickstart(train__num_steps=0, train__num_epochs=1e6, data__batch_size=1)
    assert num_steps(config, 1000) == 10**9
    with pytest.raises(UserError, match=r"train.num_epochs is 1000000.0"):
        num_steps(config, 10**6)


def test_an_epoch_has_every_variant():
    config = quickstart(train__num_steps=0, train__num_epochs=4.0, data__batch_size=8, data__variants=("flip",) * 6)
    assert num_steps(config, 367) == 1101


@pytest.mark.parametrize(
    ("steps", "epochs", "due"), [(7, 0.0, 7), (0, 0.0, 0), (0, 1.0, 5), (0, 2.5, 12), (0, 0.01, 1)]
)
def test_evaluations_come_every_so_many_steps_or_epochs(steps, epochs, due):
    config = quickstart(train__eval_every=steps, train__eval_epochs=epochs, data__batch_size=4)
    assert eval_every(config, 20) == due


def test_class_weights_are_a_kind_or_numbers():
    texts = {"": "", "median_frequency": "median_frequency", "0.5,1,2": (0.5, 1.0, 2.0), "3": (3.0,)}
    assert {text: class_weights(quickstart(loss__class_weights=text)) for text in texts} == texts


def test_the_lowest_of_a_loss_is_the_best():
    assert lower_is_better("loss", "") and lower_is_better("published/dice", "a")
    assert not lower_is_better("mean_iou", "a") and not lower_is_better("published/dice", "c")


def test_what_the_best_score_is_made_of_stays(tmp_path):
    config = quickstart(train__best="published/dice", eval__published="a")
    (tmp_path / files.CONFIG).write_text(configs.to_json(config))
    config.eval.boundary_tolerance = 3.0
    check_same(config, tmp_path)
    config.eval.published = "c"
    with pytest.raises(UserError, match=r"eval\.published: a there, c now"):
        check_same(config, tmp_path)


@pytest.mark.parametrize(
    ("argument", "due"),
    [
        ("", ("resnet50", "voc")),
        ("resnet18", ("resnet18", "voc")),
        ("camvid", ("resnet50", "camvid")),
        ("mobilenet_v2,shapes", ("mobilenet_v2", "shapes")),
        ("shapes,mobilenet_v2", ("mobilenet_v2", "shapes")),
    ],
)
def test_an_argument_names_backbone_and_data_in_any_order(argument, due):
    assert backbone_and_data("deeplabv3plus", argument, ("resnet50", "voc")) == due


def test_a_word_that_is_neither_names_the_nearest():
    with pytest.raises(UserError, match="unknown backbone of unet or data set 'camvit': did you mean camvid"):
        backbone_and_data("unet", "resnet50,camvit", ("resnet50", "voc"))


def test_the_written_config_reads_back_the_same(tmp_path):
    config = quickstart(data__scale=(0.5, 2.0))
    (tmp_path / "config.json").write_text(configs.to_json(config))
    assert flatten(configs.read(tmp_path)) == flatten(config)
    check_same(config, tmp_path)


@pytest.mark.parametrize("field", FIELDS)
def test_a_run_goes_on_only_with_fields_changed_that_no_result_depends_on(field, tmp_path):
    (tmp_path / "config.json").write_text(configs.to_json(quickstart()))
    value = FIELDS[field]
    other = {bool: lambda: not value, str: lambda: value + "x", list: lambda: (*value[:-1], 0.25)}
    changed = quickstart(**{field.replace(".", "__"): other.get(type(value), lambda: value + 1)()})
    may = {
        *("train.num_steps", "train.num_epochs", "train.eval_every", "train.checkpoint_every", "train.log_every"),
        *("train.eval_epochs", "train.patience", "train.fsdp", "data.eval_batch_size", "data.workers"),
        *("eval.boundary_tolerance", "eval.published"),
        *("data.dir", "data.version"),  # what is in the data decides, not where it lies
    }
    if field in may:
        check_same(changed, tmp_path)
    else:
        with pytest.raises(UserError, match=rf"another config.*\n  {field}: .* there, .* now$"):
            check_same(changed, tmp_path)


def test_a_field_that_is_no_more_is_told_and_a_new_one_had_its_default(tmp_path):
    old = json.loads(configs.to_json(quickstart()))
    del old["train"]["seed"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    check_same(quickstart(), tmp_path)
    old["train"]["colour"] = "blue"
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"config.json: train.colour is 'blue'"):
        check_same(quickstart(), tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train.seed", 1.5),
        ("train.seed", True),
        ("data.flip", 1),
        ("data.scale", 1.0),
        ("data.crop_size", "128"),
        ("data.mean", ["a", 0.5, 0.5]),
        ("data.scale", [1e-300, 1e300]),
        ("optim.learning_rate", 1e30),
        ("optim.learning_rate", "0.1"),
        ("model.options", [1]),
        ("eval", 5),
    ],
)
def test_a_field_of_another_type_is_named(field, value, tmp_path):
    written = json.loads(configs.to_json(quickstart()))
    group, _, name = field.partition(".")
    if name:
        written[group][name] = value
    else:
        written[group] = value
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match=rf"config.json: {field}.* is "):
        configs.read(tmp_path)


def test_a_folder_without_a_config_is_no_run(tmp_path):
    (tmp_path / "a.log").touch()
    for path in (tmp_path, tmp_path / "none", tmp_path / "a.log"):
        with pytest.raises(UserError, match=rf"{path} is no workdir of a run: it has no config.json"):
            configs.read(path)
    (tmp_path / "config.json").write_text('{"data":')
    with pytest.raises(UserError, match=r"config.json"):
        configs.read(tmp_path)


def test_options_reach_the_network(tiny):
    config = tiny_config()
    with config.unlocked():
        config.model.options = ConfigDict({"width": 5})
    model = configs.build_model(config, 11)
    assert (model.width, model.num_classes) == (5, 11)
    with config.unlocked():
        config.model.options = ConfigDict({"widht": 5})
    with pytest.raises(UserError, match=r"tiny has no option 'widht'.*: did you mean width"):
        configs.build_model(config, 11)


def test_lists_of_a_config_that_was_read_back_become_tuples(tiny):
    config = ConfigDict(json.loads(configs.to_json(quickstart())))
    config.model.options = ConfigDict({"rates": [1, 2, 3]})
    assert configs.build_model(config, 11).rates == (1, 2, 3)


def test_the_name_of_the_workdir_comes_from_the_config():
    from jaxseg.main import default_workdir

    assert default_workdir("configs/quickstart.py") == str(pathlib.Path("runs/quickstart"))
    assert default_workdir("configs/deeplab.py:resnet50,voc") == str(pathlib.Path("runs/deeplab-resnet50-voc"))
    assert default_workdir("/far/away/mine.py:voc") == str(pathlib.Path("runs/mine-voc"))


def test_the_config_flag_gives_file_and_argument():
    # The default workdir is made of it.
    from absl import flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(["program", f"--config={ROOT / 'configs' / 'deeplab.py'}:resnet18,shapes"])
    assert config_flags.get_config_filename(values["config"]).endswith("deeplab.py:resnet18,shapes")


def test_a_run_from_before_a_field_was_there_has_its_default(tmp_path):
    config = quickstart(optim__learning_rate=0.05).to_dict()
    del config["loss"]["auxiliary"], config["refine"], config["optim"]["momentum"]
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    found = configs.read(tmp_path)
    assert found.loss.auxiliary == FIELDS["loss.auxiliary"]
    assert (found.refine.width, found.optim.learning_rate) == (FIELDS["refine.width"], 0.05)
    assert flatten(found) == flatten(quickstart(optim__learning_rate=0.05))
    validate(found)
