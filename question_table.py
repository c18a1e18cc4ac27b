"""A table of questions about clips, answered row by row into another: what `audiolm ask --csv` does."""

import csv
import io
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from audiolm.asking import LoadedModel, with_options
from audiolm.data.decoding import BadClip
from audiolm.evaluation.predictions import model_digest

ADDED = ("answer", "choice", "probability", "heard_seconds", "model", "error")
KEPT_CLIPS = 256  # whose features are kept for further rows about them


def ask_table(args) -> int:
    """Answers a table of questions, on from where its output ends. Returns how many rows have an error.

    Args:
        args: of run_ask.py.

    Raises:
        ValueError, OSError: in one line.
    """
    try:
        return _ask_table(args)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{args.csv} or {args.output} is no table: {error}") from error


def _ask_table(args) -> int:
    with open(args.csv, newline="", encoding="utf-8-sig") as file:
        columns = next(csv.reader(file), [])
        if missing := {"audio", "question"} - set(columns):
            raise ValueError(f"{args.csv}: no column {' and '.join(sorted(missing))}; it has {', '.join(columns) or 'none'}")
        if taken := set(ADDED) & set(columns):
            raise ValueError(f"{args.csv}: the output's own columns stand in it: {', '.join(sorted(taken))}")
        total = sum(bool(row) for row in csv.reader(file))
    model = LoadedModel(args.model[0], args.revision)
    name = f"{args.model[0]} {model_digest(model.model)[:12]}{' muted' if args.muted else ''}"
    header = [*columns, *ADDED]
    done, errors = taken_up(args, header, name)
    features: dict = {}
    with (open(args.csv, newline="", encoding="utf-8-sig") as file, open(args.output, "a", newline="", encoding="utf-8") as out,
          tqdm(total=total, initial=done, desc="asking", unit="row", disable=None) as bar):  # fmt: skip
        writer = csv.DictWriter(out, header)
        if not out.tell():
            writer.writeheader()
        rows = islice(csv.DictReader(file), done, None)
        while batch := list(islice(rows, args.batch_size)):
            for row, made in zip(batch, answered(model, args, batch, features)):
                writer.writerow({**{column: row[column] or "" for column in columns}, "model": name, **made})
                errors += "error" in made
            out.flush()
            bar.update(len(batch))
    return errors


def taken_up(args, header: list[str], name: str) -> tuple[int, int]:
    """How many rows of the table an output has answered, and how many of these have an error; a torn last one is cut off.

    Raises:
        ValueError: if the output is of another table or model.
    """
    if not args.output.exists():
        return 0, 0
    line = io.StringIO()
    csv.writer(line).writerow(header)
    with open(args.output, newline="", encoding="utf-8", errors="replace") as out:
        if line.getvalue().startswith(out.read(len(line.getvalue()) + 1)):  # no row, and perhaps not all of the header
            os.truncate(args.output, 0)
            return 0, 0
    again = f"{args.output} holds other answers ({{}}); give another --output"
    whole, done, errors = args.output.with_name(args.output.name + ".new"), 0, 0
    with (open(args.csv, newline="", encoding="utf-8-sig") as file, open(args.output, newline="", encoding="utf-8") as out,
          open(whole, "w", newline="", encoding="utf-8") as kept):  # fmt: skip
        try:
            found = csv.DictReader(out)
            if found.fieldnames != header:
                raise ValueError(again.format("of other columns"))
            writer = csv.DictWriter(kept, header)
            writer.writeheader()
            asked, ended = csv.DictReader(file), ends_with_a_line(args.output)
            rows = iter(found)
            row = next(rows, None)
            while row is not None:
                following = next(rows, None)
                torn = None in row.values() or (following is None and not ended)
                question = next(asked, None)
                if not torn and (question is None or any(row[key] != (of or "") for key, of in question.items() if key)):
                    raise ValueError(again.format(f"row {done + 1} is another question"))
                if not torn and row["model"] != name:
                    raise ValueError(again.format(f"row {done + 1} is by {row['model']}, not {name}"))
                if torn:
                    break
                writer.writerow(row)
                done, errors, row = done + 1, errors + bool(row["error"]), following
        except ValueError:
            whole.unlink()
            raise
    os.replace(whole, args.output)
    return done, errors


def ends_with_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def answered(model: LoadedModel, args, rows: list[dict], features: dict) -> Iterator[dict]:
    """The added columns of some rows, in their order."""
    clips = [[str(args.csv.parent / row[key]) for key in ("audio", "audio2") if row.get(key)] for row in rows]
    new = [clip for clip in dict.fromkeys(clip for of in clips for clip in of) if clip not in features]
    for clip in list(features)[: max(0, len(features) + len(new) - KEPT_CLIPS)]:
        if clip not in {clip for of in clips for clip in of}:
            del features[clip]
    features |= listened(model, new) if new else {}
    made: list[dict] = []
    for row, of in zip(rows, clips):
        fault = next((str(features[clip]) for clip in of if isinstance(features[clip], BadClip)), None)
        try:
            if not of or not (row["question"] or "").strip():
                fault = "no clip is named" if not of else "no question is asked"
            question = with_options(row["question"] or "", (row.get("options") or "").split("|"))
        except ValueError as error:
            fault = fault or str(error)
        made.append({"error": fault} if fault else {"question": question})
    good = [i for i, of in enumerate(made) if "error" not in of]
    asked = [[features[clip] for clip in clips[i]] for i in good]
    for i, heard, answer in zip(good, asked, said(model, args, [made[i]["question"] for i in good], asked)):
        if isinstance(answer, ValueError):
            made[i] = {"error": str(answer)}
            continue
        share = f"{answer.options[answer.choice]:.4f}" if answer.choice else ""
        seconds = " ".join(f"{of.used:.4g}" for of in heard)
        made[i] = {"answer": answer.text, "choice": answer.choice or "", "probability": share, "heard_seconds": seconds}
    yield from made


def said(model: LoadedModel, args, questions: list[str], heard: list) -> list:
    """The answer to each question, or what is wrong with it: too long, as it may be."""
    try:
        return model.ask(questions, heard, args.muted, args.max_new_tokens) if questions else []
    except ValueError as error:
        if len(questions) == 1:
            return [error]
        return [answer for pair in zip(questions, heard) for answer in said(model, args, *([of] for of in pair))]


def listened(model: LoadedModel, clips: list) -> dict:
    """What a model hears of each clip, or what is wrong with it."""
    try:
        return dict(zip(clips, model.listen(clips)))
    except BadClip as error:
        if len(clips) == 1:
            return {clips[0]: error}
        return {clip: of for single in clips for clip, of in listened(model, [single]).items()}
