"""One entry point: `audiolm COMMAND ...`.

`audiolm COMMAND --help` lists a command's options. With several processes, use
`accelerate launch -m audiolm COMMAND ...`.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path

COMMANDS = {
    "ask": "ask.cli",
    "app": "ask.app",
    "train": "run_train",
    "eval": "run_eval",
    "compare": "run_compare",
    "probe": "evaluation.probe_command",
    "prepare": "data.prepare",
    "benchmark": "benchmark.cli",
}


def first_docstring_line(module: str) -> str:
    """Returns the first sentence of a module's docstring, without importing the module."""
    path = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.split("\n")[0].split(": `")[0].removesuffix(".")


def help_text() -> str:
    """Returns the text of `audiolm --help`."""
    lines = [f"  {name:<10} {first_docstring_line(m)}" for name, m in COMMANDS.items()]
    return f"usage: audiolm [-h] [--version] COMMAND ...\n\n{__doc__}\ncommands:\n" + "\n".join(
        lines
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
        sys.argv[0] = f"audiolm {command}"  # the command's own help shows it
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
