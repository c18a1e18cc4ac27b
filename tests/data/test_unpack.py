"""Archives that lie: what is unpacked is what they state, in the folder that was asked for, or nothing."""

import io
import os
import random
import shutil
import stat
import zipfile
import zlib

import py7zr
import pytest
from support.faulty_server import BODY, SIZE, below, free, seven_of, tree, zip_of

from audiolm.data.download import unpack as unpacking
from audiolm.data.download.unpack import contents, unpack

GB = 10**9


@pytest.fixture
def box(tmp_path):
    """A folder with nothing in it but the archive; `unpack` may add `out` alone."""

    def run(content: bytes, limit: int = GB, out: str = "out") -> dict[str, bytes]:
        archive = tmp_path / "box" / "a.bin"
        archive.parent.mkdir(exist_ok=True)
        archive.write_bytes(content)
        before = tree(tmp_path)
        target = archive.parent / out
        try:
            count = unpack(archive, target, limit)
            assert count == len(tree(target)) or out != "out"
            assert sorted(contents(archive, limit)) == sorted(tree(target))
        except ValueError as error:
            assert str(error).startswith(f"{archive}: ") and "\n" not in str(error)
            raise
        finally:
            outside = {
                name: kept
                for name, kept in tree(tmp_path).items()
                if not name.startswith(f"box/{out}/")
            }
            assert outside == {
                name: kept for name, kept in before.items() if not name.startswith(f"box/{out}/")
            }
            assert not target.exists() or not [
                f for f in target.rglob("*") if unpacking.SCRATCH in str(f)
            ]
        return tree(target)

    run.folder = tmp_path / "box"
    return run


PACKERS = pytest.mark.parametrize("pack", [zip_of, seven_of])


@PACKERS
@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["x.wav"], ["x.wav"]),
        (["development/x.wav", "development/y.wav"], ["x.wav", "y.wav"]),
        (["a/b/x.wav", "a/c/x.wav"], ["b/x.wav", "c/x.wav"]),
        (["a/x.wav", "y.wav"], ["a/x.wav", "y.wav"]),
        (["ab/x.wav", "abc/x.wav"], ["ab/x.wav", "abc/x.wav"]),
        (["./a/x.wav", "a//y.wav"], ["x.wav", "y.wav"]),
        (["a/x.wav", "__MACOSX/a/._x.wav", ".DS_Store", "a/.DS_Store"], ["x.wav"]),
        (
            ["a/x...wav", "a/..y.wav", "a/Übung 'é' & (1).wav"],
            ["x...wav", "..y.wav", "Übung 'é' & (1).wav"],
        ),
        ([("a/" + "é" * 120 + ".wav")], ["é" * 120 + ".wav"]),
    ],
)
def test_drops_the_folders_that_all_files_share(pack, files, found, box):
    content = {name: name.encode() * 999 for name in files}
    assert box(pack(content)) == {
        place: content[next(n for n in files if n.replace("//", "/").endswith(place))]
        for place in found
    }


@PACKERS
def test_empty_files_and_files_of_several_blocks(pack, box, monkeypatch):
    monkeypatch.setattr(unpacking, "CHUNK", 1000)
    files = {"a.wav": BODY, "empty.wav": b"", "z.wav": bytes(SIZE), "folder/b.wav": BODY[:1000]}
    assert box(pack(files), limit=sum(map(len, files.values()))) == files


PPMD, DELTA = {"id": py7zr.FILTER_PPMD, "order": 6, "mem": 24}, {"id": py7zr.FILTER_DELTA}


@pytest.mark.parametrize(
    "filters",
    [
        [{"id": py7zr.FILTER_COPY}],
        [{"id": py7zr.FILTER_BZIP2}],
        [PPMD],
        [DELTA, {"id": py7zr.FILTER_LZMA2}],
    ],
)
def test_ways_of_7z_to_pack(filters, box):
    clips = {f"{i} (ü).wav": random.Random(i).randbytes(3000) for i in range(3)}
    assert box(seven_of(clips, filters=filters)) == clips


