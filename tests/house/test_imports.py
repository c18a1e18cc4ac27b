"""The import table of CONTRIBUTING.md: which room may import which, and no cycles."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "audiolm"
MODEL = ["configuration_audiolm", "encoders_audiolm", "processing_audiolm", "modeling_audiolm"]
BASE = [*MODEL, "runtime"]
ALLOWED = {
    "configuration_audiolm": [],
    "encoders_audiolm": ["configuration_audiolm"],
    "processing_audiolm": ["configuration_audiolm", "encoders_audiolm"],
    "modeling_audiolm": ["configuration_audiolm", "encoders_audiolm"],
    "runtime": [],
    "data": BASE,
    "checkpoints": BASE,
    "hub": [*BASE, "checkpoints"],
    "training": [*BASE, "data", "checkpoints", "hub"],
    "evaluation": [*BASE, "data", "checkpoints", "hub"],
    "comparison": [*BASE, "data", "checkpoints", "hub", "training", "evaluation"],
    "ask": [*BASE, "data", "checkpoints", "evaluation", "demo"],
    "benchmark": [*BASE, "data", "training", "evaluation"],
    "demo": [*BASE, "data"],
}
ENTRY_POINTS = ["__init__", "__main__", "run_train", "run_eval", "run_compare"]
ANY_ROOM = ["audiolm"]  # the version number


def source_files() -> list[Path]:
    rooms = [ROOT / name for name in ALLOWED if (ROOT / name).is_dir()]
    files = [*ROOT.glob("*.py"), *(file for room in rooms for file in room.rglob("*.py"))]
    # The remote code of the demo's models runs outside of the package.
    return [file for file in files if ROOT / "demo" / "models" not in file.parents]


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported_modules(file: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, as names below the package."""
    parents = file.relative_to(ROOT).parts[:-1]
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = [*parents[: len(parents) - node.level + 1], *(node.module or "").split(".")]
        elif node.module.split(".")[0] == PACKAGE:
            base = node.module.split(".")[1:]
        else:
            continue
        base = ".".join(part for part in base if part)
        for alias in node.names:
            submodule = f"{base}.{alias.name}" if base else alias.name
            modules.add(submodule if is_module(submodule) else base or "__init__")
    return modules


def room_of(module: str) -> str:
    return module.split(".")[0]


FILES = [file for file in source_files() if module_name(file) not in ENTRY_POINTS]


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_file_imports_only_allowed_rooms(file):
    room = room_of(module_name(file))
    imported = {room_of(module) for module in imported_modules(file)} - {room, "__init__"}
    assert imported <= set(ALLOWED[room])


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_inside_the_package_are_relative(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = [
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
    ]
    assert not [name for name in modules if name.split(".")[0] == PACKAGE]


def test_modules_import_each_other_without_cycles():
    graph = {module_name(file): imported_modules(file) for file in FILES}
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in finished:
            for other in graph.get(module, ()):
                if other != module:
                    visit(other, [*path, module])
            finished.add(module)

    for module in graph:
        visit(module, [])
