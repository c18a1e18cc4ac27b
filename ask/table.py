"""A table of questions about clips, answered row by row into another: what `audiolm ask --csv` does."""

import csv
import io
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from ..data.answer_parsing import with_options
from ..data.decoder import BadClip
from ..evaluation.predict import model_digest
from .model import LoadedModel

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two commands apart there
    fcntl = None

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
        columns, total = look_at(args.csv)
        if args.output.exists() and not args.output.is_file():
            raise ValueError(f"--output {args.output} is no file")
        if not args.output.absolute().parent.is_dir():
            raise ValueError(f"--output {args.output}: its folder is not there")
        return _ask_table(args, columns, total)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{args.csv} or {args.output} is no table: {error}") from error


def look_at(table: Path) -> tuple[list[str], int]:
    """Columns of a table of questions, and how many rows it has.

    Raises:
        ValueError: if it is none. OSError: if it cannot be read.
    """
    if not table.is_file():
        raise ValueError(f"--csv {table}: no file is there")
    with open(table, newline="", encoding="utf-8-sig") as file:
        columns = next(csv.reader(file), [])
        total = sum(bool(row) for row in csv.reader(file))
    if missing := {"audio", "question"} - set(columns):
        hint = (
            "; commas are wanted between them"
            if any(";" in column or "\t" in column for column in columns)
            else ""
        )
        raise ValueError(
            f"{table}: no column {' and '.join(sorted(missing))}; it has {', '.join(columns) or 'none'}{hint}"
        )
    if taken := set(ADDED) & set(columns):
        raise ValueError(
            f"{table}: the output's own columns stand in it: {', '.join(sorted(taken))}"
        )
    if len(set(columns)) < len(columns):
        raise ValueError(f"{table}: a column stands in it twice: {', '.join(columns)}")
    return columns, total


def _ask_table(args, columns: list[str], total: int) -> int:
    model = LoadedModel(args.model[0], args.revision)
    name = f"{args.model[0]} {model_digest(model.model)[:12]}{' muted' if args.muted else ''}"
    name += "" if args.max_new_tokens == 64 else f" {args.max_new_tokens} tokens"
    header, features = [*columns, *ADDED], {}
    with (
        open(args.csv, newline="", encoding="utf-8-sig") as file,
        open(args.output, "a", newline="", encoding="utf-8") as out,
        tqdm(total=total, desc="asking", unit="row", disable=None) as bar,
    ):
        if fcntl:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(f"{args.output}: another command writes it") from error
        done, errors = taken_up(args, header, name)
        bar.update(done)
        writer = csv.DictWriter(out, header)
        if not args.output.stat().st_size:
            writer.writeheader()
        rows = islice(csv.DictReader(file), done, None)
        while batch := list(islice(rows, args.batch_size)):
            for row, made in zip(batch, answered(model, args, batch, features)):
                writer.writerow(
                    {**{column: row[column] or "" for column in columns}, "model": name, **made}
                )
                errors += "error" in made
            out.flush()
            bar.update(len(batch))
    return errors


def whole_rows(path: Path) -> Iterator[tuple[list[str], int]]:
    """The rows of a table that are written to their end, and the byte at which each ends."""
    with open(path, "rb") as file:
        kept, end = b"", 0
        for line in file:
            kept += line
            if kept.count(b'"') % 2 == 0 and kept.endswith(
                b"\n"
            ):  # else a line ends within a cell, or is torn
                end += len(kept)
                yield next(csv.reader(io.StringIO(kept.decode("utf-8"), newline="")), []), end
                kept = b""


def taken_up(args, header: list[str], name: str) -> tuple[int, int]:
    """How many rows of the table an output has answered, and how many of these have an error; a torn last one is cut off.

    Raises:
        ValueError: if the output is of another table or model.
    """
    again = f"{args.output} holds other answers ({{}}); give another --output"
    rows, done, errors = whole_rows(args.output), 0, 0
    found, end = next(rows, (None, 0))
    if found is None:
        first = io.StringIO()
        csv.writer(first).writerow(header)
        if not first.getvalue().encode().startswith(args.output.read_bytes()):
            raise ValueError(again.format("of other columns"))
    elif found != header:
        raise ValueError(again.format("of other columns"))
    with open(args.csv, newline="", encoding="utf-8-sig") as file:
        asked = csv.DictReader(file)
        for cells, after in rows:
            row, question = dict(zip(header, cells)), next(asked, None)
            same = question is not None and all(
                row[key] == (of or "") for key, of in question.items() if key
            )
            if len(cells) != len(header) or not same:
                raise ValueError(again.format(f"row {done + 1} is another question"))
            if row["model"] != name:
                raise ValueError(again.format(f"row {done + 1} is by {row['model']}, not {name}"))
            done, errors, end = done + 1, errors + bool(row["error"]), after
    os.truncate(args.output, end)
    return done, errors


def answered(model: LoadedModel, args, rows: list[dict], features: dict) -> list[dict]:
    """The added columns of some rows, in their order; keeps what is heard of clips in `features`."""
    clips = [
        [str(args.csv.parent / row[key]) for key in ("audio", "audio2") if row.get(key)]
        for row in rows
    ]
    wanted = dict.fromkeys(clip for of in clips for clip in of)
    new = [clip for clip in wanted if clip not in features]
    for clip in [clip for clip in features if clip not in wanted][
        : max(0, len(features) + len(new) - KEPT_CLIPS)
    ]:
        del features[clip]
    features |= listened(model, new) if new else {}
    made: list[dict] = []
    for row, of in zip(rows, clips):
        fault = next(
            (str(features[clip]) for clip in of if isinstance(features[clip], BadClip)), None
        )
        if None in row:
            fault = "more cells than columns; a comma in a cell wants quotes around it"
        elif not row["audio"]:
            fault = "no clip is named"
        elif not (row["question"] or "").strip():
            fault = "no question is asked"
        try:
            question = with_options(row["question"] or "", (row.get("options") or "").split("|"))
        except ValueError as error:
            fault = fault or str(error)
        made.append({"error": fault} if fault else {"question": question})
    good = [i for i, of in enumerate(made) if "error" not in of]
    asked = [[features[clip] for clip in clips[i]] for i in good]
    for i, heard, answer in zip(
        good, asked, said(model, args, [made[i]["question"] for i in good], asked)
    ):
        if isinstance(answer, ValueError):
            made[i] = {"error": str(answer)}
            continue
        share = f"{answer.options[answer.choice]:.4f}" if answer.choice else ""
        seconds = " ".join(f"{of.used:.4g}" for of in heard)
        made[i] = {
            "answer": answer.text,
            "choice": answer.choice or "",
            "probability": share,
            "heard_seconds": seconds,
        }
    return made


def said(model: LoadedModel, args, questions: list[str], heard: list) -> list:
    """The answer to each question, or what is wrong with it: too long, as it may be."""
    try:
        return model.ask(questions, heard, args.muted, args.max_new_tokens) if questions else []
    except ValueError as error:
        if len(questions) == 1:
            return [error]
        return [
            answer
            for pair in zip(questions, heard)
            for answer in said(model, args, *([of] for of in pair))
        ]


def listened(model: LoadedModel, clips: list) -> dict:
    """What a model hears of each clip, or what is wrong with it."""
    try:
        return dict(zip(clips, model.listen(clips)))
    except BadClip as error:
        if len(clips) == 1:
            return {clips[0]: error}
        return {clip: of for single in clips for clip, of in listened(model, [single]).items()}
