"""The classes of a folder of masks: what its `classes.yaml` says, and what follows from the masks themselves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from jaxseg.data.info import DataInfo
from jaxseg.data.voc import voc_palette
from jaxseg.errors import UserError
from jaxseg.lookup import lookup

CLASSES = "classes.yaml"
_IGNORE = 255


@dataclass(frozen=True)
class Classes:
    """Classes, and the label of every value that masks may have.

    Attributes:
      info: names and colours.
      table: label, 255 for what counts nowhere, by value; values are those of `folder.read_values`.
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
          UserError: names the first of them with the value.
        """
        for mask, values in masks.items():
            strange = [(value, count) for value, count in values if value not in self.table]
            if not strange:
                continue
            value, count = strange[0]
            if not any(known < 0 for known in self.table) and value < 0:
                colours = ", ".join(str(_rgb(value)) for value, _ in strange[:8]) + (
                    ", ..." if len(strange) > 8 else ""
                )
                raise UserError(f"{mask} holds colours, {colours}: say in {self.path} which class has which colour.")
            what = f"label {value}" if value >= 0 else f"the colour {_rgb(value)}"
            raise UserError(
                f"{mask} has {what} in {count} pixels, which is none of {', '.join(self.info.class_names)}: add it to "
                f"{self.path}, as a class or as what is ignored, or mend the mask."
            )

    def labels_of(self, values: np.ndarray) -> np.ndarray:
        """Labels uint8 [H, W] of integers [H, W], all of them in the table."""
        known = np.array(sorted(self.table))
        return np.array([self.table[value] for value in known], np.uint8)[np.searchsorted(known, values)]


def _value(rgb: Iterable[int]) -> int:
    red, green, blue = rgb
    return -1 - (red * 65536 + green * 256 + blue)


def _rgb(value: int) -> list[int]:
    return [-1 - value >> shift & 255 for shift in (16, 8, 0)]


def read_classes(folder: Path, values: set[int]) -> Classes:
    """The classes of the masks in `folder`, given all values in them.

    Raises:
      UserError: `classes.yaml` is not as it should be.
    """
    path = folder / CLASSES
    said = _read(path)
    names, colours, ignore = said.get("names"), said.get("colours"), said.get("ignore", _IGNORE)
    labels = {value for value in values if value >= 0}
    if names is None and colours is not None:
        names = dict(enumerate(colours))
        if ignore in names and labels:
            raise UserError(
                f"{path}: ignore is {ignore}, which is the label of {names[ignore]}, as colours are numbered from 0: "
                "say the label of each by names."
            )
    binary = labels == values and 255 in labels and labels <= {0, 255} and "ignore" not in said
    if binary and (names is None or names.keys() == {0, 1}):
        names = names or {0: "class_0", 1: "class_1"}
        table, kind = {0: 0, 255: 1}, "0 and 255 alone, which is taken for class 1"
    else:
        if names is None:
            most = max(labels - {ignore, 255}, default=0)
            # Class indices lie close together from 0 on; greys of smoothed outlines do not, or reach up to 254.
            if {0, 255} <= labels and "ignore" not in said and most >= 64 and (len(labels) < most / 2 or most > 250):
                greys = sorted(labels)
                shown = ", ".join(map(str, greys if len(greys) <= 6 else [*greys[:4], "...", greys[-1]]))
                raise UserError(
                    f"the masks of {folder} hold {len(greys)} values, {shown}, which look like greys, not classes: "
                    f"save them anew with 0 and 255 alone, or say in {path} which of them are classes."
                )
            names = {label: f"class_{label}" for label in range(most + 1) if label != ignore}
        table = {label: index for index, label in enumerate(sorted(names))}
        table |= {_value(colours[names[label]]): index for label, index in table.items()} if colours else {}
        # 255 is ignored unless it is a class.
        table = {255: _IGNORE, _value(ignore) if isinstance(ignore, tuple) else ignore: _IGNORE} | table
        kinds = ["class indices"] if labels else []
        kinds += ["RGB colours"] if labels != values else []
        kind = " and ".join(kinds)
    if (said.keys() - {"ignore"}) and len(names) < 2:
        raise UserError(
            f"{folder} has one class, {', '.join(map(str, names.values()))}: two or more are due; name the others, "
            f"background too, in {path}."
        )
    names = tuple(names[label] for label in sorted(names))
    palette = np.array([colours[name] for name in names], np.uint8) if colours else voc_palette(len(names))
    return Classes(DataInfo("folder", names, palette), table, kind, path)


def _read(path: Path) -> dict[str, Any]:
    """`names` {label: name}, `colours` {name: (red, green, blue)} and `ignore`, a label or a colour; what is there."""

    def bad(what: str) -> UserError:
        return UserError(f"{path}: {what}.")

    try:
        said = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} can't be read: {' '.join(str(error).split())}.") from error
    if said is None:
        return {}
    if not isinstance(said, dict):
        raise bad("names, colours or ignore are due, each followed by a colon and what it is")
    for key in said:
        lookup(dict.fromkeys(("names", "colours", "ignore")), str(key), f"entry of {path}")
    if "names" in said:
        names = said["names"]
        names = dict(enumerate(names)) if isinstance(names, list) else names
        if not isinstance(names, dict) or not names or not all(_is_byte(label) for label in names):
            raise bad("names must be a list, [background, cat], or say the label of each, {1: cat, 2: dog}; 0 to 255")
        _check_names(names.values(), bad)
        said["names"] = names
    if "colours" in said:
        colours = said["colours"]
        if not isinstance(colours, dict) or not colours or not all(_is_rgb(rgb) for rgb in colours.values()):
            raise bad("colours must say the colour of each name, {cat: [255, 0, 0]}; three numbers from 0 to 255")
        _check_names(colours, bad)
        said["colours"] = colours = {name: tuple(rgb) for name, rgb in colours.items()}
        if len(set(colours.values())) < len(colours):
            raise bad("two names have the same colour")
        if "names" in said and set(colours) != set(said["names"].values()):
            odd = sorted(set(colours) ^ set(said["names"].values()))[0]
            raise bad(f"names and colours must have the same classes, {odd} is in one of them alone")
    if "ignore" in said:
        ignore = said["ignore"]
        if _is_rgb(ignore):
            said["ignore"] = tuple(ignore)
        elif not _is_byte(ignore):
            raise bad(f"ignore is {ignore}: a label from 0 to 255 or a colour, [224, 224, 192], is due")
        if said["ignore"] in (*said.get("names", ()), *said.get("colours", {}).values()):
            raise bad(f"ignore is {ignore}, which is a class as well")
    return said


def _check_names(names: Iterable[Any], bad) -> None:
    names = list(names)
    for name in names:
        if not isinstance(name, str) or not name:
            raise bad(f"the name {name!r} is no word: put it in quotes")
        if names.count(name) > 1:
            raise bad(f"the name {name} comes twice")
    if len(names) > 255:
        raise bad(f"{len(names)} classes: at most 255 can be told apart from 255, which counts nowhere")


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_rgb(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_byte(part) for part in value)
