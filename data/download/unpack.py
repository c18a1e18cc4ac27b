"""Unpacks zip and 7z archives into a folder, and nowhere else."""

import shutil
import zipfile
from os.path import commonpath
from pathlib import Path
from tempfile import TemporaryDirectory

from ...runtime import UserError

SCRATCH = ".unpacking."
MAC_METADATA = {"__MACOSX", ".DS_Store"}


def _extract(archive: Path, folder: str, limit: int) -> None:
    """Extracts an archive. Both readers refuse names that lead out of the folder or rename them."""
    if zipfile.is_zipfile(archive):
        reader = zipfile.ZipFile(archive)
        size = sum(info.file_size for info in reader.infolist())
    else:
        try:
            import py7zr
        except ImportError as error:
            message = "7z archives need py7zr: `uv sync --extra prepare`, or `pip install py7zr`."
            raise UserError(message) from error
        reader = py7zr.SevenZipFile(archive)
        size = sum(file.uncompressed for file in reader.files)
    with reader:
        if size > limit:
            raise UserError(f"{archive}: would unpack to {size:,} bytes, more than {limit:,}")
        reader.extractall(folder)


def unpack(archive: Path, target: Path, limit: int) -> list[str]:
    """Unpacks an archive. Folders that all of its files share are dropped.

    The files appear in `target` after all of them were read and their checksums compared.

    Args:
        archive: A zip or 7z file.
        target: `development/x.wav` and `x.wav` both become `target/x.wav`.
        limit: Bytes that the archive may unpack to.

    Returns:
        Paths of the files below `target`.

    Raises:
        UserError: If the archive is damaged, too large or holds a link, or the disk is too small.
    """
    target.mkdir(parents=True, exist_ok=True)
    for leftover in target.glob(f"{SCRATCH}*"):  # of a process that was killed
        shutil.rmtree(leftover)
    with TemporaryDirectory(prefix=SCRATCH, dir=target) as scratch:
        try:
            _extract(archive, scratch, limit)
        except (UserError, OSError):
            raise
        except Exception as error:  # each reader has many errors for a damaged archive
            raise UserError(f"{archive}: cannot be unpacked ({error!r})") from error
        paths = list(Path(scratch).rglob("*"))
        files = [path for path in paths if path.is_file() and not MAC_METADATA & {*path.parts}]
        if not files or any(path.is_symlink() for path in paths):
            raise UserError(f"{archive}: holds no file, or a link")
        shared = Path(commonpath([path.parent for path in files]))
        places = [path.relative_to(shared) for path in files]
        for path, place in zip(files, places):
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            path.replace(target / place)
    return [str(place) for place in places]
