"""`folder`: any folder of images and masks. What is in one: `python -m jaxseg.data.folder DIR`.

An image and a mask belong together by their names without suffix, in one of three layouts:

    DIR/images, DIR/masks                      divided 80/20 by seed 42 into train and val
    DIR/train/images, DIR/train/masks, ...     train, val, test; without val, train is divided so
    DIR/images/train, DIR/masks/train, ...     likewise

A split's folder is train or training; val, valid or validation; test or testing, in any case. Where one is there twice,
that is refused. Whatever else holds images is left out and said, and so are a test split without masks and links to
nothing. Names are compared in Unicode's composed form (NFC); bytes that are no UTF-8 are shown and kept as escapes.

Images are JPEG, PNG, TIFF, WebP or BMP, grey or colour, and `predict` takes them by the same rules, which are those of
`jaxseg.data.pictures` and `jaxseg.data.fitting`: of 16 bits the upper eight, value // 256 (an image that uses the lower
bits alone is nearly black, which is said); colours without their alpha; turned as EXIF or TIFF say where the mask has
that size or both (--config.data.orientation=stored for those that fit both ways).

Masks are PNG, TIFF or BMP, by the rules of `jaxseg.data.masks` and `jaxseg.data.readings`:

- class indices, grey or indexed, of any depth, by value;
- 0 and 255 in all masks, unless classes.yaml says which label is ignored: 255 is then class 1, and so is the white of
  masks of 1 bit among them;
- colours, with the table of `DIR/classes.yaml`; then of indexed masks the palette's colours count, where all of them
  are in the table.

No image or mask may have more pixels than 2^28, or what the environment variable JAXSEG_MAX_PIXELS says.

classes.yaml; every line may be left out, and the file:

    names: [background, cat, dog]                    # in the order of the labels; or {1: cat, 2: dog}, by label
    colours: {background: [0, 0, 0], cat: [255, 0, 0], dog: [0, 0, 255]}   # RGB, of masks and of pictures
    ignore: 255                                      # the label, or the colour, of pixels that count nowhere
    ignore: [0, 4, 5, 255]                           # or several: labels, and colours as [[224, 224, 192], [0, 0, 0]]

Three numbers are one colour where `colours` stands beside them, else three labels. Names are printable, at most 100
characters, and each there once. Aliases, tags and keys that come twice are refused.

Without names there are as many classes as the largest label says, class_0, class_1, ...; labels that leave out more
than they have, 0, 60, 120 and 180, are greys and are refused with the names to copy.
"""

import argparse
import sys

import numpy as np

from jaxseg.data.info import DataInfo
from jaxseg.data.layout import Pair, Scoring, brief
from jaxseg.data.look import look
from jaxseg.data.pictures import named
from jaxseg.data.progress import say
from jaxseg.data.readings import values_of
from jaxseg.data.recipe import FolderRecipe, read_image, read_mask
from jaxseg.errors import Parser, UserError, printable, shown
from jaxseg.streams import keep_streams, print_line


class Folder(FolderRecipe):
    """A folder of images and masks, see the module's text. It says what it found before anything is prepared.

    Version 'leave_out' goes on without the files that have no partner or can't be read; '' refuses to. Whatever else
    holds images and is not used is left out and said: folders beside those of the layout, a test split without masks,
    and links to nothing, with their partners.

    Raises:
      UserError: no folder, another layout, a classes.yaml or values in masks that are not as they should be, files
        without a partner or broken, or too few pairs.
    """

    remarked = True

    def __init__(self, directory: str = "", version: str = "", progress: bool = True, scoring: Scoring | None = None):
        if version not in ("", "leave_out"):
            raise UserError(
                f"folder has no version '{version}': leave config.data.version empty, or say leave_out to go on "
                "without the files that can't be used"
            )
        found = look(directory, scoring)
        say(found.describe(), progress)
        if found.faults and not version:
            raise UserError(
                f"{len(found.faults)} files of {shown(found.folder)} can't be used: {brief(found.faults, length=300)}. "
                "Mend that, or leave them out with --config.data.version=leave_out"
            )
        found.check()
        self.info = found.classes.info
        self._found = found
        self.key, self.origin = f"folder-{version}" if version else "folder", shown(found.folder)
        self.fingerprint = found.fingerprint

    @classmethod
    def info_of(cls, version: str, directory: str) -> DataInfo:
        """See `Recipe.info_of`."""
        return look(directory).classes.info

    def splits(self) -> dict[str, list[Pair]]:
        """See `Recipe.splits`."""
        return self._found.splits

    def read(self, item: Pair) -> tuple[str, bytes, np.ndarray]:
        """See `Recipe.read`."""
        data, picture = read_image(item.image)
        mask = read_mask(item.labels)
        with named(item.labels, "cannot use"):
            values = values_of(mask, self._found.seen[item.labels]["reading"])
        labels = self._found.classes.labels_of(values, item.labels)
        return item.id, *self.fitted(item, data, picture, labels, mask.header)


def report(directory: str) -> str:
    """What is in a folder: pairs, sizes, class frequencies, files that can't be used.

    Raises:
      UserError: see `look`.
    """
    return look(directory).describe()


def main() -> None:
    """The command; a mistake of the user's ends in one message and status 1."""
    keep_streams()
    parser = Parser(
        "python -m jaxseg.data.folder",
        description=f"What is in a folder of images and masks.\n\n{__doc__.partition(chr(10))[2]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory")
    try:
        print_line(report(parser.parse_args().directory))
    except UserError as error:
        sys.exit(printable(f"error: {error}"))


if __name__ == "__main__":
    main()
