"""Writes a synthetic corpus in ReasonAQA's shape, with questions of every type.

`python -m audiolm.data.soundscapes.corpus --output DIR --rows 8000 --seed 0` writes FLAC files of
24 kHz to `audio/{train,val,test}/`, `train.json`, `val.json` and `test.json`. It writes
`soundscapes.json` last: the scenes, the category of each row, and size and SHA-256 of every file.
From it, the next run finds missing and broken files and makes only these. Excerpts of recordings
can take the place of synthesised sounds, see `RecordingTable`.
"""

import argparse
import dataclasses
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import soundfile
from numpy.random import SeedSequence, default_rng
from tqdm import tqdm

from ...runtime import (
    UserError,
    atomic_file,
    file_digest,
    json_digest,
    report_user_errors,
    write_text,
)
from . import MANIFEST
from .balance import draw_questions
from .events import CLASSES
from .recordings import RecordingTable, read_recordings
from .scenes import NOISY_DB, SAMPLE_RATE, Scene, draw_scene, render

VERSION = 1  # of scenes, questions and rendering
SPLITS = ("train", "val", "test")
ROWS_PER_CLIP = 10
MIN_PARALLEL_FILES = 32

FileEntry = tuple[int, str]  # size in bytes, SHA-256


@dataclasses.dataclass(frozen=True)
class Split:
    """Scenes of a split and the questions about them."""

    scenes: list[Scene]
    paths: list[str]  # of each scene's audio, relative to the corpus
    rows: list[dict[str, str]]
    categories: list[str]  # of each row


