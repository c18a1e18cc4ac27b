"""ReasonAQA's rows (zenodo 15036628): eight string fields, and the question type that follows from them."""

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset, DatasetDict

FIELDS = ("taskname", "filepath1", "filepath2", "caption1", "caption2", "input", "answer", "subtype")
REQUIRED = ("filepath1", "input", "answer", "subtype")  # the others may be empty
QUESTION_TYPES = ("mcq", "yes_no", "entailment", "difference", "caption", "detail")
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
    raise ValueError(f"subtype {row['subtype']!r} and question {row['input']!r} name no known question type")


def resolve_path(filepath: str, audio_dir: AudioDir) -> str:
    """A row's file under `audio_dir`: backslashes, HTML entities and roots by source are seen to."""
    parts = [p for p in re.split(r"[/\\]+", filepath) if p]
    if isinstance(audio_dir, Mapping):
        if parts[0] not in audio_dir:
            raise ValueError(f"{filepath}: no audio directory is given for {parts[0]!r}, only for {sorted(audio_dir)}")
        root, parts = Path(audio_dir[parts[0]]), parts[1:]
    else:
        root = Path(audio_dir)
    path = root.joinpath(*parts)
    unescaped = root.joinpath(*(html.unescape(p) for p in parts))
    return str(unescaped if unescaped.exists() or not path.exists() else path)


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
        files: JSON file of each split. audio_dir: see [`resolve_path`].

    Returns:
        The eight fields, `question_type`, and the resolved `audio` paths of each row's one or two clips.

    Raises:
        ValueError: naming file and row number, if a row lacks a field, holds another type or has no answer.
    """
    splits = {}
    for split, file in files.items():
        try:
            rows = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: not a readable JSON file ({error})") from error
        if not isinstance(rows, list) or not rows:
            raise ValueError(f"{file}: a list of rows is wanted, not {'an empty list' if rows == [] else type(rows).__name__}")
        splits[split] = Dataset.from_list([_checked(row, f"{file}, row {i}", audio_dir) for i, row in enumerate(rows)])
    return DatasetDict(splits)


def _checked(row: dict, where: str, audio_dir: AudioDir) -> dict:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: an object is wanted, not {type(row).__name__}")
    for field in FIELDS:
        if not isinstance(row.get(field), str):
            found = type(row[field]).__name__ if field in row else "missing"
            raise ValueError(f"{where}: field {field!r} is {found}, not a string")
        if field in REQUIRED and not row[field].strip():
            raise ValueError(f"{where}: field {field!r} is empty")
    try:
        kind = question_type(row)
        audio = [resolve_path(row[f], audio_dir) for f in ("filepath1", "filepath2") if row[f]]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return {**{field: row[field] for field in FIELDS}, "question_type": kind, "audio": audio}
