"""README and docs: commands parse, snippets run, links resolve, prose keeps its limits."""

import argparse
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from support.readability import LIMITS, measure_prose

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The notebook keeps figures of old runs. The commands' page is generated from help texts.
PROSE_PAGES = [page for page in PAGES if page.name not in ("lab-notebook.md", "commands.md")]
PROSE_PAGES += [ROOT / "CONTRIBUTING.md", ROOT / "demo" / "README.md"]
SNIPPET_PAGES = [ROOT / "README.md", ROOT / "docs" / "use-a-model.md"]
MAX_BYTES = 100_000
MARK = "--- end of block ---"
SCRIPTS = {"run_train.py": "train", "run_eval.py": "eval", "run_compare.py": "compare"}
# Commands of other programs. The tests do not parse their options.
OTHER_PROGRAMS = ("git", "pip", "uv", "pytest", "mkdocs", "python", "hf", "cd", "time", "ray")
OTHER_PROGRAMS += ("lmms_eval", "srun", "sbatch", "bash", "docker", "pre-commit", "export")


def fenced_blocks(page: Path, language: str) -> list[str]:
    """Returns the fenced code blocks of a language, without the indentation of lists."""
    pattern = rf"^([ ]*)```{language}\n(.*?)^\1```"
    blocks = re.findall(pattern, page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [re.sub(rf"^{indent}", "", block, flags=re.M) for indent, block in blocks]


def shell_commands(page: Path) -> list[list[str]]:
    """Returns the parts of each command in a page's `bash` blocks."""
    commands = []
    for block in fenced_blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\|\s", line.split(" #")[0]):
                parts = shlex.split(command, comments=True)
                if parts:
                    commands.append(parts)
    return commands


def strip_launcher(parts: list[str]) -> list[str]:
    """Removes `NAME=value`, `uv run` and `accelerate launch`, each with its options."""
    parts = list(parts)
    while parts and re.fullmatch(r"[A-Z_]+=.*", parts[0]):
        parts.pop(0)
    if parts[:2] == ["uv", "run"]:
        parts = parts[2:]
        while parts and parts[0].startswith("--"):
            has_value = parts[0] in ("--extra", "--group", "--with")
            parts = parts[2 if has_value else 1 :]
    if parts[:2] == ["accelerate", "launch"]:
        parts = parts[2:]
        if parts[:2] == ["-m", "audiolm"]:
            return parts[1:]
        while parts and not parts[0].endswith(".py"):
            parts.pop(0)
    return parts


def parser_of(parts: list[str]) -> tuple[argparse.ArgumentParser, list[str]] | None:
    """Returns the parser of one of the project's commands and its options."""
    commands = load_build_commands().PARSERS
    if parts[0] == "audiolm":
        name, options = parts[1], parts[2:]
    elif parts[0] in SCRIPTS:
        name, options = SCRIPTS[parts[0]], parts[1:]
    else:
        return None
    if name.startswith("--"):
        return None
    return import_module(f"audiolm.{commands[name]}").build_parser(), options


def load_build_commands():
    spec = importlib.util.spec_from_file_location("build_commands", ROOT / "docs/build_commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ALL_COMMANDS = [
    pytest.param(parts, id=f"{page.name}-{number}")
    for page in PAGES
    for number, parts in enumerate(shell_commands(page))
]


@pytest.mark.parametrize("parts", ALL_COMMANDS)
def test_bash_block_command_parses(parts):
    command = strip_launcher(parts)
    parsed = parser_of(command) if command else None
    if parsed is None:
        assert not command or command[0] in OTHER_PROGRAMS or command[0] == "audiolm", parts
        return
    parser, options = parsed
    try:
        parser.parse_args([option for option in options if option != "..."])
    except SystemExit as stop:
        assert stop.code == 0, f"{' '.join(parts)}: not accepted by its parser"


@pytest.mark.parametrize("page", SNIPPET_PAGES, ids=lambda page: page.name)
def test_python_blocks_run_and_print_what_the_page_shows(page):
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```(?:\s+```text\n(.*?)```)?", text, flags=re.S)
    program = "\n".join(f"{code}\nprint({MARK!r})" for code, _ in blocks)
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stderr[-2000:]
    printed = result.stdout.split(MARK)
    for (code, expected), output in zip(blocks, printed):
        assert not expected or output.strip() == expected.strip(), code


@pytest.mark.parametrize(
    ("name", "categories"),
    [
        ("results", ("sound event", "recording quality")),
        ("results_esc50", ("sound event", "recording quality", "environment")),
    ],
)
def test_tables_show_the_figures_of_a_results_file(name, categories):
    results = json.loads((ROOT / "docs" / f"{name}.json").read_text(encoding="utf-8"))
    for page in (ROOT / "README.md", ROOT / "docs" / "results.md"):
        text = page.read_text(encoding="utf-8")
        for model, rows in results["accuracy"].items():
            value, low, high = rows["macro accuracy"]
            interval = f" ({low:.3f} to {high:.3f})" if low is not None else ""
            gain = results["audio_gain"].get(model)
            gained = f"{gain[0]:+.1f} ({gain[1]:+.1f} to {gain[2]:+.1f})" if gain else ""
            others = [f"{rows[name][0]:.3f}" for name in categories]
            cells = [model, f"{value:.3f}{interval}", gained, *others]
            assert f"| {' | '.join(cells)} |" in text, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    targets += re.findall(r'src="([^"]+)"', text)
    local = [target for target in targets if not re.match(r"\w+:", target)]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_small(page):
    assert page.stat().st_size <= MAX_BYTES


@pytest.mark.parametrize("page", PROSE_PAGES, ids=lambda page: page.name)
def test_prose_keeps_the_limits(page):
    figures = measure_prose(page)
    if figures is None:  # too short to judge
        return
    excess = {name: figures[name] for name, limit in LIMITS.items() if figures[name] > limit}
    assert not excess


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [page.name for page in PAGES[1:] if page.name not in navigation]
    assert not missing


def test_indented_code_blocks_are_absent():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        indented = re.findall(r"\n\n {4,}(?![-*\d ])\S.*", text)
        assert not indented, f"{page.name}: {indented[:1]}"
