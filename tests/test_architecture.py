"""Arrows point one way: which room of the house may import which."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tubelet"

LEAVES = {"choices", "errors", "files", "shapes"}
NETWORKS = LEAVES | {"masks", "backbones", "decoders", "targets", "losses"}
MAY_IMPORT = {
    "choices": set(),
    "errors": set(),
    "files": set(),
    "shapes": {"errors"},
    "masks": LEAVES,
    "losses": LEAVES,
    "backbones": LEAVES,
    "targets": LEAVES,
    "decoders": LEAVES | {"backbones"},
    "data": LEAVES,
    "train": LEAVES,
    "model": NETWORKS,
    "interop": NETWORKS | {"model"},
    "methods": NETWORKS | {"model", "interop", "data", "train"},
    # What scores or draws videos has to read them, and to choose a device as training does.
    "tasks": NETWORKS | {"model", "data", "train"},
    "probes": NETWORKS | {"model"},
    # What draws results draws their intervals, which the probes' results have too.
    "analysis": NETWORKS | {"model", "data", "train", "probes"},
    "building": {"errors"},
    "headers": NETWORKS | {"interop", "methods", "train"},
    "stored": NETWORKS | {"building", "headers", "model", "interop", "methods", "train"},
    "hub": NETWORKS | {"model", "interop", "stored"},
    "zoo": NETWORKS | {"model", "interop", "methods", "stored"},
    "heads": NETWORKS | {"model", "interop", "stored", "train", "data"},
    "teachers": NETWORKS | {"model", "interop", "stored"},
    "plan": NETWORKS | {"model", "methods", "data", "train", "zoo", "stored"},
    "feature_cache": NETWORKS | {"model", "methods", "data", "train", "teachers"},
}
# They may import everything below.
ABOVE = {"verbs", "bench", "demo", "doctor", "cli", "__main__", "__init__"}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module]
                if node.module != "tubelet"
                else [f"tubelet.{a.name}" for a in node.names]
            )
            found.update(names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    # `import tubelet` for its version number is no arrow.
    return {room(name) for name in found if name.startswith("tubelet.")} - {"__version__"}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_arrows_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ABOVE:
        return
    assert own in MAY_IMPORT, f"{own} is a new room: say in this test what it may import"
    assert imports(path) - {own} <= MAY_IMPORT[own]


def test_no_room_below_imports_one_above() -> None:
    assert not any(ABOVE & allowed for allowed in MAY_IMPORT.values())


def test_there_is_no_utils() -> None:
    assert not list(PACKAGE.rglob("utils.py"))
