"""Writes a synthetic corpus in ReasonAQA's shape, with questions of every type.

`python -m audiolm.data.soundscapes.corpus --output DIR --rows 8000 --seed 0` writes FLAC files of
24 kHz to `audio/{train,val,test}/`, `train.json`, `val.json` and `test.json`. It writes
`soundscapes.json` last: the scenes, the category of each row, and size and SHA-256 of every file.
From it, the next run finds missing and broken files and makes only these.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from ...runtime import (
    UserError,
    atomic_file,
    file_digest,
    json_digest,
    report_user_errors,
    write_text,
)
from .balance import draw_questions
from .scenes import NOISY_DB, SAMPLE_RATE, Scene, draw_scene, render

VERSION = 1  # of scenes, questions and rendering
SPLITS = ("train", "val", "test")
ROWS_PER_CLIP = 10
MANIFEST = "soundscapes.json"
MIN_PARALLEL_FILES = 32

FileEntry = tuple[int, str]  # size in bytes, SHA-256


@dataclasses.dataclass(frozen=True)
class Split:
    """Scenes of a split and the questions about them."""

    scenes: list[Scene]
    paths: list[str]  # of each scene's audio, relative to the corpus
    rows: list[dict[str, str]]
    categories: list[str]  # of each row


def draw_corpus(rows: int, seed: int) -> dict[str, Split]:
    """Draws scenes and rows of each split, without audio. Splits share no scene.

    Args:
        rows: Training rows, at least 40. There is an eighth as many for validation, at least 40,
            and a fifth for testing, at least 80.
        seed: Seed of the corpus, from 0 on. Each split has random numbers of its own.

    Raises:
        UserError: If there are too few rows, or the seed is negative.
    """
    if rows < 40:
        raise UserError(f"--rows {rows}: expected at least 40 training rows")
    if seed < 0:
        raise UserError(f"--seed {seed}: expected a number from 0 on")
    rows_per_split = (rows, max(40, rows // 8), max(80, rows // 5))
    sequences = np.random.SeedSequence(seed).spawn(len(SPLITS))
    corpus = {}
    for split, count, sequence in zip(SPLITS, rows_per_split, sequences):
        scene_rng, row_rng = (np.random.default_rng(part) for part in sequence.spawn(2))
        num_scenes = -(-count // ROWS_PER_CLIP)
        scenes = [draw_scene(scene_rng) for _ in range(num_scenes)]
        paths = [f"audio/{split}/{number:05}.flac" for number in range(num_scenes)]
        corpus[split] = Split(scenes, paths, *draw_questions(scenes, paths, count, row_rng))
    return corpus


def make_soundscapes(output_dir: str | Path, rows: int = 8000, seed: int = 0) -> dict[str, Path]:
    """Makes the corpus, or those of its files that are missing or broken.

    Args:
        output_dir: Folder of the corpus.
        rows: Training rows, see `draw_corpus`. There is one clip for ten rows.
        seed: Seed of the corpus.

    Returns:
        JSON file of each split, for `load_reasonaqa(files, audio_dir=output_dir)`.

    Raises:
        UserError: If the folder holds another corpus or other files, or cannot be written.
    """
    output = Path(output_dir)
    settings = {"version": VERSION, "rows": rows, "seed": seed}
    files = {split: output / f"{split}.json" for split in SPLITS}
    try:
        recorded = _read_manifest(output, settings)
        intact = {
            name: entry for name, entry in recorded.items() if _is_intact(output / name, entry)
        }
        if not recorded or intact != recorded:
            _write_corpus(output, settings, draw_corpus(rows, seed), intact, bool(recorded))
    except OSError as error:
        raise UserError(f"{output}: {error}. Choose another folder, or free disk space.") from error
    return files


def _write_corpus(
    output: Path,
    settings: dict,
    corpus: dict[str, Split],
    intact: dict[str, FileEntry],
    is_ours: bool,
) -> None:
    texts = {f"{name}.json": _to_json(split.rows) for name, split in corpus.items()}
    for name, text in texts.items():
        path = output / name
        if not is_ours and path.exists() and path.read_bytes() != text.encode():
            raise UserError(
                f"{path} is not of this corpus. Choose another folder, or remove the file."
            )
    scenes = {}
    for name, split in corpus.items():
        (output / "audio" / name).mkdir(parents=True, exist_ok=True)
        scenes |= dict(zip(split.paths, split.scenes))
    for name, text in texts.items():
        write_text(output / name, text)
        intact[name] = _file_entry(output / name)
    missing = {path: scene for path, scene in scenes.items() if path not in intact}
    entries = intact | dict(_render_all(output, missing))
    entries = dict(sorted(entries.items()))
    manifest = {
        **settings,
        "digest": json_digest(entries),
        "categories": {name: split.categories for name, split in corpus.items()},
        "scenes": {path: dataclasses.asdict(scene) for path, scene in scenes.items()},
        "files": entries,
    }
    write_text(output / MANIFEST, _to_json(manifest))


def write_labels(corpus_dir: str | Path) -> dict[str, Path]:
    """Writes labels of the corpus's clips for `audiolm probe`.

    Returns:
        CSV file with `filename`, `split` and `label`, by kind of label: `sound` (for scenes with
        one sound), `quality` of the recording, and `room`.
    """
    corpus = Path(corpus_dir)
    scenes = json.loads((corpus / MANIFEST).read_text(encoding="utf-8"))["scenes"]
    lines = {kind: ["filename,split,label"] for kind in ("sound", "quality", "room")}
    for path, scene in scenes.items():
        start = f"{path},{path.split('/')[1]}"
        names = {event["name"] for event in scene["events"]}
        if len(names) == 1:
            lines["sound"].append(f"{start},{names.pop()}")
        quality = "noisy" if scene["noise_db"] > NOISY_DB else scene["quality"]
        lines["quality"].append(f"{start},{quality}")
        lines["room"].append(f"{start},{scene['room']}")
    files = {kind: corpus / f"labels-{kind}.csv" for kind in lines}
    for kind, file in files.items():
        write_text(file, "\n".join(lines[kind]) + "\n")
    return files


def _read_manifest(output: Path, settings: dict) -> dict[str, FileEntry]:
    """Returns the files of a corpus that is complete, else nothing."""
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        recorded = {key: manifest[key] for key in settings}
        files = {name: (size, digest) for name, (size, digest) in manifest["files"].items()}
        is_broken = json_digest(files) != manifest["digest"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return {}
    if is_broken:
        return {}
    if recorded != settings:
        raise UserError(
            f"{output} holds a corpus of {_describe(recorded)}, not of {_describe(settings)}. "
            "Choose another folder, or remove it."
        )
    return files


def _describe(settings: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _file_entry(path: Path) -> FileEntry:
    return path.stat().st_size, file_digest(path)


def _is_intact(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and _file_entry(path) == entry


def _to_json(content: object) -> str:
    return json.dumps(content, indent=0, ensure_ascii=False)


def _render_file(task: tuple[Path, str, Scene]) -> tuple[str, FileEntry]:
    output, name, scene = task
    with atomic_file(output / name) as temporary:
        soundfile.write(temporary, render(scene), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return name, _file_entry(output / name)


def _render_all(output: Path, scenes: dict[str, Scene]) -> Iterator[tuple[str, FileEntry]]:
    """Renders files on all cores. Yields each one's name and entry when it is complete."""
    tasks = [(output, name, scene) for name, scene in scenes.items()]
    bar = {"total": len(tasks), "desc": "rendering", "unit": "clip", "disable": None}
    has_affinity = hasattr(os, "sched_getaffinity")
    processes = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    if processes == 1 or len(tasks) < MIN_PARALLEL_FILES:
        yield from tqdm(map(_render_file, tasks), **bar)
        return
    # A forked process has nothing to import, which takes longer than to render a small corpus.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ignore_interrupts = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(processes, context, signal.signal, ignore_interrupts)
    try:
        yield from tqdm(pool.map(_render_file, tasks, chunksize=4), **bar)
    except BrokenProcessPool as error:
        raise UserError(f"{output}: a process that renders clips was killed. Run again.") from error
    finally:
        # An interrupted run must not render the remaining files first.
        pool.shutdown(cancel_futures=True)


def build_parser() -> argparse.ArgumentParser:
    """Builds the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", required=True, help="folder of the corpus")
    add(
        "--rows",
        type=int,
        default=8000,
        help="training rows (default: %(default)s); an eighth as many, at least 40, for validation "
        "and a fifth, at least 80, for testing; one clip for ten rows",
    )
    add("--seed", type=int, default=0, help="seed of the corpus (default: %(default)s)")
    return parser


@report_user_errors("soundscapes")
def main(argv: list[str] | None = None) -> None:
    """Makes a corpus and prints its files."""
    args = build_parser().parse_args(argv)
    for split, file in make_soundscapes(args.output, args.rows, args.seed).items():
        print(f"{split}: {file}")


if __name__ == "__main__":
    main()
