"""Runs that start from weights: what is loaded, what is told, and the normalisation that the run keeps."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import Tiny, TinyBackbone, at_step, rows, saved, steps
from safetensors.numpy import save_file

import jaxseg
from configs import default
from jaxseg import build, score
from jaxseg import config as configs
from jaxseg.errors import UserError
from jaxseg.models.pretrained import BACKBONE_LAYOUTS, smp, torchvision
from jaxseg.models.pretrained.entries import batch_norm, conv, within
from jaxseg.process import Interrupted
from jaxseg.state import init_variables
from jaxseg.step import normalise
from jaxseg.train import train
from jaxseg.weights import tensors_of as weights_for

pytest_plugins = ["tiny_runs"]

TINY = Tiny(TinyBackbone(), num_classes=5)
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.25, 0.5)


def tiny_backbone(backbone):
    yield from conv(("conv",), "conv1", bias=True, role="stem")
    yield from batch_norm(("bn",), "bn1")


def tiny_model(model):
    yield from within(("backbone",), "encoder.", tiny_backbone(model.backbone))
    yield from conv(("head",), "decoder", bias=True)
    yield from conv(("classifier",), "segmentation_head.0", bias=True, role="head")


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    """The tiny network as one of SMP's, its backbone as one of torchvision's, which has a normalisation of its own."""
    monkeypatch.setitem(torchvision.BACKBONES, TinyBackbone, tiny_backbone)
    monkeypatch.setitem(smp.MODELS, Tiny, tiny_model)
    find = BACKBONE_LAYOUTS["torchvision"]

    def layout(backbone):
        found = find(backbone)
        return found and found._replace(mean=MEAN, std=STD)

    monkeypatch.setitem(BACKBONE_LAYOUTS, "torchvision", layout)


def tensors_of(layout) -> dict[str, np.ndarray]:
    """Random tensors of the tiny network with 5 classes, under a layout's names; CamVid has 11."""
    shapes, rng = flatten_dict(jax.eval_shape(lambda: init_variables(TINY, 0))), np.random.default_rng(0)
    return {
        entry.name: entry.to_theirs(rng.uniform(0.5, 1.5, shapes[entry.path].shape).astype(np.float32))
        for entry in layout
    }


def backbone_tensors() -> dict[str, np.ndarray]:
    return tensors_of(within(("backbone",), "", tiny_backbone(TINY.backbone)))


@pytest.fixture
def backbone_file(tmp_path):
    path = tmp_path / "backbone.safetensors"
    save_file(backbone_tensors(), path)
    return path


def run(config, workdir) -> list[str]:
    lines = []
    train(config, workdir, log=lines.append)
    return lines


def stored(workdir):
    return json.loads((workdir / "config.json").read_text())["data"]


def variables_at_start(config, workdir, monkeypatch):
    """What a run of this config trains first."""
    seen = {}
    place = build.replicate

    def keep(state, mesh):
        seen.update(flatten_dict(jax.tree.map(np.asarray, state.variables)))
        return place(state, mesh)

    monkeypatch.setattr(build, "replicate", keep)
    lines = run(config, workdir)
    return seen, lines


def short(tiny, **fields):
    return tiny.config(train__num_steps=2, train__eval_every=0, **fields)


def test_a_run_starts_from_a_backbone_and_is_normalised_as_that_was(tiny, tmp_path, backbone_file, monkeypatch):
    config = short(tiny, model__weights=str(backbone_file))
    variables, lines = variables_at_start(config, tmp_path / "run", monkeypatch)
    theirs = backbone_tensors()
    np.testing.assert_array_equal(
        variables["params", "backbone", "conv", "kernel"], np.einsum("oihw->hwio", theirs["conv1.weight"])
    )
    np.testing.assert_array_equal(variables["batch_stats", "backbone", "bn", "var"], theirs["bn1.running_var"])
    own = flatten_dict(init_variables(configs.build_model(config, 11), config.train.seed))
    for path in (("params", "head", "kernel"), ("params", "classifier", "kernel")):
        np.testing.assert_array_equal(variables[path], own[path])
    assert stored(tmp_path / "run")["mean"] == list(MEAN) and stored(tmp_path / "run")["std"] == list(STD)
    assert config.data.mean == ()  # the caller's is left alone
    told = "\n".join(lines)
    assert f"6 tensors of tiny from {backbone_file}, under torchvision's names" in told
    assert "initialised anew, for a classifier has none: classifier, head" in told
    assert f"images are normalised by mean {MEAN} and std {STD}" in told


