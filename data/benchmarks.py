"""Benchmarks of others as rows like ReasonAQA's: MMAU test-mini, MMAR, ClothoAQA; their submissions and their own metrics.

| name | file | published at | protocol of `official_metrics` |
|---|---|---|---|
| mmau | mmau-test-mini.json | github.com/Sakshi113/MMAU | string match |
| mmar | MMAR-meta.json or .jsonl | github.com/ddlBoJack/MMAR | string match |
| clothoaqa | clotho_aqa_test.csv | zenodo 6473207 | exact match, by the annotators' agreement |

In MMAU test-mini the first option is the right one in 39.5 % of the questions (sound: 49 %): a model that likes "A" looks able.
Options can be repeated, the right one too (then its first letter counts, and the string match takes both).
"""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from .answer_parsing import options, parse_option
from .json_table import stream_array
from .reasonaqa import SCHEMA, resolve_path

# By benchmark: its name in subtypes, the field with the audio, the field in the subtype, the groups of its script, and the
# keys under which versions of the script look for an answer.
_CHOICES = {
    "mmau": (
        "MMAU",
        "audio_id",
        "task",
        ("task", "difficulty", "sub-category"),
        ("model_output", "model_prediction"),
    ),
    "mmar": (
        "MMAR",
        "audio_path",
        "modality",
        ("modality", "category", "sub-category"),
        ("answer_prediction", "model_prediction"),
    ),
}
BENCHMARKS = (*_CHOICES, "clothoaqa")
YES_NO = " Answer only using yes or no."  # as ReasonAQA asks
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_COLUMNS = ("file_name", "QuestionText", "answer", "confidence")
_SCHEMA = pa.schema(
    [*SCHEMA, ("id", pa.string()), ("choices", pa.list_(pa.string())), ("item", pa.string())]
)


def read_benchmark(
    name: str, file: str | Path, audio_dir: str | Path, on_bad_item: str = "error"
) -> Dataset:
    """Rows of a benchmark's published file, with the columns of [`load_reasonaqa`] and `id`, `choices` and `item`.

    The choices stand in the question in their published order, "question A) … B) …", and the answer is "B) text". ClothoAQA's
    three answers to a question are one row: `yes_no` with the majority's answer, or `detail` with the commonest word.

    Args:
        name: of `BENCHMARKS`. audio_dir: the audio is looked for under its published path and under its file name alone;
            whether it is there, `drop_bad_audio` checks. on_bad_item: "error", or "keep" for an answer that is no choice, or
            options that cannot be told apart: such a row has the published answer as it is, which names no option.

    Returns:
        `choices`: as published, none for ClothoAQA. `item`: what was published, as JSON (of ClothoAQA: `file_name`,
        `QuestionText`, and lists `answers` and `confidences`).

    Raises:
        ValueError: naming file and item, if the file is not as published, an answer is not among its choices, there are more
            than 26 of them, or a path leaves `audio_dir`.
    """
    if on_bad_item not in ("error", "keep"):
        raise ValueError(f"on_bad_item {on_bad_item!r}: error or keep is wanted")
    if _known(name) == "clothoaqa":
        rows = list(_clotho_rows(file, audio_dir))
    else:
        rows = [
            _choice_row(name, item, f"{file}, item {n}", audio_dir, on_bad_item)
            for n, item in enumerate(_items(file))
        ]
    if not rows:
        raise ValueError(f"{file}: a list of items is wanted, not an empty one")
    return Dataset(pa.Table.from_pylist(rows, _SCHEMA))


def _pairs(
    rows: Iterable[Mapping], predictions: Sequence[str | None]
) -> list[tuple[Mapping, str | None]]:
    rows = list(rows)
    if len(rows) != len(predictions):
        raise ValueError(
            f"{len(predictions)} predictions for {len(rows)} rows; one for each row is wanted, None for no answer"
        )
    return list(zip(rows, predictions))


def _known(name: str) -> str:
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark {name!r} is not known; there are {', '.join(BENCHMARKS)}")
    return name


def _items(file: str | Path) -> Iterator:
    if Path(file).suffix != ".jsonl":
        yield from stream_array(file)
        return
    for number, line in enumerate(Path(file).read_bytes().split(b"\n")):
        if line.strip():
            try:
                yield json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{file}, line {number + 1}: not readable JSON ({error})"
                ) from error


