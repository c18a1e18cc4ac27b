"""Download files of several GB: pooch verifies them, a broken connection costs nothing."""

import logging
import shutil
import time
from pathlib import Path

import pooch
import requests
from tqdm import tqdm

from ...runtime import UserError, format_bytes

logger = logging.getLogger(__name__)
MAX_FAILURES = 6  # in a row, without a new byte
MAX_WAIT_SECONDS = 30
TIMEOUT_SECONDS = 60  # without a byte
CHUNK_BYTES = 1 << 14  # what a broken connection may lose


def check_free_space(folder: Path, needed: int, purpose: str) -> None:
    """Raises `UserError` if the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {format_bytes(free)} are free, but {format_bytes(needed)} are needed "
            f"{purpose}. Free some space or choose another disk."
        )


class ResumingDownloader:
    """Downloads into `part` and continues it after a failure. pooch calls it.

    Args:
        part: File of the bytes received so far. It survives a failed run.
        size: Bytes of the complete file.
    """

    def __init__(self, part: Path, size: int):
        self.part = part
        self.size = size

    def received(self) -> int:
        """Returns the number of bytes received so far."""
        size = self.part.stat().st_size if self.part.is_file() else 0
        return size if size <= self.size else 0

    def __call__(self, url: str, output_file: str, pooch_instance: object = None) -> None:
        """Downloads `url` into `output_file`, with new tries while new bytes arrive."""
        failures = 0
        while self.received() < self.size:
            before = self.received()
            try:
                self._request(url, before)
            except requests.RequestException as error:
                failures = 1 if self.received() > before else failures + 1
                if failures > MAX_FAILURES or _is_refusal(error):
                    raise
                wait = min(2**failures / 2, MAX_WAIT_SECONDS)
                logger.warning("%s; trying again in %g s", error, wait)
                time.sleep(wait)
        shutil.move(self.part, output_file)

    def _request(self, url: str, start: int) -> None:
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
            response.raise_for_status()
            if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                start = 0  # the server sends the whole file
            offered = start + int(response.headers.get("Content-Length", self.size - start))
            if offered != self.size or "text/html" in response.headers.get("Content-Type", ""):
                raise UserError(
                    f"{url}: the server offers {offered} bytes, expected {self.size}. Is there a "
                    "proxy or a login page in between, or has the file changed?"
                )
            with open(self.part, "ab") as file, self._progress(start) as bar:
                file.seek(file.truncate(start))
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk[: self.size - file.tell()])
                    bar.update(len(chunk))

    def _progress(self, start: int) -> tqdm:
        options = {"unit": "B", "unit_scale": True, "disable": None}
        return tqdm(total=self.size, initial=start, desc=self.part.stem, **options)


def _is_refusal(error: requests.RequestException) -> bool:
    """Tells whether a server refuses for good, such as 404. A busy one may be asked again."""
    status = 0 if error.response is None else error.response.status_code
    return 400 <= status < 500 and status not in (408, 416, 429)


def download(url: str, path: Path, size: int, md5: str) -> None:
    """Downloads a file: it is complete and verified, or absent.

    The received part stays in `PATH.part`. The next try or run continues it. A file that is
    there and has the checksum is not downloaded again.

    Raises:
        UserError: If the server refuses or stays broken, the disk is full, or the file is not the
            one of this size and checksum.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    downloader = ResumingDownloader(path.with_name(f"{path.name}.part"), size)
    if not path.is_file():
        check_free_space(path.parent, size - downloader.received(), f"to download {path.name}")
    try:
        pooch.retrieve(url, f"md5:{md5}", path.name, path.parent, downloader=downloader)
    except UserError:
        raise
    except requests.RequestException as error:
        raise UserError(f"{url}: {error}. Run the command again; it resumes.") from error
    except ValueError as error:  # another checksum
        raise UserError(f"{url}: {error}") from error
