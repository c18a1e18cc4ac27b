"""Gets ReasonAQA, checks it, and makes shards of it that train without tens of thousands of files.

`run_prepare.py download DATA`, `run_prepare.py check DATA`, `run_prepare.py convert DATA --output SHARDS` and
`run_prepare.py push SHARDS --hub_dataset_id me/reasonaqa`; each explains itself with `--help`.
"""

import argparse
import json
import logging
import re
import sys
from pathlib import Path

from huggingface_hub import HfApi, get_token

from ..runtime import redact_token
from . import audio_roots, drop_bad_audio, load_reasonaqa, resolve_path, select_rows
from .audio_check import inspect_clips
from .convert import Conversion
from .corpus_check import FINDINGS, CorpusCheck, table
from .download.audiocaps import NAME, youtube_index
from .download.zenodo import get
from .json_table import stream_array
from .label_fixes import entailment_labels
from .shards import MANIFEST, PUSHED, split_files

SPLITS = ("train", "val", "test")


def _corpus_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", help="folder with train.json, val.json and test.json, or some of them"
    )
    parser.add_argument(
        "--audio_dir",
        nargs="+",
        help="folder of the audio, or SOURCE=FOLDER for each first part of the rows' "
        "paths; default: DATA, or DATA/audio if the first clip is there",
    )
    parser.add_argument(
        "--max_audio_seconds", type=float, default=10.0, help="seconds used of each clip"
    )
    parser.add_argument(
        "--subtypes", nargs="+", help="rows of these subtypes alone, such as `Clotho-MCQ CLE`"
    )
    parser.add_argument("--question_types", nargs="+", help="rows of these question types alone")


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    get = command(
        "download",
        "Downloads and unpacks ReasonAQA, Clotho v2.1 and ClothoAQA; interrupted, it goes on.",
    )
    get.add_argument("data", help="folder that they are put into")
    get.add_argument(
        "--what",
        nargs="+",
        choices=("reasonaqa", "clotho", "clothoaqa"),
        default=["reasonaqa", "clotho", "clothoaqa"],
        help="which of them",
    )
    get.add_argument(
        "--audiocaps",
        metavar="FOLDER",
        help="your copy of AudioCaps: says how many of ReasonAQA's clips are in it",
    )
    get.add_argument("--server", default="https://zenodo.org", help="address of the archive")

    check = command(
        "check",
        "Looks at every row and clip, prints a table, and exits with 1 if training on it would be wrong.",
    )
    _corpus_options(check)
    check.add_argument("--output", default="check.json", help="JSON file of the report")
    check.add_argument(
        "--entailment_csv",
        nargs="+",
        help="AudioEntailment's csv files: CLE's labels are compared with them",
    )
    check.add_argument(
        "--max_answer_words", type=int, default=300, help="longer answers are counted"
    )
    check.add_argument(
        "--allow",
        nargs="+",
        default=[],
        choices=[name for name, (wrong, _) in FINDINGS.items() if wrong],
        help="findings that are known and do not count as wrong",
    )

    convert = command("convert", "Writes a data set of Parquet shards; interrupted, it goes on.")
    _corpus_options(convert)
    convert.add_argument("--output", required=True, help="folder of the data set")
    convert.add_argument(
        "--audio",
        choices=("referenced", "embedded"),
        default="referenced",
        help="each clip once, named by the rows; or in every row about it, for --streaming",
    )
    convert.add_argument(
        "--audio_format", choices=("flac", "wav"), default="flac", help="of 16 bits, mono"
    )
    convert.add_argument(
        "--sampling_rate", type=int, help="resample all to it, once; default: each clip's own rate"
    )
    convert.add_argument(
        "--on_bad_audio", choices=("error", "skip"), default="error", help="what broken files do"
    )

    push = command("push", "Uploads a converted data set with its card.")
    push.add_argument("data", help="folder that `convert` wrote")
    push.add_argument("--hub_dataset_id", required=True, help="its name on the Hub, user/name")
    push.add_argument("--private", action="store_true", help="make it private")
    args = parser.parse_args(argv)
    for option in ("max_audio_seconds", "max_answer_words", "sampling_rate"):
        if (value := getattr(args, option, None)) is not None and value <= 0:
            parser.error(f"--{option} {value}: a number above 0 is wanted")
    return args


