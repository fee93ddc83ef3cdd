"""Checkpoints by Orbax, asynchronous and atomic: `WORKDIR/checkpoints/latest/STEP` and `.../best/STEP`.

`latest` is what a run goes on from, `best` has the best score so far, by `train.best`; each keeps one step and drops it
only once the next is whole; a step that a resumed run comes to again is dropped first. A checkpoint has three items:
`variables` (what was scored: parameters and batch statistics, or their moving averages), `optimizer` (step, optimizer
state and what else training needs) and `progress` (JSON: scores so far, losses not yet written). The data stream's
state is the step.

Beside them lies `B2SUMS`, the checksums of all their files and the step, see `checksums`. It is written before the
checkpoint gets its name, so one that has the name has checksums, and whatever is read is checked by them first.
"""

import contextlib
import copy
import gc
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxseg import checksums
from jaxseg.errors import UserError, shown
from jaxseg.files import CHECKPOINTS, read_bytes
from jaxseg.state import TrainState, nonfinite

KINDS = ("latest", "best")
ITEMS = ("variables", "optimizer", "progress")
DAMAGED = "damaged"  # the folder that a damaged checkpoint is moved to where the run goes on from another
ROTATES = 2.0  # seconds that a checkpoint which is going may take to be gone, and one that comes to come


