"""Checkpoints in `WORKDIR/checkpoints`, by Orbax: asynchronous, atomic, the latest and the best by mean IoU kept.

One folder a step with three items: `variables` (parameters and batch statistics), `optimizer` (step and optimizer
state) and `progress` (JSON: where the data stream stands, the best score so far, losses not yet written).
"""

import contextlib
import logging
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxseg.errors import UserError
from jaxseg.state import TrainState

FOLDER = "checkpoints"


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["mean_iou"]


class Checkpoints:
    """The checkpoints of one run; a context manager that waits for the last save and closes."""

    def __init__(self, workdir: str | pathlib.Path, *, read_only: bool = False):
        # Orbax warns at every save without a score that there is none to rank by; that is how the latest is kept.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = pathlib.Path(workdir).absolute() / FOLDER
        if read_only and not self.folder.is_dir():
            raise UserError(f"{workdir} has no folder {FOLDER}/: it is no workdir of a run, or nothing was saved yet")
        # Looked for before Orbax cleans up.
        self.half_written = sorted(path.name for path in self.folder.glob("*.orbax-checkpoint-tmp*"))
        with self._errors("open"):
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    create=not read_only,
                    read_only=read_only,
                    cleanup_tmp_directories=not read_only,
                    best_fn=_score,
                    preservation_policy=AnyPreservationPolicy(
                        [LatestN(1), BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)]
                    ),
                ),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        with self._errors("write"):
            self._manager.close()

    @property
    def latest(self) -> int | None:
        """The last step that was saved whole."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step with the highest mean IoU among those that were scored."""
        return self._manager.best_step()

    def step_of(self, which: str) -> int:
        """The step that 'best', 'latest' or a number names; 'best' is the latest where none was scored.

        Raises:
          UserError: there is no such checkpoint; the message lists those there are.
        """
        steps = self._manager.all_steps()
        if not steps:
            raise UserError(f"{self.folder} holds no finished checkpoint: let the run reach train.checkpoint_every")
        if which in ("best", "latest"):
            return (self.best if which == "best" else None) or self.latest
        if which.isdigit() and int(which) in steps:
            return int(which)
        raise UserError(
            f"there is no checkpoint '{which}' in {self.folder}: take best, latest or one of "
            f"{', '.join(map(str, sorted(steps)))}"
        )

    def save(self, state: TrainState, progress: Mapping[str, Any], mean_iou: float | None = None) -> None:
        """Starts saving; the state may be donated as soon as this returns.

        Raises:
          UserError: this save or the one before it failed (a full disk); what was saved before is still there.
        """
        step = int(state.step)
        # Orbax copies in the background, and on a CPU its copy can be a view of the buffer that the next step reuses.
        state = jax.tree.map(jnp.copy, state)
        scored = mean_iou is not None and np.isfinite(mean_iou)
        with self._errors("write"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(state.variables),
                    optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
                    progress=ocp.args.JsonSave(dict(progress)),
                ),
                metrics={"mean_iou": mean_iou} if scored else None,
                force=True,
            )

    def wait(self) -> None:
        """Returns once the last save is on disk."""
        with self._errors("write"):
            self._manager.wait_until_finished()

    def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The state of a step in the shapes and shardings of `like`, and its progress.

        Raises:
          UserError: the checkpoint is of another network or damaged.
        """
        like = _abstract(like)
        with self._errors("read", step):
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardRestore(like.variables),
                    optimizer=ocp.args.StandardRestore({"step": like.step, "opt_state": like.opt_state}),
                    progress=ocp.args.JsonRestore(),
                ),
            )
        variables, optimizer = items.variables, items.optimizer
        state = TrainState(optimizer["step"], variables["params"], variables["batch_stats"], optimizer["opt_state"])
        return state, items.progress

    def restore_variables(self, like: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The model's variables alone, in the shapes and shardings of `like`.

        Raises:
          UserError: the checkpoint is of another network or damaged.
        """
        with self._errors("read", step):
            args = ocp.args.Composite(variables=ocp.args.StandardRestore(_abstract(like)))
            return self._manager.restore(step, args=args).variables

    @contextlib.contextmanager
    def _errors(self, verb: str, step: int | None = None) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            # Orbax, TensorStore and the file system raise many kinds; all of them mean that the file can't be used.
            what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if verb == "read":
                others = [other for other in self._manager.all_steps() if other != step]
                remedy = f"it is damaged or of another network; move {self.folder / str(step)} away to go on from " + (
                    f"step {max(others)}" if others else "the start"
                )
                raise UserError(f"checkpoint {step} in {self.folder} can't be read ({what}): {remedy}") from error
            kept = sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdigit())
            raise UserError(
                f"checkpoints can't be written to {self.folder} ({what}{_free_space(self.folder)}); "
                + (f"step {kept[-1]} is safe there" if kept else "nothing was saved yet")
                + ": make room or choose another --workdir, then start again"
            ) from error


def _free_space(folder: pathlib.Path) -> str:
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return "" if existing is None else f"; {shutil.disk_usage(existing).free / 2**20:.0f} MiB free"


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
