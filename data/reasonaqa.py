"""Reads ReasonAQA's JSON files (zenodo 15036628): question types, audio paths and the dataset."""

import html
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from datasets import Audio, Dataset, DatasetDict, DatasetInfo, Features, List, Value

from ..runtime import UserError, explain_errors
from .audio_files import find_file
from .download import audiocaps
from .json_table import load_json_table

if TYPE_CHECKING:
    from ..processing_audiolm import AudioLMFeatureExtractor

# fmt: off
FIELDS = ("taskname", "filepath1", "filepath2", "caption1", "caption2", "input", "answer",
          "subtype")
# fmt: on
# The other fields may be empty.
REQUIRED_FIELDS = ("filepath1", "input", "answer", "subtype")
# Questions whose answers name an option. Accuracy is defined for these.
CLOSED_QUESTION_TYPES = ("mcq", "yes_no", "entailment")
QUESTION_TYPES = (*CLOSED_QUESTION_TYPES, "difference", "caption", "detail")
_TEXT_COLUMNS = [(name, pa.string()) for name in (*FIELDS, "question_type")]
SCHEMA = pa.schema([*_TEXT_COLUMNS, ("audio", pa.list_(pa.string()))])
_FEATURES = Features(
    {**{name: Value("string") for name, _ in _TEXT_COLUMNS}, "audio": List(Audio(decode=False))}
)
# Increase it when rows are read differently. Cached tables of other versions are not used.
VERSION = 2
# A folder of all audio, or a folder for each source. The source is the first part of a row's path.
AudioDir = str | Path | Mapping[str, str | Path]


def question_type(row: Mapping[str, str]) -> str:
    """Returns the question type of a row, for any prefix of its subtype ("Clotho-MCQ.json").

    Raises:
        UserError: Neither subtype nor question tells the type.
    """
    subtype = row["subtype"].removesuffix(".json")
    question = row["input"].strip().lower()
    if re.search(r"D-[123]$", subtype) or question.startswith("explain the difference"):
        return "difference"
    if subtype.endswith("-MCQ"):
        return "mcq"
    if subtype.endswith("-Detail"):
        return "detail"
    if "the hypothesis" in question and "definitely true" in question:
        return "entailment"
    if subtype.endswith("AQA") or question.endswith("using yes or no."):
        return "yes_no"
    if question.startswith("caption"):
        return "caption"
    raise UserError(
        f"subtype {row['subtype'][:99]!r} and question {row['input'][:99]!r} "
        "match no question type of ReasonAQA"
    )


def audio_roots(audio_dir: list[str]) -> AudioDir:
    """Parses `--audio_dir`: one folder, or the folder of each source as SOURCE=FOLDER.

    Raises:
        UserError: If several folders lack their source.
    """
    if len(audio_dir) == 1 and "=" not in audio_dir[0]:
        return audio_dir[0]
    for folder in audio_dir:
        if "=" not in folder:
            raise UserError(f"--audio_dir {folder}: pass several folders as SOURCE=FOLDER")
    return dict(folder.split("=", 1) for folder in audio_dir)


def resolve_path(filepath: str, audio_dir: AudioDir) -> str:
    r"""Returns the path of a row's audio file in `audio_dir`.

    Backslashes separate folders, as in ReasonAQA. HTML entities are replaced unless only the
    unreplaced name exists. See [`find_file`] for accents. Links in `audio_dir` are followed.

    Raises:
        UserError: The path names no file in `audio_dir`, or its source has no folder.
    """
    root = audio_dir
    parts = _split_path(filepath)
    if isinstance(audio_dir, Mapping):
        source = parts[0]
        if source not in audio_dir:
            raise UserError(
                f"{filepath[:99]!r}: no audio directory is given for {source[:99]!r}, "
                f"only for {sorted(audio_dir)}"
            )
        root = audio_dir[source]
        parts = _split_path("/".join(parts[1:]))
    path = os.path.join(root, *parts)
    path = find_file(path)
    if "&" not in path:
        return path
    unescaped = find_file(os.path.join(root, *_split_path(html.unescape("/".join(parts)))))
    return path if os.path.exists(path) and not os.path.exists(unescaped) else unescaped


def _split_path(filepath: str) -> list[str]:
    """Returns the parts of a relative path that stays in its folder and names a file."""
    parts = [part for part in re.split(r"[/\\]+", filepath) if part]
    has_drive = re.match(r"[A-Za-z]:[/\\]", filepath) or any(
        os.path.splitdrive(part)[0] for part in parts
    )
    problem = None
    if filepath[:1] in ("/", "\\") or has_drive:
        problem = "is an absolute path"
    elif ".." in parts:
        problem = "leaves its folder"
    elif {*parts} <= {"."} or "\0" in filepath:
        problem = "is not a file name"
    if problem:
        raise UserError(f"{filepath[:99]!r} {problem}: expected a path in the audio directory")
    return parts


def load_reasonaqa(files: Mapping[str, str | Path], audio_dir: AudioDir) -> DatasetDict:
    """Reads ReasonAQA's JSON files as a data set with audio.

    A clip of AudioCaps, `Y<YouTube id>.wav`, is also found by its id in any layout of its source's
    folder.

    Args:
        files: JSON file of each split.
        audio_dir: A folder, or the folder of each source. See `resolve_path`.

    Returns:
        ReasonAQA's eight fields, `question_type`, and one or two clips in `audio`, of type
        `List(Audio(decode=False))`. `decode_audio` decodes them. Cast the column to
        `List(Audio())` before `push_to_hub`, which would upload paths.

    Raises:
        UserError: A file is not readable, or a row lacks a field, an answer or a question type, or
            names a file outside of `audio_dir`. The message names file and row.
    """
    return DatasetDict(
        {split: _with_audio(rows) for split, rows in load_rows(files, audio_dir).items()}
    )


