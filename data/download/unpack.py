"""Unpacking zip and 7z archives: all members are looked at before anything is written, and only one folder is touched."""

import errno
import os
import re
import shutil
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple

from tqdm import tqdm

MOST = 200_000  # members of an archive
WAYS = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
)  # of a zip to pack; Python unpacks others by as much as 4 GB at once
LONGEST = 255  # bytes of a member's name
PACKED = "it is packed in a way that is not unpacked here"
CHUNK = 1 << 20  # bytes unpacked at once
SCRATCH = ".unpacking."  # how the folder is called in which a file is written until it is whole


class Refused(ValueError):
    """Why an archive that can be read is not unpacked."""


class Member(NamedTuple):
    """A file or folder of an archive: name, size in bytes and type (as in `st_mode`, 0: none given), all as it states them."""

    name: str
    size: int
    type: int
    info: object  # what its reader has of it

    @property
    def path(self) -> PurePosixPath:
        return PurePosixPath(self.name.replace("\\", "/"))


def room(folder: Path, needed: int, purpose: str) -> None:
    """Raises OSError if fewer than `needed` bytes are free on the disk of `folder`."""
    if (free := shutil.disk_usage(folder).free) < needed:
        said = f"{free / 1e9:.2f} GB are free, {needed / 1e9:.2f} GB are needed {purpose}"
        raise OSError(f"{folder}: {said}; make room, or choose a folder on another disk")


def need_7z():
    """The module that reads 7z archives. ValueError if it is not there."""
    try:
        import py7zr
    except ImportError as error:
        raise Refused(
            "7z archives are read with py7zr: install the extra `prepare` (uv sync --extra prepare)"
        ) from error
    # of a header that a kB unpacks to; py7zr's own limit would let it fill 4 GB
    py7zr.archiveinfo.MAX_NUMFILES = 2 * MOST
    # py7zr unpacks these by a whole block at once, which may hold 32 GB
    for way in (py7zr.FILTER_DEFLATE, py7zr.properties.FILTER_DEFLATE64, py7zr.FILTER_ZSTD):
        py7zr.compressor.algorithm_class_map.pop(way, None)
    return py7zr


def open_7z(file: IO[bytes]):
    py7zr = need_7z()
    try:
        return py7zr.SevenZipFile(file)  # given an opened file, it unpacks in this thread alone
    except py7zr.PasswordRequired as error:
        raise Refused("it is encrypted") from error


def open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(
            file, metadata_encoding="utf-8"
        )  # macOS writes UTF-8 without saying so
    except UnicodeDecodeError:
        return zipfile.ZipFile(file)


@contextmanager
def opened(archive: Path) -> Iterator:
    """The reader of an archive; errors in the meantime, of a dozen kinds if it is torn, become a line with its name."""
    try:
        with open(archive, "rb") as file:
            is_7z = file.read(6) == b"7z\xbc\xaf\x27\x1c"
            file.seek(0)
            with open_7z(file) if is_7z else open_zip(file) as reader:
                yield reader
    except Refused as error:
        raise Refused(f"{archive}: {error}; it is not unpacked") from error
    except Exception as error:
        if (
            type(error).__name__ == "UnsupportedCompressionMethodError"
        ):  # of py7zr, which need not be there
            raise Refused(f"{archive}: {PACKED}; it is not unpacked") from error
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # EINVAL: a seek to where a torn directory says
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"{archive}: torn, or none that can be read here ({said}); delete it and get it again"
        ) from error


def _members(reader) -> list[Member]:
    if isinstance(reader, zipfile.ZipFile):
        if any(info.flag_bits & 0x41 for info in reader.infolist()):
            raise Refused("it is encrypted")
        if any(info.compress_type not in WAYS for info in reader.infolist()):
            raise Refused(PACKED)
        kinds = [
            (stat.S_IFDIR if i.is_dir() else stat.S_IFMT(i.external_attr >> 16), i)
            for i in reader.infolist()
        ]
        return [
            Member(i.orig_filename, i.file_size, kind, i) for kind, i in kinds
        ]  # `filename` ends at a NUL
    if reader.needs_password():
        raise Refused("it is encrypted")
    kinds = [
        (stat.S_IFLNK if f.is_symlink else f.is_directory and stat.S_IFDIR, f) for f in reader.files
    ]
    return [Member(f.filename, f.uncompressed, kind or f.st_fmt or 0, f) for kind, f in kinds]


def _fault(member: Member) -> str | None:
    """What forbids to unpack a member, or None."""
    if member.path.is_absolute() or re.match("[A-Za-z]:", member.name):
        return "an absolute path"
    if ".." in member.path.parts:
        return "a path with `..`"
    if "\0" in member.name or (not member.path.parts and member.type != stat.S_IFDIR):
        return "no name of a file"
    if member.type not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or a device"
    return (
        "too long a name" if len(member.name.encode("utf-8", "surrogatepass")) > LONGEST else None
    )


