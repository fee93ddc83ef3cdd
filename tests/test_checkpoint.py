"""Checkpoints: what is kept, what a save is worth while training goes on, and files that can't be used."""

import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import assert_same_run, saved, steps

from jaxseg import checkpoint
from jaxseg.checkpoint import Checkpoints, has_any, read_variables
from jaxseg.errors import UserError
from jaxseg.state import TrainState
from jaxseg.train import train

pytest_plugins = ["tiny_runs"]


def a_state(step, size=4, value=0.0):
    params = {"w": jnp.full((size,), value + step, jnp.float32)}
    stats = {"mean": jnp.full((3,), value - step, jnp.float32)}
    momentum = {"w": jnp.full((size,), value + 100 + step, jnp.float32)}
    return TrainState(jnp.asarray(step, jnp.int32), params, stats, (momentum,))


def some_progress(step):
    return {"best_mean_iou": None, "best_step": 0, "evaluated": step, "losses": [0.1, 1 / 3]}


def write(workdir, *saves):
    with Checkpoints(workdir) as checkpoints:
        for kind, step in saves:
            checkpoints.save(kind, a_state(step), some_progress(step))


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


# ------------------------------------------------------------------------------------------------------- what is kept


def test_each_kind_keeps_the_last_one(tmp_path):
    write(tmp_path, ("latest", 1), ("best", 1), ("latest", 2), ("latest", 3), ("best", 3), ("latest", 4))
    assert (steps(tmp_path, "latest"), steps(tmp_path, "best")) == ([4], [3])


def test_what_is_restored_is_what_was_saved(tmp_path):
    write(tmp_path, ("latest", 7))
    with Checkpoints(tmp_path) as checkpoints:
        state, progress = checkpoints.restore(a_state(0))
    assert_equal(state, a_state(7))
    assert progress == some_progress(7)


def test_moving_averages_take_the_place_of_the_variables_and_both_are_restored(tmp_path):
    averages = {"params": {"w": jnp.full((4,), 0.5)}, "batch_stats": {"mean": jnp.full((3,), 0.25)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", a_state(7).replace(ema=averages), some_progress(7))
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(a_state(0).replace(ema=jax.tree.map(jnp.zeros_like, averages)))
        variables = checkpoints.restore_variables(a_state(0).variables, "latest", 7)
    assert_equal(state, a_state(7).replace(ema=averages))
    assert_equal(variables, averages)


def test_the_variables_alone_can_be_read(tmp_path):
    write(tmp_path, ("best", 5), ("latest", 6))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        for kind, step in (("best", 5), ("latest", 6)):
            variables = checkpoints.restore_variables(a_state(0).variables, kind, step)
            assert_equal(variables, a_state(step).variables)


def test_a_better_score_at_an_earlier_step_takes_the_place_of_a_later_one(tmp_path):
    # A run was killed after its best score, and going on from before it is scored at other steps.
    write(tmp_path, ("best", 8), ("best", 7))
    assert steps(tmp_path, "best") == [7]
    write(tmp_path, ("best", 7))
    write(tmp_path, ("best", 6))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.find("best") == ("best", 6)


@pytest.mark.parametrize(
    ("which", "due"), [("best", ("best", 4)), ("latest", ("latest", 6)), ("4", ("best", 4)), ("6", ("latest", 6))]
)
def test_a_checkpoint_is_found_by_kind_and_by_step(which, due, tmp_path):
    write(tmp_path, ("best", 4), ("latest", 6))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.find(which) == due


def test_an_unknown_checkpoint_lists_those_there_are(tmp_path):
    write(tmp_path, ("best", 4), ("latest", 6))
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(UserError, match=r"no checkpoint '5' in .*: there are latest \(6\), best \(4\)$"),
    ):
        checkpoints.find("5")


def test_best_is_the_latest_where_nothing_was_scored(tmp_path):
    write(tmp_path, ("latest", 6))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.find("best") == ("latest", 6)


def test_a_folder_without_checkpoints_says_so(tmp_path):
    with pytest.raises(UserError, match="has no folder checkpoints/"):
        Checkpoints(tmp_path, read_only=True)
    assert not has_any(tmp_path)
    with Checkpoints(tmp_path):
        pass
    assert not has_any(tmp_path)
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(UserError, match="holds no finished checkpoint"),
    ):
        checkpoints.find("best")
    write(tmp_path, ("best", 1))
    assert has_any(tmp_path)


