"""Writes a corpus as Parquet shards, for `audiolm prepare convert`. shards.py has the layout."""

import hashlib
import io
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
import yaml
from datasets import Audio, Dataset, DatasetDict, Features, List, Value
from tqdm import tqdm

from ..processing_audiolm import open_file, resample
from ..runtime import UserError, atomic_file, write_json, write_text
from .audio_files import clip_identity, open_clip
from .reasonaqa import FIELDS
from .shards import MANIFEST, PLAN, ROW_COLUMNS, VERSION

CLIPS_PER_SHARD = 1000
CLIPS_PER_GROUP = 16  # Small, because a whole group is read for one clip.
ROWS_PER_SHARD = 100_000
ROWS_PER_GROUP = 10_000
EMBEDDED_PER_SHARD = 4000
EMBEDDED_PER_GROUP = 128  # Rows about the same clip are neighbours and share its bytes.
SAMPLED_CLIPS = 32  # Clips that are encoded to estimate the size.
# Bytes and path, because decoding needs nothing but soundfile.
AUDIO = Audio(decode=False)
CLIP_SCHEMA = Features({"filepath": Value("string"), "audio": AUDIO}).arrow_schema
CLIP_OPTIONS = {"compression": "NONE", "use_dictionary": False}
# One dictionary per group, however large: it holds the bytes of a clip once.
ROW_OPTIONS = {
    "compression": "ZSTD",
    "use_dictionary": True,
    "dictionary_pagesize_limit": 2**30,
}

CARD = """\
---
{head}---

# Questions about audio, in the format of ReasonAQA

Rows: {rows}. Clips: {clips:,}, the first {seconds:g} s of each, mono, 16-bit {format}.
{audio}

Made by AudioLM's `audiolm prepare convert`. Text and audio have the licences of their sources.
If you publish this data set, add them here. Train on it with `run_train.py --dataset_name NAME`.
"""
CARD_AUDIO = {
    "embedded": "Each row holds the audio of its one or two clips.",
    "referenced": "`clips` names the shard and row of each clip in the configuration `clips`.",
}


class Shard(NamedTuple):
    """A Parquet file of a conversion.

    Attributes:
        path: Path in the data set's folder.
        split: Split of its rows, or None for a shard of clips.
        items: Indices of its rows, or names of its clips.
        num_clips: Number of clips that are encoded for it.
    """

    path: str
    split: str | None
    items: list
    num_clips: int


