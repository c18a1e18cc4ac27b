"""ReasonAQA's rows (zenodo 15036628): eight string fields, and the question type that follows from them."""

import html
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict

from .download import audiocaps
from .json_table import arrow_rows

FIELDS = (
    "taskname",
    "filepath1",
    "filepath2",
    "caption1",
    "caption2",
    "input",
    "answer",
    "subtype",
)
REQUIRED = ("filepath1", "input", "answer", "subtype")  # the others may be empty
QUESTION_TYPES = ("mcq", "yes_no", "entailment", "difference", "caption", "detail")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in (*FIELDS, "question_type")),
        ("audio", pa.list_(pa.string())),
    ]
)
VERSION = 1  # of how rows are read; another one makes kept tables unknown
# A directory for all audio, or one for each source, which is the first part of a row's path.
AudioDir = str | Path | Mapping[str, str | Path]


def question_type(row: Mapping[str, str]) -> str:
    """The question type of a row, whatever prefix its subtype has ("Clotho-MCQ.json", "AudioCaps-MCQ.json", ...).

    Raises:
        ValueError: if neither subtype nor text tells.
    """
    subtype, text = row["subtype"].removesuffix(".json"), row["input"].strip().lower()
    if re.search(r"D-[123]$", subtype) or text.startswith("explain the difference"):
        return "difference"
    if subtype.endswith("-MCQ"):
        return "mcq"
    if subtype.endswith("-Detail"):
        return "detail"
    if "the hypothesis" in text and "definitely true" in text:
        return "entailment"
    if subtype.endswith("AQA") or text.endswith("using yes or no."):
        return "yes_no"
    if text.startswith("caption"):
        return "caption"
    raise ValueError(
        f"subtype {row['subtype'][:99]!r} and question {row['input'][:99]!r} name no known question type"
    )


def resolve_path(filepath: str, audio_dir: AudioDir) -> str:
    """A row's file under `audio_dir`: backslashes, HTML entities and roots by source are seen to.

    Links that lie in `audio_dir` are its owner's, and are followed.

    Raises:
        ValueError: if the path leaves `audio_dir`, with or without HTML entities, or names no file in it.
    """
    root, parts = audio_dir, _parts(filepath)
    if isinstance(audio_dir, Mapping):
        if parts[0] not in audio_dir:
            raise ValueError(
                f"{filepath[:99]!r}: no audio directory is given for {parts[0][:99]!r}, only for {sorted(audio_dir)}"
            )
        root, parts = audio_dir[parts[0]], _parts("/".join(parts[1:]))
    path = os.path.join(root, *parts)
    if "&" in path:
        unescaped = os.path.join(root, *_parts(html.unescape("/".join(parts))))
        path = unescaped if os.path.exists(unescaped) or not os.path.exists(path) else path
    return path


def _parts(filepath: str) -> list[str]:
    """The names in a relative path; ValueError if it leaves the folder that it is relative to, or names no file."""
    parts, fault = [part for part in re.split(r"[/\\]+", filepath) if part], None
    drive = re.match(r"[A-Za-z]:[/\\]", filepath) or any(
        os.path.splitdrive(part)[0] for part in parts
    )
    if filepath[:1] in ("/", "\\") or drive:
        fault = "is an absolute path"
    elif ".." in parts:
        fault = "leads out of its folder"
    elif {*parts} <= {"."} or "\0" in filepath:
        fault = "is no name of a file"
    if fault:
        raise ValueError(f"{filepath[:99]!r} {fault}; a path below the audio directory is wanted")
    return parts


def audio_roots(audio_dir: list[str]) -> AudioDir:
    """What `--audio_dir` was given: one folder, or SOURCE=FOLDER for each source.

    Raises:
        ValueError: if several folders are given without their sources.
    """
    if len(audio_dir) == 1 and "=" not in audio_dir[0]:
        return audio_dir[0]
    if wrong := [d for d in audio_dir if "=" not in d]:
        raise ValueError(f"--audio_dir {wrong[0]}: several folders are given as SOURCE=FOLDER")
    return dict(d.split("=", 1) for d in audio_dir)


def load_reasonaqa(files: Mapping[str, str | Path], audio_dir: AudioDir) -> DatasetDict:
    """Reads ReasonAQA's JSON files.

    Args:
        files: JSON file of each split. audio_dir: see [`resolve_path`]; clips of AudioCaps (`Y<YouTube id>.wav`) that are not
            there under their name are found by id in the source's folder, in any layout.

    Returns:
        The eight fields, `question_type`, and the resolved `audio` paths of each row's one or two clips.

    Raises:
        ValueError: naming file and row number, if a row lacks a field, holds another type, has no answer, or names a file
            that is not below `audio_dir`.
    """
    return DatasetDict({split: _read(file, audio_dir) for split, file in files.items()})


def _read(file: str | Path, audio_dir: AudioDir) -> Dataset:
    found: dict[str, str] = {}  # the same few clips come again and again
    uncertain: dict[
        str, str
    ] = {}  # names for which it matters what is in `audio_dir`: with HTML entities, or YouTube ids
    indices: dict[str, dict[str, str]] = {}

    def resolve(filepath: str) -> str:
        path = resolve_path(filepath, audio_dir)
        named = audiocaps.NAME.fullmatch(re.split(r"[/\\]", filepath)[-1])
        if not named or os.path.exists(path):
            return path
        source = re.split(r"[/\\]", filepath)[0]
        root = (
            audio_dir[source] if isinstance(audio_dir, Mapping) else os.path.join(audio_dir, source)
        )
        if root not in indices:
            indices[root] = audiocaps.youtube_index(root)
        return indices[root].get(named[1], path)

    def resolved(filepath: str) -> str:
        if filepath not in found:
            found[filepath] = resolve(filepath)
            if "&" in filepath or audiocaps.NAME.search(filepath):
                uncertain[filepath] = found[filepath]
        return found[filepath]

    def row(element, number: int) -> dict:
        return _checked(element, file, number, resolved)

    try:
        rows = arrow_rows(file, repr((VERSION, audio_dir)), row, SCHEMA, uncertain, resolve)
    except OSError as error:
        raise ValueError(f"{file}: not a readable JSON file ({error})") from error
    if not len(rows):
        raise ValueError(f"{file}: a list of rows is wanted, not an empty list")
    return rows


def _checked(row: dict, file, number: int, resolved: Callable[[str], str]) -> dict:
    if not isinstance(row, dict):
        raise ValueError(f"{file}, row {number}: an object is wanted, not {type(row).__name__}")
    checked = {field: row.get(field) for field in FIELDS}
    for field, value in checked.items():
        if not isinstance(value, str):
            found = type(value).__name__ if field in row else "missing"
            raise ValueError(f"{file}, row {number}: field {field!r} is {found}, not a string")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(
                f"{file}, row {number}: field {field!r} holds half a character (a lone surrogate)"
            )
        if (not value or value.isspace()) and field in REQUIRED:
            raise ValueError(f"{file}, row {number}: field {field!r} is empty")
    try:
        kind = question_type(row)
        audio = [resolved(row[f]) for f in ("filepath1", "filepath2") if row[f]]
    except ValueError as error:
        raise ValueError(f"{file}, row {number}: {error}") from error
    checked["question_type"], checked["audio"] = kind, audio
    return checked