def test_7z_in_several_blocks(box):
    whole = io.BytesIO(seven_of({"a/1.wav": BODY, "a/0.wav": b""}))
    for number in (2, 3):
        whole.seek(0)
        with py7zr.SevenZipFile(whole, "a") as archive:
            archive.writestr(BODY[number:], f"a/{number}.wav")
    assert box(whole.getvalue()) == {
        "0.wav": b"",
        "1.wav": BODY,
        "2.wav": BODY[2:],
        "3.wav": BODY[3:],
    }


def test_names_of_a_zip_that_does_not_say_that_they_are_utf_8(box):
    unsaid = bytearray(zip_of({"a/fü.wav": b"x", "a/b.wav": b"y"}))
    for at in range(len(unsaid) - 4):
        if unsaid[at : at + 4] == b"PK\x03\x04":
            unsaid[at + 7] &= ~8
        elif unsaid[at : at + 4] == b"PK\x01\x02":
            unsaid[at + 9] &= ~8
    assert sorted(box(bytes(unsaid))) == ["b.wav", "fü.wav"]
    assert sorted(box(bytes(unsaid).replace(b"f\xc3\xbc", b"f\x81\x81"), out="dos")) == [
        "b.wav",
        "füü.wav",
    ]  # cp437


def named(pack, *names: str) -> bytes:
    """An archive whose members have names that its writer would not write."""
    safe = {
        name: "".join("#" if c in "/\\:.\0" else c for c in name).ljust(len(name), "#")
        for name in names
    }
    if pack is zip_of:
        made = zip_of({safe[name]: b"x" for name in names}, zipfile.ZIP_STORED)
        for name in sorted(names, key=len, reverse=True):  # one may be the beginning of another
            made = made.replace(safe[name].encode(), name.encode())
        return made

    def change(archive):
        for file, name in zip(archive.header.files_info.files, names):
            file["filename"] = name

    return seven_of({safe[name]: b"x" for name in names}, change)


@PACKERS
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../x.wav", "a path with `..`"),
        ("a/../../x.wav", "a path with `..`"),
        ("a/b/..", "a path with `..`"),
        ("..\\x.wav", "a path with `..`"),
        ("a\\..\\..\\x.wav", "a path with `..`"),
        ("/tmp/x.wav", "an absolute path"),
        ("//host/x.wav", "an absolute path"),
        ("\\x.wav", "an absolute path"),
        ("C:/x.wav", "an absolute path"),
        ("C:\\x.wav", "an absolute path"),
        ("c:x.wav", "an absolute path"),
        ("n" * 256, "too long a name"),
        ("é" * 128, "too long a name"),
    ],
)
def test_a_name_that_leads_elsewhere(pack, name, said, box):
    with pytest.raises(ValueError, match=said):
        box(named(pack, "a/good.wav", name))
    assert not (box.folder / "out").exists()


def test_a_name_with_a_nul(box):
    with pytest.raises(ValueError, match="no name of a file"):
        box(named(zip_of, "good.wav", "x.wav\0.txt"))


@PACKERS
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a/x.wav", "a/X.WAV"], "would be one file"),
        (["a/x.wav", "a/./x.wav"], "would be one file"),
        (["é.wav", "e\u0301.wav"], "would be one file"),
        (["straße.wav", "STRASSE.wav"], "would be one file"),
        (["a/x.wav", "A\\x.wav"], "would be one file"),
        (["a/x", "a/x/y"], "is a file and, for 'a/x/y', a folder"),
        (["A/x/y", "a/X"], "a folder"),
    ],
)
def test_members_that_would_become_one_file(pack, names, said, box):
    with pytest.raises(ValueError, match=said):
        box(named(pack, *names))
    assert not (box.folder / "out").exists()


def test_one_name_twice(box):
    with pytest.warns(UserWarning, match="Duplicate"):
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w") as archive:
            archive.writestr("x.wav", b"1")
            archive.writestr("x.wav", b"2")
    with pytest.raises(ValueError, match="would be one file"):
        box(whole.getvalue())


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]
)
def test_a_zip_with_more_than_files(kind, box):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("good.wav", b"x")
        info = zipfile.ZipInfo("link")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, b"/etc/passwd")
        archive.writestr("link/x.wav", b"x")
    with pytest.raises(ValueError, match="a link or a device is in it: 'link'"):
        box(whole.getvalue())
    assert not (box.folder / "out").exists()


