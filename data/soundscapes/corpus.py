"""The demo corpus: synthetic recordings with questions of every type, in ReasonAQA's shape, made in seconds to minutes.

`python -m audiolm.data.soundscapes.corpus --output DIR --rows 8000 --seed 0` writes `audio/{train,val,test}/NNNNN.flac` (24 kHz),
`train.json`, `val.json` and `test.json`, and last `soundscapes.json`: the scenes, each row's intended category, and size and
SHA-256 of every file, by which the next run finds what is missing or broken, and makes only that.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import signal
import sys
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from .balance import draw_questions
from .scenes import SAMPLE_RATE, Scene, draw_scene, render

VERSION = 1  # of scenes, questions and rendering; another one makes earlier corpora unknown
SPLITS = ("train", "val", "test")
ROWS_PER_CLIP = 10
MANIFEST, JOURNAL = "soundscapes.json", "soundscapes.partial.jsonl"


@dataclasses.dataclass(frozen=True)
class Split:
    scenes: list[Scene]
    paths: list[str]  # of each scene's audio, relative to the corpus
    rows: list[dict[str, str]]
    categories: list[str]  # of each row


def split_rows(rows: int) -> dict[str, int]:
    """Rows of each split for `rows` training rows."""
    return {"train": rows, "val": max(40, rows // 8), "test": max(80, rows // 5)}


def draw_corpus(rows: int, seed: int) -> dict[str, Split]:
    """Scenes and rows of each split, without audio. Splits draw from random numbers of their own, and share no scene.

    Raises:
        ValueError: if there are fewer than 40 training rows, or the seed is negative.
    """
    if rows < 40 or seed < 0:
        raise ValueError(
            f"{rows} rows, seed {seed}: at least 40 training rows are wanted, and a seed from 0 on"
        )
    corpus = {}
    for split, sequence in zip(SPLITS, np.random.SeedSequence(seed).spawn(len(SPLITS))):
        for_scenes, for_rows = (np.random.default_rng(s) for s in sequence.spawn(2))
        count = split_rows(rows)[split]
        scenes = [draw_scene(for_scenes) for _ in range(-(-count // ROWS_PER_CLIP))]
        paths = [f"audio/{split}/{i:05}.flac" for i in range(len(scenes))]
        corpus[split] = Split(scenes, paths, *draw_questions(scenes, paths, count, for_rows))
    return corpus


def make_soundscapes(output_dir: str | Path, rows: int = 8000, seed: int = 0) -> dict[str, Path]:
    """Makes the corpus, or what is missing or broken of it; a complete one is only read.

    Args:
        rows: training rows; see [`split_rows`] for the others. There is one clip for ten rows.

    Returns:
        JSON file of each split, for `load_reasonaqa(files, audio_dir=output_dir)`.

    Raises:
        ValueError: if the directory holds a corpus of another size, seed or version, or files of another origin.
    """
    output = Path(output_dir)
    settings = {"version": VERSION, "rows": rows, "seed": seed}
    files = {split: output / f"{split}.json" for split in SPLITS}
    complete, known = _known_files(output, settings)
    broken = {
        name
        for name, (size, digest) in (known or {}).items()
        if not _is_whole(output / name, size, digest)
    }
    if complete and not broken:
        return files
    corpus = draw_corpus(rows, seed)
    texts = {f"{split}.json": _json(corpus[split].rows) for split in SPLITS}
    if known is None:
        for name, text in texts.items():
            if (output / name).exists() and (output / name).read_bytes() != text:
                raise ValueError(
                    f"{output / name} is not of this corpus: give another directory, or remove the file"
                )
    for split in SPLITS:
        (output / "audio" / split).mkdir(parents=True, exist_ok=True)
    scenes = {
        path: scene for split in corpus.values() for path, scene in zip(split.paths, split.scenes)
    }
    files_made = {
        name: entry
        for name, entry in (known or {}).items()
        if name in scenes and name not in broken
    }
    with (output / JOURNAL).open("w", encoding="utf-8") as journal:
        journal.writelines(
            f"{json.dumps(line)}\n"
            for line in [settings, *([n, *e] for n, e in files_made.items())]
        )
        for name, text in texts.items():
            files_made[name] = _write(output / name, text)
        for name, entry in _render_all(
            output, {p: s for p, s in scenes.items() if p not in files_made}
        ):
            files_made[name] = entry
            journal.write(f"{json.dumps([name, *entry])}\n")
            journal.flush()
    files_made = dict(sorted(files_made.items()))
    manifest = {
        **settings,
        "digest": _digest(files_made),
        "categories": {split: corpus[split].categories for split in SPLITS},
        "scenes": {path: dataclasses.asdict(scene) for path, scene in scenes.items()},
        "files": files_made,
    }
    _write(output / MANIFEST, _json(manifest))
    (output / JOURNAL).unlink(missing_ok=True)  # another run beside this one may have ended first
    return files


def write_labels(corpus_dir: str | Path) -> dict[str, Path]:
    """Labels of the corpus' clips for run_probe.py, a csv of `filename`, `split` and `label` for each kind: the sound (of
    scenes with one), the recording's quality, and the room.
    """
    corpus = Path(corpus_dir)
    scenes = json.loads((corpus / MANIFEST).read_text(encoding="utf-8"))["scenes"]
    found: dict[str, list[tuple[str, str]]] = {"sound": [], "quality": [], "room": []}
    for path, scene in scenes.items():
        names = {event["name"] for event in scene["events"]}
        if len(names) == 1:
            found["sound"].append((path, *names))
        found["quality"].append((path, "noisy" if scene["noise_db"] > -60 else scene["quality"]))
        found["room"].append((path, scene["room"]))
    files = {kind: corpus / f"labels-{kind}.csv" for kind in found}
    for kind, labelled in found.items():
        lines = [f"{path},{path.split('/')[1]},{label}" for path, label in labelled]
        _write(files[kind], "\n".join(["filename,split,label", *lines, ""]).encode())
    return files


def _known_files(output: Path, settings: dict) -> tuple[bool, dict[str, tuple[int, str]] | None]:
    """Whether a manifest says that the corpus is complete, and size and digest of the files that it or the journal of an
    interrupted run names; None if there is neither."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is not a directory")
    for name in (MANIFEST, JOURNAL):
        if not (output / name).is_file():
            continue
        try:
            text = (output / name).read_text(encoding="utf-8")
            # The last line of an interrupted run's journal may be torn.
            lines = (
                [json.loads(text)]
                if name == MANIFEST
                else [json.loads(line) for line in text.split("\n")[:-1]]
            )
            found = {key: lines[0][key] for key in settings}
            files = (
                lines[0]["files"]
                if name == MANIFEST
                else {path: entry for path, *entry in lines[1:]}
            )
            if name == MANIFEST and _digest(files) != lines[0]["digest"]:
                continue
        except (ValueError, LookupError, TypeError):
            continue
        if found != settings:
            was, wanted = (", ".join(f"{k} {v}" for k, v in s.items()) for s in (found, settings))
            raise ValueError(
                f"{output} holds a corpus of {was}, not of {wanted}: give another directory, or remove it"
            )
        return name == MANIFEST, {path: tuple(entry) for path, entry in files.items()}
    return False, None


