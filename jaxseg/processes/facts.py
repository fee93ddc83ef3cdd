"""What all processes of a run must have in common, and how they differ."""

import hashlib
import importlib.metadata
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

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


def difference(name: str, facts: Facts, first_name: str, first_facts: Facts) -> str:
    """In what a process's facts, `in_words`, differ from those of the first one, as a sentence; '' where they don't."""
    for about, values in first_facts.items():
        theirs = facts.get(about, {})
        different = [key for key in sorted({*values, *theirs}) if values.get(key) != theirs.get(key)]
        if different:
            pairs = ((key, theirs.get(key, "not set"), values.get(key, "not set")) for key in different[:3])
            each = ("{} is {} and not {}".format(*(shown(word)[:LONGEST] for word in words)) for words in pairs)
            more = f", and {len(different) - 3} more differ" if len(different) > 3 else ""
            return f"{name} differs from {first_name} in its {about}: {', '.join(each)}{more}"
    return ""


def in_words(facts: Facts) -> dict[str, dict[str, str]]:
    """As they are sent and compared."""
    return {about: {key: str(value) for key, value in values.items()} for about, values in facts.items()}
