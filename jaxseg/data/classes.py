"""The classes of a folder of masks: what its `classes.yaml` says, and what follows from the masks themselves."""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg import files
from jaxseg.data import plain_yaml
from jaxseg.data.info import DataInfo
from jaxseg.data.layout import brief
from jaxseg.data.voc import voc_palette
from jaxseg.errors import UserError, shown
from jaxseg.forms import FORMS, broken, checked

CLASSES = "classes.yaml"
_IGNORE = 255
_MOST_LABEL = 2**31 - 1
_LISTED = 16  # labels or colours of a proposed classes.yaml; more are no classes by mistake


@dataclass(frozen=True)
class Classes:
    """Classes, and the label of every value that masks may have.

    Attributes:
      info: names and colours.
      table: label, 255 for what counts nowhere, by value; values are those of `readings.values_of`.
      kind: what the masks hold, in words.
      path: of the file that says so, or would.
    """

    info: DataInfo
    table: dict[int, int]
    kind: str
    path: Path

    def check(self, masks: Mapping[Path, Sequence[tuple[int, int]]]) -> None:
        """Refuses masks, `{path: [(value, pixels), ...]}`, with a value that is in no class.

        Raises:
          UserError: names the first of them with the value, and all such values of the masks.
        """
        strange = [(mask, v, count) for mask, values in masks.items() for v, count in values if v not in self.table]
        if not strange:
            return
        mask, value, count = strange[0]
        values = sorted({value for _, value, _ in strange}, reverse=value < 0)
        if value < 0 and not any(known < 0 for known in self.table):
            colours = [_rgb(value) for value in values if value < 0]
            entry = ", ".join(f"class_{index}: {rgb}" for index, rgb in enumerate(colours[:_LISTED]))
            more = f" ({len(colours)} colours in all)" if len(colours) > _LISTED else ""
            raise UserError(
                f"{shown(mask)} holds colours: say in {shown(self.path)} which class has which colour, such as "
                f"colours: {{{entry}}}{more}"
            )
        what = f"label {value}" if value >= 0 else f"the colour {_rgb(value)}"
        told = [value if value >= 0 else _rgb(value) for value in values if (value >= 0) == (strange[0][1] >= 0)]
        ignored = sorted({value for value, label in self.table.items() if label == _IGNORE and value != _IGNORE})
        listed = [value if value >= 0 else _rgb(value) for value in ignored] + told[:_LISTED]
        more = f" ({len(told)} such values in all)" if len(told) > _LISTED else ""
        colours = any(known < 0 for known in self.table)
        if colours and len(listed) == 3 and all(isinstance(item, int) for item in listed):
            listed.append(_IGNORE)  # three numbers beside colours are a colour
        proposed = listed[0] if len(listed) == 1 and isinstance(listed[0], int) else listed
        raise UserError(
            f"{shown(mask)} has {what} in {count} pixels, which is none of {brief(self.info.class_names, 20)}: name it "
            f"in {shown(self.path)}, mend the mask, or have it count nowhere, "
            f"ignore: {proposed}{more}"
        )

    def labels_of(self, values: np.ndarray, mask: object = "a mask") -> np.ndarray:
        """Labels uint8 [H, W] of integers [H, W], of the file `mask`.

        Raises:
          UserError: one of them is not in the table.
        """
        known = np.array(sorted(self.table))
        places = np.searchsorted(known, values).clip(max=len(known) - 1)
        if (wrong := known[places] != values).any():
            value, count = np.unique(values[wrong], return_counts=True)
            self.check({Path(str(mask)): [(int(value[0]), int(count[0]))]})
        return np.array([self.table[value] for value in known.tolist()], np.uint8)[places]


def _value(rgb: Iterable[int]) -> int:
    red, green, blue = rgb
    return -1 - (red * 65536 + green * 256 + blue)


def _rgb(value: int) -> list[int]:
    return [-1 - value >> shift & 255 for shift in (16, 8, 0)]


def read_classes(folder: Path, values: set[int], run: DataInfo | None = None) -> Classes:
    """The classes of the masks in `folder`, given all values in them.

    With the classes of a `run`, to score it there, they are the run's: by name where the folder's own `classes.yaml`
    names some, which may be fewer; else by the values that they had in the masks that the run was trained on.

    Raises:
      UserError: `classes.yaml` is not as it should be, or what the masks hold needs one.
    """
    path = folder / CLASSES
    said = _read(path)
    if run is None:
        classes = _own(folder, path, said, values)
        return replace(classes, info=replace(classes.info, values=tuple(sorted(classes.table.items()))))
    if said.keys() <= {"ignore"}:
        return _as_trained(folder, path, said, values, run)
    own = _own(folder, path, said, values, least=1)
    strange = [name for name in own.info.class_names if name not in run.class_names]
    if strange:
        raise UserError(
            f"{shown(path)} names {strange[0]}, which is no class of the run: those are {brief(run.class_names, 20)}"
        )
    to_run = {_IGNORE: _IGNORE} | {i: run.class_names.index(name) for i, name in enumerate(own.info.class_names)}
    return replace(own, info=run, table={value: to_run[label] for value, label in own.table.items()})


