"""ReasonAQA and the audio of it that anyone may download, from Zenodo: an interruption costs little, every byte is checked."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2
from filelock import FileLock, Timeout
from tqdm import tqdm

from .unpack import contents, need_7z, room, unpack

logger = logging.getLogger(__name__)
WAITS = (1, 2, 4, 8, 16, 32)  # seconds before the next try, after so many in a row that brought nothing new
SILENCE = 60.0  # seconds without a byte after which a connection counts as broken off
LONGEST_WAIT = 300  # seconds that a server may ask to wait
CHUNK = 1 << 20  # bytes of a file that are read at once


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
    "reasonaqa": Source(15036628, (
        Archive("reasonaqa.zip", "", "258cb947dda6b558a27660198f39c986", 2_000_000_000),
    ), "ReasonAQA's questions: train.json, val.json, test.json"),
    "clotho": Source(4783391, (
        Archive("clotho_audio_development.7z", "ClothoV21/development", "c8b05bc7acdb13895bb3c6a29608667e", 12_000_000_000),
        Archive("clotho_audio_validation.7z", "ClothoV21/validation", "7dba730be08bada48bd15dc4e668df59", 4_000_000_000),
        Archive("clotho_audio_evaluation.7z", "ClothoV21/evaluation", "4569624ccadf96223f19cb59fe4f849f", 4_000_000_000),
    ), "the audio of Clotho v2.1"),
    "clothoaqa": Source(6473207, (
        Archive("audio_files.zip", "ClothoAQA/audio_files", None, 8_000_000_000),
    ), "the audio of ClothoAQA"),
}  # fmt: skip


class Passing(Exception):
    """A fault that may be gone at the next try, which the server wants `wait` seconds later, if it says so."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


def _client() -> httpx2.Client:
    return httpx2.Client(timeout=SILENCE, follow_redirects=True)


def _persist(attempt: Callable, url: str, reached: Callable[[], int] = lambda: 0):
    """What `attempt()` returns, tried again after faults that pass, as long as `reached()` grows within a few tries."""
    furthest, failures = reached(), 0
    while True:
        try:
            return attempt()
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise ValueError(f"{url}: no address that can be asked ({error})") from error
        except (httpx2.TransportError, Passing) as error:
            if reached() > furthest:
                furthest, failures = reached(), 0
            said, wait = str(error) or type(error).__name__, getattr(error, "wait", None)
            if failures == len(WAITS) or (wait or 0) > LONGEST_WAIT:
                asked = f" and asks to wait {wait:.0f} s" if wait else ""
                raise OSError(f"{url}: {said}{asked}; run the same command again later, it goes on from where it is") from error
            wait = WAITS[failures] if wait is None else wait
            failures += 1
            logger.warning("%s: %s; tried again in %g s", url, said, wait)
            time.sleep(wait)
        except httpx2.HTTPError as error:
            raise OSError(f"{url}: {error}") from error


def _check_status(response: httpx2.Response) -> None:
    """Raises Passing if the server is busy or broken, OSError if it refuses."""
    status = f"the server answers {response.status_code} {response.reason_phrase}".strip()
    if response.status_code in (408, 429) or response.status_code >= 500:
        asked, wait = response.headers.get("Retry-After", ""), None
        with suppress(ValueError, TypeError):  # of a date that is none: the waits are our own then
            wait = float(asked) if asked.isdecimal() else max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
        raise Passing(status, wait)
    if response.status_code not in (200, 206):
        raise OSError(f"{response.url}: {status}")


def _md5(file: Path | None = None):
    found = hashlib.md5(usedforsecurity=False)
    if file is not None:
        with open(file, "rb") as stream:
            while chunk := stream.read(CHUNK):
                found.update(chunk)
    return found


class _Part:
    """The bytes of a file that have come, in `path`, and their MD5; `of` keeps the ETag or date of what they are part of."""

    def __init__(self, path: Path, size: int):
        self.path, self.size, self.of = path, size, path.with_name(f"{path.name}.etag")
        whole = path.is_file() and path.stat().st_size <= size
        self.bytes, self.md5 = path.stat().st_size if whole else 0, _md5(path if whole else None)

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.of.unlink(missing_ok=True)
        self.bytes, self.md5 = 0, _md5()

    def begin(self, headers: httpx2.Headers) -> None:
        self.drop()
        etag = headers.get("ETag", "W/")  # a weak one does not promise the same bytes
        of = headers.get("Last-Modified", "") if etag.startswith("W/") else etag
        self.of.write_text(of if of.isascii() else "", encoding="ascii")  # what can be sent back

    def headers(self) -> dict[str, str]:
        """Ask for the rest, or for the whole file if it is another one by now."""
        wanted = {"Accept-Encoding": "identity"}
        if self.bytes:
            wanted["Range"] = f"bytes={self.bytes}-"
            if self.of.is_file() and (of := self.of.read_text(encoding="ascii")):
                wanted["If-Range"] = of
        return wanted


