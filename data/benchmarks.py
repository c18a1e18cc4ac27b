"""Reads MMAU test-mini and MMAR as examples like ReasonAQA's.

In MMAU test-mini the first option is correct in 39.5 % of the questions (sound: 49 %). A model that
prefers "A" seems to be good. Options may be repeated, the correct one too: then its first letter
counts.
"""

import json
import os
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from ..runtime import UserError, explain_errors
from .answer_parsing import LETTERS, option_texts
from .reasonaqa import SCHEMA, resolve_path

# Title, field of the audio path, and field of the second part of the subtype.
BENCHMARKS = {
    "mmau": ("MMAU", "audio_id", "task"),  # mmau-test-mini.json of github.com/Sakshi113/MMAU
    "mmar": ("MMAR", "audio_path", "modality"),  # MMAR-meta.json of github.com/ddlBoJack/MMAR
}


def read_benchmark(name: str, file: str | Path, audio_dir: str | Path) -> Dataset:
    """Reads a benchmark's published file as rows like those of `load_rows`.

    A question ends with its choices in their published order, "A) … B) …". The answer is "B) text".
    If it is no choice, or the choices cannot be told apart, it is the published answer. That names
    no option and counts as wrong.

    Args:
        name: One of `BENCHMARKS`.
        file: The published file, JSON or JSON lines.
        audio_dir: Folder of the audio, under its published path or its file name alone. Whether the
            files exist is not checked.

    Raises:
        UserError: The file or an item is not as published, or a path leaves `audio_dir`. The
            message names file and item.
    """
    rows = [
        _read_item(name, item, f"{file}, item {number}", audio_dir)
        for number, item in enumerate(_read_items(Path(file)))
    ]
    return Dataset(pa.Table.from_pylist(rows, SCHEMA))


def _read_items(file: Path) -> list[dict]:
    with explain_errors(f"{file}: not readable as JSON", OSError, ValueError, RecursionError):
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".jsonl":
            # The numbers of lines stay, so that an error names the right one.
            text = "[" + text.strip().replace("\n", ",\n") + "]"
        items = json.loads(text)
        # A lone surrogate cannot be written again.
        json.dumps(items, ensure_ascii=False).encode()
    is_list = isinstance(items, list) and all(isinstance(item, dict) for item in items)
    if not is_list or not items:
        raise UserError(f"{file}: expected a list of objects")
    return items


def _read_item(name: str, item: dict, where: str, audio_dir: str | Path) -> dict:
    title, audio_field, subtype_field = BENCHMARKS[name]
    for field in (audio_field, "question", "answer", subtype_field):
        if not isinstance(item.get(field), str) or not item[field].strip():
            raise UserError(f"{where}: field {field!r} is {item.get(field)!r}, expected text")
    published = item.get("choices")
    if not isinstance(published, list) or not all(isinstance(text, str) for text in published):
        raise UserError(f"{where}: field 'choices' is {published!r}, expected a list of texts")
    choices = [" ".join(choice.split()) for choice in published]
    lettered = [f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices)]
    question = " ".join([item["question"].strip(), *lettered])
    answer = " ".join(item["answer"].split())
    index = _find_choice(choices, answer)
    if index is not None and list(option_texts(question).values()) == choices:
        answer = lettered[index]
    path = item[audio_field]
    with explain_errors(where, UserError):
        # The archive's folder may be `audio_dir` itself.
        paths = [
            resolve_path(os.path.normpath(part), audio_dir) for part in (path, Path(path).name)
        ]
    return {
        **dict.fromkeys(SCHEMA.names, ""),
        "taskname": title,
        "filepath1": path,
        "input": question,
        "answer": answer,
        "subtype": f"{title}/{item[subtype_field]}",
        "question_type": "mcq",
        "audio": [next(filter(os.path.exists, paths), paths[0])],
    }


def _find_choice(choices: list[str], answer: str) -> int | None:
    """Returns the first choice that equals the answer, or else equals it in another case."""
    if answer not in choices:
        choices, answer = [choice.casefold() for choice in choices], answer.casefold()
    return choices.index(answer) if answer in choices else None
