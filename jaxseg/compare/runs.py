"""Runs as they lie in their workdirs, seeds of one config gathered. What a run does not tell is None or left out."""

import collections
import functools
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxseg import forms
from jaxseg.errors import UserError, shown
from jaxseg.files import EVALUATIONS, INFO, METRICS, RUN, score_key
from jaxseg.files import evaluation as evaluation_file
from jaxseg.writers import is_evaluation, read_metrics, scored_split

SEED = "train.seed"
# No result depends on these: runs that differ in nothing else are of one config.
SAME_RESULT = (SEED, "data.workers", "data.eval_batch_size", "train.log_every", "train.checkpoint_every", "train.fsdp")
PUBLISHED = "published."


@dataclass(eq=False)
class Evaluation:
    """One checkpoint of one run on one split under one protocol.

    Attributes:
      scores: name to value; those by a published project's own definition as `published/NAME`.
      iou: class to IoU, NaN where it is absent.
      counts: int64 `[C, C]`, `counts[true, pred]`; None where the run is too old to tell.
      content: a hash of the split's images and labels; '' where the run is too old to tell.
    """

    split: str
    checkpoint: str
    protocol: str
    scores: dict[str, float]
    iou: dict[str, float] = field(default_factory=dict)
    counts: np.ndarray | None = None
    content: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What evaluations of several seeds must share to be gathered."""
        return self.split, self.checkpoint, self.protocol, self.content


@dataclass(eq=False)
class Run:
    """A workdir.

    Attributes:
      name: as short as tells it from the others.
      config: its fields, flat, `{'data.name': 'camvid', ...}`.
      rows: of `metrics.jsonl`, numbers alone.
      about: of `run.json`: parameters, multiply_adds, images_per_second, ...; {} where there is none.
      contents: of `run.json`: a hash of each split's images and labels; {} where there is none.
      notes: what of it could not be read.
      of_data: the class names of `info.json`, () where there is none.
      eval_split: the split that it scored while it trained.
    """

    path: pathlib.Path
    config: dict[str, Any]
    rows: list[dict[str, float]]
    about: dict[str, Any]
    evaluations: list[Evaluation]
    notes: list[str]
    name: str = ""
    of_data: tuple[str, ...] = ()
    contents: dict[str, str] = field(default_factory=dict)
    eval_split: str = ""

    @property
    def step(self) -> int:
        """The last step that left a trace."""
        return max([int(self.about.get("step") or 0), *(row["step"] for row in self.rows)])

    @property
    def num_steps(self) -> int | None:
        """How many it was set to take; None for a run by epochs that does not tell."""
        return self.about.get("num_steps") or self.set_to("train.num_steps")

    def set_to(self, field: str) -> float | None:
        """The number that a field of its config is set to; None for 0, which leaves it open."""
        value = self.config.get(field)
        return value if _is_number(value) and value else None

    @property
    def status(self) -> str:
        """`finished`, `running`, `stopped` by a signal, `stopped early`, or '' where that can't be told."""
        return self.about.get("status") or ("finished" if self.step == self.num_steps else "")

    @property
    def class_names(self) -> tuple[str, ...]:
        """As its evaluations or its data set name them; () where neither does."""
        return next((tuple(evaluation.iou) for evaluation in self.evaluations if evaluation.iou), self.of_data)

    @property
    def images_per_second(self) -> float | None:
        """While training, evaluation left out."""
        rates = [row["train/images_per_second"] for row in self.rows if "train/images_per_second" in row]
        return self.about.get("images_per_second") or (float(np.nanmedian(rates)) if rates else None)

    @property
    def train_seconds(self) -> float | None:
        """The wall time of its steps."""
        if self.about.get("train_seconds"):
            return self.about["train_seconds"]
        timed = [(row["step"], row["train/steps_per_second"]) for row in self.rows if "train/steps_per_second" in row]
        before = [0, *(step for step, _ in timed)]
        seconds = [(step - last) / rate for last, (step, rate) in zip(before, timed, strict=False) if rate > 0]
        return sum(seconds) if seconds else None


