"""The table of `configs/reproduce/README.md`: what was published, and what the runs of those configs gave."""

import pathlib
import runpy
import shlex
from collections.abc import Sequence
from typing import Any

from jaxseg.compare import escaped, tables
from jaxseg.compare.runs import PUBLISHED, Row, Run
from jaxseg.errors import UserError

HEADER = (
    "config",
    "data",
    "length",
    "protocol",
    "measured",
    "measured by the project's definitions",
    "published",
    "command",
    "hardware",
    "time",
)
INTRO = """# Published experiments, run again

A config is a row of somebody's table; its docstring says where that stands, how it was got and what is wrong with it.
`NAME.py` runs it soundly, `NAME.py:as_published` as it was really run. *By the project's definitions* are the scores
that it called by these names, see `jaxseg/published.py`; they are other things than those of `jaxseg/metrics.py`.
± is the sample standard deviation over seeds. A run that is shorter than its config says is called shortened. *best,
chosen here* is the checkpoint that scored best on these very images while training.

Written by `python -m jaxseg.compare RUN... --reproduce={file}`.

"""
# Of the machine that a run was on, and what a command has for them.
FOLDERS = {"data.dir": "DIR", "model.weights": "FILE", "refine.base": "WORKDIR"}
FILLED_IN = ("data.mean", "data.std")  # by the run, where the config leaves them open


def readme(rows: Sequence[Row], file: str) -> str:
    """The text of the file: a line a config and evaluation. `file` lies beside the configs."""
    groups = list(dict.fromkeys(row.group for row in rows))
    of_configs = sorted(rows, key=lambda row: groups.index(row.group))
    lines = [HEADER, ["---"] * len(HEADER), *(line(row, pathlib.Path(file).parent) for row in of_configs)]
    return INTRO.format(file=file) + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def line(row: Row, folder: pathlib.Path) -> list[str]:
    """The cells of a row; `folder` has the configs."""
    name = config_name(row.group.runs[0], folder) or row.group.label
    card = _card(folder, name)
    file = f"{name.partition(':')[0]}.py"
    names = [score for e in row.evaluations for score in e.scores]
    ours = [score for score in tables.shown_scores([row]) if not score.startswith("published/")]
    theirs = [score for score in dict.fromkeys(names) if score.startswith("published/")]
    cells = {
        "data": _data(row, card),
        "length": tables.joined([length(run, card) for run in row.group.runs]),
        "protocol": ", ".join(filter(None, (row.split, row.protocol, _checkpoint(row)))) or tables.DASH,
        "measured": _measured(row, ours),
        "measured by the project's definitions": _measured(row, theirs),
        "published": _published(row),
        "hardware": tables.facts(row)["hardware"],
        "time": tables.facts(row)["time"],
    }
    cells = {title: escaped.markdown(cell) for title, cell in cells.items()}
    cells["config"] = f"[{escaped.code(name)}]({file})" if card else escaped.markdown(name)
    cells["command"] = escaped.code(command(row.group.runs[0], card, folder, name)) if card else tables.DASH
    return [cells[title] for title in HEADER]


def config_name(run: Run, folder: pathlib.Path) -> str:
    """The config of a run, `NAME` or `NAME:ARGUMENT`: as it says, or as its workdir or the folder above is called."""
    if run.config.get(f"{PUBLISHED}config"):
        return str(run.config[f"{PUBLISHED}config"])
    stems = sorted((path.stem for path in folder.glob("*.py")), key=len, reverse=True)
    for called in (run.path.name, run.path.parent.name):
        for stem in stems:
            # As `main.default_workdir` makes it of `NAME.py:WORD,WORD`.
            if called == stem or called.startswith(f"{stem}-"):
                argument = called.removesuffix("-sweep")[len(stem) + 1 :].replace("-", ",")
                return ":".join(filter(None, (stem, argument)))
    return ""


