"""What a run says of itself where it goes wrong: what is not finite, an error, a class that is never predicted."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import at_step, rows, saved, steps

import jaxseg
from jaxseg import build, metrics
from jaxseg.checkpoint import Checkpoints
from jaxseg.compare import runs
from jaxseg.errors import UserError
from jaxseg.evaluate import Evaluation
from jaxseg.process import Interrupted
from jaxseg.state import TrainState, nonfinite
from jaxseg.step import create_mesh, replicate, split_state
from jaxseg.train import train

pytest_plugins = ["tiny_runs"]


def told(workdir):
    return json.loads((workdir / "run.json").read_text())


def spoil(monkeypatch, step, change):
    """Lets a run take what `change` makes of its state for what its `step`-th step made."""
    create_steps = build.create_steps

    def create(*arguments):
        steps = create_steps(*arguments)
        train_step = steps.train

        def spoilt(state, batch):
            state, losses = train_step(state, batch)
            return (change(state) if int(state.step) == step else state), losses

        steps.train = spoilt
        return steps

    monkeypatch.setattr(build, "create_steps", create)


def with_one(tree, value):
    """`tree` with one number of its last float array set to `value`."""
    leaves, treedef = jax.tree.flatten(tree)
    last = max(i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.ndim)
    leaves[last] = jax.device_put(leaves[last].at[(0,) * leaves[last].ndim].set(value), leaves[last].sharding)
    return jax.tree.unflatten(treedef, leaves)


PARTS = {
    "params": lambda state: state.replace(params=with_one(state.params, np.nan)),
    "batch_stats": lambda state: state.replace(batch_stats=with_one(state.batch_stats, np.inf)),
    "opt_state": lambda state: state.replace(opt_state=with_one(state.opt_state, -np.inf)),
    "ema": lambda state: state.replace(ema=with_one(state.ema, np.nan)),
}


# ------------------------------------------------------------------------------------------------------- a broken state


@pytest.mark.parametrize("part", PARTS)
def test_what_the_last_update_broke_is_neither_saved_nor_called_finished(part, finished, tiny, tmp_path, monkeypatch):
    spoil(monkeypatch, 12, PARTS[part])
    lines, ema = [], 0.5 if part == "ema" else 0.0
    with pytest.raises(UserError, match=rf"step 12.*{part}.*last good checkpoint is step 9"):
        train(tiny.config(train__ema_decay=ema), tmp_path, log=lines.append)
    assert not any(line.startswith(("done", "step 12: val")) for line in lines)
    assert (told(tmp_path)["status"], told(tmp_path)["step"]) == ("failed", 12)
    assert steps(tmp_path, "latest") == [9] and told(tmp_path)["best_step"] < 12
    for kind in ("latest", "best"):
        arrays = {name: value for name, value in saved(tmp_path, kind).items() if name != "progress"}
        assert all(np.isfinite(value).all() for value in arrays.values())
    with pytest.raises(UserError, match=r"failed at step 12"):
        runs.read_runs([tmp_path])


def test_a_signal_saves_no_broken_state(tiny, tmp_path, monkeypatch):
    spoil(monkeypatch, 5, PARTS["params"])
    at_step(monkeypatch, 5, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(UserError, match=r"step 5.*last good checkpoint is step 3"):
        train(tiny.config(), tmp_path, log=lambda line: None)
    assert steps(tmp_path, "latest") == [3] and told(tmp_path)["status"] == "failed"


@pytest.mark.parametrize("part", ["params", "batch_stats", "opt_state"])
def test_a_checkpoint_that_is_not_finite_is_refused_whoever_reads_it(part, tmp_path):
    """As runs from before have them."""
    state = TrainState(
        jnp.asarray(3, jnp.int32), {"w": jnp.ones(4)}, {"mean": jnp.ones(3)}, (optax.TraceState({"w": jnp.ones(4)}),)
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", PARTS[part](state), {})
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match=r"latest/3 holds NaN or infinity"):
            checkpoints.restore(state)
        if part != "opt_state":
            with pytest.raises(UserError, match=r"latest/3 holds NaN or infinity"):
                checkpoints.restore_variables(state.variables, "latest", 3)
        else:
            checkpoints.restore_variables(state.variables, "latest", 3)


@pytest.mark.parametrize("spread", [replicate, split_state])
def test_every_number_is_looked_at_wherever_it_lies(spread):
    from jaxseg.state import _are_finite

    mesh = create_mesh()
    params = {"large": np.zeros((128, 128), np.float32), "small": np.zeros(3, np.float32), "whole": np.arange(4)}
    for place in [None, ("large", (0, 0)), ("large", (127, 127)), ("small", (2,))]:
        here = {name: value.copy() for name, value in params.items()}
        if place:
            here[place[0]][place[1]] = np.inf
        state = spread(TrainState(jnp.zeros((), jnp.int32), here, {}, ()), mesh)
        assert nonfinite(state) == ([f".params['{place[0]}']"] if place else [])
        # As several processes, or a GPU, look at it.
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
        assert bool(_are_finite(floats)) == (place is None)


def test_a_plateau_that_has_seen_nothing_yet_is_sound():
    state = optax.contrib.reduce_on_plateau().init({"w": jnp.ones(2)})
    assert np.isinf(state.best_value) and nonfinite(state) == []
    assert nonfinite(state._replace(scale=jnp.asarray(jnp.nan))) == [".scale"]


# -------------------------------------------------------------------------------------------------- a broken evaluation


def large(state):
    """Finite parameters whose logits are not."""
    params = {**state.params, "classifier": jax.tree.map(lambda x: jnp.full_like(x, 3e38), state.params["classifier"])}
    return state.replace(params=params)


@pytest.mark.parametrize("fields", [{}, {"eval__protocol": "slide", "eval__size": (32,)}])
def test_an_evaluation_whose_logits_are_not_finite_is_never_the_best(fields, tiny, tmp_path, monkeypatch):
    spoil(monkeypatch, 8, large)
    lines = []
    with pytest.raises(UserError, match="last good checkpoint is step"):
        train(tiny.config(**fields), tmp_path, log=lines.append)
    scores = {row["step"]: row for row in rows(tmp_path) if "val/mean_iou" in row}
    # It has scores, as the argmax of NaN is class 0, and they may even be high.
    assert scores[8]["val/mean_iou"] is not None and scores[8]["val/nonfinite_pixels"] > 0
    assert "val/nonfinite_pixels" not in scores[4]
    assert steps(tmp_path, "best") == [4] and (told(tmp_path)["best_step"], told(tmp_path)["status"]) == (4, "failed")
    assert json.loads((tmp_path / "evaluations" / "val-best.json").read_text())["step"] == 4
    [line] = [line for line in lines if line.startswith("step 8: val")]
    assert "not finite" in line and "best so far" not in line


@pytest.mark.parametrize("window", [None, 32])
def test_a_network_whose_logits_are_not_finite_predicts_nothing(window, finished, tiny):
    predictor, image = jaxseg.load(finished), np.zeros((40, 48, 3), np.uint8)
    assert predictor(image, window=window).shape == (40, 48)
    predictor.variables["params"]["classifier"]["bias"] = jnp.full(11, 3e38).at[0].set(jnp.inf)
    for probabilities in (False, True):
        with pytest.raises(UserError, match="not finite"):
            predictor(image, window=window, probabilities=probabilities)


# -------------------------------------------------------------------------------------------------------- how it ended


def test_an_error_fails_a_run_and_a_signal_stops_it(tiny, tmp_path, monkeypatch):
    def crash():
        raise RuntimeError("the machine went away")

    for action, error, status in (
        (crash, RuntimeError, "failed"),
        (lambda: signal.raise_signal(signal.SIGINT), Interrupted, "stopped"),
    ):
        with monkeypatch.context() as patch:
            at_step(patch, 2, action)
            with pytest.raises(error):
                train(tiny.config(), tmp_path / status, log=lambda line: None)
        assert told(tmp_path / status)["status"] == status


# ------------------------------------------------------------------------------------------------------- a class missed


def test_a_class_with_labelled_and_no_predicted_pixels_is_missed():
    counts = np.array([[996, 0, 0], [4, 0, 0], [0, 0, 0]])
    assert metrics.never_predicted(counts, ("ground", "disc", "absent")) == ["disc"]
    scalars = Evaluation(counts, 0.1, 1, []).scalars(("ground", "disc", "absent"), "val")
    assert (scalars["val/never_predicted"], scalars["val/absent_classes"]) == (1, 1)
    text = metrics.table(counts, ("ground", "disc", "absent"))
    assert "never predicted: disc (0.4 % of the pixels)" in text
    assert "never predicted" not in metrics.table(np.eye(3, dtype=int), ("ground", "disc", "absent"))


@pytest.fixture
def discs(tiny, tmp_path):
    """A folder of 64x64 images in each of which 16 pixels, 0.4 %, are a disc."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "discs" / kind).mkdir(parents=True)
    for number in range(10):
        mask = np.zeros((64, 64), np.uint8)
        mask[20:24, 20:24] = 1
        Image.fromarray(mask).save(tmp_path / "discs" / "masks" / f"{number}.png")
        noise = rng.integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "discs" / "images" / f"{number}.png")
    (tmp_path / "discs" / "classes.yaml").write_text("names: [ground, disc, absent]")
    return tmp_path / "discs"


