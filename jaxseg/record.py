"""What a run tells while it goes and leaves in its workdir: config, run.json, rows of metrics, pictures, curves."""

import contextlib
import copy
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import checksums, figures, files, forms
from jaxseg import config as configs
from jaxseg.checkpoint import Checkpoints
from jaxseg.data import Dataset
from jaxseg.errors import UserError, shown
from jaxseg.evaluate import Evaluation
from jaxseg.files import score_key
from jaxseg.metrics import never_predicted
from jaxseg.models import cost
from jaxseg.process import Interrupted
from jaxseg.processes.facts import library_versions
from jaxseg.protocols import WORDS, from_config
from jaxseg.score import write_evaluation
from jaxseg.state import nonfinite
from jaxseg.writers import Writers, read_metrics

# What a checkpoint keeps beside the state, all of it JSON: the best score and its step, evaluations since then, the
# step last scored, losses not yet in a row (and others by their names), seconds of steps and how many steps took them.
FRESH = {
    "best_score": None,
    "best_step": 0,
    "stale": 0,
    "evaluated": 0,
    "losses": [],
    "other_losses": {},
    "train_seconds": 0.0,
    "timed_steps": 0,
}

DECIDED = ("best_score", "best_step", "stale", "evaluated")  # of these: what process 0 decides for all


def from_checkpoint(progress: dict[str, Any], where: object) -> dict[str, Any]:
    """The progress of the checkpoint at `where`, also of one from before there was a choice of scores.

    Raises:
      UserError: it is not of the form that it must be.
    """
    progress = dict(forms.checked(progress, forms.FORMS["progress"], where))
    if "best_mean_iou" in progress:
        progress["best_score"] = progress.pop("best_mean_iou")
    return {**FRESH, **progress}