def draw_corpus(rows: int, seed: int, recordings: RecordingTable | None = None) -> dict[str, Split]:
    """Draws scenes and rows of each split, without audio. Splits share no scene.

    Args:
        rows: Training rows, at least 40. There is an eighth as many for validation, at least 40,
            and a fifth for testing, at least 80.
        seed: Seed of the corpus, from 0 on. Each split has random numbers of its own.
        recordings: Recordings to take the sounds from. Splits share none of them.

    Raises:
        UserError: If there are too few rows, the seed is negative, or the recordings do not suit.
    """
    if rows < 40:
        raise UserError(f"--rows {rows}: expected at least 40 training rows")
    if seed < 0:
        raise UserError(f"--seed {seed}: expected a number from 0 on")
    rows_per_split = (rows, max(40, rows // 8), max(80, rows // 5))
    sequences = SeedSequence(seed).spawn(len(SPLITS))
    classes = read_recordings(recordings, seed) if recordings else dict.fromkeys(SPLITS, CLASSES)
    corpus = {}
    for split, count, sequence in zip(SPLITS, rows_per_split, sequences):
        scene_rng, row_rng = map(default_rng, sequence.spawn(2))
        num_scenes = -(-count // ROWS_PER_CLIP)
        scenes = [draw_scene(scene_rng, classes=classes[split]) for _ in range(num_scenes)]
        paths = [f"audio/{split}/{number:05}.flac" for number in range(num_scenes)]
        corpus[split] = Split(scenes, paths, *draw_questions(scenes, paths, count, row_rng))
    return corpus


def make_soundscapes(
    output_dir: str | Path,
    rows: int = 8000,
    seed: int = 0,
    recordings: RecordingTable | None = None,
) -> dict[str, Path]:
    """Makes the corpus, or those of its files that are missing or broken.

    Args:
        output_dir: Folder of the corpus.
        rows: Training rows, see `draw_corpus`. There is one clip for ten rows.
        seed: Seed of the corpus.
        recordings: Recordings to take the sounds from. Default: sounds are synthesised.

    Returns:
        JSON file of each split, for `load_reasonaqa(files, audio_dir=output_dir)`.

    Raises:
        UserError: If the folder holds another corpus or other files, or cannot be written.
    """
    output = Path(output_dir)
    settings = {"version": VERSION, "rows": rows, "seed": seed}
    if recordings:
        settings["recordings"] = _digest_recordings(recordings)
    try:
        recorded = _read_manifest(output, settings)
        intact = {name for name, entry in recorded.items() if _file_entry(output / name) == entry}
        if not recorded or len(intact) < len(recorded):
            corpus = draw_corpus(rows, seed, recordings)
            if not recorded:
                _check_is_free(output, corpus)
            _write_corpus(output, settings, corpus, intact)
    except OSError as error:
        raise UserError(f"{output}: {error}. Choose another folder, or free disk space.") from error
    return {split: output / f"{split}.json" for split in SPLITS}


def _check_is_free(output: Path, corpus: dict[str, Split]) -> None:
    for name, split in corpus.items():
        path = output / f"{name}.json"
        if path.exists() and path.read_bytes() != _to_json(split.rows).encode():
            raise UserError(
                f"{path} is not of this corpus. Choose another folder, or remove the file."
            )


def _write_corpus(output: Path, settings: dict, corpus: dict[str, Split], intact: set[str]) -> None:
    """Writes the files of a corpus except the audio of `intact`, and last the manifest."""
    scenes = {}
    for name, split in corpus.items():
        (output / "audio" / name).mkdir(parents=True, exist_ok=True)
        scenes |= dict(zip(split.paths, split.scenes))
        write_text(output / f"{name}.json", _to_json(split.rows))
    tasks = [(output, path, scene) for path, scene in scenes.items() if path not in intact]
    # Processes start when they get work. For few files that takes longer than to render them.
    with ProcessPoolExecutor() as pool:
        is_parallel = len(tasks) >= MIN_PARALLEL_FILES
        done = (
            pool.map(_render_file, tasks, chunksize=4) if is_parallel else map(_render_file, tasks)
        )
        list(tqdm(done, total=len(tasks), desc="rendering", unit="clip", disable=None))
    names = sorted([*scenes, *(f"{name}.json" for name in corpus)])
    entries = {name: _file_entry(output / name) for name in names}
    manifest = {
        **settings,
        "digest": json_digest(entries),
        "categories": {name: split.categories for name, split in corpus.items()},
        "scenes": {path: _scene_record(scene) for path, scene in scenes.items()},
        "files": entries,
    }
    write_text(output / MANIFEST, _to_json(manifest))


def _scene_record(scene: Scene) -> dict:
    record = dataclasses.asdict(scene)
    del record["classes"]  # the same for all scenes
    return record


def _digest_recordings(recordings: RecordingTable) -> str:
    """Returns a digest of the table and the sizes of the files."""
    sizes = sorted(
        (str(path.relative_to(recordings.audio_dir)), path.stat().st_size)
        for path in Path(recordings.audio_dir).rglob("*.*")
    )
    columns = dataclasses.asdict(recordings) | {"csv": file_digest(Path(recordings.csv))}
    return json_digest({**columns, "audio_dir": sizes})


def _render_file(task: tuple[Path, str, Scene]) -> None:
    output, name, scene = task
    with atomic_file(output / name) as temporary:
        soundfile.write(temporary, render(scene), SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def _read_manifest(output: Path, settings: dict) -> dict[str, FileEntry]:
    """Returns the files of a corpus that is complete, else nothing."""
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    recorded = {key: manifest.get(key) for key in settings}
    if recorded != settings:
        texts = [
            ", ".join(f"{key} {value}" for key, value in part.items())
            for part in (recorded, settings)
        ]
        raise UserError(
            f"{output} holds a corpus of {texts[0]}, not of {texts[1]}. "
            "Choose another folder, or remove it."
        )
    return {name: (size, digest) for name, (size, digest) in manifest["files"].items()}


def _file_entry(path: Path) -> FileEntry | None:
    return (path.stat().st_size, file_digest(path)) if path.is_file() else None


def _to_json(content: object) -> str:
    return json.dumps(content, indent=0, ensure_ascii=False)


def write_labels(corpus_dir: str | Path) -> dict[str, Path]:
    """Writes labels of the corpus's clips for `audiolm probe`.

    Returns:
        CSV file with `filename`, `split` and `label`, by kind of label: `sound` (for scenes with
        one sound), `quality` of the recording, and `room`.
    """
    corpus = Path(corpus_dir)
    scenes = json.loads((corpus / MANIFEST).read_text(encoding="utf-8"))["scenes"]
    rows = []
    for path, scene in scenes.items():
        names = [event["name"] for event in scene["events"]]
        sound = names[0] if len(names) == 1 else None
        quality = "noisy" if scene["noise_db"] > NOISY_DB else scene["quality"]
        rows.append((path, path.split("/")[1], sound, quality, scene["room"]))
    table = pd.DataFrame(rows, columns=["filename", "split", "sound", "quality", "room"])
    files = {kind: corpus / f"labels-{kind}.csv" for kind in ("sound", "quality", "room")}
    for kind, file in files.items():
        labels = table[["filename", "split", kind]].rename(columns={kind: "label"}).dropna()
        write_text(file, labels.to_csv(index=False, lineterminator="\n"))
    return files


@report_user_errors("soundscapes")
def main(argv: list[str] | None = None) -> None:
    """Makes a corpus and prints its files."""
    parser = argparse.ArgumentParser(description="Makes a synthetic corpus in ReasonAQA's shape.")
    parser.add_argument("--output", required=True, help="folder of the corpus")
    parser.add_argument("--rows", type=int, default=8000, help="training rows; one clip for ten")
    parser.add_argument("--seed", type=int, default=0, help="seed of the corpus")
    args = parser.parse_args(argv)
    for split, file in make_soundscapes(args.output, args.rows, args.seed).items():
        print(f"{split}: {file}")


if __name__ == "__main__":
    main()
