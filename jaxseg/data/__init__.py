"""Data sets and the stream of batches.

Importing this package is light; a data set's module, TensorFlow Datasets and OpenCV are imported when it is used.
"""

import contextlib
import importlib
from dataclasses import dataclass

import numpy as np

from jaxseg.data.headers import ORIENTATIONS
from jaxseg.data.info import VOID_COLOUR, DataInfo
from jaxseg.data.layout import Scoring
from jaxseg.errors import UserError
from jaxseg.lookup import lookup

__all__ = ["DATASETS", "VOID_COLOUR", "DataInfo", "Dataset", "Scoring", "data_info", "default_split", "open_dataset"]

DATASETS = {
    "shapes": "jaxseg.data.shapes:Shapes",
    "voc": "jaxseg.data.voc:Voc",
    "camvid": "jaxseg.data.camvid:CamVid",
    "monuseg": "jaxseg.data.monuseg:MoNuSeg",
    "loveda": "jaxseg.data.loveda:LoveDA",
    "folder": "jaxseg.data.folder:Folder",
}


@dataclass(frozen=True)
class Dataset:
    """A prepared data set.

    Attributes:
      info: its classes.
      path: the folder with its records.
      contents: a hash of the images, labels and names of every split, the same wherever they were prepared.
      lengths: the number of images of every split.
      train_split, eval_split: the names of the splits that are trained and scored on.
    """

    info: DataInfo
    path: str
    contents: dict[str, str]
    lengths: dict[str, int]
    train_split: str
    eval_split: str

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of all splits."""
        return tuple(self.lengths)

    def source(self, split: str):
        """The records of a split: `len()` and `[i]`, which is a dict of `images`, uint8 [H, W, 3] RGB, `labels`, uint8
        [H, W], and `id`, str. It pickles.

        Raises:
          UserError: there is no such split.
        """
        from jaxseg.data.source import RecordSource

        return RecordSource(self.path, split, lookup(self.lengths, split, f"split of {self.info.name}"))

    def sizes(self, split: str) -> np.ndarray:
        """int32 [N, 2], height and width of every image of a split; no image is read for it.

        Raises:
          UserError: there is no such split.
        """
        from jaxseg.data.source import read_sizes

        lookup(self.lengths, split, f"split of {self.info.name}")
        return read_sizes(self.path)[split]

    def median_frequency_weights(self, split: str) -> np.ndarray:
        """float64 [num_classes], a weight of the loss for every class: the median over classes of their frequencies, by
        its own. A class's frequency is its share of the labelled pixels of the images that it is in (Eigen and Fergus,
        ICCV 2015, section 6.3.2). One that is in no image of the split has weight 1.

        Raises:
          UserError: there is no such split.
        """
        from jaxseg.data.source import read_notes

        lookup(self.lengths, split, f"split of {self.info.name}")
        own, beside = np.array(read_notes(self.path)["pixels"][split], float)[:, : self.info.num_classes]
        there = own > 0
        frequencies = own[there] / beside[there]
        weights = np.ones(self.info.num_classes)
        weights[there] = np.median(frequencies) / frequencies
        return weights


def _recipe(name: str):
    module, attribute = lookup(DATASETS, name, "data set").split(":")
    return getattr(importlib.import_module(module), attribute)


def data_info(name: str, version: str = "", directory: str = "") -> DataInfo:
    """The classes of a data set; of `folder` from its files, of all others without them.

    Raises:
      UserError: there is no such data set, or its classes depend on a version that there is not, or on files that are
        not as they should be.
    """
    return _recipe(name).info_of(version, directory)


def default_split(name: str) -> str:
    """The split of a data set that is scored where no other is named.

    Raises:
      UserError: there is no such data set.
    """
    return _recipe(name).eval_split


def open_dataset(
    name: str,
    *,
    directory: str = "",
    version: str = "",
    orientation: str = "",
    progress: bool = True,
    scoring: Scoring | None = None,
) -> Dataset:
    """A data set, prepared on first use. What holds images beside what is read is said, unless `progress` is False.

    Args:
      name: a key of `DATASETS`.
      directory: the folder with its files; '' where the data set fetches or makes them, or lies at its usual place.
      version: '' for the data set's default.
      orientation: 'shown' or 'stored', how images lie that say an orientation and whose masks fit both ways, see
        `jaxseg.data.fitting`; '': as shown, unless other masks say that it would be a guess.
      progress: whether preparing shows on standard error how far it is.
      scoring: of a finished run that is to be scored: only its split has to be there.

    Raises:
      UserError: an unknown name or version, files that are missing or not as they should be, no network where it is
        needed, or a folder that cannot be written.
    """
    kind = _recipe(name)
    lookup(ORIENTATIONS, orientation, "orientation of images")
    from jaxseg.data.builder import prepare, prepared_at
    from jaxseg.data.progress import say
    from jaxseg.data.source import read_notes

    recipe = None
    if scoring and scoring.divided:
        # What the run was trained on is prepared already, with all its splits.
        with contextlib.suppress(UserError):
            whole = kind(directory, version, False)
            whole.orientation = orientation
            same = (whole.info.class_names, whole.info.values) == (scoring.info.class_names, scoring.info.values)
            recipe = whole if same and prepared_at(whole).is_dir() else None
    recipe = recipe or kind(directory, version, progress, scoring)
    recipe.orientation = orientation
    if recipe.left_out:
        say(f"{name} at {recipe.origin}, not used: {recipe.left_out}", progress)
    path = str(prepare(recipe, progress))
    notes = read_notes(path)
    for line in [] if recipe.remarked else notes["remarks"]:
        say(f"{name}: {line}", progress)
    lengths = {split: len(rows) for split, rows in notes["sizes"].items()}
    needed = (scoring.split,) if scoring else (recipe.train_split, recipe.eval_split)
    if scoring:
        lookup(lengths, scoring.split, f"split of {name}")
    missing = [split for split in needed if split not in lengths]
    if missing:
        raise UserError(f"{name} at {recipe.origin} has no split '{missing[0]}'; there are {', '.join(lengths)}")
    return Dataset(recipe.info, path, notes["contents"], lengths, recipe.train_split, needed[-1])