def _offered(response: httpx2.Response) -> tuple[int, int | None]:
    """The first byte that a response brings, and how many the whole file has, if it is said."""
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return (int(found[1]), None if found[2] == "*" else int(found[2])) if found else (-1, None)


def _stream(client: httpx2.Client, url: str, part: _Part, bar: tqdm) -> None:
    """One request for what is missing of a file."""
    if part.bytes == part.size:
        return
    with client.stream("GET", url, headers=part.headers()) as response:
        if response.status_code == 416:
            part.drop()
            raise Passing("the server has no more bytes than are there already")
        _check_status(response)
        (start, total), kind = _offered(response), response.headers.get("Content-Type", "")
        if total not in (None, part.size) or "text/html" in kind:  # before what is there is dropped for it
            said = f"{total or 'unknown'} bytes of {kind or 'no type'} are offered, {part.size} are wanted"
            raise ValueError(f"{url}: {said}; is a proxy or a login page in between, or has the file changed?")
        if start == 0:
            part.begin(response.headers)  # also if the rest was asked for: it is another file, or the server knows no ranges
        elif start != part.bytes:
            part.drop()
            raise Passing("the server sends other bytes than those that it was asked for")
        bar.n = bar.initial = part.bytes
        with open(part.path, "ab") as file:
            for chunk in response.iter_raw():
                if len(chunk) > part.size - part.bytes:
                    raise ValueError(
                        f"{url}: the server sends more than the {part.size} bytes of the file; it was cut off there"
                    )
                file.write(chunk)
                part.md5.update(chunk)
                part.bytes += len(chunk)
                bar.update(len(chunk))
    if part.bytes < part.size:
        raise Passing(f"the connection ended at {part.bytes} of {part.size} bytes")


def _known(file: Path, md5: str) -> tuple[Path, bytes]:
    """Where it is kept that a file was verified, and what: its size and time, so that it is not read again while they stay."""
    status = file.stat()
    return file.with_name(f"{file.name}.md5"), f"{md5} {status.st_size} {status.st_mtime_ns}\n".encode()


def _is_whole(file: Path, size: int, md5: str) -> bool:
    if not file.is_file() or file.stat().st_size != size:
        return False
    known, now = _known(file, md5)
    if known.is_file() and known.read_bytes() == now:
        return True
    if (found := _md5(file).hexdigest()) != md5:
        logger.warning("%s has the MD5 %s, not %s: it is downloaded again", file, found, md5)
        return False
    known.write_bytes(now)
    return True


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    try:
        with FileLock(lock, timeout=0):  # the system's: gone with the process, however that ends
            yield
    except Timeout as error:
        raise OSError(f"another process is downloading into {lock.parent} ({lock.name} is locked): wait for its end") from error