def json_files(folder: str) -> dict[str, Path]:
    """The JSON file of each split in a folder.

    Raises:
        ValueError: if there is none.
    """
    files = {split: file for split in SPLITS if (file := Path(folder, f"{split}.json")).is_file()}
    if not files:
        raise ValueError(f"{folder}: no train.json, val.json or test.json is there")
    return files


def corpus(args: argparse.Namespace):
    """The rows of a folder, by split.

    Raises:
        ValueError: if there are none.
    """
    files, roots = json_files(args.data), args.audio_dir
    if not roots:
        first = next(stream_array(next(iter(files.values()))), None)
        name = first.get("filepath1") if isinstance(first, dict) else None
        inner = str(Path(args.data, "audio"))
        roots = [
            inner
            if isinstance(name, str) and Path(resolve_path(name, inner)).is_file()
            else args.data
        ]
    data = load_reasonaqa(files, audio_roots(roots))
    if args.subtypes or args.question_types:
        for split in data:
            data[split] = select_rows(data[split], args.subtypes, args.question_types)
    return data


def check(args: argparse.Namespace) -> int:
    labels = entailment_labels(args.entailment_csv) if args.entailment_csv else None
    data = corpus(args)
    facts = inspect_clips(
        [clip for rows in data.values() for clips in rows["audio"] for clip in clips],
        args.max_audio_seconds,
    )
    report = CorpusCheck(data, facts, args.max_audio_seconds, args.max_answer_words, labels).report(
        tuple(args.allow)
    )
    print(table(report))
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if report["wrong"] else 0


def convert(args: argparse.Namespace) -> int:
    data = drop_bad_audio(corpus(args), args.max_audio_seconds, args.on_bad_audio, args.output)
    conversion = Conversion(
        data,
        args.output,
        args.audio == "embedded",
        args.max_audio_seconds,
        args.sampling_rate,
        args.audio_format,
    )
    print(f"{len(conversion.clips):,} clips and {sum(map(len, data.values())):,} rows")
    conversion.write()
    written = json.loads(Path(args.output, MANIFEST).read_text())["bytes"]
    print(f"{written / 1e9:.2f} GB written; train with `run_train.py --dataset_name {args.output}`")
    return 0


def push(args: argparse.Namespace) -> int:
    split_files(Path(args.data))  # raises if it is none
    api = HfApi()
    try:
        name = api.create_repo(
            args.hub_dataset_id, repo_type="dataset", private=args.private, exist_ok=True
        ).repo_id
        if args.private and not api.dataset_info(name).private:
            raise ValueError(f"--private: {name} is there already, and public")
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=args.data,
            allow_patterns=list(PUSHED),
            delete_patterns=list(PUSHED[:2]),
            commit_message="Upload the data set",
        )
    except ValueError:
        raise
    except Exception as error:  # the Hub fails in many ways
        raise ValueError(
            f"not pushed to {args.hub_dataset_id}: {redact_token(error, get_token())}; run it again to go on"
        ) from error
    print(f"pushed to {name}; train with `run_train.py --dataset_name {name}`")
    return 0


def download(args: argparse.Namespace) -> int:
    if args.audiocaps and not Path(args.audiocaps).is_dir():
        raise ValueError(f"--audiocaps {args.audiocaps}: no folder is there")
    get(args.what, Path(args.data), args.server)
    if args.audiocaps:
        folder = str(Path(args.audiocaps).absolute())
        index = youtube_index(folder)
        for split, file in json_files(args.data).items():
            names = {
                row[field] for row in stream_array(file) for field in ("filepath1", "filepath2")
            }
            ids = {
                found[1]
                for name in names
                if (found := NAME.fullmatch(re.split(r"[/\\]", name)[-1]))
            }
            print(
                f"AudioCaps: {len(ids & index.keys()):,} of the {len(ids):,} clips of {split} are in {args.audiocaps}"
            )
        print(
            f"train with --audio_dir ClothoV21={args.data}/ClothoV21 ClothoAQA={args.data}/ClothoAQA AudioCapsLarger={folder}"
        )
    return 0


def main(argv=None) -> None:
    args = parse(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        status = {"download": download, "check": check, "convert": convert, "push": push}[
            args.command
        ](args)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"run_prepare.py {args.command}: {error}")
    sys.exit(status)


if __name__ == "__main__":
    main()
