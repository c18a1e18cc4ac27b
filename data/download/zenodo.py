"""ReasonAQA and the audio of it that anyone may download, from their records at Zenodo."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from .transfer import alone, check_status, download, is_whole, new_client, persist
from .unpack import contents, need_7z, room, unpack


@dataclass(frozen=True)
class Archive:
    """A file of a record.

    Attributes:
        target: folder below the output that it is unpacked into. md5: None: what the record says.
        unpacked: bytes that it may unpack to.
    """

    name: str
    target: str
    md5: str | None
    unpacked: int


@dataclass(frozen=True)
class Source:
    record: int
    archives: tuple[Archive, ...]
    what: str


# The audio is mono, 16 bits at 44.1 kHz, at most 30 s or 2.6 MB a clip: 3839, 1045 and 1045 clips of Clotho, 1991 of ClothoAQA.
SOURCES = {
    "reasonaqa": Source(
        15036628,
        (Archive("reasonaqa.zip", "", "258cb947dda6b558a27660198f39c986", 2_000_000_000),),
        "ReasonAQA's questions: train.json, val.json, test.json",
    ),
    "clotho": Source(
        4783391,
        (
            Archive(
                "clotho_audio_development.7z",
                "ClothoV21/development",
                "c8b05bc7acdb13895bb3c6a29608667e",
                12_000_000_000,
            ),
            Archive(
                "clotho_audio_validation.7z",
                "ClothoV21/validation",
                "7dba730be08bada48bd15dc4e668df59",
                4_000_000_000,
            ),
            Archive(
                "clotho_audio_evaluation.7z",
                "ClothoV21/evaluation",
                "4569624ccadf96223f19cb59fe4f849f",
                4_000_000_000,
            ),
        ),
        "the audio of Clotho v2.1",
    ),
    "clothoaqa": Source(
        6473207,
        (Archive("audio_files.zip", "ClothoAQA/audio_files", None, 8_000_000_000),),
        "the audio of ClothoAQA",
    ),
}


@dataclass(frozen=True)
class Offer:
    """An archive as its record offers it, where it is downloaded to (`file`) and unpacked into (`target`)."""

    archive: Archive
    size: int
    md5: str
    url: str
    file: Path
    target: Path

    @property
    def marker(self) -> Path:
        return self.file.with_name(f"{self.file.name}.unpacked")

    def is_unpacked(self) -> bool:
        """Whether this very archive was unpacked and all of its files are there."""
        if not self.marker.is_file():
            return False
        with suppress(ValueError, KeyError, TypeError):  # a marker that somebody changed
            said = json.loads(self.marker.read_text(encoding="utf-8"))
            return said["md5"] == self.md5 and all(
                (self.target / name).is_file() for name in said["names"]
            )
        return False

    def missing(self) -> int:
        """Bytes that are to be downloaded."""
        if self.is_unpacked() or is_whole(self.file, self.size, self.md5):
            return 0
        part = self.file.with_name(f"{self.file.name}.part")
        there = part.stat().st_size if part.is_file() else 0
        return self.size - (there if there <= self.size else 0)

    def unpack(self) -> int:
        names = contents(self.file, self.archive.unpacked)
        count = unpack(self.file, self.target, self.archive.unpacked)
        part = self.marker.with_name(f"{self.marker.name}.part")  # whole or not at all
        part.write_text(
            json.dumps({"md5": self.md5, "files": count, "names": names}), encoding="utf-8"
        )
        part.replace(self.marker)
        return count


def _offers(client: httpx2.Client, server: str, source: Source, output: Path) -> list[Offer]:
    """What the record of a source says of its archives. ValueError if it is not the record that is wanted."""
    page = f"{server}/api/records/{source.record}"

    def ask() -> httpx2.Response:
        response = client.get(page)
        check_status(response)
        return response

    response = persist(ask, page)
    try:
        files = {
            file["key"]: (file["size"], file["checksum"], file["links"]["self"])
            for file in response.json()["files"]
        }
    except (ValueError, TypeError, KeyError) as error:
        kind = response.headers.get("Content-Type", "no type")
        raise ValueError(
            f"{page}: no JSON of a record, but {kind}; is a proxy or a login page in between?"
        ) from error
    offers = []
    for archive in source.archives:
        if archive.name not in files:
            raise ValueError(
                f"{page}: there is no {archive.name} in it, but {', '.join(map(str, files)) or 'no file'}"
            )
        size, checksum, url = files[archive.name]
        md5 = re.fullmatch("md5:([0-9a-f]{32})", str(checksum))
        if not md5 or type(size) is not int or size <= 0 or not re.match("https?://", str(url)):
            raise ValueError(
                f"{page}: {archive.name} has the size {size!r}, checksum {checksum!r} and link {url!r}"
            )
        if archive.md5 not in (None, md5[1]):
            raise ValueError(
                f"{page}: {archive.name} has the MD5 {md5[1]}, not {archive.md5}: the record has changed"
            )
        offers.append(
            Offer(
                archive,
                size,
                md5[1],
                url,
                output / "archives" / archive.name,
                output / archive.target,
            )
        )
    return offers


def _table(offers: list[Offer]) -> str:
    rows = [("archive", "MB", "into", "")]
    for offer in offers:
        left = offer.missing()
        done = "unpacked already" if offer.is_unpacked() else "downloaded already"
        state = (
            done
            if not left
            else f"{(offer.size - left) / 1e6:,.1f} MB are there"
            if left < offer.size
            else ""
        )
        rows.append((offer.archive.name, f"{offer.size / 1e6:,.1f}", str(offer.target), state))
    name, size, into = (max(len(row[column]) for row in rows) for column in range(3))
    return "\n".join(f"{a:{name}}  {b:>{size}}  {c:{into}}  {d}".rstrip() for a, b, c, d in rows)


def get(names: list[str], output: str | Path, server: str = "https://zenodo.org") -> None:
    """Downloads sources into `output`/archives and unpacks them into `output`; what is there already stays as it is.

    Args:
        names: of SOURCES. server: that answers as Zenodo does.

    Raises:
        ValueError, OSError: in one line, also those of [`download`] and [`unpack`].
    """
    if unknown := [name for name in names if name not in SOURCES]:
        raise ValueError(
            f"{', '.join(unknown)}: no source of this name; there are {', '.join(SOURCES)}"
        )
    server, output, sources = (
        server.rstrip("/"),
        Path(output).resolve(),
        [SOURCES[name] for name in dict.fromkeys(names)],
    )
    (output / "archives").mkdir(parents=True, exist_ok=True)
    with alone(output / "archives" / ".lock"):
        with new_client() as client:
            offers = [
                offer for source in sources for offer in _offers(client, server, source, output)
            ]
        for source in sources:
            print(f"{source.what} ({server}/records/{source.record})")
        missing = sum(offer.missing() for offer in offers)
        print(f"\n{_table(offers)}\n\nto download: {missing / 1e6:,.1f} MB", flush=True)
        todo = [offer for offer in offers if not offer.is_unpacked()]
        if any(offer.archive.name.endswith(".7z") for offer in todo):
            need_7z()  # now, not after gigabytes
        unpacked = sum(offer.archive.unpacked for offer in todo)
        room(
            output,
            missing + unpacked,
            f"({missing / 1e9:.2f} to download, at most {unpacked / 1e9:.2f} to unpack)",
        )
        for offer in todo:
            download(offer.url, offer.file, offer.size, offer.md5)
            print(f"{offer.archive.name}: {offer.unpack():,} files in {offer.target}", flush=True)
        print(
            f"All is there. The archives in {output / 'archives'} may be deleted, but not what is beside them."
        )
