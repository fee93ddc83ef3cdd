"""The forms of the files that are read back, as data in one table, and the one reader that checks them.

A form is
- `Number(low, high)` or `Whole(low, high)`, bounds included: a number, which is never NaN or infinite; `bool`; `None`;
- `Text(least, most)`: a text of so many characters; a set of texts: one of them;
- `Several(form, least, most)`: a list of so many items;
- `{"name": form, ...}`: an object with these entries; `Maybe(form)` for one that may be missing, `...: form` for all
  others, which are refused without it;
- a tuple of forms: any of them; `ANY`: anything.

Whatever breaks a form is a `UserError` in one line with the file, the entry, the value that came, what it must be and
the remedy. An entry that comes twice is refused, as are bytes that are no UTF-8 and files beyond the stated size.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jaxseg import checksums, files
from jaxseg.errors import UserError, shown


class Number(NamedTuple):
    """A finite number, both bounds included."""

    low: float
    high: float


class Whole(NamedTuple):
    """An integer, both bounds included; 1.0 and True are none."""

    low: int
    high: int


class Text(NamedTuple):
    """A text of `least` to `most` characters."""

    least: int
    most: int


class Several(NamedTuple):
    """A list of `least` to `most` items of one form."""

    form: Any
    least: int
    most: int


class Maybe(NamedTuple):
    """An entry that may be missing."""

    form: Any


ANY = object()

STEP = Whole(0, 2**31 - 1)  # a step is an int32 on the device
COUNT = Whole(0, 2**53)  # what a float64 still counts
MOST = 3.5e38  # just beyond float32: no run writes a larger number
FINITE = Number(-MOST, MOST)
SECONDS = Number(0, 1e12)
NAME = Text(1, 255)  # of a class, a split, a file
LABEL = Whole(0, 255)
NAMES = Several(NAME, 1, 255)
CLASS = Text(1, 100)  # that a user names
VALUE = Whole(0, 2**31 - 1)  # of a pixel in a mask
NUMBERS = {...: (FINITE, None)}  # null for NaN, as all files here have it

_VALUE = (bool, FINITE, Text(0, 10_000), Several((bool, FINITE, Text(0, 10_000)), 0, 1000))


# Groups within a group are options of networks, and published figures.
_FIELDS = {...: (*_VALUE, {...: (*_VALUE, None, {...: (*_VALUE, None)})})}


class File(NamedTuple):
    """A kind of file.

    Fields:
      what: it is, in words.
      form: of its content.
      most: bytes that are read.
      remedy: what to do where it is broken.
      check: `(content) -> (entry, value, what it must be)` of the first entry that contradicts another, or None.
    """

    what: str
    form: Any
    most: int
    remedy: str
    check: Callable[[Any], tuple[str, Any, str] | None] = lambda content: None


def _check_info(info: Mapping[str, Any]) -> tuple[str, Any, str] | None:
    names = info["class_names"]
    for field in ("palette", "class_weights"):
        if info[field] is not None and len(info[field]) != len(names):
            return field, info[field], f"of {len(names)} items, one for each of class_names"
    for index, (_, label) in enumerate(info.get("values", ())):
        if not 0 <= label <= 255:
            return f"values[{index}][1]", label, "a label from 0 to 255"
    return _check_names(info)


def _check_names(content: Mapping[str, Any]) -> tuple[str, Any, str] | None:
    seen = set()
    for index, name in enumerate(content["class_names"]):
        if name in seen:
            return f"class_names[{index}]", name, "a name that is there once"
        seen.add(name)
    return None


def _check_classes(content: Mapping[str, Any]) -> tuple[str, Any, str] | None:
    for entry in {"names", "colours"} & content.keys():
        if not 1 <= len(content[entry]) <= 255:
            return entry, content[entry], "of 1 to 255 classes; 255 itself counts nowhere"
        for name in content["colours"] if entry == "colours" else ():
            if not 1 <= len(name) <= CLASS.most:
                return entry, name, f"of names of 1 to {CLASS.most} characters"
    return None


def _check_evaluation(content: Mapping[str, Any]) -> tuple[str, Any, str] | None:
    size = len(content["class_names"])
    for entry, items in [
        ("counts", content["counts"]),
        *((f"counts[{i}]", r) for i, r in enumerate(content["counts"])),
    ]:
        if len(items) != size:
            return entry, items, f"of {size} items, one for each of class_names"
    for name, value in content["scores"].items():
        if value is not None and is_share(name) and not 0 <= value <= 1:
            return f"scores.{name}", value, "from 0 to 1"
    return _check_names(content)


def _check_row(row: Mapping[str, Any]) -> tuple[str, Any, str] | None:
    for key, value in row.items():
        if value is not None and is_share(key.partition("/")[2]) and not 0 <= value <= 1:
            return key, value, "from 0 to 1"
    return None


def is_share(score: str) -> bool:
    """Whether a score, `mean_iou` or `iou/sky`, lies between 0 and 1; a project's own may be anything."""
    return score.partition("/")[0] in _SHARES


