"""What all processes of a run must have in common, and how they differ."""

import hashlib
import importlib.metadata
import pathlib
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxseg.errors import shown

LONGEST = 300  # characters of a value that are shown
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

Facts = Mapping[str, Mapping[str, Any]]


def code_facts() -> dict[str, str]:
    """What this process runs: a digest of this package's source, and the versions beneath it."""
    root, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return {"source": digest.hexdigest()[:12], "python": platform.python_version(), **library_versions()}


def library_versions() -> dict[str, str]:
    """Of the libraries that numbers come from."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def of_classes(info: Any) -> dict[str, Any]:
    """Of a `DataInfo`: whatever a score, a label or a colour hangs on."""
    names = {f"class {i}": name for i, name in enumerate(info.class_names)}
    colours = {f"colour of class {i}": tuple(colour) for i, colour in enumerate(info.palette.tolist())}
    more = {"ignore_label": info.ignore_label, "class_weights": info.class_weights, "values of masks": info.values}
    return {"number of classes": len(names), **names, **colours, **more}


def of_data(dataset: Any, splits: Iterable[str]) -> Facts:
    """Of a `Dataset`: its classes, and the length and hash of each of these splits."""
    data = {}
    for split in splits:
        data |= {f"images of {split}": dataset.lengths[split], f"content of {split}": dataset.contents[split]}
    return {"classes": of_classes(dataset.info), "data": data}


def of_tensors(tensors: Mapping[tuple[str, ...], Any]) -> dict[str, str]:
    """A digest of each tensor, by the path in its names."""
    return {"/".join(path): _digest(np.ascontiguousarray(tensor)) for path, tensor in tensors.items()}


def of_records(dataset: Any, splits: Iterable[str]) -> dict[str, str]:
    """Of each record of these splits of a `Dataset`: its name, and digests of image and labels. Reads all of them."""
    facts = {}
    for split in splits:
        source = dataset.source(split)
        for i in range(len(source)):
            record = source[i]
            digests = (f"{part} {_digest(record[part])}" for part in ("images", "labels"))
            facts[f"record {i} of {split}"] = ", ".join([record["id"], *digests])
    return facts


def _digest(array: np.ndarray) -> str:
    about = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(about + array.tobytes()).hexdigest()[:12]


def difference(name: str, facts: Facts, first_name: str, first_facts: Facts) -> str:
    """In what a process's facts, `in_words`, differ from those of the first one, as a sentence; '' where they don't."""
    for about, values in first_facts.items():
        theirs = facts.get(about, {})
        different = [key for key in dict.fromkeys([*values, *theirs]) if values.get(key) != theirs.get(key)]
        if different:
            pairs = ((key, theirs.get(key, "not set"), values.get(key, "not set")) for key in different[:3])
            each = ("{} is {} and not {}".format(*(shown(word)[:LONGEST] for word in words)) for words in pairs)
            more = f", and {len(different) - 3} more differ" if len(different) > 3 else ""
            return f"{name} differs from {first_name} in its {about}: {', '.join(each)}{more}"
    return ""


def in_words(facts: Facts) -> dict[str, dict[str, str]]:
    """As they are sent and compared."""
    return {about: {key: str(value) for key, value in values.items()} for about, values in facts.items()}
