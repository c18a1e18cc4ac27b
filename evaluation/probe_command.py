"""What each arm's frozen features hold at all: linear probes of labelled clips, on frames averaged or attended to.

`python run_probe.py --encoder_type htsat mimi_full --labels labels.csv --audio_dir AUDIO --output_dir OUT` prints one table and
writes `probes.json` and `probe_predictions.csv`. The same command writes the same bytes.

The csv has a column `filename` (below --audio_dir), one of labels, and `fold` (each is tested by what the others teach) or
`split` (train, val, test). ESC-50's folder, and one of files named as its are (1-100032-A-0.wav), needs no csv.
"""

import argparse
import csv
import hashlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from safetensors import SafetensorError

from ..checkpoints.encoders import load_encoder
from ..configuration_audiolm import ENCODER_TYPES, list_encoder_types, parse_encoder_type
from ..data import FeatureCache, drop_bad_audio, encode_clips
from ..processing_audiolm import AudioLMFeatureExtractor
from ..runtime import run_info, use_all_of_the_cpu, write_run_info
from . import probes

LABEL_COLUMNS = ("label", "category", "target")
ESC_NAME = re.compile(
    r"(\d+)-(\d+)-[A-Z](?:-(\d+))?\.(?:wav|ogg|flac|mp3)"
)  # fold, recording, its take, class
NOTE = (
    "What these weights hold is not what their kinds could: MS-CLAP's HTSAT was trained on 22 audio tasks, then "
    "contrastively on captions, and may have heard clips tested here; "
    "Mimi was trained on speech, and hears up to 12 kHz."
)


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--encoder_type",
        nargs="+",
        required=True,
        metavar="ARM",
        help="of " + ", ".join(list_encoder_types()),
    )
    parser.add_argument(
        "--encoder_name_or_path",
        nargs="+",
        default=[],
        metavar="NAME",
        help="weights: one for each arm in "
        "order, or ARM=NAME; a folder, file or Hub name, or `random`; default: the published ones",
    )
    parser.add_argument("--labels", metavar="CSV", help="see above")
    parser.add_argument(
        "--label_column", help=f"default: the first that is there of {', '.join(LABEL_COLUMNS)}"
    )
    parser.add_argument(
        "--folds",
        type=int,
        metavar="K",
        help="draw K folds by --seed, each with its share of every class, "
        "and each `group` (column; else ESC's recording) in one; for a csv without fold and split",
    )
    parser.add_argument("--audio_dir", required=True, help="folder of the clips")
    parser.add_argument(
        "--output_dir", required=True, help="where probes.json and probe_predictions.csv go"
    )
    parser.add_argument(
        "--pooling",
        nargs="+",
        choices=probes.POOLINGS,
        default=["mean"],
        help="mean: logistic regression on "
        "the mean over frames, C chosen on a part of the training clips; attention: one learnt query weighs "
        "the frames, by a fixed recipe; memory: 0.3 MB a clip of 10 s. Default: mean",
    )
    parser.add_argument(
        "--controls",
        nargs="*",
        choices=probes.POOLINGS,
        help="poolings whose probes are also taught "
        "shuffled labels, which should end at chance; default: mean",
    )
    parser.add_argument(
        "--feature_cache", metavar="FOLDER", help="keep encoded clips here, as run_train.py's"
    )
    parser.add_argument(
        "--max_audio_seconds",
        type=float,
        default=10.0,
        help="seconds used of each clip; default: 10",
    )
    parser.add_argument(
        "--on_bad_audio", choices=("error", "skip"), default="error", help="default: error"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn; default: 0")
    args = parser.parse_args(argv)
    if len(set(args.encoder_type)) < len(args.encoder_type):
        parser.error(f"--encoder_type {' '.join(args.encoder_type)}: each arm once")
    try:
        for encoder_type in args.encoder_type:
            parse_encoder_type(encoder_type)
    except ValueError as error:
        parser.error(f"--{error}")
    words = args.encoder_name_or_path
    known = sorted([*args.encoder_type, *ENCODER_TYPES], key=len)
    found = {word: [of for of in known if word.startswith(f"{of}=")] for word in words}
    named = {
        of[-1]: word[len(of[-1]) + 1 :] for word, of in found.items() if of
    }  # the longest: silence=9=... is of silence=9
    if unknown := sorted(set(named) - set(args.encoder_type)):
        parser.error(
            f"--encoder_name_or_path {unknown[0]}=...: {unknown[0]} is not in --encoder_type"
        )
    if len(named) < len(words):
        if named or len(words) != len(args.encoder_type):
            parser.error(
                f"--encoder_name_or_path: {len(words)} given; one for each of {len(args.encoder_type)} arms, "
                "or ARM=NAME, is wanted"
            )
        named = dict(zip(args.encoder_type, args.encoder_name_or_path))
    args.encoders = {arm: named.get(arm) for arm in args.encoder_type}
    if other := sorted(set(args.controls or []) - set(args.pooling)):
        parser.error(f"--controls {other[0]}: not in --pooling")
    args.controls = [
        p for p in args.pooling if p in (["mean"] if args.controls is None else args.controls)
    ]
    args.pooling = list(dict.fromkeys(args.pooling))
    if (
        not args.max_audio_seconds > 0
        or (args.folds is not None and args.folds < 2)
        or args.seed < 0
    ):
        parser.error(
            "--max_audio_seconds above 0, --folds of 2 or more and a --seed of 0 or more are wanted"
        )
    return args


def read_labels(file: str | Path, label_column: str | None = None) -> list[dict[str, str]]:
    """The csv's rows as `filename`, `label` and, where it has them, `fold`, `split` and `group`; each clip once.

    Raises:
        ValueError: if it cannot be read, a column or a value is missing, or a clip has two labels or folds.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            rows, columns = [(reader.line_num, row) for row in reader], reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{file} cannot be read as a csv ({getattr(error, 'strerror', None) or error})"
        ) from error
    label = label_column or next((name for name in LABEL_COLUMNS if name in columns), "label")
    for name in ("filename", label):
        if name not in columns:
            raise ValueError(
                f"{file} has no column {name!r}; its columns are {', '.join(columns) or 'none'}"
            )
    taken = {
        "filename": "filename",
        "label": label,
        **{name: name for name in ("fold", "split", "group") if name in columns},
    }
    clips: dict[str, dict] = {}
    for number, row in rows:
        clip = {name: (row[column] or "").strip() for name, column in taken.items()}
        if None in row:
            raise ValueError(
                f"{file} line {number}: more values than columns; a comma inside one wants quotes around it"
            )
        if empty := [taken[name] for name, value in clip.items() if not value]:
            raise ValueError(f"{file} line {number}: {empty[0]} is empty")
        before = clips.setdefault(clip["filename"], clip)
        if differ := [name for name in clip if clip[name] != before[name]]:
            raise ValueError(
                f"{file} line {number}: {clip['filename']} stands there twice, with {taken[differ[0]]} "
                f"{before[differ[0]]!r} and {clip[differ[0]]!r}"
            )
    if not clips:
        raise ValueError(f"{file} has no rows")
    return list(clips.values())


def esc_clips(folder: Path) -> list[dict[str, str]]:
    """Clips of a folder whose names say fold and class; how many others there are is printed.

    Raises:
        ValueError: if there are none.
    """
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    found = {name: match for name in names if (match := ESC_NAME.fullmatch(name)) and match[3]}
    if not found:
        raise ValueError(
            f"--labels is wanted: no file in {folder} is named FOLD-RECORDING-TAKE-CLASS, as 1-100032-A-0.wav is"
        )
    if left := len(names) - len(found):
        print(
            f"{left} files of {folder} are left out: they are not named FOLD-RECORDING-TAKE-CLASS"
        )
    return [
        {"filename": name, "label": match[3], "fold": match[1]} for name, match in found.items()
    ]


def labelled_clips(args: argparse.Namespace) -> tuple[list[dict[str, str]], str]:
    """The clips, each with `audio` (its path in a list), `fold` or `split`, and `group`; and where the folds are from.

    Raises:
        ValueError: if labels are faulty, or nothing says which clips test and --folds does not ask for a draw.
    """
    folder = Path(args.audio_dir)
    if args.labels:
        clips = read_labels(args.labels, args.label_column)
    elif (meta := folder / "meta" / "esc50.csv").is_file():
        clips, folder = read_labels(meta, args.label_column or "category"), folder / "audio"
    elif args.label_column:
        raise ValueError(f"--label_column {args.label_column}: of which csv? --labels is wanted")
    else:
        clips = esc_clips(folder)
    names = [ESC_NAME.fullmatch(Path(clip["filename"]).name) for clip in clips]
    given = [name for name in ("fold", "split") if name in clips[0]] + ["--folds"] * bool(
        args.folds
    )
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} both say which clips test: give one of them")
    if not given and not all(names):
        raise ValueError(
            f"{args.labels} has neither a column fold nor split: add one, or give --folds 5 to draw folds"
        )
    for clip, name in zip(clips, names):
        clip.setdefault("group", name[2] if name else clip["filename"])
        if not given:  # ESC's own folds
            clip["fold"] = name[1]
        clip["audio"] = [str(folder / clip["filename"])]
    return clips, given[0] if given and args.labels else "ESC"


def features_of(
    encoder, arm: str, paths: list[str], args: argparse.Namespace
) -> tuple[np.ndarray, list, list[int]]:
    """Means over frames (clips, dim); features (frames, dim) of each clip, if a probe wants them; frames of each clip."""
    extractor = AudioLMFeatureExtractor.of_encoder(encoder, args.max_audio_seconds)
    if args.feature_cache:
        cache = FeatureCache(args.feature_cache, encoder, extractor)
        cache.fill(paths)
        encoded = ((path, cache[path]) for path in paths)
    else:
        encoded = encode_clips(
            encoder, extractor, sorted(set(paths)), desc=f"encoding clips, {arm}"
        )
    device, means, kept, frames = encoder.device, {}, {}, {}
    for path, clip in encoded:
        coded = (
            not clip.is_floating_point()
        )  # others are rounded as the cache rounds them, which thus changes no figure
        clip = (
            encoder.decode_codes(clip[None].to(device))[0].cpu()
            if coded
            else clip.bfloat16().float()
        )
        means[path], frames[path] = clip.mean(0).numpy(), len(clip)
        if "attention" in args.pooling:
            kept[path] = clip
    return (
        np.stack([means[path] for path in paths]),
        [kept[path] for path in paths if kept],
        [frames[path] for path in paths],
    )


def prepare(
    args: argparse.Namespace,
) -> tuple[list[dict], np.ndarray, list[probes.Fold], str, dict]:
    """Clips whose audio is sound, their labels, their folds and where those are from, and the encoders by arm."""
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    clips, origin = labelled_clips(args)
    rows = DatasetDict(clips=Dataset.from_list(clips))
    clips = list(
        drop_bad_audio(rows, args.max_audio_seconds, args.on_bad_audio, args.output_dir)["clips"]
    )
    labels, folds = probes.folds_of(clips, args.folds, args.seed)
    encoders = {}
    for arm, name in args.encoders.items():
        torch.manual_seed(args.seed)  # of random ones
        encoders[arm] = load_encoder(arm, name).to("cuda" if torch.cuda.is_available() else "cpu")
    if args.feature_cache:
        Path(args.feature_cache).mkdir(parents=True, exist_ok=True)
    return clips, labels, folds, origin, encoders


def main(argv=None):
    args = parse(argv)
    use_all_of_the_cpu()
    try:
        clips, labels, folds, origin, encoders = prepare(args)
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(f"run_probe.py: {' '.join(str(error).split())}")
    ordered = np.concatenate([fold.test for fold in folds])
    where = [fold.name for fold in folds for _ in fold.test]
    names, right = [clips[i]["filename"] for i in ordered], labels[ordered]
    digest = hashlib.sha256("".join(map("{}\t{}\t{}\n".format, names, right, where)).encode())
    report = {
        "clips": len(clips),
        "classes": dict(sorted(Counter(labels).items())),
        "labels_sha256": digest.hexdigest(),
        "folds_from": origin,
        "folds": {
            f.name: {kind: len(getattr(f, kind)) for kind in ("train", "validation", "test")}
            for f in folds
        },
        "settings": {
            key: getattr(args, key)
            for key in (
                "label_column",
                "folds",
                "max_audio_seconds",
                "on_bad_audio",
                "pooling",
                "controls",
                "seed",
            )
        },
        "hyperparameters": {
            "mean": probes.MEAN,
            "attention": probes.ATTENTION,
            "resamples": probes.RESAMPLES,
        },
        "encoders": {},
        "results": {p: {} for p in args.pooling},
        "shuffled_labels": {p: {} for p in args.controls},
    }
    predicted = {kind: {p: {} for p in report[kind]} for kind in ("results", "shuffled_labels")}
    for arm, encoder in encoders.items():
        means, kept, frames = features_of(encoder, arm, [clip["audio"][0] for clip in clips], args)
        report["encoders"][arm] = {
            "name_or_path": args.encoders[arm],
            "tokens_per_clip": float(np.mean(frames)),
            "dim": encoder.dim,
            "sample_rate": encoder.sample_rate,
        }
        for kind in predicted:
            for pooling in report[kind]:
                probe, of = {
                    "mean": (probes.probe_mean, means),
                    "attention": (probes.probe_attention, kept),
                }[pooling]
                made, settings = probes.probe_folds(
                    probe, of, labels, folds, args.seed, kind == "shuffled_labels", arm
                )
                predicted[kind][pooling][arm] = made
                report[kind][pooling][arm] = probes.figures(made, labels, folds, settings)
    # none of shuffled labels: clips that sound alike are guessed alike, so that shuffles differ more than clips would tell
    report["differences"] = {
        pooling: probes.add_intervals(
            report["results"][pooling], list_encoder_types, right, args.seed
        )
        for pooling, list_encoder_types in predicted["results"].items()
    }
    report["majority"] = probes.figures(probes.majority(labels, folds), labels, folds)
    report["note"] = NOTE
    output = Path(args.output_dir)
    (output / "probes.json").write_text(
        json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    write_run_info(output, run_info("run_probe.py", argv, labels_sha256=report["labels_sha256"]))
    columns = {
        f"{pooling}_{arm}": made
        for pooling, list_encoder_types in predicted["results"].items()
        for arm, made in list_encoder_types.items()
    }
    with open(output / "probe_predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["clip", "fold", "label", *columns])
        writer.writerows(zip(names, where, right, *columns.values()))
    print(probes.table(report))


if __name__ == "__main__":
    main()
