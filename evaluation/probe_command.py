"""Tests what frozen features contain: linear probes on labelled clips, for each encoder."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from transformers import HfArgumentParser

from ..checkpoints.encoders import load_encoder
from ..data import FeatureCache, drop_bad_audio, encode_clips
from ..processing_audiolm import AudioLMFeatureExtractor
from ..runtime import (
    report_user_errors,
    run_info,
    use_all_of_the_cpu,
    write_json,
    write_run_info,
)
from . import probes
from .arguments import allow_no_value, parse_options
from .inputs import input_errors
from .probe_arguments import ProbeArguments
from .probe_folds import Fold, build_folds, find_labelled_clips
from .tables import format_share, format_table

NOTE = (
    "These weights do not show what their kinds of encoder can do. MS-CLAP's HTSAT was trained on "
    "22 audio tasks, then contrastively on captions, and possibly on clips tested here. Mimi was "
    "trained on speech, and its audio ends at 12 kHz."
)
DESCRIPTION = """Tests what frozen features contain: linear probes on labelled clips.

`audiolm probe --encoder_type htsat mimi_full --labels labels.csv --audio_dir A --output_dir OUT`
prints one table, and writes `probes.json` and `probe_predictions.csv`. The same command writes the
same files.

The CSV has a column `filename` (below --audio_dir), a column of labels, and `fold` (each is tested
after training on the others) or `split` (train, val, test). ESC-50's folder needs no CSV."""
CHUNK = 512  # clips whose features are in memory together
ARM_OPTIONS = ("pooling", "controls", "seed")
REPORTED_OPTIONS = [
    "label_column",
    "folds",
    "max_audio_seconds",
    "on_bad_audio",
    "pooling",
    "controls",
    "seed",
]


def build_parser() -> HfArgumentParser:
    """Builds the parser of `audiolm probe`."""
    parser = HfArgumentParser(
        ProbeArguments, prog="audiolm probe", description=DESCRIPTION, allow_abbrev=False
    )
    allow_no_value(parser, "controls")
    return parser


def parse_arguments(argv: list[str] | None = None) -> ProbeArguments:
    """Parses and checks a command line. Wrong options end the process with a usage message."""
    return parse_options(build_parser(), argv)


@report_user_errors("audiolm probe")
def main(argv: list[str] | None = None) -> None:
    """Runs `audiolm probe`."""
    args = parse_arguments(argv)
    use_all_of_the_cpu()
    output = Path(args.output_dir)
    with input_errors():
        output.mkdir(parents=True, exist_ok=True)
        clips, origin = find_labelled_clips(
            args.audio_dir, args.labels, args.label_column, args.folds
        )
        data = DatasetDict(clips=Dataset.from_list(clips))
        data = drop_bad_audio(data, args.max_audio_seconds, args.on_bad_audio, output)
        clips = list(data["clips"])
        labels, folds = build_folds(clips, args.folds, args.seed)
        encoders = load_encoders(args)
    task = probes.ProbeTask(labels, folds, args.seed)
    digest = labels_digest(clips, task)
    report = {
        "clips": len(clips),
        "classes": dict(sorted(Counter(labels).items())),
        "labels_sha256": digest,
        "folds_from": origin,
        "folds": {fold.name: _fold_sizes(fold) for fold in folds},
        "settings": {name: getattr(args, name) for name in REPORTED_OPTIONS},
        "hyperparameters": {**probes.REGRESSION, "resamples": probes.RESAMPLES},
    }
    paths = [clip["audio"][0] for clip in clips]
    results, predicted = run_probes(args, task, encoders, paths, digest)
    report |= results
    report["majority"] = task.score(task.predict_majority())
    report["note"] = NOTE
    write_json(output / "probes.json", report)
    options = sys.argv[1:] if argv is None else argv
    write_run_info(output, run_info("audiolm", ["probe", *options], labels_sha256=digest))
    write_predictions(output / "probe_predictions.csv", clips, task, predicted)
    print(format_report(report))


def _fold_sizes(fold: Fold) -> dict[str, int]:
    return {name: len(getattr(fold, name)) for name in ("train", "validation", "test")}