def _choice_row(
    name: str, item: Mapping, where: str, audio_dir: str | Path, on_bad_item: str
) -> dict:
    title, audio, part, _, _ = _CHOICES[name]
    if not isinstance(item, dict):
        raise ValueError(f"{where}: an object is wanted, not {type(item).__name__}")
    where = f"{where} ({item.get('id')})"
    if re.search("[\ud800-\udfff]", json.dumps(item, ensure_ascii=False)):
        raise ValueError(f"{where}: it holds half a character (a lone surrogate)")
    for field in ("id", audio, "question", "answer", part):
        if not isinstance(item.get(field), str) or not item[field].strip():
            raise ValueError(f"{where}: field {field!r} is {item.get(field)!r}, not a text")
    choices = item.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"{where}: field 'choices' is {choices!r}, not a list of texts")
    if len(choices) > len(LETTERS):
        raise ValueError(f"{where}: {len(choices)} choices; there are letters for {len(LETTERS)}")
    texts = [" ".join(choice.split()) for choice in choices]
    question = " ".join(
        [item["question"].strip(), *(f"{letter}) {text}" for letter, text in zip(LETTERS, texts))]
    )
    answer, fault = " ".join(item["answer"].split()), None
    same = (
        [text == answer for text in texts]
        if answer in texts
        else [t.casefold() == answer.casefold() for t in texts]
    )
    if not any(same):
        fault = f"the answer {answer!r} is not among the choices {choices} (early files of MMAU have '(A) text')"
    elif list(options(question).values()) != texts:
        fault = f"the choices {choices} cannot be told apart in a question"
    else:
        answer = f"{LETTERS[same.index(True)]}) {texts[same.index(True)]}"
    if fault and on_bad_item != "keep":
        raise ValueError(f"{where}: {fault}")
    path = _audio_path(item[audio], audio_dir, where)
    return _row(
        title,
        item[audio],
        path,
        question,
        answer,
        "mcq",
        f"{title}/{item[part]}",
        item["id"],
        choices,
        item,
    )


def _clotho_rows(file: str | Path, audio_dir: str | Path) -> Iterator[dict]:
    raw = Path(file).read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:  # the authors read it so
        text = raw.decode("latin-1")
    table = csv.DictReader(io.StringIO(text, newline=""))
    if missing := [column for column in _COLUMNS if column not in (table.fieldnames or ())]:
        raise ValueError(
            f"{file}: columns {', '.join(_COLUMNS)} are wanted; {', '.join(missing)} are not there"
        )
    asked: dict[tuple[str, str], dict] = {}
    for line in table:
        name, question, answer, confidence = (
            str(line[column] or "").strip() for column in _COLUMNS
        )
        if not (name and question and answer):
            raise ValueError(
                f"{file}, line {table.line_num}: file_name, QuestionText or answer is empty"
            )
        item = asked.setdefault(
            (name, question),
            {"file_name": name, "QuestionText": question, "answers": [], "confidences": []},
        )
        item["answers"].append(answer)
        item["confidences"].append(confidence)
    numbers: Counter[str] = Counter()
    for (name, question), item in asked.items():
        given = [_plain(answer) or answer for answer in item["answers"]]
        closed = [answer for answer in given if _is_yes_no(answer)]
        kind = "yes_no" if 2 * len(closed) > len(given) else "detail"
        answer = Counter(
            closed if kind == "yes_no" else [a for a in given if a not in closed] or given
        ).most_common(1)[0][0]
        path = _audio_path(name, audio_dir, f"{file}, {name}", "audio_files")
        question += YES_NO if kind == "yes_no" else ""
        yield _row(
            "ClothoAQA",
            name,
            path,
            question,
            answer,
            kind,
            "ClothoAQA",
            f"{name}#{numbers[name]}",
            [],
            item,
        )
        numbers[name] += 1


def _row(title, filepath, path, question, answer, kind, subtype, identity, choices, item) -> dict:
    return {
        "taskname": title,
        "filepath1": filepath,
        "filepath2": "",
        "caption1": "",
        "caption2": "",
        "input": question,
        "answer": answer,
        "subtype": subtype,
        "question_type": kind,
        "audio": [path],
        "id": identity,
        "choices": choices,
        "item": json.dumps(item, ensure_ascii=False),
    }


def _audio_path(published: str, audio_dir: str | Path, where: str, folder: str = "") -> str:
    """A published path under `audio_dir`, or its file name there or in `folder`: the first that exists, else the first."""
    parts = [part for part in re.split(r"[/\\]+", published) if part not in ("", ".")]
    if ".." in parts or not parts:
        raise ValueError(
            f"{where}: the audio path {published!r} leaves the audio directory, or names no file"
        )
    places = ["/".join(parts), parts[-1], *([f"{folder}/{parts[-1]}"] if folder else [])]
    try:
        paths = [resolve_path(place, audio_dir) for place in places]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return next((path for path in paths if os.path.exists(path)), paths[0])


def _named_choice(row: Mapping, text: str) -> str | None:
    """The published choice that a generated text names."""
    given = {letter.lower(): choice for letter, choice in zip(LETTERS, row["choices"])}
    return given.get(parse_option(given, text))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _is_yes_no(answer: str) -> bool:
    return answer in ("yes", "no")


def _majority(answers: list[str]) -> str | None:
    """The answer of more than half of the annotators."""
    (most, count), *_ = Counter(answers).most_common(1) or [(None, 0)]
    return most if 2 * count > len(answers) else None