@dataclass(eq=False)
class Group:
    """The runs of one config, which differ by their seed alone; `label` names them in figures."""

    runs: list[Run]
    label: str = ""

    @property
    def config(self) -> dict[str, Any]:
        return self.runs[0].config

    @property
    def network(self) -> str:
        """Family and backbone."""
        return ", ".join(filter(None, (str(self.config.get(f"model.{key}", "")) for key in ("name", "backbone"))))

    @property
    def data(self) -> str:
        """Name and version of the data set; its folder where that alone says what it is."""
        name, version, folder = (str(self.config.get(f"data.{field}", "")) for field in ("name", "version", "dir"))
        return " ".join(filter(None, (name, version, pathlib.Path(folder).name if name == "folder" else "")))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the data set, as far as a run tells them."""
        return self.runs[0].class_names

    @property
    def scored(self) -> str:
        """A hash of the images that its runs scored while they trained; '' where they don't tell."""
        return self.runs[0].contents.get(self.eval_split, "")

    @property
    def eval_split(self) -> str:
        """The split that its runs scored while they trained."""
        return self.runs[0].eval_split

    @property
    def published(self) -> dict[str, Any]:
        """The config's group `published`: `setting` and other texts, and `scores.NAME` for each published figure."""
        return {key.removeprefix(PUBLISHED): v for key, v in self.config.items() if key.startswith(PUBLISHED)}

    def figures(self, split: str) -> dict[str, float]:
        """Score to published figure; those of another split are left out."""
        if self.published.get("split") not in (None, "", split):
            return {}
        found = {name.removeprefix("scores."): v for name, v in self.published.items() if name.startswith("scores.")}
        return {name: float(value) for name, value in found.items() if _is_number(value)}


@dataclass(eq=False)
class Row:
    """A line of the table: a group under one split, checkpoint and protocol ('' where it has no score yet)."""

    group: Group
    split: str
    checkpoint: str
    protocol: str
    evaluations: list[Evaluation]

    def values(self, score: str) -> list[float]:
        """The finite values of a score, one a seed."""
        values = (evaluation.scores.get(score, math.nan) for evaluation in self.evaluations)
        return [value for value in values if math.isfinite(value)]

    def mean(self, score: str) -> float:
        """Over the seeds; NaN where no seed has it."""
        values = self.values(score)
        return float(np.mean(values)) if values else math.nan

    def deviation(self, score: str) -> float:
        """The sample standard deviation over the seeds; NaN for fewer than two."""
        values = self.values(score)
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    @property
    def published(self) -> dict[str, float]:
        """Score to the published figure beside it."""
        return self.group.figures(self.split)

    @property
    def iou(self) -> dict[str, float]:
        """Class to mean IoU over the seeds, NaN where the class is absent."""
        found = [evaluation.iou for evaluation in self.evaluations if evaluation.iou]
        values = {name: [iou.get(name, math.nan) for iou in found] for name in (found[0] if found else ())}
        return {name: float(np.mean(of_class)) for name, of_class in values.items()}

    @property
    def content(self) -> str:
        """A hash of the images and labels that were scored; '' where the runs don't tell."""
        return self.evaluations[0].content if self.evaluations else self.group.scored

    @property
    def never_predicted(self) -> dict[str, int]:
        """Classes with labelled pixels and no predicted one, and in how many of the runs."""
        from jaxseg import metrics

        found = [metrics.never_predicted(e.counts, tuple(e.iou)) for e in self.evaluations if e.counts is not None]
        return dict(collections.Counter(itertools.chain(*found)))

    @property
    def counts(self) -> np.ndarray | None:
        """int64 `[C, C]`, `counts[true, pred]`, summed over the seeds."""
        found = [evaluation.counts for evaluation in self.evaluations if evaluation.counts is not None]
        return functools.reduce(np.add, found) if found else None