def meanings(folder: Path, run: DataInfo | None = None) -> tuple[dict[int, int], dict[int, int]]:
    """The label, 255 for what counts nowhere, of the numbers and of the colours that the folder's `classes.yaml` names,
    or where it names no classes those of a `run`; colours are red * 65536 + green * 256 + blue.

    Raises:
      UserError: `classes.yaml` is not as it should be.
    """
    said = _read(folder / CLASSES)
    table = dict(run.values) if run and said.keys() <= {"ignore"} else {}
    colours = said.get("colours", {})
    names = said.get("names", dict(enumerate(colours)))
    for index, label in enumerate(sorted(names)):
        table |= {label: index} | ({_value(colours[names[label]]): index} if colours else {})
    table |= {_value(v) if isinstance(v, tuple) else v: _IGNORE for v in said.get("ignore", ())}
    numbers = {value: label for value, label in table.items() if value >= 0}
    return numbers, {-1 - value: label for value, label in table.items() if value < 0}


def _own(folder: Path, path: Path, said: Mapping[str, Any], values: set[int], least: int = 2) -> Classes:
    names, colours, ignored = said.get("names"), said.get("colours"), said.get("ignore", frozenset())
    labels = {value for value in values if value >= 0}
    if names is None and colours is not None:
        names = dict(enumerate(colours))
        clash = sorted(ignored & names.keys())
        if clash and labels:
            raise UserError(
                f"{shown(path)}: ignore is {clash[0]}, which is the label of {names[clash[0]]}, as colours are "
                "numbered from 0: say the label of each by names"
            )
    if labels == values and 255 in labels and labels <= {0, 255} and 255 not in ignored:
        if not ignored and (names is None or names.keys() == {0, 1}):
            names = names or {0: "class_0", 1: "class_1"}
            return Classes(_info(names, colours), {0: 0, 255: 1}, "0 and 255 alone, which is taken for class 1", path)
        if 255 not in (names or ()):
            raise _two_readings(folder, path)
    if names is None:
        names = _guess(folder, path, labels, ignored)
    if len(names) < least and (labels == values or said.keys() - {"ignore"}):
        raise UserError(
            f"{shown(folder)} has one class, {', '.join(map(str, names.values()))}: two or more are needed; name the "
            f"others, background too, in {shown(path)}"
        )
    table = {label: index for index, label in enumerate(sorted(names))}
    table |= {_value(colours[names[label]]): index for label, index in table.items()} if colours else {}
    return Classes(_info(names, colours), _ignoring(ignored) | table, _kind(labels, values), path)


def _as_trained(folder: Path, path: Path, said: Mapping[str, Any], values: set[int], run: DataInfo) -> Classes:
    """The classes of a run, whose masks had `run.values`; where a run does not know them, labels in its order."""
    ignored = said.get("ignore", frozenset())
    labels = {value for value in values if value >= 0}
    table = dict(run.values) or {label: label for label in range(run.num_classes)}
    if table == {0: 0, 255: 1} and labels <= {0, 1}:
        table = {0: 0, 1: 1}  # the same two classes, written as indices
    if labels == {0, 255} and 255 not in ignored and table.get(255, _IGNORE) == _IGNORE:
        raise _two_readings(folder, path)
    return Classes(run, {_IGNORE: _IGNORE} | table | _ignoring(ignored), _kind(labels, values), path)


def _ignoring(ignored: Iterable[int | tuple[int, ...]]) -> dict[int, int]:
    # 255 is ignored unless it is a class.
    return {255: _IGNORE, **{_value(v) if isinstance(v, tuple) else v: _IGNORE for v in ignored}}


def _two_readings(folder: Path, path: Path) -> UserError:
    return UserError(
        f"the masks of {shown(folder)} hold 0 and 255 only, which have two readings: say in {shown(path)} what 255 is, "
        "ignore: 255 or names: {0: ..., 255: ...}"
    )


def _kind(labels: set[int], values: set[int]) -> str:
    kinds = ["class indices"] if labels else []
    return " and ".join(kinds + (["RGB colours"] if labels != values else []))


def _info(names: Mapping[int, str], colours: Mapping[str, tuple[int, ...]] | None) -> DataInfo:
    in_order = tuple(names[label] for label in sorted(names))
    palette = np.array([colours[name] for name in in_order], np.uint8) if colours else voc_palette(len(in_order))
    return DataInfo("folder", in_order, palette)


