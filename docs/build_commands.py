"""Write commands.md from the commands' own parsers: `python docs/build_commands.py`.

A test compares the page with the parsers.
"""

import argparse
import re
from importlib import import_module
from pathlib import Path

from transformers import TrainingArguments

from audiolm.__main__ import COMMANDS
from audiolm.training.arguments import TRAINING_DEFAULTS

PAGE = Path(__file__).parent / "commands.md"
PARSERS = COMMANDS | {
    "train": "training.arguments",
    "eval": "evaluation.arguments",
    "compare": "comparison.run",
    "probe": "evaluation.probe_command",
}
INTRO = """# Commands and their options

This page is generated (`python docs/build_commands.py`). `run_train.py`, `run_eval.py` and
`run_compare.py` are `audiolm train`, `audiolm eval` and `audiolm compare`. With several processes,
use `accelerate launch`.
"""
STOCK = "All options of transformers' `TrainingArguments` work too. These have other defaults here:"


def format_value(value: object) -> str:
    """Returns a default as it is typed, or an empty string."""
    if value is None or value == argparse.SUPPRESS:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(getattr(value, "value", value))


def format_options(actions: list[argparse.Action]) -> str:
    """Returns a Markdown table of options."""
    rows = ["| option | default | |", "|---|---|---|"]
    for action in actions:
        name = action.option_strings[0] if action.option_strings else action.metavar or action.dest
        choices = " ".join(f"`{choice}`" for choice in action.choices or ())
        default = format_value(action.default)
        text = action.help or ""
        if default:
            text = re.sub(r"\s*\(default: [^()]*(\([^()]*\)[^()]*)*\)", "", text)
        separator = ": " if text and choices else ""
        text = " ".join(f"{text}{separator}{choices}".split())
        text = text.replace("|", "\\|").replace("%%", "%")
        rows.append(f"| `{name}` | {f'`{default}`' if default else ''} | {text} |")
    return "\n".join(rows)


def format_command(command: str, module: str) -> str:
    """Returns the section of a command."""
    parser = import_module(f"audiolm.{module}").build_parser()
    actions = [action for action in parser._actions if action.dest != "help"]
    parts = [f"## audiolm {command}", parser.description or ""]
    subcommands = [a for a in actions if isinstance(a, argparse._SubParsersAction)]
    if subcommands:
        for name, inner in subcommands[0].choices.items():
            options = [action for action in inner._actions if action.dest != "help"]
            parts += [f"### audiolm {command} {name}", inner.description or ""]
            parts.append(format_options(options))
    elif command == "train":
        stock = TrainingArguments.__dataclass_fields__
        # `--no_OPTION` is the opposite of an option that is listed.
        actions = [a for a in actions if not isinstance(a, argparse._StoreFalseAction)]
        changed = [a for a in actions if a.dest in stock and a.dest in TRAINING_DEFAULTS]
        parts.append(format_options([a for a in actions if a.dest not in stock]))
        # What the machine has, so the page does not depend on it.
        changed = [a for a in changed if a.dest != "dataloader_pin_memory"]
        parts += [STOCK, format_options(changed)]
    else:
        parts.append(format_options(actions))
    return "\n\n".join(part.strip() for part in parts if part)


def build_page() -> str:
    """Returns the whole page."""
    sections = [format_command(command, module) for command, module in PARSERS.items()]
    return "\n\n".join([INTRO.strip(), *sections]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(build_page(), encoding="utf-8")