def _places(members: list[Member], limit: int) -> dict[str, Member]:
    """The files to unpack by their place: their path without the folders that all of them share."""
    if len(members) > MOST:
        raise Refused(f"{len(members):,} members are in it, at most {MOST:,} are wanted")
    if faults := [
        f"{fault} is in it: {member.name[:100]!r}"
        for member in members
        if (fault := _fault(member))
    ]:
        raise Refused(faults[0])
    if (total := sum(member.size for member in members)) > limit:
        raise Refused(f"it would unpack to {total:,} bytes, at most {limit:,} are expected")
    files = [
        m
        for m in members
        if m.type != stat.S_IFDIR and "__MACOSX" not in m.path.parts and m.path.name != ".DS_Store"
    ]
    if not files:
        raise Refused("no file is in it")
    shared, taken = os.path.commonpath([member.path.parent for member in files]), {}
    for member in files:
        key = PurePosixPath(
            unicodedata.normalize("NFC", str(member.path)).casefold()
        )  # some disks do not tell these apart
        if key in taken:
            raise Refused(f"{taken[key]!r} and {member.name!r} in it would be one file")
        taken[key] = member.name
    for key, name in taken.items():
        if above := [taken[folder] for folder in key.parents if folder in taken]:
            raise Refused(f"{above[0]!r} in it is a file and, for {name!r}, a folder")
    return {str(member.path.relative_to(shared)): member for member in files}


def contents(archive: Path, limit: int) -> list[str]:
    """The files that [`unpack`] writes, as paths below its target; raises what that raises."""
    with opened(archive) as reader:
        return list(_places(_members(reader), limit))


class _Files:
    """Writes one file after the other, each in a passing place until it is whole, and never more bytes than were stated."""

    def __init__(self, target: Path, part: Path, bar: tqdm):
        self.target, self.part, self.bar, self.place = target, part, bar, None

    def begin(self, place: str, size: int) -> None:
        self.end()
        self.place, self.size, self.written = place, size, 0
        self.part.write_bytes(b"")

    def write(self, data: bytes) -> int:
        if len(data) > self.size - self.written:
            raise Refused(
                f"{self.place!r} in it is larger than the {self.size:,} bytes that are stated"
            )
        with open(self.part, "ab") as file:
            self.written += file.write(data)
        self.bar.update(len(data))
        return len(data)

    def end(self) -> None:
        """The file that was begun, if any, is whole."""
        if self.place is not None:
            if self.written != self.size:
                raise EOFError(f"{self.place!r} ends after {self.written:,} of {self.size:,} bytes")
            (self.target / self.place).parent.mkdir(parents=True, exist_ok=True)
            self.part.replace(self.target / self.place)
            self.place = None


def _extract_7z(reader, places: dict[str, Member], files: _Files, scratch: Path) -> None:
    """py7zr asks where to write when it comes to a file; it has then compared the checksum of the one before."""
    from py7zr import WriterFactory
    from py7zr.io import NullIO

    by_path = {str(member.path): (place, member.size) for place, member in places.items()}

    class Sinks(WriterFactory):
        def create(self, filename):
            files.begin(*by_path[Path(filename).relative_to(scratch).as_posix()])
            sink = NullIO()
            sink.write = files.write
            return sink

    reader.extract(scratch, [member.name for member in places.values()], factory=Sinks())


def unpack(archive: Path, target: Path, limit: int) -> int:
    """Unpacks a zip or 7z archive into the folder `target`; returns the number of its files.

    The folders that all of its files share are dropped: `development/x.wav` and `x.wav` both become `target/x.wav`. Each file
    appears whole or not at all, in place of one that is there; an interrupted unpacking is simply done again.

    Args:
        limit: bytes that the archive may unpack to.

    Raises:
        ValueError: if the archive is torn, encrypted, too large, would write outside `target`, or is 7z and py7zr is not there.
        OSError: if the disk is too small, or what the disk says.
    """
    with opened(archive) as reader:
        places = _places(_members(reader), limit)
        if target.is_symlink():
            raise Refused(f"{target} is a link to {os.readlink(target)}")
        target.mkdir(parents=True, exist_ok=True)
        target = target.resolve()
        for folder in sorted({(target / place).parent for place in places}):
            if folder.resolve() != folder:
                raise Refused(f"{folder} leads to {folder.resolve()}")
        for left in target.glob(f"{SCRATCH}*/part"):  # by a process that was killed
            shutil.rmtree(left.parent)
        total = sum(member.size for member in places.values())
        room(target, total, f"to unpack {archive.name}")
        bar = tqdm(
            total=total, desc=f"unpacking {archive.name}", unit="B", unit_scale=True, disable=None
        )
        with TemporaryDirectory(prefix=SCRATCH, dir=target) as scratch, bar:
            files = _Files(target, Path(scratch, "part"), bar)
            if isinstance(reader, zipfile.ZipFile):
                for place, member in places.items():
                    files.begin(place, member.size)
                    with reader.open(member.info) as source:
                        while chunk := source.read(CHUNK):
                            files.write(chunk)
            else:
                _extract_7z(reader, places, files, Path(scratch))
            files.end()
    return len(places)
