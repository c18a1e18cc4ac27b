"""`audiolm COMMAND ...`: one entry point for all of it. Each command is a script in the project's folder, which runs alone too.

`audiolm COMMAND --help` names a command's options; for several processes, `accelerate launch -m audiolm COMMAND ...`.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path

COMMANDS = {
    "ask": "ask.cli",
    "app": "ask.app",
    "train": "training.train",
    "eval": "evaluation.evaluate",
    "compare": "comparison.run",
    "probe": "evaluation.probe_command",
    "prepare": "data.prepare",
    "benchmark": "benchmark.cli",
}


def said_of(module: str) -> str:
    """The first sentence of a module's docstring, read without importing it."""
    text = ast.get_docstring(
        ast.parse(
            Path(__file__)
            .parent.joinpath(*module.split("."))
            .with_suffix(".py")
            .read_text(encoding="utf-8")
        )
    )
    return " ".join(text.split("\n\n")[0].split(": `")[0].split()).removesuffix(".")


def help_text() -> str:
    listed = "\n".join(f"  {name:<10} {said_of(module)}" for name, module in COMMANDS.items())
    return f"usage: audiolm [-h] [--version] COMMAND ...\n\n{__doc__}\ncommands:\n{listed}"


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        sys.exit(None if words else 2)
    if words[0] == "--version":
        from . import __version__

        print(__version__)
    elif words[0] in COMMANDS:
        sys.argv[0] = f"audiolm {words[0]}"  # as it is called in the command's own help
        try:
            import_module(f"audiolm.{COMMANDS[words[0]]}").main(words[1:])
        except KeyboardInterrupt:
            sys.exit(130)
    else:
        print(
            f"audiolm: {words[0]!r} is no command; there are {', '.join(COMMANDS)}", file=sys.stderr
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