def missed(rows: Sequence[Row]) -> list[str]:
    """A line for each row of the table whose runs never predict a class that the split has."""
    lines = []
    for row in rows:
        if never := row.never_predicted:
            several = len(row.evaluations) > 1
            names = [
                f"{shown(name)} ({count} of {len(row.evaluations)} runs)" if several else shown(name)
                for name, count in never.items()
            ]
            lines.append(f"{row.group.label}, {row.split}, {row.checkpoint}: never predicted: {', '.join(names)}.")
    return lines


def read_runs(workdirs: Sequence[str | os.PathLike]) -> tuple[list[Run], list[str]]:
    """The runs that can be compared, and a line for each workdir that can't, or of which something is left out.

    Raises:
      UserError: there is none to compare.
    """
    runs, notes, seen = [], [], set()
    for workdir in workdirs:
        path = pathlib.Path(workdir).resolve()
        if path in seen:
            notes.append(f"{workdir} is given twice and compared once")
            continue
        seen.add(path)
        try:
            runs.append(read_run(path))
        except UserError as error:
            notes.append(f"skipped: {error}")
    if not runs:
        raise UserError("there is nothing to compare: " + "; ".join(notes))
    for run, name in zip(runs, short_names([run.path for run in runs]), strict=True):
        run.name = name
        notes += [f"{name}: {note}" for note in run.notes]
    return runs, notes


def read_run(workdir: str | os.PathLike) -> Run:
    """A finished, stopped or running run; also one from before `run.json` and `evaluations/` were written.

    Raises:
      UserError: it is no workdir, failed, has no results, or its config or metrics can't be read.
    """
    path = pathlib.Path(workdir)
    config, rows, notes = _read_config(path), _read_rows(path), []
    about = _read(path / RUN, RUN, notes) or {}
    if about.get("status") == "failed":
        raise UserError(
            f"{path} failed at step {about.get('step', 0)}: an error ended it, so it is ranked nowhere; start it again "
            "to go on"
        )
    by_file = _read_evaluations(path, about, notes)
    # What was scored while training may have been scored again by --mode=eval.
    evaluations = list({evaluation.key: evaluation for evaluation in by_file.values()}.values())
    split = _eval_split(about, config, rows)
    if pathlib.Path(evaluation_file(split, "best")).stem not in by_file:
        evaluations = _evaluations_of(rows, config, split) + evaluations
    if not rows and not evaluations:
        raise UserError(f"{path} has no results yet: neither rows in {METRICS} nor files in {EVALUATIONS}/")
    of_data = tuple((_read(path / INFO, INFO, notes) or {}).get("class_names", ()))
    contents = about.get("contents", {})
    return Run(path, config, rows, about, evaluations, notes, of_data=of_data, contents=contents, eval_split=split)


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    from jaxseg import config as configs

    return configs.flatten(configs.read(path))


def _read_rows(path: pathlib.Path) -> list[dict[str, float]]:
    try:
        return read_metrics(path / METRICS)
    except FileNotFoundError:
        return []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read(path: pathlib.Path, kind: str, notes: list[str]) -> Any:
    """A file of a run, or None where it is missing or, which is noted, not of its form."""
    try:
        return forms.read_json(path, forms.FORMS[kind])
    except FileNotFoundError:
        return None
    except UserError as error:
        notes.append(f"left out: {error}")
        return None


def _read_evaluations(path: pathlib.Path, about: Mapping[str, Any], notes: list[str]) -> dict[str, Evaluation]:
    found = {}
    for file in sorted((path / EVALUATIONS).glob("*.json")):
        value = _read(file, EVALUATIONS, notes)
        if value is None:
            continue
        try:
            evaluation = _evaluation(value, file)
        except UserError as error:
            notes.append(f"left out: {error}")
            continue
        pixels = int(evaluation.counts.sum())
        if value.get("nonfinite") or (value["loss"] is None and pixels):
            notes.append(f"{EVALUATIONS}/{file.name} is left out: its loss or logits are not finite")
            continue
        step, now = value["step"], about.get({"best": "best_step", "latest": "step"}.get(evaluation.checkpoint))
        if now is not None and step != now:
            notes.append(
                f"{EVALUATIONS}/{file.name} is left out: it scored step {step}, and the {evaluation.checkpoint} "
                f"checkpoint is of step {now} now"
            )
        else:
            found[file.stem] = evaluation
    return found


