"""Lists and clears the feature cache: `audiolm cache`, `audiolm cache --clear`."""

import argparse
import json
import shutil
import time
from pathlib import Path

from ..runtime import UserError, format_bytes, report_user_errors
from .cache import ABOUT_FILE, choose_feature_cache


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of `audiolm cache`."""
    parser = argparse.ArgumentParser("audiolm cache", description=__doc__, allow_abbrev=False)
    parser.add_argument("--feature_cache", help="folder; default: that of run_train.py")
    parser.add_argument("--clear", action="store_true", help="delete the encoded clips")
    text = "list and clear only what was not written to for so many days"
    parser.add_argument("--unused_days", type=float, default=0, help=text)
    return parser


@report_user_errors("audiolm cache")
def main(argv: list[str] | None = None) -> None:
    """Runs `audiolm cache`."""
    args = build_parser().parse_args(argv)
    folder = Path(choose_feature_cache(args.feature_cache) or "none")
    if args.feature_cache and not folder.is_dir():
        raise UserError(f"--feature_cache {folder}: there is no such folder")
    print(folder)
    total = 0
    for part in sorted(folder.glob("*/")):
        days = (time.time() - part.stat().st_mtime) / 86400
        # Other folders are not ours to delete.
        if (part / ABOUT_FILE).is_file() and days >= args.unused_days:
            size = sum(file.stat().st_size for file in part.iterdir())
            about = json.loads((part / ABOUT_FILE).read_text(encoding="utf-8"))
            encoder = f"{about['encoder']}, {about['seconds']:g} s of a clip"
            print(f"  {part.name}  {encoder:<40} {format_bytes(size):>10}  {days:.0f} days old")
            total += size
            if args.clear:
                shutil.rmtree(part)
    print(f"{format_bytes(total)} {'deleted' if args.clear else 'in all'}")