class _Manager(ocp.CheckpointManager):
    """Orbax's, but it does not ask whether a signal came: `processes.group` does, and JAX counts whoever asks."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last save and closes.

    Args:
      workdir: of the run.
      read_only: whether nothing is saved.
      still_there: raises a `UserError` where the workdir was moved meanwhile; what was just being saved is not left
        behind at its old place then.

    Attributes:
      half_written: folders that a process which was killed has left.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        read_only: bool = False,
        still_there: Callable[[], None] = lambda: None,
    ):
        self._still_there, self._saving = still_there, -1
        self.folder = pathlib.Path(workdir).absolute() / CHECKPOINTS
        if read_only and not self.folder.is_dir():
            raise UserError(
                f"{shown(workdir)} has no folder {CHECKPOINTS}/: it is no workdir of a run, or nothing was saved yet"
            )
        self._managers: dict[str, _Manager] = {}
        # Looked for before Orbax cleans up.
        self.half_written = sorted(str(path) for path in self.folder.glob("*/*.orbax-checkpoint-tmp*"))
        if read_only:
            return
        for kind in KINDS:
            with self._errors("open", kind):
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=1,
                    cleanup_tmp_directories=True,
                    async_options=ocp.AsyncOptions(post_finalization_callback=lambda kind=kind: self._sum(kind)),
                )
                self._managers[kind] = _Manager(self.folder / kind, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        try:
            with self._errors("write"):
                for manager in self._managers.values():
                    manager.close()
        finally:
            self._leave_nothing_behind()

    def _leave_nothing_behind(self) -> None:
        try:
            self._still_there()
        except UserError:
            # Orbax makes the folders of a save anew where they are gone.
            for path in self.folder.glob("*/*"):
                if path.name.partition(".")[0] == str(self._saving):
                    shutil.rmtree(path, ignore_errors=True)
            for path in (*(self.folder / kind for kind in KINDS), self.folder, self.folder.parent):
                with contextlib.suppress(OSError):
                    path.rmdir()

    @property
    def latest(self) -> int | None:
        """The last step that was saved whole."""
        return self._step("latest")

    def _step(self, kind: str) -> int | None:
        if kind in self._managers:
            return self._managers[kind].latest_step()
        return max(steps(self.folder / kind), default=None)

    def find(self, which: str | int) -> tuple[str, int]:
        """The folder and step that 'best', 'latest' or a number names; 'best' is the latest where none was scored.

        Raises:
          UserError: there is no such checkpoint; the message lists those there are.
        """
        there = {kind: step for kind in KINDS if (step := self._step(kind)) is not None}
        if not there:
            raise UserError(f"{self.folder} holds no finished checkpoint: let the run reach train.checkpoint_every")
        if which == "best" and which not in there:
            which = "latest"
        if which in there:
            return which, there[which]
        for kind, step in there.items():
            if str(which) == str(step):
                return kind, step
        have = ", ".join(f"{kind} ({step})" for kind, step in there.items())
        raise UserError(f"there is no checkpoint '{shown(which)}' in {self.folder}: there are {have}")

    def where_to_go_on(self, *, best_if_damaged: bool) -> tuple[int, str, list[str]]:
        """The step that a run goes on from, 0 for none, the kind it is saved as, and lines on it.

        Args:
          best_if_damaged: whether that is the best one where the latest is damaged or gone.

        Raises:
          UserError: the checkpoint is damaged.
        """
        latest, best = self._step("latest"), self._step("best")
        found = self.fault("latest", latest) if latest is not None else "there is none"
        if found and best is not None and best_if_damaged:
            if of_best := self.fault("best", best):
                raise self.damaged("best", best, of_best)
            return best, "best", [f"going on from the best checkpoint, for the latest ({latest}) is damaged: {found}"]
        if latest is None:
            return 0, "latest", []
        if found:
            raise self.damaged("latest", latest, found)
        return latest, "latest", []

    def move_away(self, kind: str) -> None:
        """Moves the checkpoint of a kind, if any, to the folder of damaged ones."""
        step = self._step(kind)
        if step is None:
            return
        with self._errors("write"):
            target = self.folder / DAMAGED / f"{kind}-{step}"
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            (self.folder / kind / str(step)).rename(target)

    def save(self, kind: str, state: TrainState, progress: Mapping[str, Any]) -> None:
        """Starts saving as 'latest' or 'best'; the state may be donated as soon as this returns.

        Raises:
          UserError: this save or the one before it failed (a full disk); what was saved before is still there.
        """
        step, manager = int(state.step), self._managers[kind]
        # Orbax copies in the background, and on a CPU its copy can be a view of the buffer that the next step reuses.
        state = _copy(state)
        # The progress of 'latest' names the best step, which must be whole first; and what is still being written can't
        # be deleted.
        self.wait()
        self._still_there()
        with self._errors("write"):
            if step in manager.all_steps():
                # A run that was killed after its best score and resumed from before it comes here again.
                manager.delete(step)
            self._saving = step
            manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(item) for name, item in state.to_items().items()},
                    # Written in the background too, while the loop adds losses to the very list in it.
                    progress=ocp.args.JsonSave(copy.deepcopy(dict(progress))),
                ),
                force=True,
                custom_metadata={"checksums": checksums.SUMS},
            )

    def _sum(self, kind: str) -> None:
        """Writes the checksums of a checkpoint whose items are whole and which has not its name yet; in process 0."""
        (folder,) = (self.folder / kind).glob(f"{self._saving}.orbax-checkpoint-tmp*")
        of_items = [name for name in checksums.files_in(folder) if name.partition("/")[0] in ITEMS]
        checksums.write(folder, _title(self._saving), of_items)

    def wait(self) -> None:
        """Returns once the last save is on disk.

        Raises:
          UserError: it failed.
        """
        with self._errors("write"):
            for manager in self._managers.values():
                manager.wait_until_finished()

    def fault(self, kind: str, step: int, parts: tuple[str, ...] = ITEMS) -> str | None:
        """What is wrong with the files of a checkpoint, or of items of it: '' for nothing, None without checksums."""
        folder = self.folder / kind / str(step)
        found = checksums.fault(folder, _title(step), parts)
        if found is None:
            with contextlib.suppress(OSError):
                if checksums.SUMS in (folder / "_CHECKPOINT_METADATA").read_text(errors="replace"):
                    return f"{checksums.SUMS} is missing"
        return found

    def restore(self, like: TrainState, kind: str = "latest") -> tuple[TrainState, dict[str, Any]]:
        """The state of a kind in the shapes and shardings of `like`, and its progress.

        Raises:
          UserError: the checkpoint is of another network, damaged or not finite.
        """
        like, step = _abstract(like), self._step(kind)
        folder = self._checked(kind, step, ITEMS)
        with self._errors("read", f"{kind}/{step}"):
            items = {name: _restore(folder / name, item) for name, item in like.to_items().items()}
            progress = json.loads(read_bytes(folder / "progress" / "metadata", most=2**28))
        for item in items.values():
            self._check_finite(item, f"{kind}/{step}")
        return like.from_items(items), progress

    def restore_variables(self, like: Mapping[str, Any], kind: str, step: int) -> dict[str, Any]:
        """The model's variables alone, in the shapes and shardings of `like`; `kind` and `step` as `find` gives them.

        Raises:
          UserError: the checkpoint is of another network, damaged or not finite.
        """
        folder = self._checked(kind, step, ("variables",))
        with self._errors("read", f"{kind}/{step}"):
            variables = _restore(folder / "variables", _abstract(like))
        self._check_finite(variables, f"{kind}/{step}")
        return variables

    def _check_finite(self, tree: Any, which: str) -> None:
        """Refuses what a run that blew up may have saved: such a network takes every pixel for class 0."""
        if broken := nonfinite(tree):
            raise UserError(
                f"the checkpoint {self.folder / which} holds NaN or infinity, in {broken[0]} first: its run blew up; "
                "move it away, or name another with --checkpoint"
            )

    def _checked(self, kind: str, step: int, parts: tuple[str, ...]) -> pathlib.Path:
        if found := self.fault(kind, step, parts):
            raise self.damaged(kind, step, found)
        return self.folder / kind / str(step)

    def damaged(self, kind: str, step: int, found: str) -> UserError:
        """The error of a checkpoint that is not as it was written, with what is there besides."""
        others = [f"{other} ({there})" for other in KINDS if other != kind and (there := self._step(other)) is not None]
        instead = f", or take {' or '.join(others)} in its place" if others else ""
        return UserError(
            f"the checkpoint {self.folder / kind / str(step)} can't be read ({found}): it is damaged; move it away to "
            f"start again without it{instead}: --best_if_damaged in training, --checkpoint elsewhere"
        )

    @contextlib.contextmanager
    def _errors(self, verb: str, which: str = "") -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            # Orbax, TensorStore and the file system raise many kinds; all of them mean that the file can't be used.
            what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if verb == "read":
                raise UserError(
                    f"the checkpoint {self.folder / which} can't be read ({shown(what)}): it is damaged or of another "
                    "network; move it away to start again without it, or name another with --checkpoint"
                ) from error
            if verb == "open" and not isinstance(error, OSError):
                raise UserError(
                    f"the checkpoints in {self.folder / which} can't be opened ({shown(what)}): move the one away"
                ) from error
            safe = sorted(int(path.name) for path in self.folder.glob("*/*") if path.name.isdigit())
            raise UserError(
                f"checkpoints can't be written to {self.folder} ({shown(what)}{_free_space(self.folder)}); "
                + (f"step {safe[-1]} is safe there" if safe else "nothing was saved yet")
                + ": make room or choose another --workdir, then start again"
            ) from error


def has_any(workdir: str | pathlib.Path, kind: str = "*") -> bool:
    """Whether a run, or its `kind`, was saved in `workdir`, by a look at the names."""
    return any(path.name.isdigit() for path in (pathlib.Path(workdir) / CHECKPOINTS).glob(f"{kind}/*"))


def steps(folder: pathlib.Path) -> list[int]:
    """The checkpoints that are whole in the folder of a kind."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def read_variables(
    workdir: str | pathlib.Path,
    like: Mapping[str, Any],
    which: str | int = "best",
    note: Callable[[str], object] = lambda line: None,
) -> tuple[dict[str, Any], str, int]:
    """The model's variables of a checkpoint, its kind and its step; also while the run goes on.

    Where the checkpoint gives way to the next while it is read, the next is taken. All processes of a command call this
    and get the same one, which process 0 finds.

    Args:
      like: shapes and shardings.
      which: 'best', 'latest' or a step, as `Checkpoints.find` takes it.
      note: called with a line where the checkpoint has no checksums.

    Raises:
      UserError: there is no such checkpoint, or it is damaged or of another network.
    """
    with _without_late_errors():
        return _read_variables(workdir, like, which, note)


