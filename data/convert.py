"""Writes a corpus as Parquet shards, for `audiolm prepare convert`. shards.py has the layout."""

import hashlib
import io
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from datasets import Audio, Dataset, DatasetDict, Features, List, Value
from jinja2 import Template
from tqdm import tqdm

from ..processing_audiolm import read_file
from ..runtime import UserError, atomic_file, explain_errors, write_json, write_text
from .audio_files import open_clip
from .reasonaqa import FIELDS, iterate_columns
from .shards import MANIFEST, PLAN, ROW_COLUMNS

CLIPS_PER_SHARD = 1000
CLIPS_PER_GROUP = 16  # Small, because a whole group is read for one clip.
ROWS_PER_SHARD = 100_000
ROWS_PER_GROUP = 10_000
EMBEDDED_PER_SHARD = 4000
EMBEDDED_PER_GROUP = 128  # Rows about the same clip are neighbours and share its bytes.
# Bytes and path, because decoding needs nothing but soundfile.
AUDIO = Audio(decode=False)
CLIP_SCHEMA = Features({"filepath": Value("string"), "audio": AUDIO}).arrow_schema
ROW_SCHEMA = Features(ROW_COLUMNS).arrow_schema
EMBEDDED_SCHEMA = Features({**ROW_COLUMNS, "audio": List(AUDIO)}).arrow_schema
CLIP_OPTIONS = {"compression": "NONE", "use_dictionary": False}
# One dictionary per group, however large: it holds the bytes of a clip once.
ROW_OPTIONS = {"compression": "ZSTD", "dictionary_pagesize_limit": 2**30}


class Shard(NamedTuple):
    """A Parquet file of a conversion."""

    path: str  # in the data set's folder
    split: str | None  # None for a shard of clips
    items: list  # indices of its rows, or names of its clips


