"""The table of a comparison: its columns, as Markdown, and as CSV."""

import csv
import io
import math
from collections.abc import Iterable, Sequence

from jaxseg.compare import escaped
from jaxseg.compare.runs import Row

NAMES = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "mean_dice": "mean Dice (F1)",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "micro_iou": "micro IoU",
    "mean_precision": "mean precision",
    "mean_recall": "mean recall",
    "boundary_f1": "boundary F1",
    "f1": "F1",
    "dice": "Dice",
}
SHOWN = ("mean_iou", "pixel_accuracy", "mean_accuracy", "mean_dice")
# In every evaluation and in the CSV, but columns of the table only where a published figure asks for them.
ON_DEMAND = ("frequency_weighted_iou", "micro_iou", "micro_dice", "mean_precision", "mean_recall")
NO_SCORE = ("absent_classes", "never_predicted", "pixels", "loss")
DASH = "–"
SPREAD = (
    "± is the sample standard deviation over the seeds of one config; the CSV has lowest and highest too. Steps are "
    "those done of those set. Multiply-adds are of one image of the training crop's size. Time is that of the steps."
)


def name_of(score: str) -> str:
    """A score as a heading."""
    plain = score.removeprefix("published/")
    name = NAMES.get(plain, plain.replace("_", " ").replace("/", " "))
    return f"{name}, project's definition" if plain != score else name


def shown_scores(rows: Sequence[Row]) -> list[str]:
    """The scores that get a column: the usual ones, those of published figures, and any other that a run tells."""
    told = list(dict.fromkeys(score for row in rows for e in row.evaluations for score in e.scores))
    asked = {score for row in rows for score in row.published}
    others = [score for score in told if score not in SHOWN and score not in NO_SCORE and score not in ON_DEMAND]
    wanted = [*SHOWN, *(score for score in ON_DEMAND if score in asked), *others]
    return [score for score in wanted if score in told]


def score_text(row: Row, score: str) -> str:
    """`0.6086 ± 0.0026`, or a dash."""
    mean, deviation = row.mean(score), row.deviation(score)
    if math.isnan(mean):
        return DASH
    return f"{mean:.4f}" + ("" if math.isnan(deviation) else f" ± {deviation:.4f}")


def facts(row: Row) -> dict[str, str]:
    """The columns of a row that are no scores, as text by heading."""
    runs = row.group.runs
    one = runs[0].about
    size = one.get("multiply_adds")
    return {
        "run": ", ".join(run.name for run in runs),
        "network": row.group.network or DASH,
        "seeds": str(len(runs)),
        "data": row.group.data or DASH,
        "split": row.split or DASH,
        "checkpoint": row.checkpoint or DASH,
        "protocol": row.protocol or DASH,
        "steps": steps_text(row),
        "parameters": f"{one['parameters']:,}" if "parameters" in one else DASH,
        "multiply-adds": DASH if size is None else f"{size / 1e9:.2f} G",
        "images/s": _mean_text([run.images_per_second for run in runs], lambda rate: f"{rate:.1f}"),
        "time": _mean_text([run.train_seconds for run in runs], duration),
        "hardware": joined([hardware(run.about) for run in runs]),
    }


def steps_text(row: Row) -> str:
    """`900 of 900`, or `450 of 900, running`; a line a seed where they differ."""
    return joined([run_steps(run) for run in row.group.runs])


def run_steps(run) -> str:
    """Steps done of those set, and why it ended before them."""
    done = f"{run.step:,}" + (f" of {run.num_steps:,}" if run.num_steps else "")
    short = run.num_steps is not None and run.step < run.num_steps
    status = run.status if run.status != "finished" else ""
    return done + (f", {status or 'stopped short'}" if short or status else "")


def hardware(about) -> str:
    """`2 x NVIDIA H200`, or a dash."""
    count = about.get("num_devices", 1)
    return (f"{count} x " if count > 1 else "") + about["device"] if "device" in about else DASH


