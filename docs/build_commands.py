"""Writes commands.md from the commands' own parsers: `python docs/make_commands.py`. A test compares the two."""

import argparse
import re
from importlib import import_module
from pathlib import Path
from unittest import mock

from transformers import TrainingArguments

from audiolm.__main__ import COMMANDS
from audiolm.training.arguments import DEFAULTS

PAGE = Path(__file__).parent / "commands.md"
INTRO = """# Commands and their options

This page is generated (`python docs/make_commands.py`). `audiolm COMMAND` and the script below it are the same; with several
processes, `accelerate launch SCRIPT`. `--help` says the same of each.
"""


class Found(Exception):
    """A parser that was about to read options."""


def parser_of(module: str) -> argparse.ArgumentParser:
    def take(parser, *args, **kwargs):
        if parser.description or parser._subparsers:  # a first look for --config alone has none
            raise Found(parser)
        return inner(parser, *args, **kwargs)

    inner = argparse.ArgumentParser.parse_known_args
    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", take):
        try:
            import_module(f"audiolm.{module}").main([])
        except Found as found:
            return found.args[0]
    raise AssertionError(f"{module} parses no options")


def shown(value) -> str:
    if value is None or value == argparse.SUPPRESS:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(getattr(value, "value", value))


def table(actions: list[argparse.Action]) -> str:
    rows = ["| option | default | |", "|---|---|---|"]
    for action in actions:
        name = (
            " ".join(f"`{word}`" for word in action.option_strings[:1])
            or f"`{action.metavar or action.dest}`"
        )
        values = " ".join(f"`{choice}`" for choice in action.choices or ())
        default, text = shown(action.default), action.help or ""
        if default:
            text = re.sub(r"\s*\(default: [^()]*(\([^()]*\)[^()]*)*\)", "", text)
        text = (
            " ".join(f"{text}{': ' if text and values else ''}{values}".split())
            .replace("|", "\\|")
            .replace("%%", "%")
        )
        rows.append(f"| {name} | {f'`{default}`' if default else ''} | {text} |")
    return "\n".join(rows)


def section(command: str, module: str) -> str:
    parser = parser_of(module)
    text = [f"## audiolm {command}", f"`{module}.py`. {parser.description}"]
    actions = [action for action in parser._actions if action.dest != "help"]
    subparsers = next(
        (action for action in actions if isinstance(action, argparse._SubParsersAction)), None
    )
    if subparsers:
        for name, inner in subparsers.choices.items():
            of = [action for action in inner._actions if action.dest != "help"]
            text += [f"### audiolm {command} {name}", inner.description or "", table(of)]
    elif command == "train":
        stock = TrainingArguments.__dataclass_fields__
        actions = [
            action for action in actions if not isinstance(action, argparse._StoreFalseAction)
        ]  # each option's opposite
        changed = [action for action in actions if action.dest in stock and action.dest in DEFAULTS]
        changed = [
            action for action in changed if action.dest != "dataloader_pin_memory"
        ]  # what the machine has
        text.append(table([action for action in actions if action.dest not in stock]))
        text.append(
            "All options of transformers' `TrainingArguments` are taken too. These have other defaults here:"
        )
        text.append(table(changed))
    else:
        text.append(table(actions))
    return "\n\n".join(part.strip() for part in text if part)


def made() -> str:
    return (
        INTRO
        + "\n"
        + "\n\n".join(section(command, module) for command, module in COMMANDS.items())
        + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(made(), encoding="utf-8")
