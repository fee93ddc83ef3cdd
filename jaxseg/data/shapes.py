"""`shapes`: drawn on the spot, for first steps and for tests; nothing is fetched."""

import hashlib
from pathlib import Path

import cv2

from jaxseg.data import shapes_draw
from jaxseg.data.info import DataInfo
from jaxseg.data.layout import Scoring
from jaxseg.data.recipe import Recipe
from jaxseg.errors import UserError

INFO = DataInfo(name="shapes", class_names=shapes_draw.CLASS_NAMES, palette=shapes_draw.PALETTE)


class Shapes(Recipe):
    """`shapes_draw.TRAIN` images to train on and `shapes_draw.VAL` to score on, 128x128 each.

    Raises:
      UserError: a folder or a version is given.
    """

    info = INFO

    def __init__(self, directory: str = "", version: str = "", progress: bool = True, scoring: Scoring | None = None):
        if directory:
            raise UserError(f"shapes is drawn, not read: leave config.data.dir empty instead of '{directory}'.")
        if version:
            raise UserError(f"shapes has no version '{version}': leave config.data.version empty.")
        self.key, self.origin = "shapes", "jaxseg.data.shapes_draw"
        # Whatever changes in the drawing changes the images.
        self.fingerprint = hashlib.sha256(Path(shapes_draw.__file__).read_bytes()).hexdigest()[:12]

    def splits(self):
        """See `Recipe.splits`."""
        # A seed for each split, so that the one can grow without changing the other.
        return {
            "train": [(0, index) for index in range(shapes_draw.TRAIN)],
            "val": [(1, index) for index in range(shapes_draw.VAL)],
        }

    def read(self, item):
        """See `Recipe.read`."""
        seed, index = item
        images, labels = shapes_draw.draw(seed, index)
        png = cv2.imencode(".png", cv2.cvtColor(images, cv2.COLOR_RGB2BGR))[1].tobytes()
        return f"{'train' if seed == 0 else 'val'}_{index:05}", png, labels
