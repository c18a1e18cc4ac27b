"""Answer a table of questions, `audiolm ask --csv`: rows in, the same rows with answers out."""

import csv
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from ..data.answer_parsing import add_options
from ..data.decoder import BadClip
from ..evaluation.predict import model_digest
from ..runtime import UserError, write_text
from .model import Answer, EncodedClip, LoadedModel

CLIPS = ("audio", "audio2")
ADDED_COLUMNS = ("answer", "choice", "probability", "used_seconds", "model", "error")


@dataclass(frozen=True)
class TableJob:
    """A table of questions, the file for its answers, and who answers.

    Attributes:
        questions: CSV file with the columns `audio` and `question`, and optionally `audio2` and
            `options` ("rain|a dog"). Paths are relative to its folder.
        output: CSV file that gets its rows and `ADDED_COLUMNS`.
        label: What the column `model` says.
    """

    questions: Path
    output: Path
    model: LoadedModel
    label: str
    no_audio: bool = False
    max_new_tokens: int = 64
    batch_size: int = 16


def model_label(model: LoadedModel, no_audio: bool, max_new_tokens: int) -> str:
    """Names a model and everything else that an answer depends on."""
    parts = [model.name, model_digest(model.model)[:12]]
    parts += ["no_audio"] if no_audio else []
    parts += [f"{max_new_tokens} tokens"] if max_new_tokens != 64 else []
    return " ".join(parts)


def _parse(text: str) -> pd.DataFrame:
    options = {"dtype": str, "keep_default_na": False, "index_col": False}
    with warnings.catch_warnings():
        # Without this, pandas drops cells beyond the header.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(io.StringIO(text, newline=""), **options)
        except pd.errors.ParserWarning as error:
            hint = "put quotes around a cell that holds a comma"
            raise ValueError(f"more cells than columns; {hint}") from error


def read_questions(path: Path) -> pd.DataFrame:
    """Reads a table of questions, or raises `UserError` if it is none."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
        table = _parse(text)
        header = next(csv.reader(io.StringIO(text, newline="")))
    except (OSError, ValueError) as error:
        raise UserError(f"--csv {path}: not a readable table ({error})") from error
    missing = [column for column in ("audio", "question") if column not in table]
    if missing:
        raise UserError(
            f"--csv {path}: no column {' and '.join(missing)}. It has the columns "
            f"{', '.join(table)}, separated by commas."
        )
    # pandas would read the second as `question.1`.
    if len(set(header)) < len(header):
        raise UserError(f"--csv {path}: holds a column twice: {', '.join(header)}")
    reserved = [column for column in ADDED_COLUMNS if column in table]
    if reserved:
        raise UserError(f"--csv {path}: holds columns of the output: {', '.join(reserved)}")
    return table


def _read_finished(job: TableJob, questions: pd.DataFrame) -> pd.DataFrame:
    """Reads what an interrupted run wrote. A row that was cut off is dropped."""
    text = ""
    if job.output.exists():
        with open(job.output, newline="", encoding="utf-8") as file:
            text = file.read()
    while text:
        text = text[: text.rfind("\n") + 1]
        try:
            finished = _parse(text)
            break
        except ValueError:  # the text ends within a cell
            text = text[:-1]
    else:
        return pd.DataFrame(columns=[*questions, *ADDED_COLUMNS])
    columns = list(questions)
    is_same = list(finished) == [*columns, *ADDED_COLUMNS]
    is_same = is_same and finished[columns].equals(questions[: len(finished)])
    if not is_same or set(finished["model"]) - {job.label}:
        raise UserError(
            f"--output {job.output}: holds answers to other questions or of another model. "
            "Give another file."
        )
    return finished


def answer_table(job: TableJob) -> int:
    """Answers every row, after those that an interrupted run has answered.

    Returns:
        The number of rows with an error.

    Raises:
        UserError: If the table or the output cannot be used.
    """
    questions = read_questions(job.questions)
    finished = _read_finished(job, questions)
    write_text(job.output, finished.to_csv(index=False))
    num_errors = sum(finished["error"] != "")
    progress = {"desc": "asking", "unit": "row", "disable": None, "initial": len(finished)}
    with tqdm(total=len(questions), **progress) as bar:
        for start in range(len(finished), len(questions), job.batch_size):
            batch = questions[start : start + job.batch_size]
            answers = pd.DataFrame(answer_rows(job, batch.to_dict("records")), batch.index)
            answers = answers.reindex(columns=ADDED_COLUMNS, fill_value="").fillna("")
            answers["model"] = job.label
            batch.join(answers).to_csv(job.output, mode="a", header=False, index=False)
            num_errors += sum(answers["error"] != "")
            bar.update(len(batch))
    return num_errors


def answer_rows(job: TableJob, rows: list[dict]) -> list[dict]:
    """Returns the added columns of some rows. A row that cannot be answered has an `error`."""
    paths = [[str(job.questions.parent / row[c]) for c in CLIPS if row.get(c)] for row in rows]
    encoded = _encode(job.model, list(dict.fromkeys(chain.from_iterable(paths))))
    results: list[dict] = []
    questions: dict[int, tuple[str, list]] = {}
    for i, row in enumerate(rows):
        errors = [str(encoded[path]) for path in paths[i] if isinstance(encoded[path], BadClip)]
        errors = errors if row["audio"] else ["no clip is named"]
        try:
            question = _read_question(row)
        except UserError as error:
            errors.append(str(error))
        if not errors:
            questions[i] = question, [encoded[path] for path in paths[i]]
        results.append({"error": errors[0]} if errors else {})
    for i, answer in zip(questions, _ask(job, list(questions.values()))):
        results[i] = _added_columns(answer, questions[i][1])
    return results


def _read_question(row: dict) -> str:
    if not row["question"].strip():
        raise UserError("the question is empty")
    return add_options(row["question"], row.get("options", "").split("|"))


def _encode(model: LoadedModel, paths: list[str]) -> dict[str, EncodedClip | BadClip]:
    """Encodes clips together, or one by one if one of them cannot be read."""
    try:
        return dict(zip(paths, model.encode(paths))) if paths else {}
    except BadClip as error:
        if len(paths) == 1:
            return {paths[0]: error}
        return {path: _encode(model, [path])[path] for path in paths}


def _ask(
    job: TableJob, questions: list[tuple[str, list[EncodedClip]]]
) -> Sequence[Answer | UserError]:
    """Asks questions together, or one by one if one of them is too long."""
    if not questions:
        return []
    texts, clips = zip(*questions)
    try:
        return job.model.ask(list(texts), list(clips), job.no_audio, job.max_new_tokens)
    except UserError as error:
        if len(questions) == 1:
            return [error]
        return [_ask(job, [question])[0] for question in questions]


def _added_columns(answer: Answer | UserError, clips: list[EncodedClip]) -> dict[str, str]:
    if isinstance(answer, UserError):
        return {"error": str(answer)}
    return {
        "answer": answer.text,
        "choice": answer.choice or "",
        "probability": f"{answer.options[answer.choice]:.4f}" if answer.choice else "",
        "used_seconds": " ".join(f"{clip.used:.4g}" for clip in clips),
    }