def load_encoders(args: ProbeArguments) -> dict[str, torch.nn.Module]:
    """Loads the encoder of each arm."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoders = {}
    for arm, name in args.encoders.items():
        # For encoders with random weights.
        torch.manual_seed(args.seed)
        encoders[arm] = load_encoder(arm, name).to(device)
    return encoders


def labels_digest(clips: list[dict], task: probes.ProbeTask) -> str:
    """Returns the SHA-256 of the test clips, their labels and their folds."""
    lines = []
    for fold in task.folds:
        for index in fold.test:
            lines.append(f"{clips[index]['filename']}\t{task.labels[index]}\t{fold.name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def run_probes(
    args: ProbeArguments,
    task: probes.ProbeTask,
    encoders: dict,
    paths: list[str],
    labels_sha256: str,
) -> tuple[dict, dict[str, np.ndarray]]:
    """Runs the probes of all arms on the clips at `paths`, and prints each arm as it is done.

    An arm that an interrupted run has finished is not run again. Returns the entries of
    `probes.json` about arms, and the predictions by "pooling_arm".
    """
    records: dict[str, dict] = {}
    for arm, encoder in encoders.items():
        extractor = AudioLMFeatureExtractor.from_encoder(encoder, args.max_audio_seconds)
        cache = FeatureCache(args.feature_cache or "", encoder, extractor)
        file = Path(args.output_dir, "arms", f"{arm.replace(':', '-')}.json")
        settings = {name: getattr(args, name) for name in ARM_OPTIONS}
        key = {"encoder": cache.folder.name, "labels_sha256": labels_sha256, **settings}
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if record.get("key") != key:
            record = {"key": key, **probe_arm(args, task, arm, encoder, cache, paths)}
            file.parent.mkdir(exist_ok=True)
            write_json(file, record)
        records[arm] = record
        accuracies = [
            f"{pooling} pooling {score['accuracy']:.3f}"
            for pooling, score in record["results"].items()
        ]
        print(f"{arm}: accuracy with {', '.join(accuracies)}", flush=True)
    # Shuffled labels get no interval: a shuffle moves similar clips together, so shuffles vary more
    # than a bootstrap over clips shows.
    columns = {}
    entries: dict = {
        "encoders": {arm: record["encoder"] for arm, record in records.items()},
        "results": {},
        "shuffled_labels": {},
        "differences": {},
    }
    for pooling in args.pooling:
        predicted = {arm: np.array(r["predicted"][pooling]) for arm, r in records.items()}
        results = {arm: record["results"][pooling] for arm, record in records.items()}
        pairs = probes.add_intervals(results, predicted, task.test_labels, args.seed)
        entries["results"][pooling] = results
        entries["differences"][pooling] = pairs
        if pooling in args.controls:  # ty: ignore[unsupported-operator]
            shuffled = {arm: record["shuffled_labels"][pooling] for arm, record in records.items()}
            entries["shuffled_labels"][pooling] = shuffled
        columns |= {f"{pooling}_{arm}": labels for arm, labels in predicted.items()}
    return entries, columns


def probe_arm(
    args: ProbeArguments,
    task: probes.ProbeTask,
    arm: str,
    encoder: torch.nn.Module,
    cache: FeatureCache,
    paths: list[str],
) -> dict:
    """Returns facts, scores and predictions of one arm."""
    features, num_frames = encode(encoder, arm, paths, args, cache)
    facts = {
        "name_or_path": args.encoders[arm],
        "tokens_per_clip": float(np.mean(num_frames)),
        "dim": encoder.dim,
        "sample_rate": encoder.sample_rate,
    }
    record: dict = {"encoder": facts, "results": {}, "shuffled_labels": {}, "predicted": {}}
    for pooling in args.pooling:
        predictions, settings = task.run(features[pooling])
        record["predicted"][pooling] = predictions.tolist()
        record["results"][pooling] = task.score(predictions, settings)
        if pooling in args.controls:  # ty: ignore[unsupported-operator]
            predictions, settings = task.run(features[pooling], settings)
            record["shuffled_labels"][pooling] = task.score(predictions, settings)
    return record


def encode(
    encoder: torch.nn.Module,
    arm: str,
    paths: list[str],
    args: ProbeArguments,
    cache: FeatureCache,
) -> tuple[dict, list[int]]:
    """Encodes all clips with one encoder.

    Returns the pooled features, float32 of shape `(clips, channels)` for each pooling, and the
    number of frames of each clip.
    """
    distinct, desc = sorted(set(paths)), f"encoding clips, {arm}"
    with input_errors():
        if args.feature_cache:
            parts = (distinct[i : i + CHUNK] for i in range(0, len(distinct), CHUNK))
            encoded = chain.from_iterable(cache.encode(part, desc).items() for part in parts)
        else:
            encoded = encode_clips(encoder, cache.extractor, distinct, desc=desc)
        return _pool(encoder, paths, encoded, args.pooling)


def _pool(
    encoder: Any, paths: list[str], encoded: Iterable, poolings: list[str]
) -> tuple[dict, list[int]]:
    pooled: dict[str, dict] = {pooling: {} for pooling in poolings}
    num_frames = {}
    for path, clip in encoded:
        if clip.is_floating_point():
            # Rounded as in the cache, which then changes no result.
            features = clip.bfloat16().float()
        else:
            features = encoder.decode_codes(clip[None].to(encoder.device))[0].cpu()
        num_frames[path] = len(features)
        for pooling, vectors in pooled.items():
            vectors[path] = probes.POOLINGS[pooling](features.numpy())
    stacked = {
        pooling: np.stack([vectors[path] for path in paths]) for pooling, vectors in pooled.items()
    }
    return stacked, [num_frames[path] for path in paths]


def write_predictions(
    path: Path, clips: list[dict], task: probes.ProbeTask, predicted: dict[str, np.ndarray]
) -> None:
    """Writes the predictions for all test clips as CSV, a column for each pooling and arm."""
    folds = np.repeat([fold.name for fold in task.folds], [len(fold.test) for fold in task.folds])
    names = [clips[index]["filename"] for index in task.test_clips]
    columns = {"clip": names, "fold": folds, "label": task.test_labels, **predicted}
    pd.DataFrame(columns).to_csv(path, index=False, lineterminator="\n")


def format_report(report: dict) -> str:
    """Formats `probes.json` as text, with arms as columns."""
    arms = report["encoders"]
    tokens = [f"{arm['tokens_per_clip']:.1f}" for arm in arms.values()]
    rows = [("tokens per clip", *tokens), ("channels", *(str(arm["dim"]) for arm in arms.values()))]
    for pooling, results in report["results"].items():
        rows.append((f"{pooling} pooling", *[""] * len(arms)))
        rows += _pooling_rows(results, report["shuffled_labels"].get(pooling))
    majority = f"{report['majority']['accuracy']:.3f}"
    rows.append(("majority class", *[majority] * len(arms)))
    lines = format_table(("", *arms), rows)
    for pooling, pairs in report["differences"].items():
        for pair in pairs:
            difference = _with_interval(pair, "difference", "+")
            lines.append(f"{pooling} pooling, {pair['first']} - {pair['second']}: {difference}")
    return "\n".join([*lines, report["note"]])


def _pooling_rows(results: dict[str, dict], shuffled: dict[str, dict] | None) -> list[tuple]:
    metrics = list(results.values())
    rows: list[tuple] = [
        ("  accuracy (95 %)", *(_with_interval(arm, "accuracy") for arm in metrics)),
        ("  macro F1", *(format_share(arm["macro_f1"]) for arm in metrics)),
    ]
    folds = metrics[0]["folds"]
    if len(folds) > 1:
        for fold in folds:
            accuracies = [arm["folds"][fold]["accuracy"] for arm in metrics]
            rows.append((f"  fold {fold}", *map(format_share, accuracies)))
        rows.append(("  mean of folds", *(format_share(arm["mean_of_folds"]) for arm in metrics)))
    if shuffled:
        accuracies = [arm["accuracy"] for arm in shuffled.values()]
        rows.append(("  with shuffled labels", *map(format_share, accuracies)))
    return rows


def _with_interval(entry: dict, key: str, sign: str = "") -> str:
    low, high = entry["ci95_low"], entry["ci95_high"]
    return f"{entry[key]:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


if __name__ == "__main__":
    main()