def test_prediction_and_training_use_the_stored_normalisation(tiny, tmp_path, backbone_file, monkeypatch):
    used = []
    for name in ("create_train_step", "create_eval_step", "fill_colour"):
        home = score if name == "create_eval_step" else build
        make = getattr(home, name)

        def record(*args, make=make, name=name, **how):
            used.append((name, how.get("mean", args[0] if args else None), how.get("std")))
            return make(*args, **how)

        monkeypatch.setattr(home, name, record)
    run(short(tiny, model__weights=str(backbone_file)), tmp_path / "run")
    assert {name: tuple(mean) for name, mean, _ in used} == dict.fromkeys(
        ("create_train_step", "create_eval_step", "fill_colour"), MEAN
    )
    assert {tuple(std) for name, _, std in used if name != "fill_colour"} == {STD}
    assert jaxseg.load(tmp_path / "run")._fill == tuple(round(255 * value) for value in MEAN)


def test_a_whole_model_with_other_classes_is_fine_tuned(tiny, tmp_path, monkeypatch):
    theirs = tensors_of(tiny_model(TINY))
    save_file(theirs, tmp_path / "model.safetensors")
    config = short(tiny, model__weights=str(tmp_path / "model.safetensors"))
    variables, lines = variables_at_start(config, tmp_path / "run", monkeypatch)
    np.testing.assert_array_equal(variables["params", "head", "bias"], theirs["decoder.bias"])
    assert variables["params", "classifier", "kernel"].shape[-1] == 11
    assert any("the classifier has 5 classes in the file and 11 here: initialised anew" in line for line in lines)
    assert any("8 tensors of Tiny from " in line and "under smp's names" in line for line in lines)
    assert stored(tmp_path / "run")["mean"] == [0.485, 0.456, 0.406]


def test_a_normalisation_that_is_set_wins_and_is_told(tiny, tmp_path, backbone_file):
    config = short(tiny, model__weights=str(backbone_file), data__mean=(0.1, 0.2, 0.3))
    lines = run(config, tmp_path / "run")
    assert stored(tmp_path / "run")["mean"] == [0.1, 0.2, 0.3] and stored(tmp_path / "run")["std"] == list(STD)
    assert [line for line in lines if line.startswith("data.")] == [
        f"data.mean is set to (0.1, 0.2, 0.3); the weights were trained with {MEAN}"
    ]


def test_one_that_is_set_to_the_weights_own_is_not_told(tiny, tmp_path, backbone_file):
    lines = run(short(tiny, model__weights=str(backbone_file), data__mean=MEAN, data__std=STD), tmp_path / "run")
    assert not any(line.startswith("data.") for line in lines)


def test_a_run_goes_on_without_the_file_and_with_its_normalisation(tiny, tmp_path, backbone_file, monkeypatch):
    config = tiny.config(model__weights=str(backbone_file), train__eval_every=0)

    def stop():
        import os
        import signal

        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        at_step(patched, 6, stop)
        with pytest.raises(Interrupted):
            run(config, tmp_path / "run")
    backbone_file.unlink()
    lines = run(config, tmp_path / "run")
    assert any(line.startswith("going on from step ") for line in lines)
    assert not any("tensors of" in line for line in lines)
    assert stored(tmp_path / "run")["mean"] == list(MEAN)
    with pytest.raises(UserError, match=r"another config(?s:.*)data\.mean: \[0\.5, 0\.4, 0\.3\] there, \[0\.1, "):
        run(
            tiny.config(model__weights=str(backbone_file), train__eval_every=0, data__mean=(0.1, 0.1, 0.1)),
            tmp_path / "run",
        )


