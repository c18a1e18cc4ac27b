"""Unpacking: the files of an archive in the target folder, or one clear line."""

import functools
import io
import random
import stat
import sys
import zipfile

import py7zr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.faulty_server import seven_of, tree, zip_of

from audiolm.data.download.unpack import SCRATCH, unpack
from audiolm.runtime import UserError

GB = 10**9
PACKERS = pytest.mark.parametrize("pack", [zip_of, seven_of])
FILES = {"a/x.wav": b"x" * 3000, "a/b/y.wav": b"", "a/ü.wav": b"z"}


class Box:
    """A folder that holds an archive and, after unpacking, `out`."""

    def __init__(self, folder):
        self.folder = folder
        self.target = folder / "out"
        self.archive = folder / "a.bin"

    def unpack(self, content: bytes, limit: int = GB) -> dict[str, bytes]:
        self.archive.write_bytes(content)
        unpack(self.archive, self.target, limit)
        return tree(self.target)

    def outside(self) -> list[str]:
        return [name for name in tree(self.folder.parent) if "box/out/" not in name]


@pytest.fixture
def box(tmp_path):
    (tmp_path / "box").mkdir()
    return Box(tmp_path / "box")


@PACKERS
@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["x.wav"], ["x.wav"]),
        (["development/x.wav", "development/y.wav"], ["x.wav", "y.wav"]),
        (["a/b/x.wav", "a/c/x.wav"], ["b/x.wav", "c/x.wav"]),
        (["a/x.wav", "y.wav"], ["a/x.wav", "y.wav"]),
        (["ab/x.wav", "abc/x.wav"], ["ab/x.wav", "abc/x.wav"]),
        (["a/x.wav", "__MACOSX/a/._x.wav", ".DS_Store", "a/.DS_Store"], ["x.wav"]),
    ],
)
def test_unpack_drops_folders_that_all_files_share(pack, names, places, box):
    assert sorted(box.unpack(pack({name: name.encode() for name in names}))) == places


@PACKERS
def test_unpack_writes_every_file(pack, box):
    assert box.unpack(pack(FILES)) == {"x.wav": FILES["a/x.wav"], "b/y.wav": b"", "ü.wav": b"z"}


@PACKERS
def test_unpack_returns_the_places_of_the_files(pack, box):
    box.archive.write_bytes(pack(FILES))
    assert sorted(unpack(box.archive, box.target, GB)) == ["b/y.wav", "x.wav", "ü.wav"]


@PACKERS
def test_unpack_leaves_other_files_of_the_target(pack, box):
    box.target.mkdir()
    (box.target / "mine.wav").write_bytes(b"mine")
    assert box.unpack(pack({"x.wav": b"x"})) == {"x.wav": b"x", "mine.wav": b"mine"}


@PACKERS
def test_unpack_again_replaces_the_files(pack, box):
    box.unpack(pack({"x.wav": b"old"}))
    assert box.unpack(pack({"x.wav": b"new"})) == {"x.wav": b"new"}


def renamed(pack, name: str) -> bytes:
    """An archive with a good file and one whose name an archiver would not write."""
    plain = "#" * len(name.encode())
    if pack is zip_of:
        return zip_of({"good.wav": b"x", plain: b"x"}).replace(plain.encode(), name.encode())

    def change(archive):
        archive.header.files_info.files[1]["filename"] = name

    return seven_of({"good.wav": b"x", plain: b"x"}, change)


@PACKERS
@pytest.mark.parametrize("name", ["../x.wav", "a/../../x.wav", "/tmp/x.wav", "..\\x.wav"])
def test_name_that_leads_elsewhere_writes_nothing_outside(pack, name, box):
    box.archive.write_bytes(b"")
    before = box.outside()
    try:
        box.unpack(renamed(pack, name))
    except UserError as error:
        assert str(error).startswith(f"{box.archive}: ")
    assert box.outside() == before


def test_link_in_a_zip_becomes_no_link(box):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        writer.writestr(info, b"/etc/passwd")
        writer.writestr("good.wav", b"x")
    assert box.unpack(archive.getvalue()) == {"link": b"/etc/passwd", "good.wav": b"x"}


@pytest.mark.parametrize("target", ["/etc/passwd", "good.wav"])
def test_link_in_a_7z_is_refused(target, box, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.wav").write_bytes(b"x")
    (tmp_path / "in" / "link").symlink_to(target)
    archive = io.BytesIO()
    with py7zr.SevenZipFile(archive, "w") as writer:
        writer.writeall(tmp_path / "in", "in")
    with pytest.raises(UserError):
        box.unpack(archive.getvalue())
    assert tree(box.target) == {}


@PACKERS
def test_archive_larger_than_the_limit_is_refused(pack, box):
    with pytest.raises(UserError, match="would unpack to 2,000,000 bytes, more than 1,999"):
        box.unpack(pack({"x.wav": bytes(2_000_000)}), limit=1_999_999)


@PACKERS
def test_archive_without_a_file_is_refused(pack, box):
    with pytest.raises(UserError, match="holds no file"):
        box.unpack(pack({".DS_Store": b"mac"}))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04", b"7z\xbc\xaf'\x1c"])
def test_what_is_no_archive_is_one_line(content, box):
    with pytest.raises(UserError, match="cannot be unpacked") as raised:
        box.unpack(content)
    assert "\n" not in str(raised.value)


def test_encrypted_7z_is_one_line(box):
    with pytest.raises(UserError, match="cannot be unpacked"):
        box.unpack(seven_of({"x.wav": b"x"}, password="secret"))


@functools.cache
def intact_archive(pack) -> bytes:
    return pack({"a/x.wav": random.Random(0).randbytes(500), "a/y.wav": b"y" * 500})


@PACKERS
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_damaged_archive_gives_the_right_files_or_an_error(pack, data, tmp_path_factory):
    content = bytearray(intact_archive(pack))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged") / "box"
    folder.mkdir()
    box = Box(folder)
    try:
        box.unpack(bytes(content))
    except (UserError, OSError):
        assert not list(box.target.glob(f"{SCRATCH}*"))
    assert box.outside() == ["box/a.bin"]


@PACKERS
def test_killed_unpacking_is_cleared_and_done_again(pack, box, monkeypatch):
    (box.target / f"{SCRATCH}old").mkdir(parents=True)
    (box.target / f"{SCRATCH}old" / "half").write_bytes(b"half")
    assert box.unpack(pack({"x.wav": b"x"})) == {"x.wav": b"x"}


def test_missing_py7zr_says_what_to_install(box, monkeypatch):
    monkeypatch.setitem(sys.modules, "py7zr", None)
    with pytest.raises(UserError, match="uv sync --extra prepare"):
        box.unpack(seven_of({"x.wav": b"x"}))
