"""Reads MMAU test-mini, MMAR and ClothoAQA as examples like ReasonAQA's.

- `mmau`: mmau-test-mini.json of github.com/Sakshi113/MMAU, scored by a string match.
- `mmar`: MMAR-meta.json or .jsonl of github.com/ddlBoJack/MMAR, scored by a string match.
- `clothoaqa`: clotho_aqa_test.csv of zenodo 6473207, scored by exact match.

In MMAU test-mini the first option is correct in 39.5 % of the questions (sound: 49 %). A model that
prefers "A" seems to be good. Options may be repeated, the correct one too: then its first letter
counts here, and the string match accepts both.
"""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from datasets import Dataset

from ..runtime import UserError
from .answer_parsing import LETTERS, YES_NO_INSTRUCTION, option_texts, parse_option
from .json_table import stream_array
from .reasonaqa import SCHEMA, resolve_path


class ChoiceBenchmark(NamedTuple):
    """A benchmark of multiple-choice questions."""

    title: str
    audio_field: str
    subtype_field: str  # It becomes the second part of the subtype.
    groups: tuple[str, ...]  # Fields by which the official script groups accuracies.
    prediction_keys: tuple[str, ...]  # Where versions of the script look for an answer.


CHOICE_BENCHMARKS = {
    "mmau": ChoiceBenchmark(
        "MMAU",
        audio_field="audio_id",
        subtype_field="task",
        groups=("task", "difficulty", "sub-category"),
        prediction_keys=("model_output", "model_prediction"),
    ),
    "mmar": ChoiceBenchmark(
        "MMAR",
        audio_field="audio_path",
        subtype_field="modality",
        groups=("modality", "category", "sub-category"),
        prediction_keys=("answer_prediction", "model_prediction"),
    ),
}
BENCHMARKS = (*CHOICE_BENCHMARKS, "clothoaqa")
CLOTHO_COLUMNS = ("file_name", "QuestionText", "answer", "confidence")
_SCHEMA = pa.schema(
    [*SCHEMA, ("id", pa.string()), ("choices", pa.list_(pa.string())), ("item", pa.string())]
)


def read_benchmark(
    name: str, file: str | Path, audio_dir: str | Path, on_bad_item: str = "error"
) -> Dataset:
    """Reads a benchmark's published file as rows like those of `load_reasonaqa`.

    A question ends with its choices in their published order, "A) … B) …". The answer is "B) text".
    ClothoAQA's three answers to a question become one row: `yes_no` with the majority's answer, or
    `detail` with the most common word.

    Args:
        name: One of `BENCHMARKS`.
        file: The published file.
        audio_dir: Folder of the audio, under its published path or its file name alone. Whether the
            files exist is not checked.
        on_bad_item: "error", or "keep" for items whose answer is no choice or whose choices cannot
            be told apart. Such a row has the published answer, which names no option.

    Returns:
        Columns of `load_reasonaqa` and three more: `id`, `choices` and `item`, the published item
        as JSON. ClothoAQA has no choices. Its items have lists of `answers` and `confidences`.

    Raises:
        UserError: The file or an item is not as published, or a path leaves `audio_dir`. The
            message names file and item.
    """
    if on_bad_item not in ("error", "keep"):
        raise UserError(f"on_bad_item {on_bad_item!r}: choose error or keep")
    if check_benchmark_name(name) == "clothoaqa":
        rows = list(_read_clotho(file, audio_dir))
    else:
        benchmark = CHOICE_BENCHMARKS[name]
        rows = [
            _read_item(benchmark, item, f"{file}, item {number}", audio_dir, on_bad_item)
            for number, item in enumerate(_read_items(file))
        ]
    if not rows:
        raise UserError(f"{file}: the list of items is empty")
    empty = dict.fromkeys(("filepath2", "caption1", "caption2"), "")
    return Dataset(pa.Table.from_pylist([empty | row for row in rows], _SCHEMA))


def check_benchmark_name(name: str) -> str:
    """Returns the name of a benchmark, or raises a UserError if it does not exist."""
    if name not in BENCHMARKS:
        raise UserError(f"benchmark {name!r}: choose from {', '.join(BENCHMARKS)}")
    return name


def pair_predictions(
    rows: Iterable[Mapping], predictions: Sequence[str | None]
) -> list[tuple[Mapping, str | None]]:
    """Returns each row with its prediction. Raises a UserError if their numbers differ."""
    rows = list(rows)
    if len(rows) != len(predictions):
        raise UserError(
            f"{len(predictions)} predictions for {len(rows)} rows: expected one for each row, "
            "None for no answer"
        )
    return list(zip(rows, predictions))


def _read_items(file: str | Path) -> Iterator[dict]:
    if Path(file).suffix != ".jsonl":
        yield from stream_array(file)
        return
    for number, line in enumerate(_read_bytes(file).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: not readable as JSON ({error})") from error
        if not isinstance(item, dict):
            raise UserError(
                f"{file}, line {number}: expected an object, found {type(item).__name__}"
            )
        yield item


def _read_item(
    benchmark: ChoiceBenchmark, item: dict, where: str, audio_dir: str | Path, on_bad_item: str
) -> dict:
    where = f"{where} ({item.get('id')})"
    _check_item(benchmark, item, where)
    choices = [" ".join(choice.split()) for choice in item["choices"]]
    lettered = [f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices)]
    question = " ".join([item["question"].strip(), *lettered])
    answer = " ".join(item["answer"].split())
    index = _find_choice(choices, answer)
    problem = None
    if index is None:
        hint = " (early files of MMAU have '(A) text')" if answer.startswith("(") else ""
        problem = f"the answer {answer!r} is not among the choices {item['choices']}{hint}"
    elif list(option_texts(question).values()) != choices:
        problem = f"the choices {item['choices']} cannot be told apart in a question"
    else:
        answer = lettered[index]
    if problem and on_bad_item == "error":
        raise UserError(f"{where}: {problem}")
    published_path = item[benchmark.audio_field]
    return {
        "taskname": benchmark.title,
        "id": item["id"],
        "item": json.dumps(item, ensure_ascii=False),
        "filepath1": published_path,
        "input": question,
        "answer": answer,
        "subtype": f"{benchmark.title}/{item[benchmark.subtype_field]}",
        "question_type": "mcq",
        "audio": [_audio_path(published_path, audio_dir, where)],
        "choices": item["choices"],
    }


