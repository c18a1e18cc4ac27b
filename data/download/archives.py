"""Downloads ReasonAQA and its free audio from their Zenodo records, and ESC-50 from GitHub."""

import json
import shutil
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from huggingface_hub import get_session

from ...runtime import UserError, format_bytes, write_json
from .transfer import download
from .unpack import unpack

GB = 10**9


@dataclass(frozen=True)
class Archive:
    """A file of a Zenodo record, or another file with a `url`.

    Attributes:
        record: Number of the record, 0 without one.
        name: File name in the record.
        target: Folder below the output folder that it is unpacked into.
        unpacked: Bytes that it may unpack to.
        md5: Its checksum. None: the record's.
        url: Its address. Default: the record's.
        size: Its bytes. None: the record's, or unknown.
    """

    record: int
    name: str
    target: str
    unpacked: int
    md5: str | None = None
    url: str = ""
    size: int | None = None

    def is_unpacked(self, output: Path) -> bool:
        """Tells whether this very archive was unpacked and all of its files are there."""
        if not self._marker(output).is_file():
            return False
        record = json.loads(self._marker(output).read_text(encoding="utf-8"))
        files = [output / self.target / name for name in record["names"]]
        return record["md5"] == self.md5 and all(file.is_file() for file in files)

    def fetch(self, output: Path) -> None:
        """Downloads and unpacks the archive."""
        file = output / "archives" / self.name
        download(self.url, file, self.size, self.md5)
        try:
            names = unpack(file, output / self.target, self.unpacked)
        except UserError:
            if self.md5 is None:  # The file may be a login page.
                file.unlink()
            raise
        write_json(self._marker(output), {"md5": self.md5, "names": names})
        print(f"{self.name}: {len(names):,} files in {output / self.target}", flush=True)

    def _marker(self, output: Path) -> Path:
        return output / "archives" / f"{self.name}.unpacked"


CLOTHO_MD5 = {
    "development": "c8b05bc7acdb13895bb3c6a29608667e",
    "validation": "7dba730be08bada48bd15dc4e668df59",
    "evaluation": "4569624ccadf96223f19cb59fe4f849f",
}
REASONAQA_MD5 = "258cb947dda6b558a27660198f39c986"
ESC50_URL = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
SOURCES = {
    "reasonaqa": [Archive(15036628, "reasonaqa.zip", "", 2 * GB, REASONAQA_MD5)],
    "clotho": [  # v2.1
        Archive(4783391, f"clotho_audio_{split}.7z", f"ClothoV21/{split}", 12 * GB, md5)
        for split, md5 in CLOTHO_MD5.items()
    ],
    "clothoaqa": [Archive(6473207, "audio_files.zip", "ClothoAQA/audio_files", 8 * GB)],
    # GitHub builds the archive and states neither size nor checksum. Each file in it has one.
    "esc50": [Archive(0, "ESC-50.zip", "", 2 * GB, url=ESC50_URL)],
}


def read_record(server: str, archive: Archive) -> Archive:
    """Returns an archive with what its record says, compared with the pinned checksum."""
    page = f"{server}/api/records/{archive.record}"
    try:
        response = get_session().get(page)
        response.raise_for_status()
        entry = {entry["key"]: entry for entry in response.json()["files"]}[archive.name]
        md5 = entry["checksum"].removeprefix("md5:")
        if archive.md5 not in (None, md5):
            raise ValueError(f"{archive.name} has the MD5 {md5}, expected {archive.md5}")
        return replace(archive, md5=md5, url=entry["links"]["self"], size=int(entry["size"]))
    except Exception as error:  # of the HTTP library, or of another JSON than expected
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{page}: not the expected record ({reason})") from error


def fetch_sources(names: list[str], output: str | Path, server: str = "https://zenodo.org") -> None:
    """Downloads sources into `output/archives` and unpacks them. What is there stays.

    Args:
        names: Keys of `SOURCES`.
        output: Folder of the dataset.
        server: Address that answers as Zenodo does.

    Raises:
        UserError: If the disk is too small, or a download fails.
    """
    folder = Path(output).resolve()
    (folder / "archives").mkdir(parents=True, exist_ok=True)
    archives = []
    needed = 0
    for archive in chain.from_iterable(SOURCES[name] for name in names):
        if archive.record:
            archive = read_record(server, archive)
        state = f"-> {folder / archive.target}"
        if archive.is_unpacked(folder):
            state = "unpacked already"
        else:
            archives.append(archive)
            is_there = (folder / "archives" / archive.name).is_file()
            needed += archive.unpacked + (0 if is_there else archive.size or 0)
        print(f"  {archive.name:30} {format_bytes(archive.size or 0):>10}  {state}", flush=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        sizes = f"{format_bytes(free)} are free, but up to {format_bytes(needed)} are needed"
        raise UserError(f"{folder}: {sizes}. Choose another disk.")
    for archive in archives:
        archive.fetch(folder)
    print(f"Complete. You may delete the archives in {folder / 'archives'}.")
