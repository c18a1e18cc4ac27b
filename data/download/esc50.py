"""Download ESC-50, 2,000 labelled recordings of 5 s, from its repository."""

import zipfile
from pathlib import Path

import pooch
import requests

from ...runtime import UserError
from .transfer import check_free_space
from .unpack import unpack

URL = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
TABLE = "meta/esc50.csv"
NUM_RECORDINGS = 2000
ARCHIVE_BYTES = 650_000_000  # about: the server does not state the size
UNPACKED_BYTES = 2_000_000_000


def fetch_esc50(output: str | Path) -> None:
    """Downloads and unpacks the archive: `meta/esc50.csv` and `audio/*.wav`. What is there stays.

    GitHub builds the archive and states neither size nor checksum. Each file in it has a checksum,
    which is compared.

    Raises:
        UserError: If the download fails, the disk is too small, or files are missing or damaged.
    """
    folder = Path(output).resolve()
    if not _is_complete(folder):
        archives = folder / "archives"
        archives.mkdir(parents=True, exist_ok=True)
        check_free_space(folder, ARCHIVE_BYTES + UNPACKED_BYTES, "for ESC-50")
        try:
            archive = Path(pooch.retrieve(URL, None, "ESC-50.zip", archives, progressbar=True))
        except (requests.RequestException, OSError) as error:
            raise UserError(f"{URL}: {error}. Run the command again.") from error
        if not zipfile.is_zipfile(archive):
            archive.unlink()
            raise UserError(f"{URL}: not a zip file. Is there a login page in between?")
        unpack(archive, folder, UNPACKED_BYTES)
        if not _is_complete(folder):
            raise UserError(f"{URL}: lacks {TABLE} or some of {NUM_RECORDINGS} recordings")
    print(f"ESC-50: {folder / TABLE} and {NUM_RECORDINGS:,} recordings in {folder / 'audio'}")


def _is_complete(folder: Path) -> bool:
    is_described = (folder / TABLE).is_file()
    return is_described and len(list((folder / "audio").glob("*.wav"))) >= NUM_RECORDINGS