def test_reading_changes_nothing(tmp_path):
    write(tmp_path, ("best", 4), ("latest", 6))
    half = tmp_path / "checkpoints" / "latest" / "9.orbax-checkpoint-tmp"
    half.mkdir()
    before = sorted(tmp_path.rglob("*"))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        checkpoints.restore_variables(a_state(0).variables, "best", 4)
    assert sorted(tmp_path.rglob("*")) == before


# --------------------------------------------------------------------------------------------- saving while it goes on


def test_a_save_is_not_changed_by_the_steps_after_it(tmp_path):
    size = 2**22
    step_on = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = a_state(1, size)
    losses = [0.5]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", state, {"losses": losses})
        losses.append(0.25)
        for _ in range(20):
            state = step_on(state)
        checkpoints.wait()
        assert int(state.step) == 21
        restored, progress = checkpoints.restore(state)
    assert_equal(restored, a_state(1, size))
    assert progress == {"losses": [0.5]}


def test_no_array_that_is_saved_in_the_background_is_one_that_may_be_donated(tmp_path, monkeypatch):
    handed = []
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._managers["latest"], "save", lambda step, args, **_: handed.append(args))
        state = a_state(1)
        checkpoints.save("latest", state, some_progress(1))
        jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)
    assert state.params["w"].is_deleted()
    (args,) = handed
    assert_equal(args.variables.item, a_state(1).variables)
    assert_equal(args.optimizer.item, {"step": a_state(1).step, "opt_state": a_state(1).opt_state})


def test_the_best_is_whole_before_a_latest_that_names_it(tmp_path, monkeypatch):
    order = []
    with Checkpoints(tmp_path) as checkpoints:
        best, latest = checkpoints._managers["best"], checkpoints._managers["latest"]
        wait, save = best.wait_until_finished, latest.save
        monkeypatch.setattr(best, "wait_until_finished", lambda: (wait(), order.append("best is whole")))
        monkeypatch.setattr(latest, "save", lambda *a, **k: (order.append("latest begins"), save(*a, **k)))
        checkpoints.save("best", a_state(4), some_progress(4))
        order.clear()
        checkpoints.save("latest", a_state(4), some_progress(4))
    assert order[:2] == ["best is whole", "latest begins"]


def test_a_full_disk_names_the_step_that_is_safe(tmp_path, monkeypatch):
    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._managers["latest"], "save", full)
            with pytest.raises(
                UserError, match=r"No space left on device; \d+ MiB free\); nothing was saved yet: make"
            ):
                checkpoints.save("latest", a_state(3), some_progress(3))
        checkpoints.save("latest", a_state(3), some_progress(3))
        checkpoints.wait()
        monkeypatch.setattr(checkpoints._managers["latest"], "save", full)
        with pytest.raises(UserError, match="step 3 is safe there: make room or choose another --workdir"):
            checkpoints.save("latest", a_state(6), some_progress(6))


# ------------------------------------------------------------------------------------------- what can't be restored


def test_a_checkpoint_that_is_being_written_has_another_name(tmp_path):
    # What `half_written` looks for; a kill leaves this name behind.
    seen = set()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save("latest", a_state(1, 2**23), some_progress(1))
        folder = tmp_path / "checkpoints" / "latest"
        while not (folder / "1").exists():
            seen |= {path.name for path in folder.glob("*") if path.name != "1"}
    assert seen == {"1.orbax-checkpoint-tmp"}