class Record:
    """One run's, from its start or from where it goes on: process 0 writes, the others only count.

    Attributes:
      split: that is scored; its name stands before and beside every score.
      progress: what a checkpoint keeps, see `FRESH`.
      lower_is_better: whether the lowest of the score that `train.best` names is the best.

    `still_there` raises a `UserError` where the workdir was moved: nothing is written then.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: pathlib.Path,
        dataset: Dataset,
        mesh: Mesh,
        checkpoints: Checkpoints,
        writers: Writers,
        progress: dict[str, Any],
        *,
        start: int,
        num_steps: int,
        split: str,
        still_there: Callable[[], None] = lambda: None,
    ):
        self.config, self.workdir, self.dataset, self.mesh = config, workdir, dataset, mesh
        self.checkpoints, self.writers, self.num_steps = checkpoints, writers, num_steps
        self.split = split
        self.progress = copy.deepcopy(progress)
        self.lower_is_better = configs.lower_is_better(config.train.best, config.eval.published)
        self._start, self._steps, self._still_there = start, 0, still_there
        self._num_images = dataset.lengths[dataset.train_split]
        self._pending: list[tuple[Mapping[str, jax.Array], list[str]]] = []
        self._facts: dict[str, Any] = {}
        self._first: float | None = None  # seconds of the first step of this start
        self._row = (0, 0.0)  # steps, and their seconds, since the last row
        self.start_clock()

    # ------------------------------------------------------------------------------------------------------ the start

    def greet(self, model: nn.Module, variables: dict[str, Any]) -> None:
        """Writes the config and what is known of the run before its first step, and tells what is about to happen."""
        config, dataset, device = self.config, self.dataset, self.mesh.devices.flat[0]
        size = sum(x.size for x in jax.tree.leaves(variables["params"]))
        lengths = ", ".join(f"{count} {split}" for split, count in dataset.lengths.items())
        if jax.process_index() == 0:
            checksums.seal(self.workdir, {files.CONFIG: configs.to_json(config), files.INFO: dataset.info.to_json()})
        crop = config.data.crop_size
        image_size = [crop, crop] if isinstance(crop, int) else list(crop)
        before = forms.read_run(self.workdir) if self._start else {}
        self._facts = {
            "parameters": size,
            # Tracing a large network takes seconds.
            "multiply_adds": before.get("multiply_adds") or cost.multiply_adds(model, tuple(image_size)),
            "image_size": image_size,
            "device": device.device_kind,
            "num_devices": self.mesh.size,
            "contents": dataset.contents,
            "versions": library_versions(),
        }
        self.writers.message(
            f"{config.model.name} on {config.model.backbone}, {size / 1e6:.2f} million parameters, "
            f"{config.model.dtype}; {dataset.info.name}: {lengths} images, {dataset.info.num_classes} classes; "
            f"{self.num_steps} steps of {config.data.batch_size} on {self.mesh.size} {device.device_kind} device"
            + ("s" if self.mesh.size > 1 else "")
            + f"; all of it goes to {self.workdir}"
        )
        then = before.get("contents", {})
        changed = [split for split, content in dataset.contents.items() if then.get(split, content) != content]
        if changed:
            self.writers.message(
                f"the data is not that of the steps before: images or labels of {', '.join(changed)} have changed"
            )
        self.writers.hparams(configs.flatten(config))
        self.writers.text(0, {"config": f"```json\n{configs.to_json(config)}```"})
        self.writers.overview(variables)
        self.status("running")

    # ---------------------------------------------------------------------------------------------------------- steps

    def start_clock(self) -> None:
        """From here on time is that of steps."""
        self._clock, self._timed = time.perf_counter(), 0  # and steps since then

    def step(self, losses: Mapping[str, jax.Array], ids: list[str]) -> None:
        """Notes a step that was started; its `loss`, and what others there are, are fetched later."""
        self._pending.append((losses, ids))
        self._steps += 1
        if self._first is None:
            jax.block_until_ready(losses)
            self._first = time.perf_counter() - self._clock
            self.writers.message(f"first step after {self._first:.1f} s, most of them to compile")
            self.start_clock()
        else:
            self._timed += 1

    def check(self, state: Any, step: int) -> None:
        """Refuses a state that is not finite: none such is scored, saved or called finished.

        It is that after `step`, whose update no loss has seen yet. All processes call it.

        Raises:
          UserError: some of it is NaN or infinite; parameters, statistics, the optimizer's state and averages alike.
        """
        if broken := nonfinite(state):
            what = f"{len(broken)} arrays" if len(broken) > 1 else "one array"
            raise self._blown_up(f"step {step} made {what} of the state NaN or infinite, {broken[0]} first")

    def _blown_up(self, what: str) -> UserError:
        self.checkpoints.wait()
        last = self.checkpoints.latest
        return UserError(
            f"{what}. "
            + (f"The last good checkpoint is step {last}" if last else "No checkpoint was saved before it")
            + "; a lower optim.learning_rate, optim.clip_norm=1 or optim.warmup_steps often mends this"
        )

    def flush(self) -> None:
        """Fetches the losses of the steps so far.

        Raises:
          UserError: a loss is NaN or infinite.
        """
        fetched = jax.device_get([losses for losses, _ in self._pending])
        if self._timed:
            seconds = time.perf_counter() - self._clock
            self._row = (self._row[0] + self._timed, self._row[1] + seconds)
            self.progress["timed_steps"] += self._timed
            self.progress["train_seconds"] += seconds
        first = self._start + self._steps - len(fetched) + 1
        for number, (losses, (_, ids)) in enumerate(zip(fetched, self._pending, strict=True), first):
            for name, loss in losses.items():
                if not math.isfinite(loss):
                    holds = ", ".join(map(shown, ids))
                    raise self._blown_up(f"the {name} of step {number} is {loss}; its batch holds {holds}")
        for losses in fetched:
            for name, loss in losses.items():
                others = self.progress["other_losses"]
                into = self.progress["losses"] if name == "loss" else others.setdefault(name, [])
                into.append(float(loss))
        self._pending = []
        self.start_clock()

    def row(self, step: int, learning_rate: float) -> None:
        """Writes the mean loss of the steps since the row before, and how fast they were."""
        batch_size = self.config.data.batch_size
        steps, seconds = self._row if self._row[0] else (1, self._first or math.nan)
        loss, rate = float(np.mean(self.progress["losses"])), steps * batch_size / seconds
        others = {f"train/{name}": float(np.mean(losses)) for name, losses in self.progress["other_losses"].items()}
        self.progress |= {"losses": [], "other_losses": {}}
        self._row = (0, 0.0)
        self.writers.scalars(
            step,
            {
                "train/loss": loss,
                **others,
                "train/learning_rate": learning_rate,
                "train/images_per_second": rate,
                "train/steps_per_second": rate / batch_size,
            },
        )
        self.writers.progress(step, loss=loss, images_per_second=rate, lr=learning_rate)

    # ---------------------------------------------------------------------------------------------------- evaluations

    def evaluation(self, step: int, result: Evaluation, seconds: float) -> tuple[float, bool]:
        """Writes scores and pictures of an evaluation; the score that `train.best` names, and whether it is the best.

        One that is no number, for there was nothing to score, is never the best, and no score is where the loss or
        logits are not finite: the worst that there can be is given in its place.
        """
        info, name, protocol = self.dataset.info, self.config.train.best, from_config(self.config.eval).words
        split = self.split
        scalars = result.named(info.class_names)
        score, best = scalars[name], self.progress["best_score"]
        if not result.finite:
            score = math.inf if self.lower_is_better else -math.inf
        is_best = math.isfinite(score) and (best is None or (score < best if self.lower_is_better else score > best))
        if is_best:
            self.progress |= {"best_score": score, "best_step": step, "stale": 0}
        else:
            self.progress["stale"] += 1
        self.progress["evaluated"] = step
        self.writers.scalars(step, result.scalars(info.class_names, split))
        if jax.process_index() == 0:
            if is_best:
                named = {"split": split, "which": "best", "step": step, "protocol": protocol, "seconds": seconds}
                content = self.dataset.contents[split]
                write_evaluation(self.workdir, files.evaluation(split, "best"), result, info, content=content, **named)
            picture = figures.prediction_figure(
                [example["images"] for example in result.examples],
                [example["labels"] for example in result.examples],
                [example["preds"] for example in result.examples],
                class_names=info.class_names,
                palette=info.palette,
                titles=[example["id"] for example in result.examples],
            )
            self.writers.images(step, {f"{split}/predictions": picture})
            figures.write_png(self.workdir / "figures" / f"step_{step:07d}.png", picture)
        absent = scalars["absent_classes"]
        present = f" over {info.num_classes - absent} of {info.num_classes} classes (the others are absent)"
        self.writers.message(
            f"step {step}: {split} mean IoU {scalars['mean_iou']:.4f}"
            + (present if absent else "")
            + f", pixel accuracy {scalars['pixel_accuracy']:.4f}, loss {result.loss:.4f}"
            + ("" if name in ("mean_iou", "pixel_accuracy", "loss") else f", {shown(name)} {scalars[name]:.4f}")
            + _words_on_missed(never_predicted(result.counts, info.class_names))
            + f" ({result.images} images"
            + (f", {protocol}" if protocol != WORDS["whole"] else "")
            + f", {seconds:.1f} s)"
            + (", the best so far" if is_best else "")
            + ("" if result.finite else f", loss or logits not finite in {result.nonfinite} pixels: never the best")
        )
        return score, is_best

    # --------------------------------------------------------------------------------------------------------- the end

    def status(self, status: str) -> None:
        """Writes run.json: what is known of the run, how far it is and how fast it was.

        `train_seconds` are of the steps alone, over all starts: without evaluations and checkpoints, and without the
        first step of each start, which is mostly compiling.
        """
        progress, batch_size, step = self.progress, self.config.data.batch_size, self._start + self._steps
        seconds = progress["train_seconds"]
        facts = self._facts | {
            "train_seconds": seconds,
            "images_per_second": progress["timed_steps"] * batch_size / seconds if seconds else None,
            "step": step,
            "num_steps": self.num_steps,
            "epochs": step * batch_size / configs.epoch_length(self.config, self._num_images),
            "status": status,
            "split": self.split,
            "best_step": progress["best_step"],
            "best_score": progress["best_score"],
        }
        self._write(files.RUN, json.dumps(facts, indent=2) + "\n")

    @contextlib.contextmanager
    def stopped_by_errors(self) -> Iterator[None]:
        """Leaves word of it in run.json: `stopped` by a signal, `failed` by an error; one that is killed is `running`.

        A failed run has no last word on its scores, and is ranked nowhere.
        """
        try:
            yield
        except BaseException as error:
            asked = isinstance(error, Interrupted | KeyboardInterrupt | SystemExit | GeneratorExit)
            with contextlib.suppress(OSError, UserError):
                self.status("stopped" if asked else "failed")
            raise

    def finish(self, status: str) -> None:
        """Draws the curves and tells the best score."""
        self.writers.flush()
        self.status(status)
        if jax.process_index() != 0:
            return
        rows = read_metrics(self.workdir / files.METRICS)
        figures.curves(rows, self.workdir / "curves.png", self.split)
        best, name = self.progress["best_score"], self.config.train.best.replace("mean_iou", "mean IoU")
        if best is None:
            score = _why_none(rows, self.split, name)
        else:
            score = f"best {name} {best:.4f} on {self.split} at step {self.progress['best_step']}"
            score += _words_on_missed(self._missed_by_best())
        self.writers.message(
            f"done: {score}; curves in {self.workdir / 'curves.png'}, pictures in {self.workdir / 'figures'}"
        )

    def _missed_by_best(self) -> list[str]:
        """The classes that the best checkpoint never predicts, though the split has them."""
        path = self.workdir / files.EVALUATIONS / files.evaluation(self.split, "best")
        try:
            best = forms.read_json(path, forms.FORMS[files.EVALUATIONS])
        except (FileNotFoundError, UserError):
            return []
        return best.get("never_predicted", []) if best["step"] == self.progress["best_step"] else []

    def _write(self, name: str, text: str) -> None:
        if jax.process_index() == 0:
            self._still_there()
            with files.replacing(self.workdir / name) as temporary:
                temporary.write_text(text)


def _words_on_missed(missed: list[str]) -> str:
    return f", never predicted: {', '.join(map(shown, missed))}" if missed else ""


def _why_none(rows: Sequence[Mapping[str, float]], split: str, name: str) -> str:
    """Why no evaluation of a run has a score, in words."""
    scored = [row for row in rows if f"{split}/pixels" in row]
    if not any(row[f"{split}/pixels"] for row in scored):
        return f"no pixel of {split} was valid" if scored else "no evaluation"
    if all(row.get(f"{split}/nonfinite_pixels") or not math.isfinite(row[score_key(split, "loss")]) for row in scored):
        return "loss or logits of no evaluation were finite"
    return f"no best, for {shown(name)} is no number: {split} has no labelled pixel of it"


def make_workdir(workdir: pathlib.Path) -> pathlib.Path:
    """Makes the folder of a run.

    Raises:
      UserError: it can't be written.
    """
    try:
        (workdir / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the workdir {workdir} can't be written ({error.strerror}): choose another --workdir"
        ) from error
    return workdir


@contextlib.contextmanager
def disk_errors(workdir: pathlib.Path) -> Iterator[None]:
    """A full disk as one readable error, also where metrics or pictures meet it first."""
    try:
        yield
    except OSError as error:
        where = error.filename or workdir
        raise UserError(
            f"{where} can't be read or written ({error.strerror or error}): mend that or make room, then start again "
            "to go on from the last checkpoint"
        ) from error
