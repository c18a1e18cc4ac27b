"""Hostile archives, fuzzed: one line of why it is refused, no traceback, no hang, no memory that it names itself.

The same examples are drawn in each run. What once broke something stands as an example of its own.
"""

import io
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import py7zr
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.faulty_server import seven_of, tree, zip_of
from support.hostile import PIECES, fuzz, one_line

from audiolm.data.download import unpack as unpacking
from audiolm.data.download.unpack import contents, unpack

pytestmark = pytest.mark.usefixtures("same_examples")


def unpacked(folder: Path, content: bytes, limit: int) -> dict[str, bytes] | str:
    """The files that came of an archive, or why none did; nothing else may have been written."""
    shutil.rmtree(folder / "box", ignore_errors=True)
    (folder / "box").mkdir()
    archive = folder / "box" / "a.bin"
    archive.write_bytes(content)
    try:
        count = unpack(archive, folder / "box" / "out", limit)
        found = tree(folder / "box" / "out")
        assert len(found) == count and sorted(found) == sorted(contents(archive, limit))
        assert sum(map(len, found.values())) <= limit
        return found
    except ValueError as error:
        one_line(error, f"{archive}: ")
        return str(error)
    finally:
        assert {Path(name).parts[:2] for name in tree(folder)} <= {("box", "a.bin"), ("box", "out")}
        assert not any(file.is_symlink() for file in folder.rglob("*"))


@pytest.mark.parametrize("way", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 9, 93])
def test_a_zip_of_ways_that_unpack_all_at_once(tmp_path, way):
    """4 kB of bzip2 are 4 GB, which Python's zipfile makes at once before it looks at the size that is stated."""
    made = bytearray(
        zip_of(
            {"a": bytes(10**6)},
            way if way in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA) else zipfile.ZIP_STORED,
        )
    )
    made[8:10] = struct.pack("<H", way)
    at = made.rindex(b"PK\x01\x02") + 10
    made[at : at + 2] = struct.pack("<H", way)
    assert "packed in a way that is not unpacked here" in unpacked(tmp_path, bytes(made), 10**7)


@pytest.mark.parametrize(
    "way", [{"id": py7zr.FILTER_ZSTD, "level": 3}, {"id": py7zr.FILTER_DEFLATE}]
)
def test_a_7z_of_ways_that_unpack_all_at_once(tmp_path, monkeypatch, way):
    """1 MB of zstd is 32 GB, which py7zr makes at once, also of a header."""
    known = dict(py7zr.compressor.algorithm_class_map)
    monkeypatch.setattr(py7zr.compressor, "algorithm_class_map", known)
    known[py7zr.FILTER_ZSTD] = (py7zr.compressor.ZstdCompressor, py7zr.compressor.ZstdDecompressor)
    known[py7zr.FILTER_DEFLATE] = (
        py7zr.compressor.DeflateCompressor,
        py7zr.compressor.DeflateDecompressor,
    )
    made = seven_of({"a": bytes(10**6)}, filters=[way])
    assert "packed in a way that is not unpacked here" in unpacked(tmp_path, made, 10**7)


def test_a_7z_of_very_many_files_is_not_listed(tmp_path, monkeypatch):
    """A header of a kB can name 8 million, 4 GB of Python's objects; it is refused before they are made."""
    monkeypatch.setattr(unpacking, "MOST", 30)
    made = seven_of({str(number): b"" for number in range(70)})
    assert "numfiles value 70 exceeds limit 60" in unpacked(tmp_path, made, 10**7)
    monkeypatch.setattr(unpacking, "MOST", 70)
    assert len(unpacked(tmp_path, made, 10**7)) == 70


def directory(
    names: list[bytes],
    count: int,
    offset: int = 0,
    packed: int = 0,
    size: int = 0,
    crc: int = 0,
    way=0,
) -> bytes:
    """The directory of a zip whose members all lie at one place, and its end, which states their number."""
    made = b"".join(
        b"PK\1\2"
        + struct.pack(
            "<HHHHHHIIIHHHHHII",
            20,
            20,
            0,
            way,
            0,
            0,
            crc,
            packed,
            size,
            len(name),
            0,
            0,
            0,
            0,
            0,
            offset,
        )
        + name
        for name in names
    )
    return (
        made
        + b"PK\5\6"
        + struct.pack(
            "<HHHHIIH", 0, 0, count, count, len(made), offset + packed + 31 if packed else 0, 0
        )
    )