@pytest.mark.parametrize(
    "attributes",
    [
        0x8000 | stat.S_IFLNK << 16,
        0x410,
        0x400,
        0x8000 | stat.S_IFCHR << 16,
        0x8000 | stat.S_IFIFO << 16,
        0x8000 | stat.S_IFSOCK << 16,
    ],
)
def test_a_7z_with_more_than_files(attributes, box):
    def change(archive):
        archive.header.files_info.files[1]["attributes"] = attributes

    with pytest.raises(ValueError, match="a link or a device is in it: 'link'"):
        box(seven_of({"good.wav": b"x", "link": b"/etc/passwd"}, change))
    assert not (box.folder / "out").exists()


def test_a_7z_of_a_folder_with_a_link(box, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("/etc/passwd")
    whole = io.BytesIO()
    with py7zr.SevenZipFile(whole, "w") as archive:
        archive.writeall(tmp_path / "in", "in")
    shutil.rmtree(tmp_path / "in")
    with pytest.raises(ValueError, match="a link or a device"):
        box(whole.getvalue())


@PACKERS
def test_a_bomb_is_not_unpacked(pack, box):
    with pytest.raises(
        ValueError, match=r"it would unpack to 50,000,000 bytes, at most 1,000,000 are expected"
    ):
        box(pack({"zeros": bytes(50_000_000)}), limit=1_000_000)
    assert not (box.folder / "out").exists()


def test_a_zip_that_states_less_than_it_holds(box):
    made, size = zip_of({"zeros": bytes(50_000_000)}), (50_000_000).to_bytes(4, "little")
    assert made.count(size) == 2
    with pytest.raises(ValueError, match="torn"):
        box(made.replace(size, (1000).to_bytes(4, "little")), limit=1_000_000)
    assert tree(box.folder / "out") == {}


def test_a_zip_that_states_more_than_it_holds(box):
    made, size = zip_of({"a": BODY}, zipfile.ZIP_STORED), SIZE.to_bytes(4, "little")
    with pytest.raises(ValueError, match="torn"):
        box(made.replace(size, (SIZE + 5).to_bytes(4, "little")))
    assert tree(box.folder / "out") == {}


def test_a_7z_that_states_less_than_it_holds(box):
    def change(archive):
        archive.header.main_streams.substreamsinfo.unpacksizes[0] = 1000

    with pytest.raises(ValueError, match="torn"):
        box(seven_of({"zeros": bytes(5_000_000), "b": b"x"}, change), limit=6_000_000)
    assert tree(box.folder / "out") == {}


@pytest.mark.parametrize(
    ("brought", "said"),
    [(bytes(10**7), "'a' in it is larger than the 3 bytes"), (b"ab", "2 of 3 bytes")],
)
def test_what_is_written_has_the_size_that_is_stated(brought, said, tmp_path, monkeypatch):
    """Whatever a reader brings."""
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_of({"a": b"abc"}))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, info: io.BytesIO(brought))
    with pytest.raises(ValueError, match=said):
        unpack(archive, tmp_path / "out", GB)
    assert tree(tmp_path / "out") == {}


