"""What may import what: the model half runs on JAX alone, and the data half knows no networks."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxseg"

MODEL_HALF = (
    "models",
    "losses",
    "memory",
    "metrics",
    "optim",
    "partition",
    "refine",
    "state",
    "step",
    "lookup",
    "errors",
    "fields",
    "files",
    "forms",
    "checksums",
    "streams",
)
LIBRARIES = {"jax", "jaxlib", "flax", "optax", "numpy", "ml_collections", "safetensors"}
# What one file may import besides, inside a function: not everybody has it, and few need it.
WHEN_NEEDED = {
    "models/pretrained/files.py": {"torch", "h5py"},
    "models/pretrained/hub.py": {"huggingface_hub"},
}


def modules(name: str) -> list[Path]:
    """The files of `jaxseg.name`, a module or a package."""
    files = sorted((PACKAGE / name).rglob("*.py")) or [PACKAGE / f"{name}.py"]
    assert all(file.is_file() for file in files)
    return files


def imports(path: Path) -> set[str]:
    """All that a file imports, inside functions too, dotted; `from jaxseg import a` counts as `jaxseg.a`."""
    return imports_of(ast.walk(ast.parse(path.read_text())), path)


def imports_on_loading(path: Path) -> set[str]:
    """The same without what stands inside functions."""
    nodes, found = [ast.parse(path.read_text())], []
    while nodes:
        node = nodes.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(node)
            nodes += ast.iter_child_nodes(node)
    return imports_of(found, path)


def imports_of(nodes: Iterable[ast.AST], path: Path) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(names: set[str]) -> set[str]:
    """The parts of jaxseg among imported names: `models`, `step`, ..."""
    return {name.split(".")[1] for name in names if name.startswith("jaxseg.")}


@pytest.mark.parametrize("path", [p for n in MODEL_HALF for p in modules(n)], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_model_half_stands_on_jax_alone(path):
    assert ours(imports(path)) <= set(MODEL_HALF)
    at_hand = LIBRARIES | set(sys.stdlib_module_names) | {"jaxseg"}
    assert {name.split(".")[0] for name in imports_on_loading(path)} <= at_hand
    when_needed = WHEN_NEEDED.get(path.relative_to(PACKAGE).as_posix(), set())
    assert {name.split(".")[0] for name in imports(path)} <= at_hand | when_needed


def test_networks_know_nothing_of_training():
    for path in modules("models"):
        assert ours(imports(path)) <= {"models", "partition", "lookup", "errors", "fields", "files", "forms", "streams"}


def test_the_data_half_knows_no_networks():
    for path in modules("data"):
        names = imports(path)
        assert ours(names) <= {"data", "lookup", "errors", "fields", "files", "forms", "streams"}, path
        assert not {name.split(".")[0] for name in names} & {"flax", "optax"}, path


def loaded_by(code: str) -> set[str]:
    """The top-level modules in a fresh interpreter after `code`."""
    show = "; import sys; print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code + show], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split("LOADED")[1].split())


HEAVY = {"tensorflow", "tensorflow_datasets", "clu", "grain", "cv2", "torch", "matplotlib", "orbax"}


def test_making_a_network_loads_nothing_heavy():
    code = "import jaxseg; jaxseg.create_model('deeplabv3plus', backbone='resnet18', num_classes=2)"
    loaded = loaded_by(code)
    assert "flax" in loaded
    assert not loaded & (HEAVY - {"orbax"})


def test_importing_the_package_loads_not_even_jax():
    loaded = loaded_by("import jaxseg")
    assert "jaxseg" in loaded
    assert not loaded & (HEAVY | {"jax", "flax"})


def test_importing_the_comparison_loads_not_even_jax():
    assert not loaded_by("import jaxseg.compare") & (HEAVY | {"jax", "flax"})


def test_the_comparison_is_drawn_by_hand():
    for path in modules("compare"):
        at_hand = {"jaxseg", "numpy", *sys.stdlib_module_names}
        assert {name.split(".")[0] for name in imports_on_loading(path)} <= at_hand, path
        assert {name.split(".")[0] for name in imports(path)} <= at_hand | {"PIL"}, path


def test_training_steps_load_nothing_heavy():
    assert not loaded_by("import jaxseg.step, jaxseg.optim") & (HEAVY - {"orbax"})


def test_the_public_names_are_there_and_a_wrong_one_is_not():
    import jaxseg

    for name in jaxseg.__all__:
        assert callable(getattr(jaxseg, name)), name
        assert name in dir(jaxseg)
    with pytest.raises(AttributeError, match="nothing_such"):
        jaxseg.nothing_such  # noqa: B018