def _is_whole(path: Path, size: int, digest: str) -> bool:
    return (
        path.is_file()
        and path.stat().st_size == size
        and hashlib.sha256(path.read_bytes()).hexdigest() == digest
    )


def _json(content) -> bytes:
    return json.dumps(content, indent=0, ensure_ascii=False).encode()


def _digest(files: dict) -> str:
    """Of the whole corpus."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _write(path: Path, content: bytes) -> tuple[int, str]:
    """Writes a file, which is either whole or not there, and tells its size and digest."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
    return len(content), hashlib.sha256(content).hexdigest()


def _render_file(task: tuple[Path, str, Scene]) -> tuple[str, tuple[int, str]]:
    output, name, scene = task
    encoded = io.BytesIO()
    soundfile.write(encoded, render(scene), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return name, _write(output / name, encoded.getvalue())


def _render_all(output: Path, scenes: dict[str, Scene]):
    """(name, (size, digest)) of each file as it is finished, by all cores."""
    tasks = [(output, name, scene) for name, scene in scenes.items()]
    bar = tqdm(total=len(tasks), desc="rendering", unit="clip", disable=None)
    processes = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with bar:
        if processes == 1 or len(tasks) < 32:
            for task in tasks:
                yield _render_file(task)
                bar.update()
            return
        # Forked processes have nothing to import, which takes longer than a small corpus; elsewhere they must.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        pool = ProcessPoolExecutor(
            processes, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)
        )
        try:
            for done in pool.map(_render_file, tasks, chunksize=4):
                yield done
                bar.update()
        finally:  # an interrupted run does not first render the rest
            pool.shutdown(cancel_futures=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="directory of the corpus")
    parser.add_argument(
        "--rows",
        type=int,
        default=8000,
        help="training rows (default %(default)s); an eighth as many, at least 40, for validation and a fifth, at least 80, for"
        " testing; one clip for ten rows",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed, another corpus (default %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        files = make_soundscapes(args.output, args.rows, args.seed)
    except (ValueError, OSError, BrokenExecutor) as error:
        sys.exit(f"soundscapes: {error}")
    print("\n".join(f"{split}: {file}" for split, file in files.items()))


if __name__ == "__main__":
    main()