_SHARES = {
    *("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou", "micro_iou", "mean_dice", "micro_dice"),
    *("mean_precision", "mean_recall", "boundary_f1", "iou"),
}

FORMS = {
    files.CONFIG: File(
        "the config of a run",
        # What every run has had from the first on; `config.read` knows the others, and of what type each is.
        {
            "data": {"name": NAME, **_FIELDS},
            "model": {"name": NAME, "backbone": NAME, **_FIELDS},
            "loss": _FIELDS,
            "optim": {"name": NAME, "learning_rate": FINITE, **_FIELDS},
            "train": _FIELDS,
            ...: _FIELDS,
        },
        2**20,
        "put back the file that the run wrote, or train in another --workdir",
    ),
    files.INFO: File(
        "the classes of a run",
        {
            "name": NAME,
            "class_names": NAMES,
            "palette": Several(Several(LABEL, 3, 3), 1, 255),
            "class_weights": (Several(Number(0, MOST), 1, 255), None),
            "ignore_label": LABEL,
            "values": Maybe(Several(Several(Whole(-(2**24), 2**31 - 1), 2, 2), 0, 10_000)),
        },
        2**20,
        "put back the file that the run wrote, or train in another --workdir",
        _check_info,
    ),
    files.RUN: File(
        "what is known of a run",
        {
            "split": Maybe(NAME),
            "status": Maybe({"running", "finished", "stopped", "stopped early", "failed"}),
            "parameters": Maybe(COUNT),
            "multiply_adds": Maybe((COUNT, Number(0, 1e18))),
            "image_size": Maybe(Several(Whole(1, 10**9), 2, 2)),
            "device": Maybe(NAME),
            "num_devices": Maybe(Whole(1, 10**6)),
            "contents": Maybe({...: Text(0, 100)}),
            "versions": Maybe({...: Text(0, 1000)}),
            "train_seconds": Maybe((SECONDS, None)),
            "images_per_second": Maybe((SECONDS, None)),
            "step": Maybe(STEP),
            "num_steps": Maybe(STEP),
            "epochs": Maybe((SECONDS, None)),
            "best_step": Maybe(STEP),
            "best_score": Maybe((FINITE, None)),
            ...: ANY,
        },
        2**20,
        "delete it: the run writes it again when it goes on",
    ),
    files.EVALUATIONS: File(
        "an evaluation",
        {
            "split": NAME,
            "checkpoint": NAME,
            "step": STEP,
            "protocol": Text(1, 1000),
            "images": COUNT,
            "content": Maybe(Text(0, 100)),
            "class_names": NAMES,
            "counts": Several(Several(COUNT, 1, 255), 1, 255),
            "scores": NUMBERS,
            "published": Maybe(NUMBERS),
            "nonfinite": Maybe(COUNT),
            "never_predicted": Maybe(Several(NAME, 0, 255)),
            "loss": (FINITE, None),
            "seconds": Maybe((SECONDS, None)),
            ...: ANY,
        },
        2**24,
        "delete it and score again with --mode=eval",
        _check_evaluation,
    ),
    files.METRICS: File(
        "a row of metrics",
        {"step": STEP, **NUMBERS},
        2**28,
        "delete that line",
        _check_row,
    ),
    files.NOTES: File(
        "the notes of prepared data",
        {
            "key": NAME,
            "origin": Text(0, 10_000),
            "remarks": Maybe(Several(Text(0, 10_000), 0, 10_000)),
            "sizes": {...: Several(Several(Whole(1, 2**20), 2, 2), 0, 2**31)},
            "contents": {...: Text(0, 100)},
            "pixels": {...: Several(Several(COUNT, 256, 256), 2, 2)},
            ...: ANY,
        },
        2**30,
        "delete the folder that it is in: the data is prepared again",
    ),
    "progress": File(
        "the progress of a checkpoint",
        {
            "best_score": Maybe((FINITE, None)),
            "best_mean_iou": Maybe((FINITE, None)),  # of runs from before there was a choice of scores
            "best_step": Maybe(STEP),
            "stale": Maybe(STEP),
            "evaluated": Maybe(STEP),
            "losses": Maybe(Several((FINITE, None), 0, 2**31)),
            "other_losses": Maybe({...: Several((FINITE, None), 0, 2**31)}),
            "train_seconds": Maybe(SECONDS),
            "timed_steps": Maybe(STEP),
            ...: ANY,
        },
        2**24,
        "move that checkpoint away, or name another with --checkpoint",
    ),
    "classes.yaml": File(
        "the classes of a folder of masks",
        {
            "names": Maybe((Several(CLASS, 1, 255), {...: CLASS})),
            "colours": Maybe({...: Several(LABEL, 3, 3)}),
            "ignore": Maybe((VALUE, Several((VALUE, Several(LABEL, 3, 3)), 1, 1000))),
        },
        2**17,
        "mend that entry; python -m jaxseg.data.folder --help has an example",
        _check_classes,
    ),
}


