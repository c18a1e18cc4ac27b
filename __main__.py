"""One entry point: `audiolm COMMAND ...`.

`audiolm COMMAND --help` lists a command's options. With several processes, use
`accelerate launch -m audiolm COMMAND ...`.
"""

import ast
import json
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from .runtime import prepare_environment

COMMANDS = {
    "ask": "ask.cli",
    "app": "ask.app",
    "train": "run_train",
    "eval": "run_eval",
    "compare": "run_compare",
    "probe": "evaluation.probe_command",
    "check-encoder": "checkpoints.check_encoder",
    "prepare": "data.prepare",
    "cache": "data.cache_command",
    "benchmark": "benchmark.cli",
}


OPTIONS_FILE = Path(__file__).parent / "configs" / "options.json"
NUMBERS = {"int": (int, "a whole number"), "float": (float, "a number")}


def first_docstring_line(module: str) -> str:
    """Returns the first sentence of a module's docstring, without importing the module."""
    path = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n")[0].split(": `")[0].removesuffix(".")


def help_text() -> str:
    """Returns the text of `audiolm --help`."""
    lines = [f"  {name:<13} {first_docstring_line(m)}" for name, m in COMMANDS.items()]
    return f"usage: audiolm [-h] [--version] COMMAND ...\n\n{__doc__}\ncommands:\n" + "\n".join(
        lines
    )


def answer_early(command: str, argv: list[str], program: str) -> None:
    """Prints a command's help or refuses wrong options, before anything slow is imported.

    Otherwise it sets the variables that torch reads when it is imported.

    Args:
        command: Name of the command, a key of `COMMANDS`.
        argv: Its options.
        program: Name that stands before an error.
    """
    pages = json.loads(OPTIONS_FILE.read_text(encoding="utf-8"))
    if argv and f"{command} {argv[0]}" in pages:
        command, argv = f"{command} {argv[0]}", argv[1:]
    page = pages[command]
    for flag, text in {"-h": "help", "--help": "help", "--help_all": "help_all"}.items():
        if flag in argv and text in page:
            print(page[text])
            sys.exit()
    for word, value in zip(argv, [*argv[1:], "--"]):
        problem = _find_problem(word, value, page["options"])
        if problem:
            print(f"{program}: error: {problem} (see --help)", file=sys.stderr)
            sys.exit(2)
    prepare_environment()


def _find_problem(word: str, value: str, options: dict[str, str]) -> str | None:
    """Returns what is wrong with an option and the word behind it."""
    if not word.startswith("--") or word == "--":
        return None
    option, is_joined, text = word.partition("=")
    name = "--" + option.removeprefix("--").replace("-", "_")
    if name not in options:
        similar = get_close_matches(name, options, 1)
        hint = f". Did you mean {similar[0]}?" if similar else ""
        return f"unrecognized arguments: {option}{hint}"
    if options[name] and (is_joined or not value.startswith("--")):
        convert, expected = NUMBERS[options[name]]
        text = text if is_joined else value
        try:
            convert(text)
        except ValueError:
            return f"{option} {text!r}: expected {expected}"
    return None


def check_checkout(script: str) -> None:
    """Exits if a script would run the code of another checkout, which is installed."""
    path = Path(script).resolve()
    folder = Path(__file__).resolve().parent
    if folder != path.parent:
        sys.exit(
            f"{path.name} of {path.parent} runs with the package of {folder}: "
            f"run `pip install -e {path.parent}`, or run {folder / path.name}"
        )


def main(argv: list[str] | None = None) -> None:
    """Runs the command that the first argument names."""
    argv = sys.argv[1:] if argv is None else argv
    command, *options = argv or ["--help"]
    if command in ("-h", "--help"):
        print(help_text())
        sys.exit(None if argv else 2)
    if command == "--version":
        from . import __version__

        print(__version__)
    elif command in COMMANDS:
        sys.argv[0] = f"audiolm {command}"  # the command's own messages show it
        answer_early(command, options, sys.argv[0])
        try:
            import_module(f".{COMMANDS[command]}", __package__).main(options)
        except KeyboardInterrupt:
            sys.exit(130)
    else:
        known_commands = ", ".join(COMMANDS)
        print(f"audiolm: unknown command {command!r}. Commands: {known_commands}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
