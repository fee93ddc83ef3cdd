"""How the masks of a folder are meant, decided over all of them, for one file may leave it open.

A pixel of an indexed PNG may mean its index or the colour of its palette; a grey one its number, or a shade, which has
another number where the file has another depth: white is 1 of 1 bit, 255 of 8 and 65535 of 16. The rules:

- With colours in classes.yaml indexed masks are read by the colours of their palettes where all of these are in the
  table. Where none of them says another class than its index does, indices are meant. All else is refused.
- Likewise grey masks are read by colour, in a folder that has masks of colours, where all their greys are in the table.
- Else numbers are meant. Greys of another depth than the rest (that of 8 bits, or the deepest), and indexed masks whose
  palettes are grey, are shades where only so the values are those of the rest. Where both would do, they are refused.
- Of indexed masks whose indices are meant, one index has one colour in all files, or they are refused: an editor that
  gave each file a palette of its own has given its indices no meaning.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxseg.data.masks import COLOURS, GREY, PALETTE, Mask, count_values
from jaxseg.errors import UserError, shown

NUMBER, SHADE, COLOUR = "number", "shade", "colour"
Reading = tuple[str, int]  # one of these, and the depth that shades are of
_DEPTHS = {1, 2, 4, 8, 16}


def rgb_of(packed: int) -> list[int]:
    """[red, green, blue] of a colour as `masks.Mask` packs it."""
    return [packed >> shift & 255 for shift in (16, 8, 0)]


def shade_of(number: int, bits: int, reference: int) -> int | None:
    """The number of `reference` bits that is as bright as one of `bits`; None where there is none."""
    shade, rest = divmod(number * (2**reference - 1), 2**bits - 1)
    return shade if not rest else None


def settle(
    masks: Mapping[Any, Mapping[str, Any]], numbers: Mapping[int, int], colours: Mapping[int, int], listing: Any
) -> tuple[dict[Any, Reading], list[str]]:
    """How each mask is read, and what is to be said of it.

    Args:
      masks: of each file `kind` and `bits`, see `masks.Mask`, and `rows`, [[number, colour or None, ...], ...], of the
        values that it has; of masks of colours both are the colour.
      numbers: the label, 255 for what counts nowhere, of each number that classes.yaml or a run names.
      colours: likewise of colours, packed as in `masks.Mask`.
      listing: the path of classes.yaml, for messages.

    Raises:
      UserError: what a mask means is left open; names it.
    """
    chosen: dict[Any, Reading] = dict.fromkeys(masks, (NUMBER, 8))
    notes = []
    indexed = [path for path, mask in masks.items() if mask["kind"] == PALETTE and not _is_plain(mask)]
    greys = [path for path, mask in masks.items() if mask["kind"] == GREY or _is_plain(mask)]
    if indexed and colours and _by_palette(indexed, masks, numbers, colours, listing):
        chosen |= dict.fromkeys(indexed, (COLOUR, 8))
        notes.append(f"{len(indexed)} indexed masks are read by the colours of their palettes")
    if greys and colours and _by_grey(greys, masks, numbers, colours, {how for how, _ in chosen.values()}):
        chosen |= dict.fromkeys(greys, (COLOUR, 8))
        notes.append(f"{len(greys)} grey masks are read by the colours that their greys are")
    shades, reference = _shades([path for path, (how, _) in chosen.items() if how == NUMBER], masks, numbers)
    chosen |= dict.fromkeys(shades, (SHADE, reference))
    if shades:
        kinds = {f"{masks[path]['bits']} bit" if masks[path]["kind"] == GREY else "a grey palette" for path in shades}
        notes.append(
            f"{len(shades)} masks of {' and '.join(sorted(kinds))} are read by their shades: white is "
            f"{2**reference - 1}, as in the others"
        )
    _check_palettes([path for path in indexed if chosen[path][0] == NUMBER], masks, listing)
    return chosen, notes


def value_of(mask: Mapping[str, Any], number: int, colour: int | None, how: Sequence[Any]) -> int:
    """The value of a pixel whose number and colour are given, in a mask read so: its number, or -1 - its colour."""
    reading, reference = how
    if mask["kind"] == COLOURS:
        return -1 - number
    if reading == NUMBER:
        return number
    if reading == COLOUR:
        return -1 - _shown(mask, number, colour)
    return shade_of(*((number, mask["bits"]) if mask["kind"] == GREY else (colour & 255, 8)), reference)


def values_of(mask: Mask, how: Sequence[Any]) -> np.ndarray:
    """int32 [H, W]: the values of a mask that is read as `settle` says, see `value_of`.

    Raises:
      ValueError: it has changed since.
    """
    if mask.kind == COLOURS:
        return -1 - mask.values
    if how[0] == NUMBER:
        return mask.values.astype(np.int32)
    row = {"kind": mask.kind, "bits": mask.bits}
    table = np.zeros(int(mask.values.max()) + 1, np.int32)
    for number, _ in count_values(mask.values):
        try:
            table[number] = value_of(row, number, colour_of(mask, number), how)
        except TypeError:
            raise ValueError("it has changed while it was read: start again") from None
    return table[mask.values]


def colour_of(mask: Mask, number: int) -> int | None:
    """The colour of a number of an indexed mask, where its palette has it; of a mask of colours it is the number."""
    if mask.kind == COLOURS:
        return number
    return mask.palette[number] if number < len(mask.palette) else None


def _shown(mask: Mapping[str, Any], number: int, colour: int | None) -> int | None:
    """The colour that a number of a grey or indexed mask is shown in; None where there is none."""
    if mask["kind"] == PALETTE:
        return colour
    shade = shade_of(number, mask["bits"], 8) if mask["bits"] in _DEPTHS else None
    return None if shade is None or shade > 255 else shade * 0x010101


def _is_plain(mask: Mapping[str, Any]) -> bool:
    """Whether an indexed mask is a grey one: its palette has for each index the grey of that number."""
    return mask["kind"] == PALETTE and all(colour == number * 0x010101 for number, colour, *_ in mask["rows"])


def _by_palette(paths, masks, numbers: Mapping[int, int], colours: Mapping[int, int], listing) -> bool:
    used = [(path, number, colour) for path in paths for number, colour, *_ in masks[path]["rows"]]
    if all(colour in colours for _, _, colour in used):
        return True
    for path, number, colour in used:
        if colour in colours and colours[colour] != numbers.get(number, 255 if number == 255 else -1):
            strange, own = next((number, colour) for _, number, colour in used if colour not in colours)
            other = f"index {strange}" + (f", {rgb_of(own)}," if own is not None else "")
            raise UserError(
                f"the palette of {shown(path)} shows index {number} as {rgb_of(colour)}, another class's colour in "
                f"{shown(listing)}, but {other} has no class's colour: name that too, to have palettes read by their "
                "colours, or save indexed masks as grey PNG, to have their indices read"
            )
    return False


def _by_grey(paths, masks, numbers: Mapping[int, int], colours: Mapping[int, int], readings) -> bool:
    rows = [(masks[path], number, colour) for path in paths for number, colour, *_ in masks[path]["rows"]]
    coloured = COLOUR in readings or any(mask["kind"] == COLOURS for mask in masks.values())
    unknown = any(number != 255 and number not in numbers for _, number, _ in rows)
    return (coloured or unknown) and all(_shown(*row) in colours for row in rows)


def _shades(paths, masks, numbers: Mapping[int, int]) -> tuple[list[Any], int]:
    """The masks among `paths` that are read by their shades, and the depth of these."""
    paths = [path for path in paths if masks[path]["kind"] != COLOURS]
    greys = {path for path in paths if masks[path]["kind"] == GREY}
    depths = {masks[path]["bits"] for path in greys} & _DEPTHS | {8 for path in paths if _is_plain(masks[path])}
    reference = 8 if 8 in depths else max(depths, default=8)
    doubtful, known = {}, set()
    for path in paths:
        mask = masks[path]
        values = [number for number, *_ in mask["rows"]]
        as_greys = (
            mask["bits"] in _DEPTHS if path in greys else depths and all(_is_grey(row[1]) for row in mask["rows"])
        )
        shades = [value_of(mask, *row[:2], (SHADE, reference)) for row in mask["rows"]] if as_greys else values
        if shades == values:
            known |= {*values}
        else:
            doubtful[path] = values, shades
    classes = {number for number, label in numbers.items() if label != 255}
    black_and_white = known == {0, 2**reference - 1} and classes <= {0, 1} and len(classes) == len(numbers)
    known |= set() if black_and_white else classes
    chosen = []
    for path, (values, shades) in doubtful.items():
        as_numbers, as_shades = known.issuperset(values), known.issuperset(shades)
        if as_numbers and as_shades:
            value, shade = next((v, s) for v, s in zip(values, shades, strict=True) if v != s)
            raise UserError(
                f"{shown(path)} holds {value}, which is as bright as {shade} of the other masks, and both are among "
                "theirs: save it again with the depth that they have, and without a palette"
            )
        chosen += [path] if as_shades else []
    return chosen, reference


def _is_grey(colour: int | None) -> bool:
    return colour is not None and colour == (colour & 255) * 0x010101


def _check_palettes(paths: Iterable[Any], masks, listing) -> None:
    first: dict[int, tuple[Any, int]] = {}
    for path in paths:
        for number, colour, *_ in masks[path]["rows"]:
            other, theirs = first.setdefault(number, (path, colour))
            if theirs != colour and None not in (theirs, colour):
                raise UserError(
                    f"index {number} is {rgb_of(colour)} in the palette of {shown(path)} and {rgb_of(theirs)} in that "
                    f"of {shown(other)}, so their indices mean nothing by themselves: say in {shown(listing)} which "
                    "class has which colour, colours: {...}, or save them as grey PNG of labels"
                )
