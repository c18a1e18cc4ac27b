"""Tests what frozen features contain: linear probes on labelled clips, for each encoder."""

# ruff: noqa: RUF009

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from transformers import HfArgumentParser

from ..checkpoints.encoders import load_encoder
from ..configuration_audiolm import import_encoders, list_encoder_types
from ..data.audio_check import drop_bad_audio
from ..data.audio_files import find_file
from ..data.cache import choose_feature_cache
from ..data.features import FeatureCache
from ..processing_audiolm import AudioLMFeatureExtractor
from ..runtime import (
    RUN_INFO_FILE,
    UserError,
    check_positive,
    explain_errors,
    json_digest,
    option,
    read_table,
    report_user_errors,
    run_info,
    use_all_of_the_cpu,
    write_json,
)
from . import probes
from .arguments import REQUIRED, parse_options
from .tables import format_share, format_table

DESCRIPTION = """Tests what frozen features contain: linear probes on labelled clips.

`audiolm probe --encoder_type htsat mimi_full --labels labels.csv --audio_dir A --output_dir OUT`
prints one table, and writes `probes.json` and `probe_predictions.csv`. The same command writes the
same files.

The CSV has a column `filename` (below --audio_dir), a column of labels, and `fold` (each is tested
after training on the others) or `split` (train, val, test)."""
LABEL_COLUMNS = ("label", "category", "target")
CHUNK = 512  # clips whose features are in memory together


@dataclass(kw_only=True)
class ProbeArguments:
    """The options of `audiolm probe`. Wrong ones raise a `UserError`."""

    encoder_type: list[str] = option(
        f"Any of {', '.join(list_encoder_types())}.", REQUIRED, metavar="ARM"
    )
    encoder_name_or_path: list[str] = option(
        "Weights, one for each encoder type in order: a folder, file, Hub name, `random` or "
        "`published`. By default the published weights.",
        [],
        metavar="NAME",
    )
    labels: str = option("The labels, see above.", REQUIRED, metavar="CSV")
    label_column: str | None = option(
        f"Column of the labels. By default the first of {', '.join(LABEL_COLUMNS)}."
    )
    audio_dir: str = option("Folder of the clips.", REQUIRED)
    output_dir: str = option("Folder for probes.json, probe_predictions.csv.", REQUIRED)
    pooling: list[str] = option(
        "What the logistic regression sees of a clip: the mean over its frames, or their mean and "
        "standard deviation. The first one is repeated with shuffled training labels, which gives "
        "chance accuracy.",
        ["mean"],
        choices=probes.POOLINGS,
    )
    feature_cache: str | None = option("Folder of encoded clips, or `none`, as in run_train.py.")
    max_audio_seconds: float = option("Seconds used of each clip.", 10.0)
    on_bad_audio: Literal["error", "skip"] = option("What to do about broken files.", "error")
    seed: int = option("Seed of all draws.", 0)
    # The weights of each arm, or None for the published ones.
    encoders: dict[str, str | None] = field(init=False)

    def __post_init__(self) -> None:
        """Checks the options."""
        arms, names = self.encoder_type, self.encoder_name_or_path
        try:
            types = [import_encoders(arm) for arm in arms]
        except ValueError as error:
            raise UserError(f"--{error}") from error
        if len(set(types)) < len(arms):
            raise UserError(f"--encoder_type {' '.join(arms)}: each arm once")
        if names and len(names) != len(arms):
            raise UserError(
                f"--encoder_name_or_path: {len(names)} given; expected one for each of {len(arms)} "
                "encoder types"
            )
        weights = [
            None if name == "published" else name for name in names or ["published"] * len(arms)
        ]
        self.encoders = dict(zip(types, weights))
        self.feature_cache = choose_feature_cache(self.feature_cache)
        self.pooling = list(dict.fromkeys(self.pooling))
        check_positive(self, "max_audio_seconds")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: expected 0 or more")


def build_parser() -> HfArgumentParser:
    """Builds the parser of `audiolm probe`."""
    return HfArgumentParser(
        ProbeArguments, prog="audiolm probe", description=DESCRIPTION, allow_abbrev=False
    )


def parse_arguments(argv: list[str] | None = None) -> ProbeArguments:
    """Parses and checks a command line. Wrong options end the process with a usage message."""
    return parse_options(build_parser(), argv)