class Conversion:
    """A corpus as shards, whose content follows from the rows and the options alone.

    Args:
        data: Rows of [`load_reasonaqa`] whose audio is valid.
        output: Folder of the data set.
        embedded: Whether each row holds its audio.
        max_seconds: Seconds to keep of each clip.
        sampling_rate: Sampling rate of all clips in Hz. Default: each clip's own.
        audio_format: "flac", or "wav" with 16 bits.

    Raises:
        UserError: If `output` holds another conversion.
    """

    def __init__(
        self,
        data: DatasetDict,
        output: str | Path,
        embedded: bool = False,
        max_seconds: float = 10.0,
        sampling_rate: int | None = None,
        audio_format: str = "flac",
    ):
        self.data = data
        self.output = Path(output)
        self.embedded = embedded
        self.max_seconds = max_seconds
        self.sampling_rate = sampling_rate
        self.format = audio_format
        self.sources: dict[str, str] = {}  # file of each clip, by its name in the rows
        self.places: dict[str, str] = {}  # `SHARD#ROW` of each clip
        row_shards: list[Shard] = []
        for split, rows in data.items():
            names = [_clip_names(row) for row in zip(rows["filepath1"], rows["filepath2"])]
            for clips, files in zip(names, rows["audio"]):
                self.sources.update(zip(clips, files))
            row_shards += (
                self._plan_embedded(split, names) if embedded else _plan_rows(split, names)
            )
        self.clips = sorted(self.sources)
        self.shards = row_shards if embedded else [*self._plan_clips(), *row_shards]
        self._check_output()

    def _plan_clips(self) -> list[Shard]:
        shards = []
        for path, clips in _split_into_files("clips/", self.clips, CLIPS_PER_SHARD):
            self.places.update((clip, f"{path}#{row}") for row, clip in enumerate(clips))
            shards.append(Shard(path, None, clips, len(clips)))
        return shards

    def _plan_embedded(self, split: str, names: list[list[str]]) -> list[Shard]:
        shards = []
        order = sorted(range(len(names)), key=names.__getitem__)
        for path, rows in _split_into_files(f"rows/{split}-", order, EMBEDDED_PER_SHARD):
            for position, row in enumerate(rows):
                for which, clip in enumerate(names[row]):
                    self.places.setdefault(clip, f"{path}#{position}.{which}")
            groups = _chunks(rows, EMBEDDED_PER_GROUP)
            num_clips = sum(len(set().union(*(names[row] for row in group))) for group in groups)
            shards.append(Shard(path, split, rows, num_clips))
        return shards

    @cached_property
    def manifest(self) -> dict:
        """Returns what the content of the shards follows from."""
        return {
            "version": VERSION,
            "audio": "embedded" if self.embedded else "referenced",
            "format": self.format,
            "sampling_rate": self.sampling_rate,
            "max_audio_seconds": self.max_seconds,
            "clips": len(self.clips),
            "splits": {
                split: {"rows": len(rows), "sha256": _digest(rows)}
                for split, rows in self.data.items()
            },
        }

    @cached_property
    def _plan(self) -> dict:
        """Returns what a resumed conversion must agree with: the manifest and the clips' files."""
        files = []
        for clip in self.clips:
            _, size, modified = clip_identity(self.sources[clip]).split("|")
            files.append((clip, [size, modified]))
        return {**self.manifest, "files": hashlib.sha256(repr(files).encode()).hexdigest()}

    def _check_output(self) -> None:
        if any(self.output.glob("*/*.parquet")):
            try:
                earlier = json.loads((self.output / PLAN).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                raise UserError(
                    f"{self.output} holds shards of something else. Choose another folder."
                ) from None
            differing = sorted(key for key in self._plan if earlier.get(key) != self._plan[key])
            if differing:
                raise UserError(
                    f"{self.output} holds another conversion ({', '.join(differing)} differ). "
                    "Choose another folder."
                )
        self.output.mkdir(parents=True, exist_ok=True)

    def size(self) -> tuple[int, int]:
        """Returns the estimated bytes of all shards, and of those that are still to be written."""
        sample = self.clips[:: max(1, len(self.clips) // SAMPLED_CLIPS)]
        clip_bytes = sum(len(self.encode(clip)) for clip in sample) / len(sample)
        # Text is compressed to about a third.
        total = remaining = sum(rows.data.nbytes for rows in self.data.values()) // 3
        for shard in self.shards:
            shard_bytes = int(clip_bytes * shard.num_clips)
            total += shard_bytes
            if not (self.output / shard.path).is_file():
                remaining += shard_bytes
        return total, remaining

    def encode(self, clip: str) -> bytes:
        """Returns the first seconds of a clip as a mono file with 16 bits.

        A clip with 16 bits and one channel keeps its samples.

        Raises:
            UserError: If the file cannot be read.
        """
        source = self.sources[clip]
        try:
            with open_file(open_clip(source)) as file:
                rate = file.samplerate
                num_samples = math.ceil(self.max_seconds * rate)
                audio = file.read(num_samples, dtype="float32", always_2d=True).mean(1)
        except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError) as error:
            raise UserError(f"{source}: not readable any more ({error})") from error
        if self.sampling_rate and rate != self.sampling_rate:
            audio = resample(torch.from_numpy(audio), rate, self.sampling_rate).numpy()
            audio = audio[: round(self.max_seconds * self.sampling_rate)]
        samples = np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)
        content = io.BytesIO()
        file_format = self.format.upper()
        rate = self.sampling_rate or rate
        soundfile.write(content, samples, rate, format=file_format, subtype="PCM_16")
        return content.getvalue()

    def write(self) -> None:
        """Writes the shards that are missing, each complete or absent, then card and manifest.

        Raises:
            UserError: If a clip cannot be read or a file cannot be written.
        """
        try:
            self._write_shards()
            num_bytes = sum((self.output / shard.path).stat().st_size for shard in self.shards)
            manifest = {**self.manifest, "bytes": num_bytes}
            write_text(self.output / "README.md", data_card(manifest))
            write_json(self.output / MANIFEST, manifest)
        except OSError as error:
            raise UserError(f"{self.output}: {error}. Run it again to resume.") from error

    def _write_shards(self) -> None:
        for leftover in self.output.glob("*/*.part"):
            leftover.unlink()
        write_json(self.output / PLAN, self._plan)
        # A shard without clips counts as one, so that the bar moves.
        steps = [max(1, shard.num_clips) for shard in self.shards]
        bar = tqdm(total=sum(steps), desc="converting", unit="clip", disable=None)
        with ThreadPoolExecutor() as pool, bar:
            for shard, num_steps in zip(self.shards, steps):
                file = self.output / shard.path
                if not file.is_file():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with atomic_file(file) as temporary:
                        self._write_shard(temporary, shard, pool)
                bar.update(num_steps)

    def _write_shard(self, file: Path, shard: Shard, pool: ThreadPoolExecutor) -> None:
        if shard.split is None:
            schema, options = CLIP_SCHEMA, CLIP_OPTIONS
            groups = self._clip_groups(shard.items, pool)
        else:
            columns = {**ROW_COLUMNS, "audio": List(AUDIO)} if self.embedded else ROW_COLUMNS
            schema, options = Features(columns).arrow_schema, ROW_OPTIONS
            groups = self._row_groups(self.data[shard.split], shard.items, pool)
        with pq.ParquetWriter(file, schema, **options) as writer:
            for rows in groups:
                writer.write_table(pa.Table.from_pylist(rows, schema))

    def _clip_groups(self, clips: list[str], pool: ThreadPoolExecutor) -> Iterator[list[dict]]:
        for group in _chunks(clips, CLIPS_PER_GROUP):
            yield [
                {"filepath": clip, "audio": {"bytes": content, "path": clip}}
                for clip, content in zip(group, pool.map(self.encode, group))
            ]

    def _row_groups(
        self, data: Dataset, indices: list[int], pool: ThreadPoolExecutor
    ) -> Iterator[list[dict]]:
        for group in _chunks(indices, EMBEDDED_PER_GROUP if self.embedded else ROWS_PER_GROUP):
            rows = data.select(group).to_list()
            names = [_clip_names((row["filepath1"], row["filepath2"])) for row in rows]
            for row, clips in zip(rows, names):
                row["clips"] = [self.places[clip] for clip in clips]
            if self.embedded:
                distinct = sorted(set().union(*names))
                contents = dict(zip(distinct, pool.map(self.encode, distinct)))
                for row, clips in zip(rows, names):
                    row["audio"] = [{"bytes": contents[clip], "path": clip} for clip in clips]
            yield rows


def _clip_names(names: tuple[str, str]) -> list[str]:
    """Returns the names of a row's one or two clips."""
    return [name for name in names if name]


def _chunks(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _split_into_files(prefix: str, items: list, size: int) -> Iterator[tuple[str, list]]:
    num_files = max(1, math.ceil(len(items) / size))
    for number, part in enumerate(_chunks(items, size)):
        yield f"{prefix}{number:05d}-of-{num_files:05d}.parquet", part


def _plan_rows(split: str, names: list[list[str]]) -> list[Shard]:
    files = _split_into_files(f"rows/{split}-", list(range(len(names))), ROWS_PER_SHARD)
    return [Shard(path, split, rows, 0) for path, rows in files]


def _digest(rows: Dataset) -> str:
    """Returns the SHA-256 of the text of all rows."""
    digest = hashlib.sha256()
    for batch in rows.with_format("arrow").iter(10_000):
        for name in FIELDS:
            digest.update("\0".join(batch[name].to_pylist()).encode() + b"\1")
    return digest.hexdigest()


def data_card(manifest: dict) -> str:
    """Returns the data set's card. Its head tells `load_dataset` and the Hub's viewer the files."""
    splits = manifest["splits"]
    row_files = [{"split": split, "path": f"rows/{split}-*.parquet"} for split in splits]
    configs = [{"config_name": "rows", "data_files": row_files, "default": True}]
    if manifest["audio"] == "referenced":
        clip_files = [{"split": "clips", "path": "clips/*.parquet"}]
        configs.append({"config_name": "clips", "data_files": clip_files})
    head = {
        "configs": configs,
        "language": ["en"],
        "task_categories": ["audio-text-to-text"],
        "tags": ["audiolm"],
    }
    return CARD.format(
        head=yaml.safe_dump(head, sort_keys=False),
        rows=", ".join(f"{facts['rows']:,} {split}" for split, facts in splits.items()),
        clips=manifest["clips"],
        seconds=manifest["max_audio_seconds"],
        format=manifest["format"].upper(),
        audio=CARD_AUDIO[manifest["audio"]],
    )
