"""Checkpoints by Orbax, asynchronous and atomic: `WORKDIR/checkpoints/latest/STEP` and `.../best/STEP`.

`latest` is what a run goes on from, `best` has the best score so far, by `train.best`; each keeps one step and drops it
only once the next is whole; a step that a resumed run comes to again is dropped first. A checkpoint has three items:
`variables` (what was scored: parameters and batch statistics, or their moving averages), `optimizer` (step, optimizer
state and what else training needs) and `progress` (JSON: scores so far, losses not yet written). The data stream's
state is the step.
"""

import contextlib
import copy
import logging
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxseg.errors import UserError
from jaxseg.files import CHECKPOINTS
from jaxseg.state import TrainState, nonfinite

KINDS = ("latest", "best")


class _Manager(ocp.CheckpointManager):
    """Orbax's, but it does not ask whether a signal came: `processes.group` does, and JAX counts whoever asks."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last save and closes."""

    def __init__(self, workdir: str | pathlib.Path, *, read_only: bool = False):
        self.folder = pathlib.Path(workdir).absolute() / CHECKPOINTS
        if read_only and not self.folder.is_dir():
            raise UserError(
                f"{workdir} has no folder {CHECKPOINTS}/: it is no workdir of a run, or nothing was saved yet"
            )
        # Looked for before Orbax cleans up.
        self.half_written = sorted(str(path) for path in self.folder.glob("*/*.orbax-checkpoint-tmp*"))
        with self._errors("open"), _quiet():
            options = ocp.CheckpointManagerOptions(
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                max_to_keep=None if read_only else 1,
            )
            self._managers = {
                kind: _Manager(self.folder / kind, options=options)
                for kind in KINDS
                if not read_only or (self.folder / kind).is_dir()
            }

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        with self._errors("write"):
            for manager in self._managers.values():
                manager.close()

    @property
    def latest(self) -> int | None:
        """The last step that was saved whole."""
        return self._step("latest")

    def _step(self, kind: str) -> int | None:
        return self._managers[kind].latest_step() if kind in self._managers else None

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
        raise UserError(f"there is no checkpoint '{which}' in {self.folder}: there are {have}")

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
        with self._errors("write"):
            if step in manager.all_steps():
                # A run that was killed after its best score and resumed from before it comes here again.
                manager.delete(step)
            manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(item) for name, item in state.to_items().items()},
                    # Written in the background too, while the loop adds losses to the very list in it.
                    progress=ocp.args.JsonSave(copy.deepcopy(dict(progress))),
                ),
                force=True,
            )

    def wait(self) -> None:
        """Returns once the last save is on disk.

        Raises:
          UserError: it failed.
        """
        with self._errors("write"):
            for manager in self._managers.values():
                manager.wait_until_finished()

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The latest state in the shapes and shardings of `like`, and its progress.

        Raises:
          UserError: the checkpoint is of another network, damaged or not finite.
        """
        like, step = _abstract(like), self.latest
        with self._errors("read", f"latest/{step}"):
            items = self._managers["latest"].restore(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardRestore(item) for name, item in like.to_items().items()},
                    progress=ocp.args.JsonRestore(),
                ),
            )
        self._check_finite(items["variables"], f"latest/{step}")
        self._check_finite(items["optimizer"], f"latest/{step}")
        return like.from_items(items), items.progress

    def restore_variables(self, like: Mapping[str, Any], kind: str, step: int) -> dict[str, Any]:
        """The model's variables alone, in the shapes and shardings of `like`; `kind` and `step` as `find` gives them.

        Raises:
          UserError: the checkpoint is of another network, damaged or not finite.
        """
        with self._errors("read", f"{kind}/{step}"):
            args = ocp.args.Composite(variables=ocp.args.StandardRestore(_abstract(like)))
            variables = self._managers[kind].restore(step, args=args).variables
        self._check_finite(variables, f"{kind}/{step}")
        return variables

    def _check_finite(self, tree: Any, which: str) -> None:
        """Refuses what a run that blew up may have saved: such a network takes every pixel for class 0."""
        if broken := nonfinite(tree):
            raise UserError(
                f"the checkpoint {self.folder / which} holds NaN or infinity, in {broken[0]} first: its run blew up; "
                "move it away, or name another with --checkpoint"
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
                    f"the checkpoint {self.folder / which} can't be read ({what}): it is damaged or of another "
                    "network; move it away to start again without it, or name another with --checkpoint"
                ) from error
            safe = sorted(int(path.name) for path in self.folder.glob("*/*") if path.name.isdigit())
            raise UserError(
                f"checkpoints can't be written to {self.folder} ({what}{_free_space(self.folder)}); "
                + (f"step {safe[-1]} is safe there" if safe else "nothing was saved yet")
                + ": make room or choose another --workdir, then start again"
            ) from error


def has_any(workdir: str | pathlib.Path, kind: str = "*") -> bool:
    """Whether a run, or its `kind`, was saved in `workdir`, by a look at the names."""
    return any(path.name.isdigit() for path in (pathlib.Path(workdir) / CHECKPOINTS).glob(f"{kind}/*"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Orbax warns of every folder that is opened to be read that it is opened to be read.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _free_space(folder: pathlib.Path) -> str:
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return "" if existing is None else f"; {shutil.disk_usage(existing).free / 2**20:.0f} MiB free"


@jax.jit  # one program: array by array JAX compiles one for every shape
def _copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