@report_user_errors("audiolm probe")
def main(argv: list[str] | None = None) -> None:
    """Runs `audiolm probe`."""
    args = parse_arguments(argv)
    use_all_of_the_cpu()
    output = Path(args.output_dir)
    with explain_errors():
        output.mkdir(parents=True, exist_ok=True)
        clips, is_split = read_labels(args.labels, args.label_column)
        paths = [find_file(str(Path(args.audio_dir, name))) for name in clips["filename"]]
        data = DatasetDict(clips=Dataset.from_pandas(clips.assign(audio=[[p] for p in paths])))
        data = drop_bad_audio(data, args.max_audio_seconds, args.on_bad_audio, output)
        clips = pd.DataFrame(list(data["clips"]))
        labels, parts = (clips[name].to_numpy(object) for name in ("label", "part"))
        folds = probes.build_folds(labels, parts, is_split)
        # For encoders with random weights.
        torch.manual_seed(args.seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoders = {arm: load_encoder(arm, name).to(device) for arm, name in args.encoders.items()}
    task = probes.ProbeTask(labels, folds, args.seed)
    digest = json_digest(clips[["filename", "label", "part"]].values.tolist())
    records = {
        arm: probe_arm(args, task, arm, encoder, list(clips["audio"].str[0]), digest)
        for arm, encoder in encoders.items()
    }
    report = {
        "clips": len(clips),
        "classes": dict(sorted(Counter(labels).items())),
        "labels_sha256": digest,
        "folds": {
            fold.name: {part: len(getattr(fold, part)) for part in ("train", "validation", "test")}
            for fold in folds
        },
        "hyperparameters": {**probes.REGRESSION, "resamples": probes.RESAMPLES},
        **merge_records(args, task, records),
        "majority": task.score(task.predict_majority()),
    }
    write_json(output / "probes.json", report)
    options = sys.argv[1:] if argv is None else argv
    info = run_info("audiolm", ["probe", *options], labels_sha256=digest)
    write_json(output / RUN_INFO_FILE, info)
    predictions = clips[["filename", "part", "label"]].iloc[task.test_clips]
    for pooling in args.pooling:
        for arm, record in records.items():
            predictions[f"{pooling}_{arm}"] = record["predicted"][pooling]
    predictions.to_csv(output / "probe_predictions.csv", index=False, lineterminator="\n")
    print(format_report(report))


def read_labels(path: str, label_column: str | None = None) -> tuple[pd.DataFrame, bool]:
    """Reads a CSV of labels. ESC-50's is one.

    Returns:
        Clips with `filename`, `label` and `part`, and whether parts are of a split, not folds.

    Raises:
        UserError: If it cannot be read, a column or a value is missing, or a clip has two labels.
    """
    table = read_table(path, "filename", *filter(None, [label_column]))
    label = label_column or next((name for name in LABEL_COLUMNS if name in table), "")
    kind = "split" if "split" in table else "fold"
    if not {label, kind} <= set(table):
        expected = f"{' or '.join(LABEL_COLUMNS)}, and fold or split"
        raise UserError(f"{path}: has the columns {', '.join(table)}: expected also {expected}")
    clips = table[["filename", label, kind]].drop_duplicates()
    clips.columns = ["filename", "label", "part"]
    if clips.empty:
        raise UserError(f"{path} has no rows")
    for _, clip in clips[(clips == "").any(axis=1)].iterrows():
        raise UserError(f"{path}: a value is empty: {', '.join(clip)}")
    for name in clips["filename"][clips["filename"].duplicated()]:
        raise UserError(f"{path}: {name} occurs twice, with another {label} or {kind}")
    return clips, kind == "split"


def probe_arm(
    args: ProbeArguments,
    task: probes.ProbeTask,
    arm: str,
    encoder: Any,
    paths: list[str],
    labels_sha256: str,
) -> dict:
    """Returns facts, scores and predictions of one arm on the clips at `paths`, and prints them.

    An arm that an interrupted run has finished is not run again.
    """
    extractor = AudioLMFeatureExtractor.from_encoder(encoder, args.max_audio_seconds)
    cache = FeatureCache(args.feature_cache or "", encoder, extractor)
    cache.is_writable = args.feature_cache is not None
    file = Path(args.output_dir, "arms", f"{arm.replace(':', '-')}.json")
    settings = {"pooling": args.pooling, "seed": args.seed}
    key = {"encoder": cache.folder.name, "labels_sha256": labels_sha256, **settings}
    record: dict = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if record.get("key") != key:
        features, num_frames = encode(args, arm, cache, paths)
        facts = {
            "name_or_path": args.encoders[arm],
            "tokens_per_clip": float(np.mean(num_frames)),
            "dim": encoder.dim,
            "sample_rate": encoder.sample_rate,
        }
        record = {"key": key, "encoder": facts, "results": {}, "predicted": {}}
        for pooling in args.pooling:
            predictions, choices = task.run(features[pooling])
            record["predicted"][pooling] = predictions.tolist()
            record["results"][pooling] = task.score(predictions)
            if pooling == args.pooling[0]:
                record["shuffled_labels"] = task.score(task.run(features[pooling], choices)[0])
        file.parent.mkdir(exist_ok=True)
        write_json(file, record)
    accuracies = {name: score["accuracy"] for name, score in record["results"].items()}
    listed = ", ".join(f"{name} pooling {value:.3f}" for name, value in accuracies.items())
    print(f"{arm}: accuracy with {listed}", flush=True)
    return record


def encode(
    args: ProbeArguments, arm: str, cache: FeatureCache, paths: list[str]
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Encodes all clips with the encoder of one arm.

    Returns the pooled features, float32 of shape `(clips, channels)` for each pooling, and the
    number of frames of each clip.
    """
    encoder: Any = cache.encoder
    pooled: dict[str, list] = {pooling: [] for pooling in args.pooling}
    num_frames = []
    for start in range(0, len(paths), CHUNK):
        with explain_errors():
            encoded = cache.encode(paths[start : start + CHUNK], f"encoding clips, {arm}")
        for clip in encoded.values():
            if clip.is_floating_point():
                features = clip.float()
            else:
                features = encoder.decode_codes(clip[None].to(encoder.device))[0].cpu()
            num_frames.append(len(features))
            for pooling, vectors in pooled.items():
                vectors.append(probes.pool(features.numpy(), pooling))
    return {pooling: np.stack(vectors) for pooling, vectors in pooled.items()}, num_frames


def merge_records(args: ProbeArguments, task: probes.ProbeTask, records: dict[str, dict]) -> dict:
    """Returns the entries of `probes.json` about arms, with intervals and differences."""
    entries: dict = {"encoders": {arm: record["encoder"] for arm, record in records.items()}}
    entries |= {"results": {}, "differences": {}}
    for pooling in args.pooling:
        predicted = {arm: np.array(r["predicted"][pooling]) for arm, r in records.items()}
        results = {arm: record["results"][pooling] for arm, record in records.items()}
        pairs = probes.add_intervals(results, predicted, task.test_labels, args.seed)
        entries["results"][pooling] = results
        entries["differences"][pooling] = pairs
    # Shuffled labels get no interval: a shuffle moves similar clips together, so shuffles vary more
    # than a bootstrap over clips shows.
    shuffled = {arm: record["shuffled_labels"] for arm, record in records.items()}
    return entries | {"shuffled_labels": {args.pooling[0]: shuffled}}


def format_report(report: dict) -> str:
    """Formats `probes.json` as text, with arms as columns."""
    arms = report["encoders"].values()
    rows = [
        ("tokens per clip", *(f"{arm['tokens_per_clip']:.1f}" for arm in arms)),
        ("channels", *(str(arm["dim"]) for arm in arms)),
    ]
    differences = []
    for pooling, results in report["results"].items():
        scores = results.values()
        rows.append((pooling, *(_with_interval(score, "accuracy") for score in scores)))
        rows.append(("  macro F1", *(format_share(score["macro_f1"]) for score in scores)))
        for pair in report["differences"][pooling]:
            difference = _with_interval(pair, "difference", "+")
            title = f"{pooling} pooling, {pair['first']} - {pair['second']}"
            differences.append(f"{title}: {difference}")
    for pooling, results in report["shuffled_labels"].items():
        accuracies = [format_share(score["accuracy"]) for score in results.values()]
        rows.append((f"{pooling}, shuffled labels", *accuracies))
    rows.append(("majority class", *[format_share(report["majority"]["accuracy"])] * len(arms)))
    table = format_table(("accuracy (95 %)", *report["encoders"]), rows)
    return "\n".join([*table, *differences])


def _with_interval(entry: dict, key: str, sign: str = "") -> str:
    low, high = entry["ci95_low"], entry["ci95_high"]
    return f"{entry[key]:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
