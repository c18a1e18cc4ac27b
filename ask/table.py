"""Answers a table of questions, `audiolm ask --csv`: rows in, the same rows with answers out."""

import csv
from argparse import Namespace
from itertools import chain
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from ..data.answer_parsing import add_options
from ..data.audio_files import find_file
from ..evaluation.predict import model_digest
from ..evaluation.tables import training_notes
from ..runtime import UserError, write_text
from .model import LoadedModel

ADDED_COLUMNS = ("answer", "probability", "choice", "text", "used_seconds", "model", "error")


def read_questions(path: Path) -> pd.DataFrame:
    """Reads a table of questions, or raises `UserError` if it is none."""
    try:
        # With `header`, pandas would rename a second column of one name and drop further cells.
        table = pd.read_csv(path, header=None, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--csv {path}: not a readable table ({error})") from error
    table = table[1:].reset_index(drop=True).set_axis(table.iloc[0].to_list(), axis=1)
    is_complete = {"audio", "question"} <= set(table) and table.columns.is_unique
    if not is_complete or set(ADDED_COLUMNS) & set(table):
        raise UserError(
            f"--csv {path}: has the columns {', '.join(table)}: expected audio, question and "
            f"others, separated by commas, but none twice and not {', '.join(ADDED_COLUMNS)}"
        )
    return table


def _read_finished(output: Path, questions: pd.DataFrame, label: str) -> list[list[str]]:
    """Reads the answered rows that an interrupted run wrote, but the last, which may be cut off."""
    if not output.exists():
        return []
    with open(output, newline="", encoding="utf-8", errors="replace") as file:
        header, *finished = list(csv.reader(file))[:-1] or [[*questions, *ADDED_COLUMNS]]
    earlier = [row[: questions.shape[1]] for row in finished]
    is_same = header == [*questions, *ADDED_COLUMNS] and {row[-2] for row in finished} <= {label}
    if not is_same or earlier != questions[: len(finished)].to_numpy().tolist():
        raise UserError(
            f"--output {output}: holds answers to other questions or of another model. "
            "Give another file."
        )
    return finished


def answer_table(args: Namespace, questions: pd.DataFrame, model: LoadedModel) -> int:
    """Answers every row, after those that an interrupted run has answered.

    Args:
        args: Options of `audiolm ask`.
        questions: Rows with `audio` and `question`, and optionally `audio2` and `options`.
        model: Answers them.

    Returns:
        The number of rows with an error.

    Raises:
        UserError: If the output holds other answers.
    """
    # The label names everything that an answer depends on, and what a probability of 1.0000 hides.
    label = f"{model.name} {model_digest(model.model)[:12]}{' no_audio' if args.no_audio else ''}"
    label += f" {args.max_new_tokens} tokens" if args.max_new_tokens != 64 else ""
    notes = training_notes(getattr(model.model.config, "training", None))
    label += f" ({', '.join(notes)})" if notes else ""
    finished = _read_finished(args.output, questions, label)
    table = pd.DataFrame(finished, columns=[*questions, *ADDED_COLUMNS])
    write_text(args.output, table.to_csv(index=False))
    num_errors = sum(table["error"] != "")
    empty = dict.fromkeys(ADDED_COLUMNS, "") | {"model": label}
    starts = range(len(finished), len(questions), args.batch_size)
    for start in tqdm(starts, "asking", unit="batch", disable=None):
        batch = questions[start : start + args.batch_size]
        rows = answer_rows(args, batch.to_dict("records"), model)
        answers = pd.DataFrame([empty | row for row in rows], batch.index)
        batch.join(answers).to_csv(args.output, mode="a", header=False, index=False)
        num_errors += sum(answers["error"] != "")
    return num_errors


def answer_rows(args: Namespace, rows: list[dict], model: LoadedModel) -> list[dict]:
    """Returns the added columns of some rows, asked one by one if one of them has an `error`."""
    try:
        return _answer_batch(args, rows, model)
    except UserError as error:
        if len(rows) == 1:
            return [{"error": str(error)}]
        return [answer_rows(args, [row], model)[0] for row in rows]


def _answer_batch(args: Namespace, rows: list[dict], model: LoadedModel) -> list[dict]:
    paths, questions = [], []
    for row in rows:
        if not row["audio"]:
            raise UserError("no clip is named")
        names = filter(None, (row["audio"], row.get("audio2")))
        paths.append([find_file(str(args.csv.parent / name)) for name in names])
        questions.append(add_options(row["question"], row.get("options", "").split("|")))
    encoded = iter(model.encode(list(chain.from_iterable(paths))))
    clips = [[next(encoded) for _ in row_paths] for row_paths in paths]
    return [
        {
            "answer": answer.reply,
            "probability": f"{answer.probability:.4f}" if answer.choice else "",
            "choice": answer.choice or "",
            "text": answer.text,
            "used_seconds": " ".join(f"{clip.used:.4g}" for clip in row_clips),
        }
        for answer, row_clips in zip(
            model.ask(questions, clips, args.no_audio, args.max_new_tokens), clips
        )
    ]
