"""Answers a table of questions, `audiolm ask --csv`: rows in, the same rows with answers out."""

import csv
from argparse import Namespace
from itertools import chain
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from ..checkpoints.state_dicts import weights_digest
from ..data.answer_parsing import add_options
from ..data.audio_files import find_file
from ..runtime import UserError, write_text
from .model import LoadedModel

ADDED_COLUMNS = ("answer", "probability", "choice", "text", "used_seconds", "model", "error")


def _read_finished(output: Path, questions: pd.DataFrame, label: str) -> list[list[str]]:
    """Reads the answered rows that an interrupted run wrote, but the last, which may be cut off."""
    columns = [*questions, *ADDED_COLUMNS]
    with open(output, "a+", newline="", encoding="utf-8", errors="replace") as file:
        file.seek(0)
        header, *finished = list(csv.reader(file))[:-1] or [columns]
    earlier = [row[: questions.shape[1]] for row in finished]
    is_same = header == columns and {row[-2] for row in finished} <= {label}
    if not is_same or earlier != questions[: len(finished)].to_numpy().tolist():
        message = "holds answers to other questions or of another model. Give another file."
        raise UserError(f"--output {output}: {message}")
    return finished


def answer_table(args: Namespace, questions: pd.DataFrame, model: LoadedModel) -> int:
    """Answers the rows that an interrupted run has not. Returns how many rows have an error.

    Raises:
        UserError: If the questions have a column of answers, or the output holds other answers.
    """
    if set(ADDED_COLUMNS) & set(questions):
        raise UserError(f"--csv {args.csv}: expected no column {' or '.join(ADDED_COLUMNS)}")
    # The label names everything that an answer depends on, and what a probability of 1.0000 hides.
    label = f"{model.name} {weights_digest(model.model)[:12]}{' no_audio' if args.no_audio else ''}"
    label += f" {args.max_new_tokens} tokens" if args.max_new_tokens != 64 else ""
    label += f" ({', '.join(model.notes)})" if model.notes else ""
    finished = _read_finished(args.output, questions, label)
    table = pd.DataFrame(finished, columns=[*questions, *ADDED_COLUMNS])
    write_text(args.output, table.to_csv(index=False))
    num_errors = sum(table["error"] != "")
    starts = range(len(finished), len(questions), args.batch_size)
    for start in tqdm(starts, "asking", unit="batch", disable=None):
        batch = questions[start : start + args.batch_size]
        rows = answer_rows(args, batch.to_dict("records"), model)
        answers = pd.DataFrame(rows, batch.index, ADDED_COLUMNS).assign(model=label)
        options = {"header": False, "index": False, "float_format": "%.4f"}
        batch.join(answers).to_csv(args.output, mode="a", **options)
        num_errors += answers["error"].count()
    return num_errors


def answer_rows(args: Namespace, rows: list[dict], model: LoadedModel) -> list[dict]:
    """Returns the added columns of some rows, asked one by one if one of them has an `error`."""
    try:
        paths, questions = [], []
        for row in rows:
            if not row["audio"]:
                raise UserError("no clip is named")
            names = filter(None, (row["audio"], row.get("audio2")))
            paths.append([find_file(str(args.csv.parent / name)) for name in names])
            questions.append(add_options(row["question"], row.get("options", "").split("|")))
        encoded = iter(model.encode(list(chain.from_iterable(paths))))
        clips = [[next(encoded) for _ in row_paths] for row_paths in paths]
        answers = model.ask(questions, clips, args.no_audio, args.max_new_tokens)
        used = [" ".join(f"{clip.used:.4g}" for clip in own_clips) for own_clips in clips]
        return [{**a.facts, "used_seconds": seconds} for a, seconds in zip(answers, used)]
    except UserError as error:
        if len(rows) == 1:
            return [{"error": str(error)}]
        return [answer_rows(args, [row], model)[0] for row in rows]