@dataclass
class Conversion:
    """A corpus as shards, whose content follows from the rows and the options alone.

    Raises:
        UserError: If `output` holds another conversion.
    """

    data: DatasetDict  # rows of `load_rows` whose audio is valid
    output: Path
    embedded: bool = False  # whether each row holds its audio
    max_seconds: float = 10.0  # seconds to keep of each clip

    def __post_init__(self):
        self.sources: dict[str, str] = {}  # file of each clip, by its name in the rows
        self.places: dict[str, str] = {}  # `SHARD#ROW` of each clip
        self.shards: list[Shard] = []
        for split, rows in self.data.items():
            names = _clip_names(rows)
            for clips, files in zip(names, rows["audio"][:]):
                self.sources.update(zip(clips, files))
            order = list(range(len(names)))
            if self.embedded:
                order.sort(key=names.__getitem__)
            size = EMBEDDED_PER_SHARD if self.embedded else ROWS_PER_SHARD
            shards = _split_into_shards(f"rows/{split}-", split, order, size)
            self.shards += shards
            for shard in shards if self.embedded else ():
                for place, row in enumerate(shard.items):
                    for position, clip in enumerate(names[row]):
                        self.places.setdefault(clip, f"{shard.path}#{place}.{position}")
        self.clips = sorted(self.sources)
        if not self.embedded:
            shards = _split_into_shards("clips/", None, self.clips, CLIPS_PER_SHARD)
            for shard in shards:
                places = (f"{shard.path}#{place}" for place in range(len(shard.items)))
                self.places.update(zip(shard.items, places))
            self.shards = [*shards, *self.shards]
        # What the content of the shards follows from.
        self.manifest = {
            "version": 1,  # of the layout
            "audio": "embedded" if self.embedded else "referenced",
            "max_audio_seconds": self.max_seconds,
            "clips": len(self.clips),
            "splits": {
                split: {"rows": len(rows), "sha256": _digest(rows)}
                for split, rows in self.data.items()
            },
        }
        self._check_output()

    def _check_output(self) -> None:
        if not any(self.output.glob("*/*.parquet")):
            return
        plan = self.output / PLAN
        earlier = json.loads(plan.read_text("utf-8")) if plan.is_file() else {}
        differing = [key for key in self.manifest if earlier.get(key) != self.manifest[key]]
        if differing:
            raise UserError(
                f"{self.output} holds another conversion ({', '.join(differing)} differ). "
                "Choose another folder."
            )

    def encode(self, clip: str) -> dict:
        """Returns path and bytes of a clip: its first seconds as a mono FLAC file of 16 bits.

        A clip with 16 bits and one channel keeps its samples.

        Raises:
            UserError: If the file cannot be read.
        """
        source = self.sources[clip]
        # A LibsndfileError is a RuntimeError.
        with explain_errors(f"{source}: not readable any more", RuntimeError, OSError, ValueError):
            audio, rate = read_file(open_clip(source), self.max_seconds)
        samples = np.clip(np.rint(audio.mean(1) * 32768), -32768, 32767).astype(np.int16)
        content = io.BytesIO()
        soundfile.write(content, samples, rate, "PCM_16", format="FLAC")
        return {"bytes": content.getvalue(), "path": clip}

    def write(self) -> int:
        """Writes the shards that are missing, each complete or absent, then card and manifest.

        Returns:
            The bytes of all shards.

        Raises:
            UserError: If a clip cannot be read or a file cannot be written.
        """
        try:
            self._write_shards()
            num_bytes = sum((self.output / shard.path).stat().st_size for shard in self.shards)
            template = Path(__file__).with_name("dataset_card.md").read_text("utf-8")
            card = Template(template, trim_blocks=True, keep_trailing_newline=True)
            write_text(self.output / "README.md", card.render(self.manifest))
            write_json(self.output / MANIFEST, self.manifest)
        except OSError as error:
            raise UserError(f"{self.output}: {error}. Run it again to resume.") from error
        return num_bytes

    def _write_shards(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        for leftover in self.output.glob("*/*.part"):
            leftover.unlink()
        write_json(self.output / PLAN, self.manifest)
        missing = [shard for shard in self.shards if not (self.output / shard.path).is_file()]
        num_rows = sum(len(shard.items) for shard in missing)
        bar = tqdm(total=num_rows, desc="converting", unit="row", disable=None)
        with ThreadPoolExecutor() as pool, bar:
            for shard in missing:
                file = self.output / shard.path
                file.parent.mkdir(exist_ok=True)
                with atomic_file(file) as temporary:
                    self._write_shard(temporary, shard, pool, bar)

    def _write_shard(self, file: Path, shard: Shard, pool: ThreadPoolExecutor, bar: tqdm) -> None:
        if shard.split is None:
            schema, options, size = CLIP_SCHEMA, CLIP_OPTIONS, CLIPS_PER_GROUP
        elif self.embedded:
            schema, options, size = EMBEDDED_SCHEMA, ROW_OPTIONS, EMBEDDED_PER_GROUP
        else:
            schema, options, size = ROW_SCHEMA, ROW_OPTIONS, ROWS_PER_GROUP
        with pq.ParquetWriter(file, schema, **options) as writer:
            for group in _chunks(shard.items, size):
                if shard.split is None:
                    audio = pool.map(self.encode, group)
                    rows = [{"filepath": clip["path"], "audio": clip} for clip in audio]
                else:
                    rows = self._describe_rows(self.data[shard.split].select(group), pool)
                writer.write_table(pa.Table.from_pylist(rows, schema))
                bar.update(len(rows))

    def _describe_rows(self, data: Dataset, pool: ThreadPoolExecutor) -> list[dict]:
        rows, names = data.to_list(), _clip_names(data)
        for row, clips in zip(rows, names):
            row["clips"] = [self.places[clip] for clip in clips]
        if self.embedded:
            unique = sorted(set().union(*names))
            audio = dict(zip(unique, pool.map(self.encode, unique)))
            for row, clips in zip(rows, names):
                row["audio"] = [audio[clip] for clip in clips]
        return rows


def _clip_names(rows: Dataset) -> list[list[str]]:
    """Returns the names of each row's one or two clips."""
    return [list(filter(None, pair)) for pair in iterate_columns(rows, "filepath1", "filepath2")]


def _chunks(items: list, size: int) -> Iterator[list]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _split_into_shards(prefix: str, split: str | None, items: list, size: int) -> list[Shard]:
    num_shards = math.ceil(len(items) / size)
    return [
        Shard(f"{prefix}{number:05d}-of-{num_shards:05d}.parquet", split, part)
        for number, part in enumerate(_chunks(items, size))
    ]


def _digest(rows: Dataset) -> str:
    """Returns the SHA-256 of the text of all rows."""
    digest = hashlib.sha256()
    for batch in rows.with_format("arrow").iter(10_000):
        for name in FIELDS:
            digest.update("\0".join(batch[name].to_pylist()).encode() + b"\1")
    return digest.hexdigest()