def test_a_zip_that_hides_its_number_of_members(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST", 1000)
    made = directory([b"%06d" % number for number in range(5000)], count=1)
    assert "5,000 members are in it, at most 1,000 are wanted" in unpacked(tmp_path, made, 10**7)


def test_members_that_overlap(tmp_path):
    """One megabyte of zeros in a kB, named a thousand times: what it unpacks to is counted member by member."""
    body, name = bytes(10**6), b"0000"
    packing = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packing.compress(body) + packing.flush()
    of = {"packed": len(packed), "size": len(body), "crc": zlib.crc32(body), "way": 8}
    local = (
        b"PK\3\4"
        + struct.pack(
            "<HHHHHIIIHH", 20, 0, 8, 0, 0, of["crc"], len(packed), len(body), len(name), 0
        )
        + name
        + packed
    )

    def of_members(count: int) -> bytes:
        ends = directory([b"%04d" % number for number in range(count)], count, **of)
        return local + ends[:-6] + struct.pack("<IH", len(local), 0)

    assert unpacked(tmp_path, of_members(1), 10**6) == {"0000": body}
    assert "it would unpack to 1,000,000,000 bytes, at most 900,000,000" in unpacked(
        tmp_path, of_members(1000), 9 * 10**8
    )
    assert "torn" in unpacked(tmp_path, of_members(3), 10**7)


@pytest.mark.parametrize("size", [2**32 - 2, 2**40, 2**63 - 1, 2**64 - 1])
def test_a_zip_that_states_any_size(tmp_path, size):
    made = directory([b"a"], 1, size=min(size, 2**32 - 1))
    if size >= 2**32:  # in the extra field of large files
        extra = struct.pack("<HHQ", 1, 8, size)
        head = bytearray(made[:47])
        head[30:32] = struct.pack("<H", len(extra))
        made = (
            bytes(head)
            + extra
            + b"PK\5\6"
            + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(head) + len(extra), 0, 0)
        )
    assert f"it would unpack to {size:,} bytes" in unpacked(tmp_path, made, 10**9)


def test_an_archive_in_an_archive_stays_one(tmp_path):
    inner = zip_of({"zeros": bytes(5_000_000)})
    for pack in (zip_of, seven_of):
        assert unpacked(
            tmp_path, pack({"inner.zip": pack({"inner.zip": inner})}), 10**5
        ).keys() == {"inner.zip"}


NAMES = st.lists(
    st.sampled_from([*PIECES[:15], "é", "\r", "__MACOSX", unpacking.SCRATCH]),
    min_size=1,
    max_size=5,
).map("".join)
MEMBER = st.tuples(
    NAMES, st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@fuzz(200)
@given(
    st.lists(MEMBER, min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
)
@example([("../x", 0, 0, 0)], False, 0, 0)
@example([("a", 0, 0o120777 << 16, 0), ("a/x", 0, 0, 0)], False, 0, 0)
@example([("a", 0, 0o060777 << 16, 0)], False, 0, 0)
def test_zips_of_any_directory(tmp_path, members, damage, way, offset):
    """What the directory says of names, flags, types, sizes, places and ways to pack is anything."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for number, (name, _, attributes, _) in enumerate(members):
            info = zipfile.ZipInfo("x")
            info.filename, info.external_attr = name or str(number), attributes
            info.create_system = 3
            archive.writestr(info, b"content" * number)
    made = bytearray(whole.getvalue())
    if damage:
        at = made.index(b"PK\x01\x02")
        made[at + 8 : at + 12] = struct.pack("<HH", members[0][1], way)
        made[at + 20 : at + 28] = struct.pack("<II", members[0][3], members[0][2])
        made[at + 42 : at + 46] = struct.pack("<I", offset)
    found = unpacked(tmp_path, bytes(made), 10**6)
    assert isinstance(found, str) or set(found.values()) <= {
        b"content" * number for number in range(3)
    }