def test_a_class_that_is_never_predicted_is_named_beside_each_score(discs, tiny, tmp_path):
    lines = []
    config = tiny.config(data__name="folder", data__dir=str(discs), train__num_steps=8)
    train(config, tmp_path / "run", log=lines.append)
    evaluations = [line for line in lines if line.startswith(("step 4: val", "step 8: val", "done"))]
    assert len(evaluations) == 3
    assert all("never predicted: disc" in line and "absent" not in line.partition("never")[2] for line in evaluations)
    assert all(row["val/never_predicted"] == 1 for row in rows(tmp_path / "run") if "val/mean_iou" in row)
    path = tmp_path / "run" / "evaluations" / "val-best.json"
    assert json.loads(path.read_text())["never_predicted"] == ["disc"]
    found = runs.rows(runs.group(runs.read_runs([tmp_path / "run"])[0]))
    assert [list(row.never_predicted) for row in found] == [["disc"]]
    [note] = runs.missed(found)
    assert "disc" in note


def test_where_the_watched_class_is_absent_pixels_were_valid_all_the_same(discs, tiny, tmp_path):
    lines = []
    config = tiny.config(data__name="folder", data__dir=str(discs), train__num_steps=2, train__best="iou/absent")
    train(config, tmp_path / "run", log=lines.append)
    assert lines[-1].startswith("done: no best") and "iou/absent" in lines[-1] and "valid" not in lines[-1]
    assert told(tmp_path / "run")["best_score"] is None
