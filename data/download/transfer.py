"""Downloads that an interruption costs little and of which every byte is checked."""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2
from filelock import FileLock, Timeout
from tqdm import tqdm

from .unpack import room

logger = logging.getLogger(__name__)
WAITS = (
    1,
    2,
    4,
    8,
    16,
    32,
)  # seconds before the next try, after so many in a row that brought nothing new
SILENCE = 60.0  # seconds without a byte after which a connection counts as broken off
LONGEST_WAIT = 300  # seconds that a server may ask to wait
CHUNK = 1 << 20  # bytes of a file that are read at once


class Passing(Exception):
    """A fault that may be gone at the next try, which the server wants `wait` seconds later, if it says so."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


def new_client() -> httpx2.Client:
    return httpx2.Client(timeout=SILENCE, follow_redirects=True)


def persist(attempt: Callable, url: str, reached: Callable[[], int] = lambda: 0):
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
                raise OSError(
                    f"{url}: {said}{asked}; run the same command again later, it goes on from where it is"
                ) from error
            wait = WAITS[failures] if wait is None else wait
            failures += 1
            logger.warning("%s: %s; tried again in %g s", url, said, wait)
            time.sleep(wait)
        except httpx2.HTTPError as error:
            raise OSError(f"{url}: {error}") from error


def check_status(response: httpx2.Response) -> None:
    """Raises Passing if the server is busy or broken, OSError if it refuses."""
    status = f"the server answers {response.status_code} {response.reason_phrase}".strip()
    if response.status_code in (408, 429) or response.status_code >= 500:
        asked, wait = response.headers.get("Retry-After", ""), None
        with suppress(ValueError, TypeError):  # of a date that is none: the waits are our own then
            wait = (
                float(asked)
                if asked.isdecimal()
                else max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
            )
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
        check_status(response)
        (start, total), kind = _offered(response), response.headers.get("Content-Type", "")
        if (
            total not in (None, part.size) or "text/html" in kind
        ):  # before what is there is dropped for it
            said = f"{total or 'unknown'} bytes of {kind or 'no type'} are offered, {part.size} are wanted"
            raise ValueError(
                f"{url}: {said}; is a proxy or a login page in between, or has the file changed?"
            )
        if start == 0:
            part.begin(
                response.headers
            )  # also if the rest was asked for: it is another file, or the server knows no ranges
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
    return file.with_name(
        f"{file.name}.md5"
    ), f"{md5} {status.st_size} {status.st_mtime_ns}\n".encode()


def is_whole(file: Path, size: int, md5: str) -> bool:
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
def alone(lock: Path) -> Iterator[None]:
    try:
        with FileLock(lock, timeout=0):  # the system's: gone with the process, however that ends
            yield
    except Timeout as error:
        raise OSError(
            f"another process is downloading into {lock.parent} ({lock.name} is locked): wait for its end"
        ) from error


def download(url: str, file: Path, size: int, md5: str) -> None:
    """Downloads a file whose size and checksum are known: it is there whole and verified, or not at all.

    What has come is kept as `file`.part; a broken connection and the next run go on from there.

    Raises:
        ValueError: if it is not the file that was promised.
        OSError: if the server refuses or stays broken, the disk is too small, or another process downloads the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with alone(file.with_name(f"{file.name}.lock")):
        if is_whole(file, size, md5):
            return
        part = _Part(file.with_name(f"{file.name}.part"), size)
        room(file.parent, size - part.bytes, f"to download {file.name}")
        bar = tqdm(
            total=size, initial=part.bytes, desc=file.name, unit="B", unit_scale=True, disable=None
        )
        with bar, new_client() as client:
            for last in (False, True):
                persist(lambda: _stream(client, url, part, bar), url, lambda: part.bytes)
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
