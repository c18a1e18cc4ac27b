"""Downloads files of several GB with the Hub's client, which resumes a broken connection."""

import hashlib
from pathlib import Path

from huggingface_hub.file_download import http_get

from ...runtime import UserError


def download(url: str, path: Path, size: int | None, md5: str | None) -> None:
    """Downloads a file: it is complete and verified, or absent.

    The received part stays in `PATH.part`. The next try or run continues it. A file that is there
    and has the checksum is not downloaded again.

    Args:
        url: Address of the file.
        path: Where to save it.
        size: Its bytes, or None if they are not known.
        md5: Its checksum in hexadecimal, or None if it is not known.

    Raises:
        UserError: If the server refuses or stays broken, the disk is full, or the file is not the
            one of this size and checksum.
    """
    if path.is_file() and md5 in (None, _md5(path)):
        return
    part = path.with_name(f"{path.name}.part")
    if part.is_file() and size is not None and part.stat().st_size > size:
        part.unlink()
    while True:
        with open(part, "ab") as file:
            start = file.tell()
            try:
                http_get(url, file, resume_size=start, expected_size=size)
                break
            except Exception as error:  # The client raises errors of several libraries.
                if file.tell() <= start:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    message = f"{url}: {reason}. Run the command again; it resumes."
                    raise UserError(message) from error
    if md5 not in (None, _md5(part)):
        part.unlink()
        raise UserError(f"{url}: its MD5 is not {md5}. Run the command again.")
    part.replace(path)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