def test_a_best_score_without_a_latest_step_does_not_lose_the_weights(tiny, tmp_path, backbone_file, monkeypatch):
    # Killed after an evaluation and before the first checkpoint: the run begins anew, from the weights.
    config = tiny.config(model__weights=str(backbone_file), train__checkpoint_every=12)

    def crash():
        raise RuntimeError("the machine went away")

    with monkeypatch.context() as patched:
        at_step(patched, 6, crash)
        with pytest.raises(RuntimeError):
            run(config, tmp_path / "run")
    assert steps(tmp_path / "run", "best") == [4] and not steps(tmp_path / "run", "latest")
    run(config, tmp_path / "run")
    run(config, tmp_path / "unbroken")
    assert rows(tmp_path / "run") == rows(tmp_path / "unbroken")
    for name, value in saved(tmp_path / "unbroken", "latest").items():
        if name != "progress":
            np.testing.assert_array_equal(saved(tmp_path / "run", "latest")[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__mean": (0.5,)}, r"data.mean"),
        ({"data__std": (1.0, 1.0, 0.0)}, r"data.std"),
        ({"data__mean": (0.5, 0.5, float("nan"))}, r"data.mean"),
    ],
)
def test_a_normalisation_that_makes_no_sense_is_refused(fields, message, tiny):
    with pytest.raises(UserError, match=message):
        configs.validate(tiny.config(**fields))


# ------------------------------------------------------------------------------------------------- a run of one's own


def paths_of(variables) -> dict[tuple[str, ...], np.ndarray]:
    return {path: np.asarray(tensor) for path, tensor in flatten_dict(variables).items()}


HEAD = {("params", "classifier", name) for name in ("kernel", "bias")}


def test_a_run_starts_from_another_run(finished, tiny, tmp_path, monkeypatch):
    other = short(tiny, model__weights=str(finished), train__seed=3)
    variables, lines = variables_at_start(other, tmp_path / "run", monkeypatch)
    due = paths_of(jaxseg.load(finished).variables)
    assert variables.keys() == due.keys()
    for path, tensor in due.items():
        np.testing.assert_array_equal(variables[path], tensor, err_msg=str(path))
    assert any(str(finished) in line and f"{len(due)} tensors" in line for line in lines)
    # What trained is not what was given.
    after = paths_of(jaxseg.load(tmp_path / "run").variables)
    assert any(np.abs(after[path] - due[path]).max() > 0 for path in due)


def test_the_normalisation_is_that_of_the_other_run(tiny, tmp_path, backbone_file):
    run(short(tiny, model__weights=str(backbone_file)), tmp_path / "first")
    run(short(tiny, model__weights=str(tmp_path / "first")), tmp_path / "second")
    assert stored(tmp_path / "second")["mean"] == list(MEAN) and stored(tmp_path / "second")["std"] == list(STD)


def test_a_run_with_other_classes_keeps_all_but_the_last_layer(finished, tiny):
    model, due = Tiny(TinyBackbone(), num_classes=3), paths_of(jaxseg.load(finished).variables)
    lines = []
    loaded = paths_of(jaxseg.load_pretrained(model, finished, seed=7, log=lines.append))
    fresh = paths_of(init_variables(model, 7))
    assert loaded.keys() == due.keys()
    for path, tensor in loaded.items():
        np.testing.assert_array_equal(tensor, (fresh if path in HEAD else due)[path], err_msg=str(path))
    assert any("11 classes there and 3 here" in line for line in lines)


def test_as_many_classes_of_other_names_are_other_classes(finished, tiny):
    run = jaxseg.load(finished)
    same = weights_for(run.model, finished, class_names=run.info.class_names)
    turned = weights_for(run.model, finished, class_names=run.info.class_names[::-1])
    assert same.tensors.keys() - turned.tensors.keys() == HEAD
    assert any(run.info.class_names[-1] in line for line in turned.report)