def _guess(folder: Path, path: Path, labels: set[int], ignored: Iterable[int | tuple[int, ...]]) -> dict[int, str]:
    """Names of the labels that masks hold, which lie close together from 0 on; greys do not, or reach up to 254."""
    own = sorted(labels - {*ignored, 255})
    count = max(own, default=0) + 1 - sum(isinstance(v, int) and v <= max(own, default=0) for v in ignored)
    if not own or (count - len(own) < len(own) and count < 250):
        return {label: f"class_{label}" for label in range(max(own, default=0) + 1) if label not in ignored}
    greys = sorted(labels - {*ignored})
    if len(greys) > _LISTED:
        listed = ", ".join(map(str, [*greys[:4], "...", greys[-1]]))
        raise UserError(
            f"the masks of {shown(folder)} hold {len(greys)} values, {listed}, which look like greys, not classes: "
            f"save them again with 0 and 255 alone, or say in {shown(path)} which of them are classes, "
            f"names: {{{greys[0]}: ..., {greys[-1]}: ...}}"
        )
    names = ", ".join(f"{label}: class_{index}" for index, label in enumerate(greys))
    raise UserError(
        f"the masks of {shown(folder)} hold {', '.join(map(str, greys))}, which can't be the labels of {count} "
        f"classes: say which they are in {shown(path)}, for example names: {{{names}}}"
    )


def _read(path: Path) -> dict[str, Any]:
    """`names` {label: name}, `colours` {name: (red, green, blue)} and `ignore`, a set of labels and colours; what is
    there.
    """
    form = FORMS[CLASSES]
    if not os.path.lexists(path):
        return {}
    try:
        content = plain_yaml.parse(files.read_bytes(path, most=form.most).decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{shown(path)} can't be read: its bytes are no UTF-8; save it as UTF-8") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown(path)} can't be read: {shown(error)}") from error
    content = dict(checked(content, form, path))

    def bad(entry: str, value: Any, due: str) -> UserError:
        return broken(path, entry, value, due, form.remedy)

    if "names" in content:
        names = content["names"]
        names = {str(label): name for label, name in enumerate(names)} if isinstance(names, list) else names
        for label in names:
            if not re.fullmatch(r"0|[1-9][0-9]{0,9}", label, re.ASCII) or int(label) > _MOST_LABEL:
                raise bad("names", label, f"a label from 0 to {_MOST_LABEL:,}, and after it the class's name")
        content["names"] = dict(zip(map(int, names), _names(names.values(), "names", bad), strict=True))
    if "colours" in content:
        colours = [tuple(rgb) for rgb in content["colours"].values()]
        for index, rgb in enumerate(colours):
            if rgb in colours[:index]:
                raise bad("colours", list(rgb), "a colour of one class; it comes twice")
        content["colours"] = dict(zip(_names(content["colours"], "colours", bad), colours, strict=True))
        named = content.get("names")
        odd = sorted(set(content["colours"]) ^ set(named.values())) if named else []
        if odd:
            raise bad("colours", odd[0], "in names and in colours, it is in one of them alone")
    if "ignore" in content:
        content["ignore"] = _ignored(content, bad)
    return content


def _ignored(content: Mapping[str, Any], bad) -> frozenset[int | tuple[int, ...]]:
    ignore = content["ignore"]
    colour = "colours" in content and isinstance(ignore, list) and len(ignore) == 3
    if isinstance(ignore, int) or (colour and all(isinstance(part, int) for part in ignore)):
        ignore = [ignore]
    items = [tuple(item) if isinstance(item, list) else item for item in ignore]
    classes = {*content.get("names", ()), *content.get("colours", {}).values()}
    for index, item in enumerate(items):
        if item in classes:
            raise bad("ignore", item, "what is no class, but it is a class as well")
        if item in items[:index]:
            raise bad("ignore", item, "there once; three numbers are a colour only beside colours, or as [[1, 2, 3]]")
        if isinstance(item, tuple) and max(item) > 255:
            raise bad("ignore", list(item), "a colour, three numbers from 0 to 255; four or more numbers are labels")
    return frozenset(items)


def _names(names: Iterable[str], entry: str, bad) -> list[str]:
    """The names in Unicode's composed form, in which two that look alike are alike."""
    found: list[str] = []
    for name in names:
        name = unicodedata.normalize("NFC", name)
        if shown(name) != name or name != name.strip():
            raise bad(entry, name, "a name of printable characters, without blanks at its ends")
        if name in found:
            raise bad(entry, name, "a name that is there once")
        found.append(name)
    return found
