"""Download ReasonAQA and its free audio from their Zenodo records."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock, Timeout

from ...runtime import UserError, format_bytes, write_json
from .transfer import TIMEOUT_SECONDS, ResumingDownloader, check_free_space, download
from .unpack import check_py7zr, unpack


@dataclass(frozen=True)
class Archive:
    """A file of a Zenodo record.

    Attributes:
        record: Number of the record.
        name: File name in the record.
        target: Folder below the output folder that it is unpacked into.
        unpacked: Bytes that it may unpack to.
        md5: Its checksum. None: the record's.
    """

    record: int
    name: str
    target: str
    unpacked: int
    md5: str | None = None


CLOTHO_MD5 = {
    "development": "c8b05bc7acdb13895bb3c6a29608667e",
    "validation": "7dba730be08bada48bd15dc4e668df59",
    "evaluation": "4569624ccadf96223f19cb59fe4f849f",
}
REASONAQA_MD5 = "258cb947dda6b558a27660198f39c986"
GB = 10**9
SOURCES = {
    "reasonaqa": [Archive(15036628, "reasonaqa.zip", "", 2 * GB, REASONAQA_MD5)],
    "clotho": [  # v2.1
        Archive(4783391, f"clotho_audio_{split}.7z", f"ClothoV21/{split}", 12 * GB, md5)
        for split, md5 in CLOTHO_MD5.items()
    ],
    "clothoaqa": [Archive(6473207, "audio_files.zip", "ClothoAQA/audio_files", 8 * GB)],
}


class Offer:
    """An archive as its record offers it, and where it goes: `file` and `target`."""

    def __init__(self, archive: Archive, entry: dict, output: Path):
        md5 = re.fullmatch("md5:([0-9a-f]{32})", entry["checksum"])
        self.url = entry["links"]["self"]
        self.size = entry["size"]
        if md5 is None or self.size <= 0 or not self.url.startswith(("https://", "http://")):
            raise ValueError(f"{archive.name} has the entry {entry}")
        if archive.md5 not in (None, md5[1]):
            raise ValueError(f"{archive.name} has the MD5 {md5[1]}, expected {archive.md5}")
        self.md5 = md5[1]
        self.archive = archive
        self.file = output / "archives" / archive.name
        self.target = output / archive.target
        self.marker = self.file.with_name(f"{archive.name}.unpacked")

    def is_unpacked(self) -> bool:
        """Tells whether this very archive was unpacked and all of its files are there."""
        try:
            record = json.loads(self.marker.read_text(encoding="utf-8"))
            files = [self.target / name for name in record["names"]]
            return record["md5"] == self.md5 and all(file.is_file() for file in files)
        except (OSError, ValueError, KeyError, TypeError):  # absent, or edited by hand
            return False

    def missing_bytes(self) -> int:
        """Returns the bytes that are still to be downloaded."""
        if self.is_unpacked() or self.file.is_file():
            return 0
        part = self.file.with_name(f"{self.file.name}.part")
        return self.size - ResumingDownloader(part, self.size).received()

    def fetch(self) -> None:
        """Downloads and unpacks the archive."""
        download(self.url, self.file, self.size, self.md5)
        names = unpack(self.file, self.target, self.archive.unpacked)
        write_json(self.marker, {"md5": self.md5, "names": names})
        print(f"{self.archive.name}: {len(names):,} files in {self.target}", flush=True)


def read_offer(server: str, archive: Archive, output: Path) -> Offer:
    """Reads what a Zenodo record says of an archive, and compares it with the pinned checksum."""
    page = f"{server}/api/records/{archive.record}"
    try:
        response = requests.get(page, timeout=TIMEOUT_SECONDS)
        response.raise_for_status()
        entries = {entry["key"]: entry for entry in response.json()["files"]}
        return Offer(archive, entries[archive.name], output)
    except (requests.HTTPError, requests.ConnectionError, requests.Timeout) as error:
        raise UserError(f"{page}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"not the expected record ({type(error).__name__}: {error})"
        hint = "Is there a proxy or a login page in between, or has the record changed?"
        raise UserError(f"{page}: {reason}. {hint}") from error


def fetch_sources(names: list[str], output: str | Path, server: str = "https://zenodo.org") -> None:
    """Downloads sources into `output/archives` and unpacks them. What is there stays.

    Args:
        names: Keys of `SOURCES`.
        output: Folder of the dataset.
        server: Address that answers as Zenodo does.

    Raises:
        UserError: If a name is unknown, the disk is too small, or a download fails.
    """
    unknown = ", ".join(name for name in names if name not in SOURCES)
    if unknown:
        raise UserError(f"{unknown}: unknown source. Available: {', '.join(SOURCES)}.")
    folder = Path(output).resolve()
    (folder / "archives").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "archives" / ".lock", timeout=0):
            _fetch_sources(list(dict.fromkeys(names)), folder, server.rstrip("/"))
    except Timeout as error:
        raise UserError(f"{folder}: another process is downloading into it.") from error


def _fetch_sources(names: list[str], output: Path, server: str) -> None:
    offers = []
    for name in names:
        print(f"{name} ({server}/records/{SOURCES[name][0].record})")
        for archive in SOURCES[name]:
            offer = read_offer(server, archive, output)
            state = "unpacked already" if offer.is_unpacked() else f"-> {offer.target}"
            print(f"  {archive.name:30} {format_bytes(offer.size):>10}  {state}")
            offers.append(offer)
    pending = [offer for offer in offers if not offer.is_unpacked()]
    if any(offer.archive.name.endswith(".7z") for offer in pending):
        check_py7zr()
    missing = sum(offer.missing_bytes() for offer in offers)
    unpacked = sum(offer.archive.unpacked for offer in pending)
    print(f"to download: {format_bytes(missing)}", flush=True)
    purpose = f"({format_bytes(missing)} to download, up to {format_bytes(unpacked)} unpacked)"
    check_free_space(output, missing + unpacked, purpose)
    for offer in pending:
        offer.fetch()
    print(f"Complete. You may delete the archives in {output / 'archives'}.")