@PACKERS
def test_too_many_members(pack, box, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST", 10)
    files = {f"{number}": b"" for number in range(11)}
    with pytest.raises(ValueError, match="11 members are in it, at most 10 are wanted"):
        box(pack(files))
    del files["10"]
    assert box(pack(files)) == files


@PACKERS
def test_no_file(pack, box):
    with pytest.raises(ValueError, match="no file is in it"):
        box(pack({"__MACOSX/._x": b"x"}))


@pytest.mark.parametrize("options", [{}, {"header_encryption": True}])
def test_an_encrypted_7z(options, box):
    with pytest.raises(ValueError, match="it is encrypted"):
        box(seven_of({"a": BODY}, password="secret", **options))


def test_an_encrypted_zip(box):
    made = bytearray(zip_of({"a": BODY}))
    made[6] |= 1
    made[made.rindex(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(ValueError, match="it is encrypted"):
        box(bytes(made))


@PACKERS
@pytest.mark.parametrize("share", [0, 0.001, 0.2, 0.5, 0.9, 0.9999])
def test_a_torn_archive(pack, share, box):
    made = pack(
        below("a", {f"{number}.wav": BODY[number : number + 20_000] for number in range(5)})
    )
    with pytest.raises(ValueError, match="torn, or none that can be read here"):
        box(made[: int(share * len(made))])


@PACKERS
def test_a_damaged_archive_gives_right_files_or_a_line(pack, box):
    files = {f"{number}.wav": BODY[number * 100 : number * 150 + 900] for number in range(4)}
    made, draw, refused = pack(files), random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(made)
        for _ in range(draw.choice([1, 1, 3])):
            damaged[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
        shutil.rmtree(box.folder / "out", ignore_errors=True)
        try:
            found = box(bytes(damaged), limit=10 * SIZE)
            assert set(found.values()) <= {*files.values(), b""}
        except ValueError:
            refused += 1
            assert set(tree(box.folder / "out").values()) <= {*files.values(), b""}
    assert refused > 75


@pytest.mark.parametrize("offset", [2**40, 2**62, 2**64 - 1])
def test_a_7z_whose_directory_is_nowhere(offset, box):
    made = bytearray(seven_of({"a": BODY}))
    made[12:20] = offset.to_bytes(8, "little")
    made[8:12] = zlib.crc32(made[12:32]).to_bytes(4, "little")
    with pytest.raises(ValueError, match="torn, or none"):
        box(bytes(made))


def test_what_is_no_archive(box):
    with pytest.raises(ValueError, match="torn, or none"):
        box(b"<html>log in</html>")
    with pytest.raises(FileNotFoundError):
        unpack(box.folder / "nowhere.zip", box.folder / "out", GB)


@PACKERS
def test_links_in_the_target_are_not_followed(pack, box, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x.wav").write_bytes(b"mine")
    made = pack({"a/x.wav": b"new", "b/x.wav": b"new"})
    box.folder.mkdir()
    (box.folder / "out").symlink_to(elsewhere)
    with pytest.raises(ValueError, match=r"out is a link to .*elsewhere"):
        box(made, out="out")
    (box.folder / "out").unlink()
    (box.folder / "out").mkdir()
    (box.folder / "out" / "b").symlink_to(elsewhere)
    with pytest.raises(ValueError, match=r"b leads to .*elsewhere"):
        box(made)
    (box.folder / "out" / "b").unlink()
    (box.folder / "out" / "b").mkdir()
    (box.folder / "out" / "b" / "x.wav").symlink_to(elsewhere / "x.wav")
    box(made)
    assert not (box.folder / "out" / "b" / "x.wav").is_symlink() and tree(elsewhere) == {
        "x.wav": b"mine"
    }


@PACKERS
def test_an_interrupted_unpacking_is_done_again(pack, box, monkeypatch):
    files = {f"{number}.wav": BODY[number:] for number in range(4)}
    written, write = [], unpacking._Files.write

    def interrupt(self, data):
        written.append(self.place)
        if len(set(written)) == 3:
            raise KeyboardInterrupt
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(unpacking._Files, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            box(pack(files))
    assert tree(box.folder / "out") == {name: files[name] for name in ("0.wav", "1.wav")}
    left = box.folder / "out" / f"{unpacking.SCRATCH}killed"
    left.mkdir()
    (left / "part").write_bytes(b"half")
    assert box(pack(files)) == files


def test_the_disk_is_too_small_to_unpack(box, monkeypatch):
    free(monkeypatch, SIZE - 1)
    with pytest.raises(OSError, match=r"are needed to unpack a.bin"):
        box(zip_of({"a": BODY}))
    free(monkeypatch, SIZE)
    box(zip_of({"a": BODY}))


@PACKERS
def test_unpacking_leaves_other_files_of_the_folder(pack, box):
    (box.folder / "out").mkdir(parents=True)
    (box.folder / "out" / "mine.txt").write_text("mine")
    (box.folder / "out" / "x.wav").write_text("old")
    unpack_into = box.folder / "out"
    (box.folder / "a").write_bytes(pack({"x.wav": b"new", "y.wav": b"new"}))
    assert unpack(box.folder / "a", unpack_into, GB) == 2
    assert tree(unpack_into) == {"mine.txt": b"mine", "x.wav": b"new", "y.wav": b"new"}
    assert stat.S_IMODE(os.stat(unpack_into / "y.wav").st_mode) & 0o111 == 0