@pytest.mark.parametrize("which", ["", "checkpoints", "checkpoints/best", "checkpoints/latest", "checkpoints/best/8"])
def test_a_checkpoint_of_a_run_may_be_named(which, finished, tiny):
    step = {"checkpoints/latest": "latest"}.get(which, "best")
    if which.endswith("8"):
        (step,) = steps(finished, "best")
        which = f"checkpoints/best/{step}"
    due = paths_of(jaxseg.load(finished, checkpoint=step).variables)
    found = weights_for(jaxseg.load(finished).model, finished / which).tensors
    for path, tensor in due.items():
        np.testing.assert_array_equal(found[path], tensor)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Tiny(TinyBackbone(), 11, width=4), ["width", "8", "4"]),
        (Tiny(TinyBackbone(output_stride=8), 11), ["output_stride", "16", "8"]),
        (Tiny(TinyBackbone(dilate_first_block=False), 11), ["backbone_options.dilate_first_block"]),
        (Tiny(TinyBackbone(), 11, in_channels=4), ["in_channels"]),
        (jaxseg.create_model("unet", backbone="plain", num_classes=11, width=8), ["PlainUNet", "Tiny on tiny"]),
    ],
)
def test_a_run_of_another_network_is_refused_by_the_options_name(model, words, finished, tiny):
    with pytest.raises(UserError) as caught:
        jaxseg.load_pretrained(model, finished)
    message = str(caught.value)
    assert all(word in message for word in [*words, str(finished)]) and "\n" not in message


def test_what_is_named_may_differ_and_is_said(finished, tiny):
    option = "backbone_options.dilate_first_block"
    model = Tiny(TinyBackbone(dilate_first_block=False), 11, dropout=0.5)  # no value depends on dropout
    found = weights_for(model, finished, [option])
    assert len(found.tensors) == len(paths_of(jaxseg.load(finished).variables))
    assert any(option in line for line in found.report)
    # No name makes other shapes fit.
    with pytest.raises(UserError, match="width is 8 there and 4 here"):
        weights_for(Tiny(TinyBackbone(), 11, width=4), finished, ["width"])


def test_a_folder_that_is_no_run_is_refused(tmp_path, tiny):
    with pytest.raises(UserError, match="no workdir of a run"):
        jaxseg.load_pretrained(TINY, tmp_path)


def test_a_runs_variables_go_to_another_library_and_come_back(finished, tiny, tmp_path):
    run = jaxseg.load(finished)
    jaxseg.export_weights(run.model, run.variables, tmp_path / "out.safetensors", layout="smp")
    back = paths_of(jaxseg.load_pretrained(run.model, tmp_path / "out.safetensors", log=lambda line: None))
    for path, tensor in paths_of(run.variables).items():
        np.testing.assert_array_equal(back[path], tensor)


def test_a_loaded_run_can_be_applied_by_hand(finished, tiny):
    run, image = jaxseg.load(finished), np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    logits = run.model.apply(run.variables, normalise(image[None], run.mean, run.std), train=False)
    np.testing.assert_allclose(jax.nn.softmax(logits)[0], run(image, probabilities=True), atol=1e-5)


@pytest.mark.parametrize(("argument", "due"), [("resnet50,shapes", True), ("vgg16,shapes", None)])
def test_a_run_of_fcn_from_before_keeps_its_dilation(argument, due, tmp_path):
    config = default.for_data("fcn", argument, ("resnet50", "shapes"))
    config.data.mean, config.data.std = MEAN, STD
    (tmp_path / "config.json").write_text(configs.to_json(config))
    assert "dilate_first_block" not in configs.read(tmp_path).model.backbone_options
    written = json.loads((tmp_path / "config.json").read_text())
    del written["model"]["may_differ"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert configs.read(tmp_path).model.backbone_options.get("dilate_first_block") is due