def _read_variables(workdir, like, which, note) -> tuple[dict[str, Any], str, int]:
    while True:
        checkpoints = Checkpoints(workdir, read_only=True)
        _wait_for_best(checkpoints.folder, which)
        kind, step = _of_process_0(*checkpoints.find(which))
        folder = checkpoints.folder / kind / str(step)
        listed = checksums.names(folder)
        found = checkpoints.fault(kind, step, ("variables",))
        gone = _any_process(bool(found) and _is_going(folder, listed))
        if gone:
            continue
        if _any_process(bool(found)):
            raise checkpoints.damaged(kind, step, found or "another process of this command can't read it")
        try:
            variables = checkpoints.restore_variables(like, kind, step)
        except UserError:
            if jax.process_count() > 1 or not _is_going(folder, listed):
                raise
            gc.collect()
            continue
        if _any_process(_is_going(folder, listed, patience=0.0)):
            continue
        if found is None:
            note(checksums.note(folder))
        return variables, kind, step


@contextlib.contextmanager
def _without_late_errors() -> Iterator[None]:
    """Swallows what TensorStore's threads say of a read that failed, beside its error and when it is over."""
    hook = sys.unraisablehook

    def without(unraisable) -> None:
        text = str(unraisable.exc_value)
        if "Event loop is closed" not in text and "See full TensorStore" not in text:
            hook(unraisable)

    sys.unraisablehook = without
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _wait_for_best(folder: pathlib.Path, which: str | int) -> None:
    # A run that comes to its best step a second time drops that checkpoint before it writes it again.
    deadline = time.monotonic() + ROTATES
    while which == "best" and not steps(folder / "best") and any((folder / "best").glob("*")):
        if time.monotonic() > deadline:
            break  # left behind by a process that was killed
        time.sleep(0.05)


def _is_going(folder: pathlib.Path, listed: list[str], patience: float = ROTATES) -> bool:
    """Whether the run is removing a checkpoint, or has: some of its files are missing, and soon all."""
    deadline = time.monotonic() + patience
    while not all((folder / name).exists() for name in listed) or not listed:
        if not folder.exists() or not patience:
            return True
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return False


def _of_process_0(kind: str, step: int) -> tuple[str, int]:
    if jax.process_count() == 1:
        return kind, step
    from jax.experimental import multihost_utils

    index, step = multihost_utils.broadcast_one_to_all(np.array([KINDS.index(kind), step], np.int32))
    return KINDS[int(index)], int(step)


def _any_process(value: bool) -> bool:
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(value)).any())


def _title(step: int) -> str:
    return f"step {step}"


def _restore(folder: pathlib.Path, like: Any) -> Any:
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        return reader.restore(folder, args=ocp.args.StandardRestore(like))


def _free_space(folder: pathlib.Path) -> str:
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return "" if existing is None else f"; {shutil.disk_usage(existing).free / 2**20:.0f} MiB free"


@jax.jit  # one program: array by array JAX compiles one for every shape
def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
