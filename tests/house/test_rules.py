"""The rules of CONTRIBUTING.md that no linter knows: sizes, names and templates."""

import ast
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_ROOT_FILES = 18
MAX_MODULES_PER_FOLDER = 20
MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 50
MAX_FORMATTER_SKIPS = 40
# A longer module says why in its docstring.
REASON = re.compile(
    r"module is\s+long because|Longer than 350 lines|since each further module would be pushed"
)
EMPTY_NAMES = frozenset(
    re.findall(
        r"\w+",
        "found made of said heard kept known taken its one there none wanted words given asked "
        "whole told which such",
    )
)
TEXT_IN_PYTHON = re.compile(
    r"<(div|span|table|style|html|body|svg)\b|^\s*[.#]?[\w-]+ \{ [\w-]+:", re.M
)


def tracked_files(*patterns: str) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(name for name in set(listed.splitlines()) if (ROOT / name).is_file())


def is_checkout() -> bool:
    return (ROOT / ".git").exists()


pytestmark = pytest.mark.skipif(not is_checkout(), reason="the rules are about a git checkout")
PYTHON_FILES = tracked_files("*.py") if is_checkout() else []
PRODUCT_FILES = [name for name in PYTHON_FILES if not name.startswith("tests/")]


def parse(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function below its docstring."""
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = first.end_lineno + 1 if has_docstring else first.lineno
    return function.end_lineno - start + 1


def bound_names(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and name of each variable, parameter, function, class and attribute of a module."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.id))
        elif isinstance(node, ast.arg):
            names.append((node.lineno, node.arg))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append((node.lineno, node.name))
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.append((node.lineno, node.attr))
    return names


def test_root_holds_few_files():
    files = [name for name in tracked_files() if "/" not in name and not name.startswith(".")]
    assert len(files) <= MAX_ROOT_FILES, files


def test_folders_hold_few_modules():
    folders: dict[str, int] = {}
    for name in PRODUCT_FILES:
        folder = str(Path(name).parent)
        folders[folder] = folders.get(folder, 0) + (not name.endswith("__init__.py"))
    assert {folder: n for folder, n in folders.items() if n > MAX_MODULES_PER_FOLDER} == {}


@pytest.mark.parametrize("name", PRODUCT_FILES)
def test_module_is_short_or_says_why(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    is_short = text.count("\n") <= MAX_MODULE_LINES
    assert is_short or REASON.search(ast.get_docstring(ast.parse(text)) or "")


@pytest.mark.parametrize("name", PRODUCT_FILES)
def test_functions_are_short(name):
    long = {f.name: n for f in functions(parse(name)) if (n := body_lines(f)) > MAX_FUNCTION_LINES}
    assert long == {}


@pytest.mark.parametrize("name", PYTHON_FILES)
def test_names_say_something(name):
    empty = [
        f"{name}:{line}: {word}" for line, word in bound_names(parse(name)) if word in EMPTY_NAMES
    ]
    assert empty == []


@pytest.mark.parametrize("name", PRODUCT_FILES)
def test_comprehensions_have_one_loop(name):
    kinds = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    nested = [
        n.lineno for n in ast.walk(parse(name)) if isinstance(n, kinds) and len(n.generators) > 1
    ]
    assert nested == []


@pytest.mark.parametrize("name", PRODUCT_FILES)
def test_html_and_css_live_in_files_of_their_own(name):
    strings = [n.value for n in ast.walk(parse(name)) if isinstance(n, ast.Constant)]
    markup = [
        s for s in strings if isinstance(s, str) and s.count("\n") > 3 and TEXT_IN_PYTHON.search(s)
    ]
    assert markup == []


def formatter_skips(name: str) -> list[int]:
    """Lines of a file with a comment that switches the formatter off."""
    with open(ROOT / name, "rb") as file:
        comments = [t for t in tokenize.tokenize(file.readline) if t.type == tokenize.COMMENT]
    return [
        comment.start[0]
        for comment in comments
        if re.match(r"#\s*fmt:\s*(skip|off)", comment.string)
    ]


@pytest.mark.parametrize("name", PYTHON_FILES)
def test_formatter_is_skipped_for_literal_tables_only(name):
    tables = [n for n in parse(name).body if isinstance(n, ast.Assign) and is_literal(n.value)]
    in_tables = {line for table in tables for line in range(table.lineno - 1, table.end_lineno + 1)}
    assert [line for line in formatter_skips(name) if line not in in_tables] == []


def is_literal(node: ast.AST) -> bool:
    literals = (
        ast.Dict,
        ast.List,
        ast.Tuple,
        ast.Set,
        ast.Constant,
        ast.UnaryOp,
        ast.USub,
        ast.Load,
        ast.Name,
    )
    return all(isinstance(part, (*literals, ast.Store)) for part in ast.walk(node))


def test_formatter_is_seldom_skipped():
    assert sum(len(formatter_skips(name)) for name in PRODUCT_FILES) <= MAX_FORMATTER_SKIPS


def test_tests_stand_in_the_rooms_of_what_they_test():
    rooms = {Path(name).parts[0] for name in PRODUCT_FILES if "/" in name}
    folders = {Path(name).parts[1] for name in tracked_files("tests/*.py") if name.count("/") > 1}
    assert folders - rooms <= {"model", "house", "robustness", "support"}
