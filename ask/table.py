"""Answer a table of questions, `audiolm ask --csv`: rows in, the same rows with answers out."""

import csv
import io
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from tqdm import tqdm

from ..data.answer_parsing import with_options
from ..data.decoder import BadClip
from ..evaluation.predict import model_digest
from ..runtime import UserError, write_text
from .model import Answer, EncodedClip, LoadedModel

CLIPS = ("audio", "audio2")
ADDED_COLUMNS = ("answer", "choice", "probability", "used_seconds", "model", "error")


@dataclass(frozen=True)
class TableJob:
    """A table to answer.

    Attributes:
        questions: CSV file with the columns `audio` and `question`, and optionally `audio2` and
            `options` ("rain|a dog"). Paths are relative to its folder.
        output: CSV file that gets its rows and `ADDED_COLUMNS`.
        model: The model.
        label: What the column `model` says.
        no_audio: Replace the audio by the mean features.
        max_new_tokens: Longest answer.
        batch_size: Rows at once.
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


def read_columns(path: Path) -> list[str]:
    """Returns the columns of a table of questions, or raises `UserError` if it is none."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            columns = next(csv.reader(file), [])
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"--csv {path}: not a readable table ({error})") from error
    missing = sorted({"audio", "question"} - set(columns))
    if missing:
        raise UserError(
            f"--csv {path}: no column {' and '.join(missing)}. It has the columns "
            f"{', '.join(columns) or 'none'}, separated by commas."
        )
    reserved = sorted(set(ADDED_COLUMNS) & set(columns))
    if reserved or len(set(columns)) < len(columns):
        problem = f"columns of the output: {', '.join(reserved)}" if reserved else "a column twice"
        raise UserError(f"--csv {path}: holds {problem}")
    return columns


def _finished_rows(job: TableJob, columns: list[str]) -> list[dict]:
    """Rows of an earlier, interrupted run. A row that was cut off is dropped."""
    if not job.output.exists():
        return []
    with open(job.output, newline="", encoding="utf-8") as file:
        text = file.read()
    reader = csv.DictReader(text.splitlines(keepends=True))
    rows = [row for row in reader if None not in row.values()]
    if rows and not text.endswith("\n"):
        rows.pop()
    with open(job.questions, newline="", encoding="utf-8-sig") as file:
        questions = list(islice(csv.DictReader(file), len(rows)))
    header = io.StringIO(newline="")
    csv.writer(header).writerow([*columns, *ADDED_COLUMNS])
    if header.getvalue().startswith(text):  # nothing is finished, or not even the header
        return []
    is_same = len(questions) == len(rows) and all(
        row["model"] == job.label and all(row[c] == (question[c] or "") for c in columns)
        for row, question in zip(rows, questions)
    )
    if not text.startswith(header.getvalue()) or not is_same:
        raise UserError(
            f"--output {job.output}: holds answers to other questions or of another model. "
            "Give another file."
        )
    return rows


def answer_table(job: TableJob) -> int:
    """Answers every row. An interrupted job continues where it ended.

    Returns:
        The number of rows with an error.

    Raises:
        UserError: If the table or the output cannot be used.
    """
    columns = read_columns(job.questions)
    try:
        return _answer_table(job, columns)
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{job.questions} or {job.output}: {error}") from error


def _answer_table(job: TableJob, columns: list[str]) -> int:
    finished = _finished_rows(job, columns)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*columns, *ADDED_COLUMNS])
    writer.writeheader()
    writer.writerows(finished)
    write_text(job.output, text.getvalue())
    num_errors = sum(bool(row["error"]) for row in finished)
    with open(job.questions, newline="", encoding="utf-8-sig") as file:
        questions = list(csv.DictReader(file))
    progress = {"desc": "asking", "unit": "row", "disable": None, "initial": len(finished)}
    with (
        open(job.output, "a", newline="", encoding="utf-8") as output,
        tqdm(total=len(questions), **progress) as bar,
    ):
        writer = csv.DictWriter(output, [*columns, *ADDED_COLUMNS])
        for start in range(len(finished), len(questions), job.batch_size):
            batch = questions[start : start + job.batch_size]
            for row, answer in zip(batch, answer_rows(job, batch)):
                cells = {column: row[column] or "" for column in columns}
                writer.writerow({**cells, "model": job.label, **answer})
                num_errors += bool(answer.get("error"))
            output.flush()
            bar.update(len(batch))
    return num_errors


def answer_rows(job: TableJob, rows: list[dict]) -> list[dict]:
    """Returns the added columns of some rows. A row that cannot be answered has an `error`."""
    paths = [[str(job.questions.parent / row[c]) for c in CLIPS if row.get(c)] for row in rows]
    encoded = _encode(job.model, list(dict.fromkeys(chain.from_iterable(paths))))
    results: list[dict] = []
    questions: dict[int, tuple[str, list[EncodedClip]]] = {}
    for i, row in enumerate(rows):
        try:
            questions[i] = _read_question(row), [_usable(encoded[path]) for path in paths[i]]
            results.append({})
        except (ValueError, BadClip) as error:
            results.append({"error": str(error)})
    for i, answer in zip(questions, _ask(job, list(questions.values()))):
        results[i] = _added_columns(answer, questions[i][1])
    return results


def _encode(model: LoadedModel, paths: list[str]) -> dict[str, EncodedClip | BadClip]:
    """Encodes clips together, or one by one if one of them cannot be read."""
    try:
        return dict(zip(paths, model.encode(paths))) if paths else {}
    except BadClip as error:
        if len(paths) == 1:
            return {paths[0]: error}
        return {path: _encode(model, [path])[path] for path in paths}


def _usable(clip: EncodedClip | BadClip) -> EncodedClip:
    if isinstance(clip, BadClip):
        raise clip
    return clip


def _ask(
    job: TableJob, questions: list[tuple[str, list[EncodedClip]]]
) -> list[Answer | ValueError]:
    """Asks questions together, or one by one if one of them is too long."""
    if not questions:
        return []
    texts, clips = zip(*questions)
    try:
        return job.model.ask(list(texts), list(clips), job.no_audio, job.max_new_tokens)
    except ValueError as error:
        if len(questions) == 1:
            return [error]
        return [_ask(job, [question])[0] for question in questions]


def _added_columns(answer: Answer | ValueError, clips: list[EncodedClip]) -> dict[str, str]:
    if isinstance(answer, ValueError):
        return {"error": str(answer)}
    return {
        "answer": answer.text,
        "choice": answer.choice or "",
        "probability": f"{answer.options[answer.choice]:.4f}" if answer.choice else "",
        "used_seconds": " ".join(f"{clip.used:.4g}" for clip in clips),
    }


def _read_question(row: dict) -> str:
    if None in row:
        raise UserError("more cells than columns; put quotes around a cell that holds a comma")
    if not row["audio"]:
        raise UserError("no clip is named")
    if not (row["question"] or "").strip():
        raise UserError("the question is empty")
    return with_options(row["question"], (row.get("options") or "").split("|"))