def test_a_half_written_checkpoint_is_stepped_over_and_said(finished_copy, tiny):
    folder = finished_copy / "checkpoints" / "latest"
    half = folder / "15.orbax-checkpoint-tmp"
    shutil.copytree(folder / "12", half)
    for path in half.rglob("_METADATA"):
        path.unlink()
    lines = []
    train(tiny.config(train__num_steps=14), finished_copy, log=lines.append)
    assert f"stepped over the half-written checkpoint {half}" in lines
    assert "going on from step 12" in lines
    assert not half.exists() and steps(finished_copy, "latest") == [14]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "arrays cut short": lambda folder: [cut(path) for path in folder.glob("*/**/d/*")],
    "arrays gone": lambda folder: [path.unlink() for path in folder.glob("*/**/d/*")],
    "structure cut short": lambda folder: cut(folder / "variables" / "_METADATA"),
    "optimizer gone": lambda folder: shutil.rmtree(folder / "optimizer"),
    "variables gone": lambda folder: shutil.rmtree(folder / "variables"),
    "progress cut short": lambda folder: cut(folder / "progress" / "metadata"),
    "all files empty": lambda folder: [path.write_bytes(b"") for path in folder.rglob("*") if path.is_file()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_with_the_remedy(damage, tmp_path):
    write(tmp_path, ("latest", 6))
    folder = tmp_path / "checkpoints" / "latest" / "6"
    DAMAGES[damage](folder)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(a_state(0))
    assert str(error.value).startswith(f"the checkpoint {folder} can't be read (")
    assert "move it away to start again without it" in str(error.value) and "\n" not in str(error.value)


def test_a_run_with_a_damaged_checkpoint_starts_anew_once_it_is_moved_away(finished, finished_copy, tiny):
    folder = finished_copy / "checkpoints" / "latest" / "12"
    DAMAGES["arrays cut short"](folder)
    with pytest.raises(UserError, match=f"the checkpoint {folder} can't be read"):
        train(tiny.config(), finished_copy, log=lambda line: None)
    folder.rename(finished_copy / "damaged")
    train(tiny.config(), finished_copy, log=lambda line: None)
    left, right = saved(finished_copy, "latest"), saved(finished, "latest")
    jax.tree.map(np.testing.assert_array_equal, left, right)


def flip(path, place, bit=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("item", ["variables", "optimizer", "progress"])
def test_a_flipped_bit_is_named_and_one_in_what_is_not_read_is_harmless(item, tmp_path):
    write(tmp_path, ("best", 4), ("latest", 6))
    for kind, step in (("best", 4), ("latest", 6)):
        folder = tmp_path / "checkpoints" / kind / str(step)
        flip(largest(folder / item), 9, 3)
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as error:
            checkpoints.restore(a_state(0), kind)
        assert str(folder) in str(error.value) and largest(folder / item).name in str(error.value)
        if item == "variables":
            with pytest.raises(UserError, match=f"{kind}/{step}"):
                read_variables(tmp_path, a_state(0).variables, kind)
        else:
            assert_equal(read_variables(tmp_path, a_state(0).variables, kind)[0], a_state(step).variables)


def test_a_checkpoint_under_another_step_or_without_its_list_is_refused(tmp_path):
    write(tmp_path, ("latest", 6))
    folder = (tmp_path / "checkpoints" / "latest" / "6").rename(tmp_path / "checkpoints" / "latest" / "7")
    with pytest.raises(UserError, match=r"latest/7 .*step 6"):
        read_variables(tmp_path, a_state(0).variables, "latest")
    folder = folder.rename(folder.with_name("6"))
    (folder / "B2SUMS").unlink()
    with pytest.raises(UserError, match=r"latest/6 .*B2SUMS is missing"):
        read_variables(tmp_path, a_state(0).variables, "latest")


def test_a_checkpoint_from_before_there_were_checksums_is_read_with_a_word(tmp_path):
    write(tmp_path, ("latest", 6))
    folder, lines = tmp_path / "checkpoints" / "latest" / "6", []
    for name in ("B2SUMS", "_CHECKPOINT_METADATA"):
        (folder / name).unlink()
    variables, *found = read_variables(tmp_path, a_state(0).variables, "best", lines.append)
    assert_equal(variables, a_state(6).variables)
    assert found == ["latest", 6] and len(lines) == 1 and str(folder) in lines[0]


def test_the_list_is_there_when_the_checkpoint_gets_its_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 6):
            checkpoints.save("latest", a_state(step, 2**20), some_progress(step))
            folder = tmp_path / "checkpoints" / "latest" / str(step)
            while not folder.exists():
                pass
            assert (folder / "B2SUMS").exists()


def test_the_best_takes_the_place_of_a_damaged_latest_where_the_user_says_so(finished, finished_copy, tiny):
    latest = finished_copy / "checkpoints" / "latest" / "12"
    flip(largest(latest / "optimizer"), 100)
    with pytest.raises(UserError, match=r"latest/12 .*best \(8\).*--best_if_damaged"):
        train(tiny.config(), finished_copy, log=lambda line: None)
    lines = []
    train(tiny.config(), finished_copy, log=lines.append, best_if_damaged=True)
    assert "going on from step 8" in lines
    assert_same_run(finished_copy, finished)
    assert [path.name for path in (finished_copy / "checkpoints" / "damaged").iterdir()] == ["latest-12"]
    flip(largest(finished_copy / "checkpoints" / "latest" / "12" / "progress"), 20)
    flip(largest(finished_copy / "checkpoints" / "best" / "8" / "variables"), 100)
    with pytest.raises(UserError, match=r"best/8"):
        train(tiny.config(), finished_copy, log=lambda line: None, best_if_damaged=True)


def test_a_reader_beside_a_run_takes_the_next_checkpoint(tmp_path):
    """The run saves as fast as it can, so that what is read is rotated away again and again."""
    write(tmp_path, ("latest", 1), ("best", 1))
    ended, seen = threading.Event(), []

    def run():
        with Checkpoints(tmp_path) as checkpoints:
            for step in range(2, 12):
                for kind in ("latest", "best"):
                    checkpoints.save(kind, a_state(step), some_progress(step))
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not ended.is_set():
        for which in ("latest", "best"):
            variables, kind, step = read_variables(tmp_path, a_state(0).variables, which)
            assert kind == which
            assert_equal(variables, a_state(step).variables)
            seen.append(step)
    thread.join()
    assert len(set(seen)) > 2


def test_a_checkpoint_that_goes_while_it_is_read_gives_way_to_the_next(tmp_path, monkeypatch):
    write(tmp_path, ("latest", 6))
    restore, calls = checkpoint._restore, []

    def rotated(folder, like):
        calls.append(folder)
        if len(calls) == 1:
            write(tmp_path, ("latest", 7))
        return restore(folder, like)

    monkeypatch.setattr(checkpoint, "_restore", rotated)
    variables, _, step = read_variables(tmp_path, a_state(0).variables, "latest")
    assert step == 7 and len(calls) == 2
    assert_equal(variables, a_state(7).variables)
    with pytest.raises(UserError, match=r"no checkpoint '6'"):
        read_variables(tmp_path, a_state(0).variables, "6")


def other_shape(state):
    return state.replace(params={"w": jnp.zeros((5,))})


def other_names(state):
    return state.replace(params={"v": state.params["w"]})


def other_optimizer(state):
    return state.replace(opt_state=(*state.opt_state, {"nu": jnp.zeros((4,))}))


@pytest.mark.parametrize("change", [other_shape, other_names, other_optimizer])
def test_restoring_into_another_network_is_refused(change, tmp_path):
    write(tmp_path, ("latest", 6))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"latest/6 can't be read .* it is damaged or of another network"),
    ):
        checkpoints.restore(change(a_state(0)))


def test_variables_of_another_network_are_refused(tmp_path):
    write(tmp_path, ("best", 6))
    with (
        Checkpoints(tmp_path, read_only=True) as checkpoints,
        pytest.raises(UserError, match=r"best/6 can't be read .* it is damaged or of another network"),
    ):
        checkpoints.restore_variables(other_shape(a_state(0)).variables, "best", 6)


def test_progress_is_plain_json(tmp_path):
    write(tmp_path, ("latest", 6))
    text = (tmp_path / "checkpoints" / "latest" / "6" / "progress" / "metadata").read_text()
    assert json.loads(text) == some_progress(6)


def test_the_arrays_are_readable_without_this_library(tmp_path):
    write(tmp_path, ("latest", 6))
    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(tmp_path / "checkpoints" / "latest" / "6" / "variables")
    assert_equal(jax.tree.map(np.asarray, tree), jax.tree.map(np.asarray, a_state(6).variables))