def read_json(path: str | os.PathLike, file: File) -> Any:
    """The content of a JSON file of a kind of `FORMS`.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is not of that form, no regular file, too large or can't be read.
    """
    return parse(checksums.read_sealed(path, most=file.most), file, path)


def read_run(workdir: str | os.PathLike) -> dict[str, Any]:
    """What `run.json` of a workdir says; {} where there is none.

    Raises:
      UserError: it is not of its form.
    """
    try:
        return read_json(os.path.join(workdir, files.RUN), FORMS[files.RUN])
    except FileNotFoundError:
        return {}


def parse(data: bytes, file: File, where: object) -> Any:
    """The content of JSON text of a kind of `FORMS`; `where` it is from goes into the message.

    Raises:
      UserError: it is not of that form.
    """
    try:
        content = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        why = {
            UnicodeDecodeError: "its bytes are no UTF-8",
            RecursionError: "it is nested too deeply",
        }.get(type(error), str(error).partition(";")[0])
        raise UserError(f"{shown(where)} is not {file.what}: {shown(why)}; {file.remedy}") from None
    return checked(content, file, where)


def checked(content: Any, file: File, where: object) -> Any:
    """`content`, of JSON or YAML, if it is of the form.

    Raises:
      UserError: names `where` and the first entry that is not.
    """
    bad = next(_broken(content, file.form, ""), None) or file.check(content)
    if bad:
        raise broken(where, *bad, file.remedy)
    return content


def broken(where: object, entry: str, value: Any, due: str, remedy: str) -> UserError:
    """The error of an entry of a file; `value` is `MISSING` where there is none."""
    came = "missing" if value is MISSING else brief(value)
    return UserError(f"{shown(where)}: {shown(entry) or 'all of it'} is {came}; it must be {due}: {remedy}")


MISSING = object()


def brief(value: Any) -> str:
    """A value in few characters: of lists and objects how many items they have."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = shown(repr(value))
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} comes twice")
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _broken(value: Any, form: Any, entry: str) -> Iterable[tuple[str, Any, str]]:
    """The entries that are not of the form: name, value and what it must be."""
    if form is ANY:
        return
    if isinstance(form, Several) and isinstance(value, list) and form.least <= len(value) <= form.most:
        for index, item in enumerate(value):
            yield from _broken(item, form.form, f"{entry}[{index}]")
    elif isinstance(form, dict) and isinstance(value, dict):
        dot = f"{entry}." if entry else ""
        for name, of_entry in form.items():
            if name is not ... and name not in value and not isinstance(of_entry, Maybe):
                yield f"{dot}{name}", MISSING, _words(of_entry)
        for name, item in value.items():
            of_entry = form.get(name, form.get(...)) if isinstance(name, str) else None
            if of_entry is None:
                known = ", ".join(str(name) for name in form if name is not ...)
                yield dot + str(name), item, f"left out: the entries are {known}"
            else:
                yield from _broken(item, of_entry.form if isinstance(of_entry, Maybe) else of_entry, dot + name)
    elif isinstance(form, tuple) and type(form) is tuple:
        # Where one of them is of the value's kind, its complaint says more.
        complaints = [list(_broken(value, one, entry)) for one in form]
        if all(complaints):
            within = [found for found in complaints if found[0][0] != entry]
            yield from within[0] if within else [(entry, value, _words(form))]
    elif not _fits(value, form):
        yield entry, value, _words(form)


def _fits(value: Any, form: Any) -> bool:
    if form is None or form is bool:
        return value is None if form is None else isinstance(value, bool)
    if isinstance(form, Number | Whole):
        kinds = int if isinstance(form, Whole) else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and form.low <= value <= form.high
    if isinstance(form, Text):
        return isinstance(value, str) and form.least <= len(value) <= form.most
    return isinstance(form, set) and isinstance(value, str) and value in form


def _words(form: Any) -> str:
    """What a form asks for."""
    if isinstance(form, Number):
        return "a finite number" if form == FINITE else f"a number from {form.low:g} to {form.high:g}"
    if isinstance(form, Whole):
        return f"a whole number from {form.low:,} to {form.high:,}"
    if isinstance(form, Text):
        return f"a text of {form.least} to {form.most} characters"
    if isinstance(form, Several):
        return f"a list of {form.least:,} to {form.most:,} items"
    if isinstance(form, dict):
        return "an object, {...}"
    if isinstance(form, set):
        return f"one of {', '.join(sorted(form))}"
    if isinstance(form, tuple):
        return " or ".join(map(_words, form))
    return {None: "null", bool: "true or false", ANY: "there"}[form]
