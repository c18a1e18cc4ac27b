"""Downloads from records that hold what is expected, and from records that do not."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from support.faulty_server import Server, below, free, md5, seven_of, tree, zip_of

from audiolm.data.download import transfer as downloading
from audiolm.data.download import zenodo as module
from audiolm.data.download.zenodo import SOURCES
from audiolm.data.download.zenodo import fetch_sources as get
from audiolm.data.prepare import main
from audiolm.runtime import format_bytes

ROWS = {f"{split}.json": f'[{{"split": "{split}"}}]'.encode() for split in ("train", "val", "test")}
CLIPS = {
    split: {f"{i} {split} (ü).wav": random.Random(i).randbytes(3000) for i in range(3)}
    for split in ("development", "validation", "evaluation", "audio_files")
}
MAC = {"__MACOSX/audio_files/._0.wav": b"mac", "audio_files/.DS_Store": b"mac"}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloading, "MAX_WAIT_SECONDS", 0)
    with Server() as served:
        yield served


@pytest.fixture
def zenodo(server, monkeypatch):
    """The three records with archives of their layout, and the checksums pinned to these."""
    built = {
        "reasonaqa.zip": zip_of(ROWS),
        **{
            f"clotho_audio_{split}.7z": seven_of(below(split, CLIPS[split]))
            for split in CLIPS
            if split != "audio_files"
        },
        "audio_files.zip": zip_of(
            {"audio_files/": b"", **below("audio_files", CLIPS["audio_files"]), **MAC}
        ),
    }
    for name, source in SOURCES.items():
        archives = [
            dataclasses.replace(a, md5=a.md5 and md5(built[a.name]), unpacked=100_000)
            for a in source
        ]
        monkeypatch.setitem(SOURCES, name, archives)
        for archive in archives:
            server.files[f"/{archive.name}"] = built[archive.name]
        server.record = lambda name: f"/api/records/{SOURCES[name][0].record}"
        publish(server, name)
    return server


def publish(server, name: str, **changes) -> None:
    """Writes the record of a source; `changes` to the entry of its first file."""
    entries = [
        {
            "key": "captions.csv",
            "size": 1,
            "checksum": f"md5:{md5(b'')}",
            "links": {"self": "http://x"},
        }
    ]
    for archive in SOURCES[name]:
        content, link = server.files[f"/{archive.name}"], {"self": f"{server.url}/{archive.name}"}
        entries.append(
            {
                "key": archive.name,
                "size": len(content),
                "checksum": f"md5:{md5(content)}",
                "links": link,
            }
        )
    entries[1].update(changes)
    server.files[server.record(name)] = json.dumps(
        {"id": SOURCES[name][0].record, "files": entries}
    ).encode()


WHOLE = {
    **ROWS,
    **{
        f"ClothoV21/{split}/{name}": clip
        for split in CLIPS
        if split != "audio_files"
        for name, clip in CLIPS[split].items()
    },
    **below("ClothoAQA/audio_files", CLIPS["audio_files"]),
}


def unpacked(folder: Path) -> dict[str, bytes]:
    return {
        name: content for name, content in tree(folder).items() if not name.startswith("archives/")
    }


def test_all_sources_from_a_record_to_files(zenodo, tmp_path, capsys):
    get(["reasonaqa", "clotho", "clothoaqa", "clotho"], tmp_path / "data", zenodo.url)
    assert unpacked(tmp_path / "data") == WHOLE
    output, size = (
        capsys.readouterr().out,
        sum(len(c) for name, c in zenodo.files.items() if name.count("/") == 1),
    )
    assert f"to download: {format_bytes(size)}" in output and output.index(
        "to download"
    ) < output.index("3 files in")
    assert f"{tmp_path / 'data' / 'ClothoV21' / 'development'}" in output
    assert len(zenodo.requested) == 5
    zenodo.requested.clear()
    before = {
        file: file.stat().st_mtime_ns
        for file in tmp_path.rglob("*")
        if file.is_file() and file.name != ".lock"
    }
    get(["reasonaqa", "clotho", "clothoaqa"], str(tmp_path / "data"), zenodo.url + "/")
    output = capsys.readouterr().out
    assert (
        zenodo.requested == []
        and "to download: 0 B" in output
        and output.count("unpacked already") == 5
    )
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_the_output_may_be_a_link_to_another_disk(zenodo, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    get(["reasonaqa"], tmp_path / "data", zenodo.url)
    assert unpacked(tmp_path / "disk") == ROWS


def test_what_is_there_is_kept_and_what_is_not_comes_back(zenodo, tmp_path):
    get(["reasonaqa", "clotho"], tmp_path, zenodo.url)
    for file in (tmp_path / "archives").glob("*.7z"):
        file.unlink()
    zenodo.requested.clear()
    get(["reasonaqa", "clotho"], tmp_path, zenodo.url)
    assert zenodo.requested == []  # unpacked, so that the archives may be deleted
    (tmp_path / "ClothoV21" / "validation" / "1 validation (ü).wav").unlink()
    (tmp_path / "val.json").unlink()
    (tmp_path / "archives" / "clotho_audio_evaluation.7z.unpacked").write_text('{"md5": ')
    get(["reasonaqa", "clotho"], tmp_path, zenodo.url)
    assert len(zenodo.requested) == 2  # of reasonaqa.zip the archive is there
    assert unpacked(tmp_path) == {
        name: content for name, content in WHOLE.items() if "AQA" not in name
    }


def test_a_changed_record_without_a_pinned_checksum_is_fetched(zenodo, tmp_path):
    get(["clothoaqa"], tmp_path, zenodo.url)
    zenodo.files["/audio_files.zip"] = zip_of({"audio_files/new.wav": b"new"})
    publish(zenodo, "clothoaqa")
    get(["clothoaqa"], tmp_path, zenodo.url)
    assert (tmp_path / "ClothoAQA" / "audio_files" / "new.wav").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("changes", "output"),
    [
        (
            {"checksum": f"md5:{md5(b'other')}"},
            f"MD5 {md5(b'other')}, expected [0-9a-f]{{32}}",
        ),
        ({"key": "other.zip"}, "KeyError: 'reasonaqa.zip'"),
        ({"checksum": "sha1:12"}, "'checksum': 'sha1:12'"),
        ({"checksum": None}, "TypeError"),
        ({"size": 0}, "'size': 0"),
        ({"size": -1}, "'size': -1"),
        ({"size": "12"}, "TypeError"),
        ({"links": {"self": "file:///etc/passwd"}}, "file:///etc/passwd"),
        ({"links": {}}, "KeyError: 'self'"),
    ],
)
def test_a_record_that_is_not_what_is_wanted(changes, output, zenodo, tmp_path):
    publish(zenodo, "reasonaqa", **changes)
    with pytest.raises(ValueError, match=output) as raised:
        get(["reasonaqa"], tmp_path, zenodo.url)
    assert "/api/records/15036628: " in str(raised.value) and "\n" not in str(raised.value)
    assert zenodo.requested == [] and unpacked(tmp_path) == {}


@pytest.mark.parametrize(
    "body",
    [b"<html>\nlog in", b"", b"[]", b"{}", b'{"files": 3}', b'{"files": [3]}', b"\xff", b"null"],
)
def test_a_record_that_is_none(body, zenodo, tmp_path):
    zenodo.files[zenodo.record("reasonaqa")] = body
    with pytest.raises(ValueError, match=r"not the expected record .*login page") as raised:
        get(["reasonaqa"], tmp_path, zenodo.url)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_record_that_is_not_there(status, zenodo, tmp_path):
    zenodo.always = {"record": True, "status": status}
    with pytest.raises(ValueError, match=f"/api/records/15036628: {status} "):
        get(["reasonaqa"], tmp_path, zenodo.url)


def test_names_that_are_none(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"audiocaps: unknown source. Available: reasonaqa, clotho, clothoaqa",
    ):
        get(["clotho", "audiocaps"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_disk_is_looked_at_before_anything_is_downloaded(zenodo, tmp_path, monkeypatch):
    size = len(zenodo.files["/reasonaqa.zip"])
    free(monkeypatch, size + 100_000 - 1)
    with pytest.raises(
        ValueError, match=r"are free, but .* are needed \(.* to download, up to .* unpacked"
    ):
        get(["reasonaqa"], tmp_path, zenodo.url)
    assert zenodo.requested == []
    free(monkeypatch, size + 100_000)
    get(["reasonaqa"], tmp_path, zenodo.url)


def test_a_missing_py7zr_is_said_before_anything_is_downloaded(zenodo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "py7zr", None)
    get(["reasonaqa", "clothoaqa"], tmp_path, zenodo.url)  # needs none
    zenodo.requested.clear()
    with pytest.raises(ValueError, match="uv sync --extra prepare"):
        get(["clotho"], tmp_path, zenodo.url)
    assert zenodo.requested == []


def test_two_processes_do_not_fill_one_folder(zenodo, tmp_path):
    hold = (
        "import sys; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]): print('held', flush=True); input()"
    )
    (tmp_path / "archives").mkdir()
    argv = [sys.executable, "-c", hold, str(tmp_path / "archives" / ".lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process is downloading into"):
            get(["reasonaqa"], tmp_path, zenodo.url)
        other.communicate("\n")
    get(["reasonaqa"], tmp_path, zenodo.url)


def test_an_interruption_keeps_the_part(zenodo, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "unpack", lambda *argv: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        get(["reasonaqa"], tmp_path, zenodo.url)
    monkeypatch.undo()
    assert (tmp_path / "archives" / "reasonaqa.zip").is_file() and unpacked(tmp_path) == {}


def test_the_command_says_what_is_there_of_audiocaps(zenodo, tmp_path, capsys):
    for name in ("YAAAAAAAAAAA", "BBBBBBBBBBB_30", "unknown"):
        (tmp_path / "mine" / f"{name}.flac").parent.mkdir(exist_ok=True)
        (tmp_path / "mine" / f"{name}.flac").touch()
    rows = [
        {
            "filepath1": f"AudioCapsLarger/train/Y{c * 11}.wav",
            "filepath2": "ClothoV21/development/x.wav",
        }
        for c in "ABC"
    ]
    zenodo.files["/reasonaqa.zip"] = zip_of({"train.json": json.dumps(rows).encode()})
    [archive] = SOURCES["reasonaqa"]
    changed = dataclasses.replace(archive, md5=md5(zenodo.files["/reasonaqa.zip"]))
    SOURCES["reasonaqa"] = [changed]
    publish(zenodo, "reasonaqa")
    argv = [
        "download",
        str(tmp_path / "data"),
        "--server",
        zenodo.url,
        "--audiocaps",
        str(tmp_path / "mine"),
    ]
    with pytest.raises(SystemExit) as end:
        main(argv)
    output = capsys.readouterr().out
    assert (
        end.value.code == 0
        and f"AudioCaps: 2 of the 3 clips of train are in {tmp_path / 'mine'}" in output
    )
    assert (
        f"AudioCapsLarger={tmp_path / 'mine'}" in output
        and (tmp_path / "data" / "ClothoV21" / "evaluation").is_dir()
    )
    with pytest.raises(
        SystemExit, match=r"audiolm prepare download: --audiocaps nowhere: folder not found"
    ):
        main([*argv[:-1], "nowhere"])