def counted(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """`45 s`, `16 min`, `2 h 05 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _mean_text(values: Iterable[float | None], text) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return text(sum(known) / len(known)) if known else DASH


def joined(texts: Sequence[str]) -> str:
    """What the seeds of a config tell; once where they tell the same."""
    return "; ".join(dict.fromkeys(texts))


def settings(rows: Sequence[Row]) -> dict[str, str]:
    """What published figures are of, by the label of the group that names them; and those without a column."""
    found = {}
    for row in rows:
        measured = {score for evaluation in row.evaluations for score in evaluation.scores}
        others = [
            f"{name_of(s)} {figure:.4f} (not measured)" for s, figure in row.published.items() if s not in measured
        ]
        told = [str(row.group.published.get("setting", "")), *others]
        if row.published and any(told):
            found.setdefault(row.group.label, "; ".join(filter(None, told)))
    return found


def markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table with a column for each published figure beside the measured one, and the notes below it."""
    header, aligned, lines = [], [], []
    scores = shown_scores(rows)
    beside = {score for row in rows for score in row.published}
    for row in rows:
        told = facts(row)
        cells = {name: told.pop(name) for name in ("run", "network", "seeds", "data", "split", "protocol", "steps")}
        for score in scores:
            cells[name_of(score)] = score_text(row, score)
            if score in beside:
                figure = row.published.get(score)
                cells[f"{name_of(score)}: published"] = DASH if figure is None else f"{figure:.4f}"
        cells |= told
        header = list(cells)
        lines.append("| " + " | ".join(map(escaped.markdown, cells.values())) + " |")
    words = ("run", "network", "data", "split", "checkpoint", "protocol", "hardware")
    aligned = ["---" if name in words else "---:" for name in header]
    text = "\n".join(["| " + " | ".join(map(escaped.markdown, header)) + " |", "|" + "|".join(aligned) + "|", *lines])
    remarks = [f"Published figures beside {label}: {text}" for label, text in settings(rows).items()]
    return text + "\n\n" + "".join(f"- {escaped.markdown(line)}\n" for line in [*notes, *remarks, SPREAD])


def as_csv(rows: Sequence[Row]) -> str:
    """A line a row, all digits: each score as mean over the seeds, `_std`, `_min`, `_max` and `_published`.

    No cell is one that a spreadsheet takes for a formula, see `escaped.cell`; numbers are numbers.
    """
    told = list(dict.fromkeys(score for row in rows for e in row.evaluations for score in e.scores))
    classes = list(dict.fromkeys(name for row in rows for name in row.iou))
    lines = []
    for row in rows:
        runs = row.group.runs
        line = {name.replace(" ", "_"): "" if v == DASH else v for name, v in facts(row).items() if name != "steps"}
        line |= {
            "step": ";".join(str(run.step) for run in runs),
            "num_steps": ";".join(str(run.num_steps or "") for run in runs),
            "status": ";".join(run.status for run in runs),
            "parameters": runs[0].about.get("parameters", ""),
            "multiply-adds": runs[0].about.get("multiply_adds", ""),
            "images/s": _mean_text([run.images_per_second for run in runs], repr).replace(DASH, ""),
            "time": _mean_text([run.train_seconds for run in runs], repr).replace(DASH, ""),
        }
        for score in told:
            values = row.values(score)
            line[score] = row.mean(score) if values else ""
            line[f"{score}_std"] = row.deviation(score) if len(values) > 1 else ""
            line[f"{score}_min"], line[f"{score}_max"] = (min(values), max(values)) if values else ("", "")
            line[f"{score}_published"] = row.published.get(score, "")
        iou = row.iou
        line |= {f"iou/{name}": iou[name] if math.isfinite(iou.get(name, math.nan)) else "" for name in classes}
        line["never_predicted"] = ";".join(row.never_predicted)
        line["published_setting"] = row.group.published.get("setting", "")
        lines.append(line)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # Every row has the same columns; two that are escaped alike stay two.
    rows_of_cells = [list(lines[0]), *(line.values() for line in lines)]
    writer.writerows([escaped.cell(value) for value in cells] for cells in rows_of_cells)
    return text.getvalue()
