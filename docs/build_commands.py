"""Writes commands.md and configs/options.json from the parsers: `python docs/build_commands.py`.

`audiolm COMMAND --help` prints what options.json holds. A test compares both with the parsers.
"""

import argparse
import json
import textwrap
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from audiolm.__main__ import COMMANDS
from audiolm.training.arguments import AudioLMTrainingArguments, DataArguments, ModelArguments

PAGE = Path(__file__).parent / "commands.md"
OPTIONS = Path(__file__).parents[1] / "configs" / "options.json"
PROGRAMS = {"train": "run_train.py", "eval": "run_eval.py", "compare": "run_compare.py"}
# Stock options that `run_train.py --help` lists beside our own.
COMMON = ("num_train_epochs", "bf16", "weight_decay", "resume_from_checkpoint", "push_to_hub")
COMMON += ("hub_model_id", "hub_strategy", "hub_private_repo", "full_determinism")
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
HELP_ALL = "--help_all also lists the other options of transformers' TrainingArguments."


def format_value(value: object) -> str:
    """Returns a default as it is typed, or an empty string."""
    if value is None or value == argparse.SUPPRESS:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(getattr(value, "value", value))


def split_parser(command: str, parser: argparse.ArgumentParser) -> dict[str, list]:
    """Returns the actions of a parser by group: ours first, then the stock ones of the Trainer."""
    # `--no_OPTION` is the opposite of an option that is listed.
    hidden = (argparse._HelpAction, argparse._StoreFalseAction, argparse._SubParsersAction)
    actions = [action for action in parser._actions if not isinstance(action, hidden)]
    if command != "train":
        return {"options": actions} if actions else {}
    groups: dict[str, list] = {"model": [], "data": [], "training": [], "stock": []}
    names = {
        "model": ModelArguments.__dataclass_fields__.keys(),
        "data": {*DataArguments.__dataclass_fields__, "config"},
    }
    for action in actions:
        declared = AudioLMTrainingArguments.__annotations__
        is_listed = action.dest in declared or action.dest in COMMON
        group = "training" if is_listed else "stock"
        group = next((name for name, options in names.items() if action.dest in options), group)
        groups[group].append(action)
    return groups


def describe(action: argparse.Action) -> str:
    """Returns an option's help with its choices and its default."""
    choices = ", ".join(map(str, action.choices or ()))
    # The default of this option is what the machine has.
    default = "" if action.dest == "dataloader_pin_memory" else format_value(action.default)
    text = " ".join((action.help or "").replace("%(default)s", default).replace("%%", "%").split())
    parts = [text, f"One of: {choices}" if choices else ""]
    if default and "default" not in text.lower():
        parts.append(f"(default: {default})")
    return " ".join(filter(None, parts))


def format_help(program: str, description: str, groups: dict[str, Iterable]) -> str:
    """Returns the text of `--help`, 100 columns wide."""
    lines = [f"usage: {program} [OPTION ...]", "", description.strip()]
    for title, actions in groups.items():
        lines += ["", f"{title}:"]
        for action in actions:
            name = action.option_strings[0] if action.option_strings else action.metavar
            indent = " " * 32
            text = textwrap.wrap(describe(action), 66) or [""]
            lines.append(f"  {name or action.dest:<29} {text[0]}".rstrip())
            lines += [indent + line for line in text[1:]]
    return "\n".join(lines)


def option_kinds(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Returns every option of a parser, and "int" or "float" if it takes such a number."""
    kinds = {}
    for action in parser._actions:
        is_single = action.nargs is None
        kind = {int: "int", float: "float"}.get(action.type, "") if is_single else ""
        for name in action.option_strings:
            kinds["--" + name.lstrip("-").replace("-", "_")] = kind
    return kinds


def build_options() -> dict[str, dict]:
    """Returns the content of options.json: help and options of each command."""
    pages = {}
    for command, module in PARSERS.items():
        parser = import_module(f"audiolm.{module}").build_parser()
        parsers = {command: parser}
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers |= {f"{command} {name}": sub for name, sub in action.choices.items()}
        for name, subparser in parsers.items():
            groups = split_parser(command, subparser)
            stock = groups.pop("stock", None)
            program = PROGRAMS.get(name, f"audiolm {name}")
            description = subparser.description or ""
            if subparser is parser and len(parsers) > 1:
                description += "\n\ncommands: " + ", ".join(list(parsers)[1:])
            page = {
                "help": format_help(program, description, groups),
                "options": option_kinds(subparser),
            }
            if stock is not None:
                page["help"] += f"\n\n{HELP_ALL}"
                groups |= {"stock options of transformers' TrainingArguments": stock}
                page["help_all"] = format_help(program, description, groups)
            pages[name] = page
    return pages


def build_page(pages: dict[str, dict]) -> str:
    """Returns commands.md: the help of each command, from the content of options.json."""
    sections = [
        f"## audiolm {name}\n\n```text\n{page['help']}\n```" for name, page in pages.items()
    ]
    return "\n\n".join([INTRO.strip(), *sections]) + "\n"


if __name__ == "__main__":
    pages = build_options()
    PAGE.write_text(build_page(pages), encoding="utf-8")
    OPTIONS.write_text(json.dumps(pages, indent=1) + "\n", encoding="utf-8")
