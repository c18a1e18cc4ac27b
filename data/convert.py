"""Writing a corpus as Parquet shards, as `run_prepare.py convert` does; shards.py says what lies where."""

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
import yaml
from datasets import Audio, DatasetDict, Features, List, Value
from tqdm import tqdm

from ..processing_audiolm import open_file, resample
from .audio_files import clip_identity, open_clip
from .reasonaqa import FIELDS
from .shards import MANIFEST, PLAN, TEXT, VERSION

CLIPS_PER_SHARD, CLIPS_PER_GROUP = (
    1000,
    16,
)  # a group is what is read at once: one clip is wanted of it
ROWS_PER_SHARD, ROWS_PER_GROUP = 100_000, 10_000
EMBEDDED_PER_SHARD, EMBEDDED_PER_GROUP = (
    4000,
    128,
)  # rows of a clip lie beside each other: a group holds a clip's bytes once
SAMPLED = 32  # clips that are encoded to tell the size beforehand
SOUND = Audio(decode=False)  # bytes and path; decoding needs nothing but soundfile
_CLIPS = Features({"filepath": Value("string"), "audio": SOUND})


class Conversion:
    """What is written where: shards, their rows and clips follow from the rows and the options alone.

    Args:
        data: rows of [`load_reasonaqa`], whose audio is sound. output: the folder. embedded: whether rows hold their audio.
        max_seconds: what is kept of each clip. sampling_rate: Hz to which all is resampled; None keeps each clip's own.
        audio_format: "flac", or "wav" of 16 bits.

    Raises:
        ValueError: if `output` holds another conversion.
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
        self.data, self.output, self.embedded = data, Path(output), embedded
        self.max_seconds, self.rate, self.format = max_seconds, sampling_rate, audio_format
        self.sources: dict[str, str] = {}  # file of each clip, by its name in the rows
        self.order: dict[str, list[int]] = {}  # of rows, by split
        for split, rows in data.items():
            names = [[a, b] if b else [a] for a, b in zip(rows["filepath1"], rows["filepath2"])]
            for named, files in zip(names, rows["audio"]):
                self.sources.update(zip(named, files))
            numbers = range(len(rows))
            self.order[split] = (
                sorted(numbers, key=lambda i: names[i]) if embedded else list(numbers)
            )
        self.clips = sorted(self.sources)
        self.place = (
            {}
            if embedded
            else {
                clip: f"{self._name('clips', i // CLIPS_PER_SHARD, len(self.clips), CLIPS_PER_SHARD)}#{i % CLIPS_PER_SHARD}"
                for i, clip in enumerate(self.clips)
            }
        )
        self._check_manifest()

    @staticmethod
    def _name(of: str, number: int, count: int, per_shard: int) -> str:
        folder, prefix = ("clips", "") if of == "clips" else ("rows", f"{of}-")
        return (
            f"{folder}/{prefix}{number:05d}-of-{max(1, math.ceil(count / per_shard)):05d}.parquet"
        )

    @cached_property
    def manifest(self) -> dict:
        """What the shards follow from, and what is in them."""
        digests = {}
        for split, rows in self.data.items():
            digest = hashlib.sha256()
            for batch in rows.with_format("arrow").iter(10_000):
                for name in FIELDS:
                    digest.update("\0".join(batch[name].to_pylist()).encode() + b"\1")
            digests[split] = {"rows": len(rows), "sha256": digest.hexdigest()}
        return {
            "version": VERSION,
            "audio": "embedded" if self.embedded else "referenced",
            "format": self.format,
            "sampling_rate": self.rate,
            "max_audio_seconds": self.max_seconds,
            "clips": len(self.clips),
            "splits": digests,
        }

    def _check_manifest(self) -> None:
        """What is there already goes on only as the same conversion of files that have not changed."""
        stands = [
            (clip, clip_identity(self.sources[clip]).split("|")[1:]) for clip in self.clips
        ]  # size and time
        begun = {**self.manifest, "files": hashlib.sha256(repr(stands).encode()).hexdigest()}
        self.plan = self.output / PLAN
        if any(self.output.glob("*/*.parquet")):
            try:
                earlier = json.loads(self.plan.read_text())
            except (OSError, ValueError):
                raise ValueError(
                    f"{self.output} holds shards of something else; choose another folder"
                ) from None
            if differing := sorted(key for key in begun if earlier.get(key) != begun[key]):
                said = f"{self.output} holds another conversion ({', '.join(differing)} differ); choose another folder"
                raise ValueError(said)
        self.output.mkdir(parents=True, exist_ok=True)
        self.begun = json.dumps(begun, indent=2)

    def size(self) -> tuple[int, int]:
        """Estimated bytes of all shards and of what is still to be written, from a sample of clips that are encoded."""
        picked = self.clips[:: max(1, len(self.clips) // SAMPLED)]
        mean = sum(len(self.encoded(clip)) for clip in picked) / len(picked)
        total = left = 0
        for path, _, clips in self.shards():
            size = int(mean * clips)
            total, left = total + size, left + (0 if (self.output / path).is_file() else size)
        text = sum(rows.data.nbytes for rows in self.data.values()) // 3  # compressed
        return total + text, left + text

    def encoded(self, clip: str) -> bytes:
        """The first seconds of a clip, mono, in 16 bits. What was 16 bits and mono stays the same to the bit.

        Raises:
            ValueError: if the file cannot be read.
        """
        try:
            with open_file(open_clip(self.sources[clip])) as sound:
                rate = sound.samplerate
                audio = sound.read(
                    math.ceil(self.max_seconds * rate), dtype="float32", always_2d=True
                ).mean(1)
        except (soundfile.LibsndfileError, RuntimeError, OSError, ValueError) as error:
            raise ValueError(f"{self.sources[clip]} cannot be read any more ({error})") from error
        if self.rate and rate != self.rate:
            audio = resample(torch.from_numpy(audio), rate, self.rate).numpy()[
                : round(self.max_seconds * self.rate)
            ]
        content = io.BytesIO()
        samples = np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)
        soundfile.write(
            content, samples, self.rate or rate, format=self.format.upper(), subtype="PCM_16"
        )
        return content.getvalue()

    def shards(self) -> Iterator[tuple[str, list, int]]:
        """(path, numbers of rows or names of clips, clips to be encoded) of each shard."""
        for start in range(0, 0 if self.embedded else len(self.clips), CLIPS_PER_SHARD):
            part = self.clips[start : start + CLIPS_PER_SHARD]
            yield (
                self._name("clips", start // CLIPS_PER_SHARD, len(self.clips), CLIPS_PER_SHARD),
                part,
                len(part),
            )
        per_shard = EMBEDDED_PER_SHARD if self.embedded else ROWS_PER_SHARD
        for split, order in self.order.items():
            for start in range(0, len(order), per_shard):
                part, clips = order[start : start + per_shard], 0
                if self.embedded:
                    for group in range(0, len(part), EMBEDDED_PER_GROUP):
                        rows = self.data[split].select(part[group : group + EMBEDDED_PER_GROUP])
                        clips += len(set(rows["filepath1"]) | set(rows["filepath2"]) - {""})
                yield self._name(split, start // per_shard, len(order), per_shard), part, clips

    def write(self) -> None:
        """Writes the shards that are not there, each whole or not at all, and the card and manifest at the end."""
        for left in self.output.glob("*/*.part"):  # of a conversion that was killed
            left.unlink()
        part = self.plan.with_suffix(".part")
        part.write_text(self.begun)
        part.replace(self.plan)
        shards = list(self.shards())
        bar = tqdm(
            total=sum(max(1, clips) for _, _, clips in shards),
            desc="converting",
            unit="clip",
            disable=None,
        )
        with ThreadPoolExecutor() as self.pool, bar:
            for path, items, clips in shards:
                file = self.output / path
                if path.startswith("rows/") and self.embedded:
                    self._remember_places(path, items)
                if not file.is_file():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    part = file.with_suffix(f".{os.getpid()}.part")
                    try:
                        self._write_clips(part, items) if path.startswith(
                            "clips/"
                        ) else self._write_rows(part, path, items)
                        part.replace(file)
                    finally:
                        part.unlink(missing_ok=True)
                bar.update(max(1, clips))
        files = [self.output / path for path, _, _ in shards]
        manifest = {**self.manifest, "bytes": sum(file.stat().st_size for file in files)}
        (self.output / "README.md").write_text(data_card(manifest), encoding="utf-8")
        (self.output / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")

    def _remember_places(self, path: str, numbers: list[int]) -> None:
        rows = self.data[self._split(path)].select(numbers)
        for row, named in enumerate(zip(rows["filepath1"], rows["filepath2"])):
            for which, clip in enumerate(named):
                if clip:
                    self.place.setdefault(clip, f"{path}#{row}.{which}")

    @staticmethod
    def _split(path: str) -> str:
        return path.removeprefix("rows/").rsplit("-", 3)[0]

    def _write_clips(self, file: Path, clips: list[str]) -> None:
        with pq.ParquetWriter(
            file, _CLIPS.arrow_schema, compression="NONE", use_dictionary=False
        ) as writer:
            for start in range(0, len(clips), CLIPS_PER_GROUP):
                part = clips[start : start + CLIPS_PER_GROUP]
                sounds = [
                    {"bytes": b, "path": clip}
                    for clip, b in zip(part, self.pool.map(self.encoded, part))
                ]
                writer.write_table(
                    pa.Table.from_pydict({"filepath": part, "audio": sounds}, _CLIPS.arrow_schema)
                )

    def _write_rows(self, file: Path, path: str, numbers: list[int]) -> None:
        rows = self.data[self._split(path)]
        schema = Features({**TEXT, "audio": List(SOUND)} if self.embedded else TEXT).arrow_schema
        per_group = EMBEDDED_PER_GROUP if self.embedded else ROWS_PER_GROUP
        # one dictionary a group, however large: a clip's bytes stand there once
        options = {
            "compression": "ZSTD",
            "use_dictionary": True,
            "dictionary_pagesize_limit": 2**30,
        }
        with pq.ParquetWriter(file, schema, **options) as writer:
            for start in range(0, len(numbers), per_group):
                part = rows.select(numbers[start : start + per_group]).to_list()
                for row in part:
                    row["clips"] = [
                        self.place[c] for c in (row["filepath1"], row["filepath2"]) if c
                    ]
                if self.embedded:
                    wanted = sorted(
                        {c for row in part for c in (row["filepath1"], row["filepath2"]) if c}
                    )
                    sounds = dict(zip(wanted, self.pool.map(self.encoded, wanted)))
                    for row in part:
                        named = [c for c in (row["filepath1"], row["filepath2"]) if c]
                        row["audio"] = [{"bytes": sounds[c], "path": c} for c in named]
                writer.write_table(pa.Table.from_pylist(part, schema))


def data_card(manifest: dict) -> str:
    """The card of a data set: its configurations, for `load_dataset` and the Hub's viewer, and what it is."""
    rows = [{"split": split, "path": f"rows/{split}-*.parquet"} for split in manifest["splits"]]
    configs = [{"config_name": "rows", "data_files": rows, "default": True}]
    if manifest["audio"] == "referenced":
        configs.append(
            {"config_name": "clips", "data_files": [{"split": "clips", "path": "clips/*.parquet"}]}
        )
    about = {
        "configs": configs,
        "language": ["en"],
        "task_categories": ["audio-text-to-text"],
        "tags": ["audiolm"],
    }
    rate = (
        f"resampled to {manifest['sampling_rate']:,} Hz"
        if manifest["sampling_rate"]
        else "at the rate of each recording"
    )
    kept_seconds = f"the first {manifest['max_audio_seconds']:g} s of each, mono, 16-bit {manifest['format'].upper()}"
    kept = (
        "Each row holds the audio of its one or two clips."
        if manifest["audio"] == "embedded"
        else "`clips` names each row's one or two clips, as shard and row of the configuration `clips`."
    )
    table = "".join(
        f"| {split} | {found['rows']:,} |\n" for split, found in manifest["splits"].items()
    )
    return f"""---
{yaml.safe_dump(about, sort_keys=False)}---

# Questions about audio, in ReasonAQA's shape

{manifest["clips"]:,} clips: {kept_seconds} {rate}. {kept}
Made by AudioLM's `run_prepare.py convert`; text and audio have the licences of their sources, which whoever publishes this data
set must add here.

| split | rows |
|---|---|
{table}
    from datasets import load_dataset
    rows = load_dataset("NAME", "rows", split="{next(iter(manifest["splits"]))}")

Train on it: `run_train.py --dataset_name NAME`{" --streaming" if manifest["audio"] == "embedded" else ""}.
"""
