"""Downloads from records that hold what is expected, and from records that do not."""

import dataclasses
import json
import random
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.faulty_server import Server, below, free, md5, seven_of, tree, zip_of

from audiolm.data import prepare
from audiolm.data.download import archives as module
from audiolm.data.download.archives import SOURCES
from audiolm.data.download.archives import fetch_sources as get
from audiolm.data.prepare import main

ROWS = {f"{split}.json": f'[{{"split": "{split}"}}]'.encode() for split in ("train", "val", "test")}
CLIPS = {
    split: {f"{i} {split} (ü).wav": random.Random(i).randbytes(3000) for i in range(3)}
    for split in ("development", "validation", "evaluation", "audio_files")
}
MAC = {"__MACOSX/audio_files/._0.wav": b"mac", "audio_files/.DS_Store": b"mac"}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
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
    for name in ("reasonaqa", "clotho", "clothoaqa"):
        source = SOURCES[name]
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
    get(["reasonaqa", "clotho", "clothoaqa"], tmp_path / "data", zenodo.url)
    assert unpacked(tmp_path / "data") == WHOLE
    output = capsys.readouterr().out
    assert f"{tmp_path / 'data' / 'ClothoV21' / 'development'}" in output
    assert len(zenodo.requested) == 5
    zenodo.requested.clear()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    get(["reasonaqa", "clotho", "clothoaqa"], str(tmp_path / "data"), zenodo.url)
    assert zenodo.requested == []
    assert capsys.readouterr().out.count("unpacked already") == 5
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
    (tmp_path / "archives" / "clotho_audio_evaluation.7z.unpacked").unlink()
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
        ({"checksum": None}, "AttributeError"),
        ({"size": "x"}, "ValueError"),
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
    with pytest.raises(ValueError, match="not the expected record") as raised:
        get(["reasonaqa"], tmp_path, zenodo.url)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_record_that_is_not_there(status, zenodo, tmp_path):
    zenodo.always = {"record": True, "status": status}
    with pytest.raises(
        ValueError, match=f"/api/records/15036628: not the expected record .*{status} "
    ):
        get(["reasonaqa"], tmp_path, zenodo.url)


def test_the_disk_is_looked_at_before_anything_is_downloaded(zenodo, tmp_path, monkeypatch):
    size = len(zenodo.files["/reasonaqa.zip"])
    free(monkeypatch, size + 100_000 - 1)
    with pytest.raises(ValueError, match=r"are free, but up to .* are needed"):
        get(["reasonaqa"], tmp_path, zenodo.url)
    assert zenodo.requested == []
    free(monkeypatch, size + 100_000)
    get(["reasonaqa"], tmp_path, zenodo.url)


def test_an_interruption_keeps_the_part(zenodo, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "unpack", lambda *argv: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        get(["reasonaqa"], tmp_path, zenodo.url)
    assert (tmp_path / "archives" / "reasonaqa.zip").is_file() and unpacked(tmp_path) == {}


def test_the_command_says_what_is_there_of_audiocaps(zenodo, tmp_path, capsys, monkeypatch):
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
    monkeypatch.setattr(prepare, "fetch_sources", partial(get, server=zenodo.url))
    argv = ["download", str(tmp_path / "data"), "--audiocaps", str(tmp_path / "mine")]
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