def _evaluation(value: Mapping[str, Any], file: pathlib.Path) -> Evaluation:
    """An evaluation as its file has it.

    Raises:
      UserError: its scores are not those of its counts.
    """
    from jaxseg import metrics

    counts = np.array(value["counts"], np.int64)
    due = metrics.scores(counts)
    for name, score in value["scores"].items():
        right = due.get(name)
        if isinstance(right, int | float) and not _same(score, right):
            what = f"{right:.6g}, as its counts have it"
            raise forms.broken(file, f"scores.{name}", score, what, forms.FORMS[EVALUATIONS].remedy)
    scores = {name: score for name, score in value["scores"].items() if score is not None and "/" not in name}
    published = {name: score for name, score in value.get("published", {}).items() if score is not None}
    scores |= {f"published/{name.removeprefix('published/')}": score for name, score in published.items()}
    iou = dict(zip(value["class_names"], due["iou"].tolist(), strict=True))
    words = (value[key] for key in ("split", "checkpoint", "protocol"))
    return Evaluation(*words, scores=scores, iou=iou, counts=counts, content=value.get("content", ""))


def _same(score: float | None, due: float) -> bool:
    return math.isnan(due) if score is None else math.isclose(score, due, rel_tol=1e-6, abs_tol=1e-6)


def _eval_split(about: Mapping[str, Any], config: Mapping[str, Any], rows: Sequence[Mapping[str, float]]) -> str:
    """The split that a run scored while it trained: as it says, or as it was set, or as its rows have it."""
    return about.get("split") or config.get("eval.split") or scored_split(rows) or "val"


def _evaluations_of(rows: Sequence[Mapping[str, float]], config: Mapping[str, Any], split: str) -> list[Evaluation]:
    """The best evaluation among the rows of a run that wrote no files of them; there is none before the first."""
    from jaxseg import config as configs

    best, project = config.get("train.best", "mean_iou"), config.get("eval.published", "")
    # Where the loss is not finite, neither are logits, which count as class 0.
    scored = [
        row
        for row in rows
        if is_evaluation(row)
        and not row.get(f"{split}/nonfinite_pixels")
        and all(math.isfinite(row.get(score_key(split, score), math.nan)) for score in ("loss", best))
    ]
    if not scored:
        return []
    pick = min if configs.lower_is_better(best, project) else max
    row = pick(scored, key=lambda row: row[score_key(split, best)])
    prefix = f"{split}/iou/"
    iou = {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
    scores = {name.removeprefix(f"{split}/"): value for name, value in row.items() if name.startswith(f"{split}/")}
    # What else has a stroke in its name is of one class.
    scores = {name: v for name, v in scores.items() if "/" not in name.removeprefix("published/")}
    protocol = config.get("eval.protocol", "whole")
    return [Evaluation(split, "best", "whole image" if protocol == "whole" else str(protocol), scores, iou)]


def short_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """The ends of paths, as many parts as tell them all apart."""
    depth = 1
    while True:
        names = [str(pathlib.Path(*path.parts[-depth:])) for path in paths]
        if len(set(names)) == len(names) or depth > max(len(path.parts) for path in paths):
            return names
        depth += 1


def group(runs: Sequence[Run]) -> list[Group]:
    """Runs of one config and one class list together, in the order in which each config came first."""
    groups: dict[str, Group] = {}
    for run in runs:
        fields = {key: value for key, value in run.config.items() if key not in SAME_RESULT}
        if run.contents:
            # Wherever they lay.
            fields["data.dir"] = run.contents
        fields["class_names"] = run.class_names
        groups.setdefault(json.dumps(fields, sort_keys=True, default=str), Group([])).runs.append(run)
    found = list(groups.values())
    labels = [_label(group.runs) for group in found]
    for group, label in zip(found, labels, strict=True):
        group.label = label if labels.count(label) == 1 else ", ".join(run.name for run in group.runs)
    return found


def _label(runs: Sequence[Run]) -> str:
    """What the names of seeds begin with: `unet-seed=0` and `unet-seed=1` are `unet`; or else the folder of both."""
    names = [run.name for run in runs]
    if len(names) == 1:
        return names[0]
    start = re.sub(r"[-_=,./ ]*((train\.)?seed)?[-_=,./ ]*\d*$", "", _common_start(names))
    return start or runs[0].path.parent.name


def _common_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    length = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:length]


