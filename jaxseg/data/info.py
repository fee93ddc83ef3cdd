"""What is known of a data set without opening it: names, colours, weights. Needs numpy alone."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# The colour VOC gives to the border; no class of the data sets here has it.
VOID_COLOUR = np.array([224, 224, 192], np.uint8)
VOID_COLOUR.flags.writeable = False


@dataclass(frozen=True, eq=False)
class DataInfo:
    """The classes of a data set.

    Attributes:
      name: the data set's name in `jaxseg.data.DATASETS`.
      class_names: one name per class, in the order of the labels.
      palette: uint8 [num_classes, 3], one RGB colour per class.
      class_weights: published weights of the loss, one per class; None where there are none.
      ignore_label: the label of pixels that count neither in the loss nor in the scores.
      values: of a folder of masks, the label of every value that they may have, see `classes.Classes.table`; () where
        the masks' form is the data set's own.
    """

    name: str
    class_names: tuple[str, ...]
    palette: np.ndarray
    class_weights: tuple[float, ...] | None = None
    ignore_label: int = 255
    values: tuple[tuple[int, int], ...] = ()

    @property
    def num_classes(self) -> int:
        """The number of classes, the void label not counted."""
        return len(self.class_names)

    def to_json(self) -> str:
        """All of it as text; what that holds, `from_fields` takes."""
        return json.dumps({**asdict(self), "palette": self.palette.tolist()}, indent=2) + "\n"

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "DataInfo":
        """What `to_json` wrote, read and checked by `forms.read_json`."""
        weights = fields["class_weights"]
        return cls(
            fields["name"],
            tuple(fields["class_names"]),
            np.array(fields["palette"], np.uint8),
            None if weights is None else tuple(weights),
            fields["ignore_label"],
            tuple((value, label) for value, label in fields.get("values", ())),
        )