def download(url: str, file: Path, size: int, md5: str) -> None:
    """Downloads a file whose size and checksum are known: it is there whole and verified, or not at all.

    What has come is kept as `file`.part; a broken connection and the next run go on from there.

    Raises:
        ValueError: if it is not the file that was promised.
        OSError: if the server refuses or stays broken, the disk is too small, or another process downloads the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file.with_name(f"{file.name}.lock")):
        if _is_whole(file, size, md5):
            return
        part = _Part(file.with_name(f"{file.name}.part"), size)
        room(file.parent, size - part.bytes, f"to download {file.name}")
        bar = tqdm(total=size, initial=part.bytes, desc=file.name, unit="B", unit_scale=True, disable=None)
        with bar, _client() as client:
            for last in (False, True):
                _persist(lambda: _stream(client, url, part, bar), url, lambda: part.bytes)
                if (found := part.md5.hexdigest()) == md5:
                    break
                part.drop()
                said = f"{url}: what came has the MD5 {found}, not {md5}"
                if last:
                    raise ValueError(f"{said}, and it was downloaded twice; it is deleted")
                logger.warning("%s; once more from the start", said)
        part.path.replace(file)
        part.of.unlink(missing_ok=True)
        known, now = _known(file, md5)
        known.write_bytes(now)


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
            return said["md5"] == self.md5 and all((self.target / name).is_file() for name in said["names"])
        return False

    def missing(self) -> int:
        """Bytes that are to be downloaded."""
        if self.is_unpacked() or _is_whole(self.file, self.size, self.md5):
            return 0
        part = self.file.with_name(f"{self.file.name}.part")
        there = part.stat().st_size if part.is_file() else 0
        return self.size - (there if there <= self.size else 0)

    def unpack(self) -> int:
        names = contents(self.file, self.archive.unpacked)
        count = unpack(self.file, self.target, self.archive.unpacked)
        part = self.marker.with_name(f"{self.marker.name}.part")  # whole or not at all
        part.write_text(json.dumps({"md5": self.md5, "files": count, "names": names}), encoding="utf-8")
        part.replace(self.marker)
        return count


def _offers(client: httpx2.Client, server: str, source: Source, output: Path) -> list[Offer]:
    """What the record of a source says of its archives. ValueError if it is not the record that is wanted."""
    page = f"{server}/api/records/{source.record}"

    def ask() -> httpx2.Response:
        response = client.get(page)
        _check_status(response)
        return response

    response = _persist(ask, page)
    try:
        files = {file["key"]: (file["size"], file["checksum"], file["links"]["self"]) for file in response.json()["files"]}
    except (ValueError, TypeError, KeyError) as error:
        kind = response.headers.get("Content-Type", "no type")
        raise ValueError(f"{page}: no JSON of a record, but {kind}; is a proxy or a login page in between?") from error
    offers = []
    for archive in source.archives:
        if archive.name not in files:
            raise ValueError(f"{page}: there is no {archive.name} in it, but {', '.join(map(str, files)) or 'no file'}")
        size, checksum, url = files[archive.name]
        md5 = re.fullmatch("md5:([0-9a-f]{32})", str(checksum))
        if not md5 or type(size) is not int or size <= 0 or not re.match("https?://", str(url)):
            raise ValueError(f"{page}: {archive.name} has the size {size!r}, checksum {checksum!r} and link {url!r}")
        if archive.md5 not in (None, md5[1]):
            raise ValueError(f"{page}: {archive.name} has the MD5 {md5[1]}, not {archive.md5}: the record has changed")
        offers.append(Offer(archive, size, md5[1], url, output / "archives" / archive.name, output / archive.target))
    return offers


def _table(offers: list[Offer]) -> str:
    rows = [("archive", "MB", "into", "")]
    for offer in offers:
        left = offer.missing()
        done = "unpacked already" if offer.is_unpacked() else "downloaded already"
        state = done if not left else f"{(offer.size - left) / 1e6:,.1f} MB are there" if left < offer.size else ""
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
        raise ValueError(f"{', '.join(unknown)}: no source of this name; there are {', '.join(SOURCES)}")
    server, output, sources = server.rstrip("/"), Path(output).resolve(), [SOURCES[name] for name in dict.fromkeys(names)]
    (output / "archives").mkdir(parents=True, exist_ok=True)
    with _alone(output / "archives" / ".lock"):
        with _client() as client:
            offers = [offer for source in sources for offer in _offers(client, server, source, output)]
        for source in sources:
            print(f"{source.what} ({server}/records/{source.record})")
        missing = sum(offer.missing() for offer in offers)
        print(f"\n{_table(offers)}\n\nto download: {missing / 1e6:,.1f} MB", flush=True)
        todo = [offer for offer in offers if not offer.is_unpacked()]
        if any(offer.archive.name.endswith(".7z") for offer in todo):
            need_7z()  # now, not after gigabytes
        unpacked = sum(offer.archive.unpacked for offer in todo)
        room(output, missing + unpacked, f"({missing / 1e9:.2f} to download, at most {unpacked / 1e9:.2f} to unpack)")
        for offer in todo:
            download(offer.url, offer.file, offer.size, offer.md5)
            print(f"{offer.archive.name}: {offer.unpack():,} files in {offer.target}", flush=True)
        print(f"All is there. The archives in {output / 'archives'} may be deleted, but not what is beside them.")