def _card(folder: pathlib.Path, name: str) -> dict[str, Any] | None:
    """The config that a run is of as it stands in its file, flat; None where there is no such file.

    Raises:
      UserError: the file does not give a config.
    """
    from jaxseg import config as configs

    stem, _, argument = name.partition(":")
    path = folder / f"{stem}.py"
    if not path.is_file():
        return None
    try:
        return configs.flatten(runpy.run_path(str(path))["get_config"](*filter(None, [argument])))
    except Exception as error:
        raise UserError(
            f"{path} gives no config for '{name}' ({type(error).__name__}: {error}); call the workdir after the config "
            "that it is of, as jaxseg.main does, or otherwise than any"
        ) from error


def command(run: Run, card: dict[str, Any], folder: pathlib.Path, name: str) -> str:
    """What the run was started by: the config's file, and a flag for each field that is not as it stands there."""
    stem, colon, argument = name.partition(":")
    words = [f"python -m jaxseg.main --config={folder / stem}.py{colon}{argument}"]
    for field, value in run.config.items():
        if field.startswith(PUBLISHED) or value == card.get(field) or (field in FILLED_IN and not card.get(field)):
            continue
        if field in FOLDERS and "/" in str(value):
            value = FOLDERS[field]
        text = str(tuple(value) if isinstance(value, list) else value)
        words.append(shlex.quote(f"--config.{field}={text}"))
    return " ".join(words)


def length(run: Run, card: dict[str, Any] | None) -> str:
    """`4 of 4 epochs`, `1 of 50 epochs, shortened`: what was run of what the config sets."""
    due, unit = card["train.num_epochs"] if card else run.set_to("train.num_epochs"), "epochs"
    done = epochs(run)
    if not due or done is None:
        due, unit, done = card["train.num_steps"] if card else run.set_to("train.num_steps"), "steps", run.step
    if not due:
        return f"{run.step:,} steps"
    # Epochs are rounded down to whole steps.
    whole = done + (done / run.step if unit == "epochs" and run.step else 0) >= due
    why = run.status if run.status in ("running", "stopped early") else "shortened"
    return f"{round(due if whole else done, 1):,.10g} of {round(due, 1):,.10g} {unit}" + ("" if whole else f", {why}")


def epochs(run: Run) -> float | None:
    """How many passes over the training data it has done; None where it does not tell."""
    told, set_to = run.about.get("epochs"), run.set_to("train.num_epochs")
    if told is not None:
        return told
    return set_to * run.step / run.num_steps if set_to and run.num_steps else None


def _checkpoint(row: Row) -> str:
    chosen_here = (row.checkpoint, row.split) == ("best", row.group.eval_split)
    return "best, chosen here" if chosen_here else row.checkpoint


def _data(row: Row, card: dict[str, Any] | None) -> str:
    meant = (card or {}).get("data.name", row.group.config.get("data.name"))
    instead = f"in place of {meant}" if meant != row.group.config.get("data.name") else ""
    told = str(row.group.published.get("data", ""))
    return ", ".join(filter(None, (row.group.data, instead, _subset(row.group.runs[0]), told)))


def _subset(run: Run) -> str:
    """Of VOC, how many of its training images a run had, where it had not all of them; else ''."""
    from jaxseg.data.voc import SPLITS

    config, done = run.config, run.about.get("epochs")
    splits = SPLITS.get(config.get("data.version", ""))
    if config.get("data.name") != "voc" or not splits or not done or config.get("data.variants"):
        return ""
    had, all_there = round(run.step * config["data.batch_size"] / done), next(iter(splits.values()))
    return f"a subset of {had:,} of {all_there:,} training images" if had < all_there else ""


def _measured(row: Row, scores: Sequence[str]) -> str:
    texts = [f"{tables.name_of(s.removeprefix('published/'))} {tables.score_text(row, s)}" for s in scores]
    return ", ".join(texts) or tables.DASH


def _published(row: Row) -> str:
    figures = row.group.figures(row.split)
    texts = [f"{tables.name_of(name.removeprefix('published/'))} {figure:.4f}" for name, figure in figures.items()]
    if not texts:
        return tables.DASH
    return "; ".join(filter(None, (", ".join(texts), str(row.group.published.get("setting", "")))))
