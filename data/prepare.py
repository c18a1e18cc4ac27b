"""Downloads, checks, converts and pushes ReasonAQA: `audiolm prepare COMMAND`."""

import argparse
import logging
import re
import sys
from pathlib import Path

from datasets import DatasetDict
from huggingface_hub import HfApi, get_token

from ..runtime import (
    UserError,
    explain_errors,
    format_bytes,
    redact_token,
    report_user_errors,
    write_json,
)
from .audio_check import drop_bad_audio, inspect_clips, list_clips
from .audit.corpus_check import ERRORS, check_corpus, format_report
from .convert import Conversion
from .download.archives import SOURCES, fetch_sources
from .download.audiocaps import REASONAQA_NAME, youtube_index
from .json_table import stream_array
from .reasonaqa import audio_roots, load_rows, resolve_path
from .shards import PUSHED, read_manifest
from .subsets import select_rows

REASONAQA_SOURCES = ("reasonaqa", "clotho", "clothoaqa")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `audiolm prepare` with its four commands."""
    parser = argparse.ArgumentParser(prog="audiolm prepare", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for run_command in (download, check, convert, push):
        description = (run_command.__doc__ or "").splitlines()[0]
        command = subparsers.add_parser(
            run_command.__name__,
            help=description,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(run_command=run_command)
        command.add_argument("data", help="Folder of the data.")
    _add_download_options(subparsers.choices["download"])
    for name in ("check", "convert"):
        _add_corpus_options(subparsers.choices[name])
    _add_check_options(subparsers.choices["check"])
    _add_convert_options(subparsers.choices["convert"])
    push_parser = subparsers.choices["push"]
    push_parser.add_argument("--hub_dataset_id", required=True, help="Name on the Hub, USER/NAME.")
    push_parser.add_argument("--private", action="store_true", help="Make the data set private.")
    return parser


def _add_download_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--what",
        nargs="+",
        choices=list(SOURCES),
        help="What to download. Default: ReasonAQA and its audio, or ESC-50 for a folder `esc50`.",
    )
    parser.add_argument(
        "--audiocaps",
        metavar="FOLDER",
        help="Your copy of AudioCaps. Prints how many of ReasonAQA's clips it contains.",
    )


def _add_corpus_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--audio_dir",
        nargs="+",
        help="Folder of the audio, or SOURCE=FOLDER for each first part of the rows' paths. "
        "Default: DATA, or DATA/audio if it contains the first clip.",
    )
    parser.add_argument(
        "--max_audio_seconds", type=float, default=10.0, help="Seconds used of a clip."
    )
    parser.add_argument(
        "--subtypes", nargs="+", help="Use only these subtypes, such as `Clotho-MCQ CLE`."
    )
    parser.add_argument("--question_types", nargs="+", help="Use only these question types.")


def _add_check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="check.json", help="JSON file of the report.")
    parser.add_argument(
        "--allow", nargs="+", default=[], choices=ERRORS, help="Findings that are no errors."
    )


def _add_convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, help="Folder of the data set.")
    parser.add_argument(
        "--audio",
        choices=("referenced", "embedded"),
        default="referenced",
        help="Store each clip once, or in every row about it (for --streaming).",
    )
    parser.add_argument(
        "--on_bad_audio",
        choices=("error", "skip"),
        default="error",
        help="Stop at unreadable clips, or drop their rows.",
    )


def download(args: argparse.Namespace) -> int:
    """Downloads and unpacks ReasonAQA and its free audio, or ESC-50. Run it again to resume."""
    if args.audiocaps and not Path(args.audiocaps).is_dir():
        raise UserError(f"--audiocaps {args.audiocaps}: folder not found")
    is_esc50 = Path(args.data).name == "esc50"
    with explain_errors("", OSError):
        fetch_sources(args.what or (["esc50"] if is_esc50 else REASONAQA_SOURCES), args.data)
    if args.audiocaps:
        _print_audiocaps(args.data, args.audiocaps)
    return 0


def _print_audiocaps(data: str, audiocaps: str) -> None:
    """Prints how many clips of each split are in a copy of AudioCaps, and the training option."""
    folder = str(Path(audiocaps).absolute())
    index = youtube_index(folder)
    for split, file in _json_files(data).items():
        names = set()
        for row in stream_array(file):
            names |= {row["filepath1"], row["filepath2"]}
        matches = [REASONAQA_NAME.fullmatch(re.split(r"[/\\]", name)[-1]) for name in names]
        ids = {match[1] for match in matches if match}
        present = len(ids & index.keys())
        print(f"AudioCaps: {present:,} of the {len(ids):,} clips of {split} are in {audiocaps}")
    folders = f"ClothoV21={data}/ClothoV21 ClothoAQA={data}/ClothoAQA AudioCapsLarger={folder}"
    print(f"train with --audio_dir {folders}")


def check(args: argparse.Namespace) -> int:
    """Checks every row and clip and prints a table. The exit status is 1 if there are errors."""
    data = _load_corpus(args)
    facts = inspect_clips(list_clips(data.values()), args.max_audio_seconds)
    report = check_corpus(data, facts, args.max_audio_seconds, args.allow)
    print(format_report(report))
    with explain_errors(f"--output {args.output}: not writable", OSError):
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, report)
    return 1 if report["wrong"] else 0


def convert(args: argparse.Namespace) -> int:
    """Writes a data set of Parquet shards in place of many files. Run it again to resume."""
    data = _load_corpus(args)
    data = drop_bad_audio(data, args.max_audio_seconds, args.on_bad_audio, args.output)
    is_embedded = args.audio == "embedded"
    conversion = Conversion(data, Path(args.output), is_embedded, args.max_audio_seconds)
    num_rows = sum(map(len, data.values()))
    print(f"{len(conversion.clips):,} clips and {num_rows:,} rows")
    size = format_bytes(conversion.write())
    print(f"{size} written; train with `run_train.py --dataset_name {args.output}`")
    return 0


def push(args: argparse.Namespace) -> int:
    """Uploads a converted data set and its card to the Hub."""
    read_manifest(Path(args.data))  # raises an error for an incomplete conversion
    api = HfApi()
    try:
        repo = api.create_repo(
            args.hub_dataset_id, repo_type="dataset", private=args.private, exist_ok=True
        )
        name = repo.repo_id
        if args.private and not api.dataset_info(name).private:
            raise UserError(f"--private: {name} exists and is public")
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=args.data,
            allow_patterns=list(PUSHED),
            delete_patterns=list(PUSHED[:2]),
            commit_message="Upload the data set",
        )
    except UserError:
        raise
    except Exception as error:  # The Hub's client raises errors of many libraries.
        message = f"{redact_token(error, get_token())}. Run it again to resume."
        raise UserError(f"not pushed to {args.hub_dataset_id}: {message}") from error
    print(f"pushed to {name}; train with `run_train.py --dataset_name {name}`")
    return 0


def _json_files(folder: str) -> dict[str, Path]:
    files = {split: Path(folder, f"{split}.json") for split in ("train", "val", "test")}
    files = {split: file for split, file in files.items() if file.is_file()}
    if not files:
        raise UserError(f"{folder}: no train.json, val.json or test.json found")
    return files


def _load_corpus(args: argparse.Namespace) -> DatasetDict:
    if args.max_audio_seconds <= 0:
        raise UserError(f"--max_audio_seconds {args.max_audio_seconds}: expected a positive number")
    files = _json_files(args.data)
    roots = args.audio_dir or [_find_audio_dir(args.data, next(iter(files.values())))]
    data = load_rows(files, audio_roots(roots))
    for split in data:
        data[split] = select_rows(data[split], args.subtypes, args.question_types)
    return data


def _find_audio_dir(data: str, file: Path) -> str:
    """Returns the folder `audio` in `data` if it contains the first clip, else `data`."""
    audio_dir = str(Path(data, "audio"))
    name = next(stream_array(file), {}).get("filepath1")
    has_clip = isinstance(name, str) and Path(resolve_path(name, audio_dir)).is_file()
    return audio_dir if has_clip else data


def main(argv: list[str] | None = None) -> None:
    """Runs `audiolm prepare`. Default options: those of the command line."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with report_user_errors(f"audiolm prepare {args.command}"):
        status = args.run_command(args)
    sys.exit(status)