def rows(groups: Sequence[Group]) -> list[Row]:
    """A line a group and evaluation; those that can be compared, of one data set, split and protocol, together."""
    found = []
    for group in groups:
        gathered: dict[tuple, list[Evaluation]] = {}
        for run in group.runs:
            for evaluation in run.evaluations:
                gathered.setdefault((evaluation.key, tuple(evaluation.iou)), []).append(evaluation)
        of_group = [Row(group, *key[:3], evaluations) for (key, _), evaluations in gathered.items()]
        found += [row for row in of_group if not _is_best_again(row, of_group)] or [Row(group, "", "", "", [])]
    blocks = list(dict.fromkeys(block(row) for row in found))
    return sorted(found, key=lambda row: blocks.index(block(row)))


def _is_best_again(row: Row, others: Sequence[Row]) -> bool:
    """Whether a row of the latest checkpoints says what that of the best says: in every run they are the same step."""
    of_best = (row.split, "best", row.protocol, row.content)
    best = [o for o in others if (o.split, o.checkpoint, o.protocol, o.content) == of_best]
    if row.checkpoint != "latest" or not best or len(best[0].evaluations) != len(row.evaluations):
        return False
    pairs = zip(row.evaluations, best[0].evaluations, strict=True)
    return all(a.counts is not None and np.array_equal(a.counts, b.counts) for a, b in pairs)


def block(row: Row) -> tuple:
    """What rows must share for their scores to be comparable: the scored images, classes, split and protocol."""
    return row.group.data, row.content, tuple(row.iou) or row.group.class_names, row.split, row.protocol


def data_key(group: Group) -> tuple:
    """What runs that are scored on the same images and classes share."""
    folder = group.config.get("data.dir", "") if group.config.get("data.name") == "folder" else ""
    return group.data, group.scored or folder, group.class_names


def warnings(groups: Sequence[Group]) -> list[str]:
    """Lines on what must not be read as a contest or a spread: other data, other class lists, a seed run twice."""
    by_data: dict[str, dict[tuple, list[str]]] = {}
    scored = {data_key(group)[:2] for group in groups}
    for group in groups:
        name, content, _ = data_key(group)
        # One name for several sets of images: what tells them apart besides.
        name += f" {content}" if [other for other, _ in scored].count(name) > 1 else ""
        of_data = by_data.setdefault(name, {})
        of_data.setdefault(group.class_names, []).append(group.label)
    lines = []
    if len(by_data) > 1:
        each = (f"{name} ({', '.join(itertools.chain(*of.values()))})" for name, of in by_data.items())
        lines.append(f"The runs are on different data, whose scores can't be compared: {'; '.join(each)}.")
    for name, of_data in by_data.items():
        lists = {names: labels for names, labels in of_data.items() if names}
        if len(lists) > 1:
            each = (f"{len(names)} classes ({', '.join(labels)})" for names, labels in lists.items())
            lines.append(f"The runs on {name} have different class lists: {'; '.join(each)}.")
    for group in groups:
        seeds = [str(run.config.get(SEED)) for run in group.runs]
        if len(set(seeds)) < len(seeds):
            names = ", ".join(run.name for run in group.runs)
            lines.append(f"Some of {names} have the same config and seed: their spread is not one over seeds.")
    return lines


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """The fields of the configs that are not the same in all groups, with a value a group; None where it lacks one."""
    fields = dict.fromkeys(field for group in groups for field in group.config)
    values = {field: [group.config.get(field) for group in groups] for field in fields}
    return {
        field: of_groups
        for field, of_groups in values.items()
        if field not in SAME_RESULT
        and not field.startswith(PUBLISHED)
        and any(value != of_groups[0] for value in of_groups)
    }