def load_rows(files: Mapping[str, str | Path], audio_dir: AudioDir) -> DatasetDict:
    """Reads ReasonAQA's JSON files like [`load_reasonaqa`]. `audio` has the paths alone."""
    return DatasetDict({split: _load_split(file, audio_dir) for split, file in files.items()})


def decode_audio(data: DatasetDict, feature_extractor: "AudioLMFeatureExtractor") -> DatasetDict:
    """Returns a view of `load_reasonaqa`'s data that decodes clips when they are read.

    Args:
        data: A data set, or its splits.
        feature_extractor: Gives the sampling rate in Hz and the longest duration in seconds.

    Returns:
        The same rows. A clip is a dict of its mono `array`, shape `(samples,)`, its
        `sampling_rate` and its `path`.
    """

    def decode_clips(clips: list[dict]) -> list[dict]:
        rate = feature_extractor.sampling_rate
        arrays = [feature_extractor.load(clip).numpy() for clip in clips]
        return [
            {"array": array, "sampling_rate": rate, "path": clip["path"]}
            for array, clip in zip(arrays, clips)
        ]

    def decode_batch(batch: dict) -> dict:
        return {"audio": [decode_clips(clips) for clips in batch["audio"]]}

    return data.with_transform(decode_batch, columns=["audio"], output_all_columns=True)


def _with_audio(rows: Dataset) -> Dataset:
    """Returns a view of rows whose paths have the type of audio. It copies no text."""
    index = rows.column_names.index("audio")
    chunks = []
    for paths in rows.data.column("audio").chunks:
        files = pa.StructArray.from_arrays(
            [pa.nulls(len(paths.values), pa.binary()), paths.values], ["bytes", "path"]
        )
        chunks.append(pa.ListArray.from_arrays(paths.offsets, files))
    column = pa.chunked_array(chunks)
    table = rows.data.set_column(index, pa.field("audio", column.type), column)
    # Without a fingerprint, the whole table would be hashed.
    fingerprint = f"{rows._fingerprint}-audio"
    return Dataset(table, info=DatasetInfo(features=_FEATURES), fingerprint=fingerprint)


def _load_split(file: str | Path, audio_dir: AudioDir) -> Dataset:
    reader = _RowReader(file, audio_dir)
    cache_key = [VERSION, repr(audio_dir)]
    try:
        rows = load_json_table(
            file, reader.parse, SCHEMA, cache_key, reader.uncertain_paths, reader.find_file
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{file}: file not found. Download ReasonAQA with `audiolm prepare download "
            "reasonaqa`, or try without data: `run_compare.py --config demo`"
        ) from error
    except OSError as error:
        raise UserError(f"{file}: not readable ({error})") from error
    if not len(rows):
        raise UserError(f"{file}: the list of rows is empty")
    return rows


class _RowReader:
    """Checks rows of a file and resolves their audio paths."""

    def __init__(self, file: str | Path, audio_dir: AudioDir):
        self.file = file
        self.audio_dir = audio_dir
        # Path of each name whose path depends on the files that exist.
        self.uncertain_paths: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        self._indices: dict[str | Path, dict[str, str]] = {}

    def parse(self, row: dict, number: int) -> dict:
        """Returns a checked row with `question_type` and `audio`."""
        problem = _find_problem(row)
        if problem:
            raise UserError(f"{self.file}, row {number}: {problem}")
        checked: dict = {field: row[field] for field in FIELDS}
        names = [row[field] for field in ("filepath1", "filepath2") if row[field]]
        with explain_errors(f"{self.file}, row {number}", UserError):
            checked["question_type"] = question_type(row)
            checked["audio"] = [self._path(name) for name in names]
        return checked

    def _path(self, name: str) -> str:
        if name not in self._paths:
            self._paths[name] = self.find_file(name)
            is_youtube = audiocaps.REASONAQA_NAME.search(name)
            if "&" in name or not name.isascii() or is_youtube:
                self.uncertain_paths[name] = self._paths[name]
        return self._paths[name]

    def find_file(self, name: str) -> str:
        """Returns the path of a clip, of AudioCaps also by its YouTube id."""
        path = resolve_path(name, self.audio_dir)
        parts = re.split(r"[/\\]", name)
        youtube_name = audiocaps.REASONAQA_NAME.fullmatch(parts[-1])
        if not youtube_name or os.path.exists(path):
            return path
        if isinstance(self.audio_dir, Mapping):
            root = self.audio_dir[parts[0]]
        else:
            root = os.path.join(self.audio_dir, parts[0])
        if root not in self._indices:
            self._indices[root] = audiocaps.youtube_index(root)
        return self._indices[root].get(youtube_name[1], path)


def _find_problem(row: dict) -> str | None:
    for field in FIELDS:
        value = row.get(field)
        if not isinstance(value, str):
            problem = f"{type(value).__name__}, expected text" if field in row else "missing"
            return f"field {field!r} is {problem}"
        if not value.isascii() and re.search("[\ud800-\udfff]", value):
            return f"field {field!r} holds an incomplete character (a lone surrogate)"
        if field in REQUIRED_FIELDS and (not value or value.isspace()):
            return f"field {field!r} is empty"
    return None


def iterate_columns(rows: Dataset, *names: str) -> Iterator[tuple]:
    """Yields these columns of each row.

    It is several times as fast as iterating over `rows[name]`, which formats each value on its own.
    """
    for batch in rows.select_columns(list(names)).iter(10_000):
        yield from zip(*(batch[name] for name in names))
