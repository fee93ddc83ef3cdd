"""Workdirs as runs leave them, written by hand: no network is trained for them."""

import json
import pathlib

import numpy as np
from helpers import tiny_config

from jaxseg import config as configs
from jaxseg import metrics

CLASSES = ("sky", "road", "car")
COUNTS = np.array([[90, 5, 5], [0, 80, 20], [10, 10, 30]])


def scores_of(counts: np.ndarray) -> dict[str, float]:
    """The scores of a confusion matrix that are numbers."""
    return {name: value for name, value in metrics.scores(counts).items() if np.ndim(value) == 0}


def metric_rows(counts: np.ndarray, class_names: tuple[str, ...], num_steps: int) -> list[dict]:
    """Twelve rows of training and two of scores, the second the better one."""
    rows = [
        {"step": s, "train/loss": 2.0 / s, "train/images_per_second": 8.0, "train/steps_per_second": 4.0}
        for s in range(1, num_steps + 1)
    ]
    for step, factor in ((num_steps // 2, 0.5), (num_steps, 1.0)):
        values = {f"val/{name}": factor * value for name, value in scores_of(counts).items()}
        iou = zip(class_names, metrics.scores(counts)["iou"], strict=True)
        values |= {f"val/iou/{name}": None if np.isnan(v) else factor * float(v) for name, v in iou}
        rows.append({"step": step, "val/loss": 1.0 / step, **values})
    return rows


def write_run(
    folder: pathlib.Path,
    *,
    counts: np.ndarray = COUNTS,
    class_names: tuple[str, ...] = CLASSES,
    old: bool = False,
    about: dict | None = None,
    evaluation: dict | None = None,
    published: dict | None = None,
    **fields,
) -> pathlib.Path:
    """Writes a workdir and gives it; as a run from before run.json and evaluations/ with `old=True`.

    `about` and `evaluation` replace fields of the two files, `published` is the config's group (its figures are
    brought under `scores`), and `fields` are of
    `tiny_config`.
    """
    (folder / "evaluations").mkdir(parents=True)
    config = json.loads(configs.to_json(tiny_config(**fields)))
    if published:
        texts = {name: value for name, value in published.items() if isinstance(value, str)}
        config["published"] = texts | {"scores": {name: v for name, v in published.items() if name not in texts}}
    (folder / "config.json").write_text(json.dumps(config))
    rows = metric_rows(counts, class_names, 12)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if old:
        return folder
    facts = {
        "parameters": 12345,
        "multiply_adds": 6_780_000_000,
        "image_size": [32, 32],
        "device": "cpu",
        "num_devices": 1,
        "versions": {"jax": "0"},
        "train_seconds": 90.0,
        "images_per_second": 7.5,
        "step": 12,
        "num_steps": 12,
        "epochs": 3.0,
        "status": "finished",
        "best_step": 12,
        "best_score": 0.5,
    }
    (folder / "run.json").write_text(json.dumps(facts | (about or {})))
    told = {
        "split": "val",
        "checkpoint": "best",
        "step": 12,
        "protocol": "whole image",
        "images": 3,
        "class_names": list(class_names),
        "counts": counts.tolist(),
        "scores": {name: None if np.isnan(v) else v for name, v in scores_of(counts).items()},
        "published": {},
        "loss": 0.1,
        "seconds": 1.0,
    }
    told |= evaluation or {}
    file = f"{told['split']}-{told['checkpoint']}.json"
    (folder / "evaluations" / file).write_text(json.dumps(told))
    return folder
