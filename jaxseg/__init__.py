"""Semantic segmentation research in JAX: networks, training, exact scores.

The public names are imported when they are first used, so that `import jaxseg` stays light.
"""

import importlib

_HOMES = {
    "create_model": "jaxseg.models",
    "export_weights": "jaxseg.models.pretrained",
    "list_models": "jaxseg.models",
    "load": "jaxseg.predict",
    "load_pretrained": "jaxseg.weights",
    "UserError": "jaxseg.errors",
}

__all__ = ["UserError", "create_model", "export_weights", "list_models", "load", "load_pretrained"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'jaxseg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