def _check_item(benchmark: ChoiceBenchmark, item: dict, where: str) -> None:
    if re.search("[\ud800-\udfff]", json.dumps(item, ensure_ascii=False)):
        raise UserError(f"{where}: it holds an incomplete character (a lone surrogate)")
    for field in ("id", benchmark.audio_field, "question", "answer", benchmark.subtype_field):
        if not isinstance(item.get(field), str) or not item[field].strip():
            raise UserError(f"{where}: field {field!r} is {item.get(field)!r}, expected text")
    choices = item.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise UserError(f"{where}: field 'choices' is {choices!r}, expected a list of texts")
    if len(choices) > len(LETTERS):
        raise UserError(f"{where}: {len(choices)} choices, expected at most {len(LETTERS)}")


def _find_choice(choices: list[str], answer: str) -> int | None:
    """Returns the first choice that equals the answer, or else equals it in another case."""
    if answer in choices:
        return choices.index(answer)
    folded = [choice.casefold() for choice in choices]
    return folded.index(answer.casefold()) if answer.casefold() in folded else None


def find_named_choice(row: Mapping, text: str) -> str | None:
    """Returns the published choice that a generated text names."""
    choices = {letter.lower(): choice for letter, choice in zip(LETTERS, row["choices"])}
    return choices.get(parse_option(choices, text))


def _read_clotho(file: str | Path, audio_dir: str | Path) -> Iterator[dict]:
    numbers: Counter[str] = Counter()
    for item in _read_clotho_items(file):
        name = item["file_name"]
        answers = [normalize(answer) or answer for answer in item["answers"]]
        closed = [answer for answer in answers if is_yes_no(answer)]
        is_closed = 2 * len(closed) > len(answers)
        candidates = closed if is_closed else [a for a in answers if a not in closed] or answers
        path = _audio_path(name, audio_dir, f"{file}, {name}", "audio_files")
        question = item["QuestionText"]
        yield {
            "taskname": "ClothoAQA",
            "id": f"{name}#{numbers[name]}",
            "item": json.dumps(item, ensure_ascii=False),
            "filepath1": name,
            "input": f"{question} {YES_NO_INSTRUCTION}" if is_closed else question,
            "answer": Counter(candidates).most_common(1)[0][0],
            "subtype": "ClothoAQA",
            "question_type": "yes_no" if is_closed else "detail",
            "audio": [path],
            "choices": [],
        }
        numbers[name] += 1


def _read_clotho_items(file: str | Path) -> Iterable[dict]:
    """Returns each question with the answers of all annotators."""
    raw = _read_bytes(file)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        # The authors' script reads the file so.
        text = raw.decode("latin-1")
    table = csv.DictReader(io.StringIO(text, newline=""))
    missing = [column for column in CLOTHO_COLUMNS if column not in (table.fieldnames or ())]
    if missing:
        raise UserError(
            f"{file}: expected columns {', '.join(CLOTHO_COLUMNS)}; missing: {', '.join(missing)}"
        )
    items: dict[tuple[str, str], dict] = {}
    for line in table:
        name, question, answer, confidence = (
            str(line[column] or "").strip() for column in CLOTHO_COLUMNS
        )
        if not (name and question and answer):
            where = f"{file}, line {table.line_num}"
            raise UserError(f"{where}: file_name, QuestionText or answer is empty")
        empty = {"file_name": name, "QuestionText": question, "answers": [], "confidences": []}
        item = items.setdefault((name, question), empty)
        item["answers"].append(answer)
        item["confidences"].append(confidence)
    return items.values()


def normalize(text: str) -> str:
    """Returns the words of a text in lower case without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def is_yes_no(answer: str) -> bool:
    """Whether a normalized answer is "yes" or "no"."""
    return answer in ("yes", "no")


def majority_answer(answers: list[str]) -> str | None:
    """Returns the answer of more than half of the annotators."""
    if not answers:
        return None
    answer, count = Counter(answers).most_common(1)[0]
    return answer if 2 * count > len(answers) else None


def _read_bytes(file: str | Path) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{file}: not readable ({error})") from error


def _audio_path(published: str, audio_dir: str | Path, where: str, folder: str = "") -> str:
    """Returns the first existing file: the published path, its name, or its name in `folder`."""
    parts = [part for part in re.split(r"[/\\]+", published) if part not in ("", ".")]
    if ".." in parts or not parts:
        raise UserError(
            f"{where}: the audio path {published!r} leaves the audio directory or names no file"
        )
    names = ["/".join(parts), parts[-1]]
    if folder:
        names.append(f"{folder}/{parts[-1]}")
    try:
        paths = [resolve_path(name, audio_dir) for name in names]
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return next((path for path in paths if os.path.exists(path)), paths[0])
