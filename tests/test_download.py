"""Downloads from a server with faults to order, and archives that lie: a file is there whole and right, or not at all."""

import dataclasses
import hashlib
import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections import namedtuple
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import py7zr
import pytest

from audiolm.data import download as module
from audiolm.data import unpack as unpacking
from audiolm.data.download import SOURCES, download, get
from audiolm.data.unpack import contents, unpack

SIZE = 300_000
BODY = random.Random(0).randbytes(SIZE)
BLOCK = 10_000  # bytes that the server sends at once
GB = 10**9


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Server:
    """Files and records by their path; `orders` are the faults of the next requests for files, one each, `always` those of all.

    What may be ordered: `cut`: bytes after which the connection breaks; `status`; `headers` beside its own or instead; `body`
    instead of the file; `ranges=False`: all is sent whatever was asked; `start`: it is sent from there whatever was asked;
    `length`: what is said of it (None: nothing); `pause`: seconds before each block. An order with `record` is for records.
    `asked` has the Range, the If-Range and the bytes that were sent of each request for a file.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.orders: list[dict] = []
        self.always: dict = {}
        self.asked: list[list] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def do_GET(self):
                outer.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.http.shutdown()
        self.http.server_close()

    def sent(self) -> int:
        return sum(count for _, _, count in self.asked)

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        is_record = to.path.startswith("/api/records/")
        order = {} if is_record and "record" not in self.always else self.always
        if self.orders and not is_record:
            order = self.orders.pop(0)
        entry = [to.headers["Range"], to.headers["If-Range"], 0]
        if not is_record:
            self.asked.append(entry)
        if to.path not in self.files and "body" not in order and "status" not in order:
            order = {"status": 404, "body": b"not here"}
        body = order.get("body", b"" if "status" in order else self.files.get(to.path, b""))
        status, headers, start = 200, {"Content-Type": "application/octet-stream"}, 0
        etag = self.etags.get(to.path)
        if etag:
            headers["ETag"] = etag
        fresh = entry[1] is None or entry[1] == etag
        if "status" in order:
            status = order["status"]
        elif entry[0] and fresh and order.get("ranges", True):
            start = order.get("start", int(entry[0][6:-1]))
            if start >= len(body):
                status, body, headers["Content-Range"] = 416, b"", f"bytes */{len(body)}"
                start = 0
            else:
                status, headers["Content-Range"] = 206, f"bytes {start}-{len(body) - 1}/{len(body)}"
        body = body[start:]
        headers["Content-Length"] = order.get("length", len(body))
        to.send_response(status)
        for name, value in {**headers, **order.get("headers", {})}.items():
            if value is not None:
                to.send_header(name, str(value))
        to.end_headers()
        try:
            for at in range(0, len(body), BLOCK):
                time.sleep(order.get("pause", 0))
                block = body[at : at + BLOCK][: order.get("cut", SIZE * 100) - at]
                to.wfile.write(block)
                entry[2] += len(block)
                if at + BLOCK >= order.get("cut", SIZE * 100):
                    return to.wfile.flush()
        except OSError:  # the client went away
            pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "WAITS", (0, 0, 0))
    with Server() as served:
        served.files["/a.zip"] = BODY
        yield served


@pytest.fixture
def fetch(server, tmp_path):
    """Downloads a.zip, and what is wanted of it."""
    file = tmp_path / "a.zip"

    def run():
        download(f"{server.url}/a.zip", file, SIZE, md5(BODY))
        assert file.read_bytes() == BODY
        assert not (tmp_path / "a.zip.part").exists()

    run.file, run.part, run.etag = file, tmp_path / "a.zip.part", tmp_path / "a.zip.part.etag"
    return run


@pytest.fixture
def waited(monkeypatch):
    """The seconds that are waited, which pass at once."""
    seconds = []
    monkeypatch.setattr(module, "time", namedtuple("Time", "time sleep")(time.time, seconds.append))
    return seconds


# ---- a file ----


def test_downloads_a_file_once(server, fetch, monkeypatch):
    fetch()
    assert server.asked == [[None, None, SIZE]]
    monkeypatch.setattr(module, "_md5", lambda file=None: pytest.fail("it is read again"))
    fetch()
    assert len(server.asked) == 1


@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_that_was_changed_is_downloaded_again(same_size, server, fetch):
    fetch()
    fetch.file.write_bytes(bytes(SIZE) if same_size else b"short")
    fetch()
    assert server.sent() == 2 * SIZE


def test_a_file_that_somebody_put_there_is_verified_and_used(server, fetch):
    fetch.file.write_bytes(BODY)
    fetch()
    assert server.asked == []


@pytest.mark.parametrize("etag", [None, '"one"', '"ü"'])
def test_goes_on_where_the_connection_broke(etag, server, fetch):
    if etag:
        server.etags["/a.zip"] = etag
    server.orders = [{"cut": 50_000} for _ in range(5)]  # more faults than tries: each brings something new
    fetch()
    assert [count for _, _, count in server.asked] == [50_000] * 6
    assert [asked for asked, _, _ in server.asked[1:]] == [f"bytes={at}-" for at in range(50_000, SIZE, 50_000)]
    assert {state for _, state, _ in server.asked[1:]} == {'"one"' if etag == '"one"' else None}


def test_gives_up_where_nothing_new_comes_and_goes_on_in_the_next_run(server, fetch):
    server.orders = [{"cut": 120_000}] + [{"cut": 0}] * 3
    server.always = {"cut": 0}
    with pytest.raises(OSError, match="run the same command again later") as raised:
        fetch()
    assert str(raised.value).count("\n") == 0 and f"{server.url}/a.zip" in str(raised.value)
    assert len(server.asked) == 4 and fetch.part.stat().st_size == 120_000
    server.always = {}
    fetch()
    assert server.sent() == SIZE


def test_waits_double_until_something_comes(server, fetch, waited, monkeypatch):
    monkeypatch.setattr(module, "WAITS", (1, 2, 4))
    server.orders = [{"cut": 0}, {"cut": 0}, {"cut": 20_000}, {"cut": 0}]
    fetch()
    assert waited == [1, 2, 1, 2]


def test_silence_is_a_broken_connection(server, fetch, monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.2)
    server.orders = [{"pause": 1}]
    fetch()
    assert len(server.asked) == 2


def test_a_server_without_ranges_sends_all(server, fetch):
    server.orders = [{"cut": 100_000}, {"ranges": False}]
    fetch()
    assert [asked for asked, _, _ in server.asked] == [None, "bytes=100000-"] and server.sent() == 100_000 + SIZE


@pytest.mark.parametrize("start", [0, 90_000, 110_000])
def test_a_range_that_begins_elsewhere_is_not_appended(start, server, fetch):
    server.orders = [{"cut": 100_000}, {"start": start}]
    fetch()
    assert [asked for asked, _, _ in server.asked] == [None, "bytes=100000-"] + [None] * (start > 0)


@pytest.mark.parametrize("said", ["", "bytes", "items 1-2/3", "bytes 100000-299999"])
def test_a_range_without_a_place_is_not_appended(said, server, fetch):
    server.orders = [{"cut": 100_000}, {"headers": {"Content-Range": said or None}}]
    fetch()
    assert server.asked[-1] == [None, None, SIZE]


def test_a_range_of_a_file_of_another_size_is_an_error(server, fetch):
    server.orders = [{"cut": 100_000}, {"headers": {"Content-Range": "bytes 100000-299999/300001"}}]
    with pytest.raises(ValueError, match=r"300001 bytes of .* are offered, 300000 are wanted"):
        fetch()


def test_a_file_that_is_shorter_by_now_is_fetched_from_the_start(server, fetch):
    fetch.part.write_bytes(BODY[:200_000])
    server.orders = [{"body": BODY[:100_000]}]  # answers 416
    fetch()
    assert [asked for asked, _, _ in server.asked] == ["bytes=200000-", None]


def test_another_etag_drops_the_part(server, fetch):
    server.files["/a.zip"], server.etags["/a.zip"] = bytes(SIZE), '"old"'
    server.orders = [{"cut": 100_000}, {"status": 404}]
    with pytest.raises(OSError, match="404"):
        fetch()
    assert fetch.part.stat().st_size == 100_000
    server.files["/a.zip"], server.etags["/a.zip"] = BODY, '"new"'
    fetch()
    assert server.asked[-1] == ["bytes=100000-", '"old"', SIZE]


def test_a_weak_etag_and_a_date(server, fetch):
    date = formatdate(usegmt=True)
    server.etags["/a.zip"] = 'W/"weak"'
    server.orders = [{"cut": 100_000, "headers": {"Last-Modified": date}}]
    fetch()
    assert server.asked[1][:2] == ["bytes=100000-", date]


@pytest.mark.parametrize("part", [BODY[:-1] + b"x", BODY + b"x", bytes(100_000)])
def test_a_part_that_is_wrong_is_dropped(part, server, fetch):
    fetch.part.write_bytes(part)
    fetch()
    assert server.asked[-1] == [None, None, SIZE]


def test_a_part_that_is_whole_is_only_verified(server, fetch):
    fetch.part.write_bytes(BODY)
    fetch()
    assert server.asked == []


def test_a_wrong_checksum_once(server, fetch, caplog):
    server.orders = [{"body": bytes(SIZE)}]
    fetch()
    assert server.sent() == 2 * SIZE and md5(bytes(SIZE)) in caplog.text


def test_a_wrong_checksum_always(server, fetch):
    server.always = {"body": bytes(SIZE)}
    with pytest.raises(ValueError, match=f"{md5(bytes(SIZE))}, not {md5(BODY)}"):
        fetch()
    assert len(server.asked) == 2 and not fetch.file.exists() and not fetch.part.exists()


@pytest.mark.parametrize("length", [SIZE - 1, SIZE + 1])
def test_a_length_that_is_not_the_records(length, server, fetch):
    server.always = {"length": length}
    with pytest.raises(ValueError, match=f"{length} bytes of .* are offered, {SIZE} are wanted"):
        fetch()
    assert not fetch.file.exists() and not fetch.part.exists()


def test_more_bytes_than_were_said_are_not_written(server, fetch):
    server.always = {"body": BODY + bytes(200 * SIZE), "length": None}
    with pytest.raises(ValueError, match=f"more than the {SIZE} bytes"):
        fetch()
    assert fetch.part.stat().st_size <= SIZE and server.sent() < 100 * SIZE


def test_fewer_bytes_than_were_said(server, fetch):
    server.always = {"body": BODY[: SIZE // 2], "length": None}
    with pytest.raises(OSError, match="the same command again later"):
        fetch()
    assert not fetch.file.exists()


def test_a_web_page_does_not_cost_the_part(server, fetch):
    fetch.part.write_bytes(BODY[:100_000])
    server.orders = [{"status": 200, "body": b"<html>log in</html>", "length": None, "headers": {"Content-Type": "text/html"}}]
    with pytest.raises(ValueError, match="a login page"):
        fetch()
    fetch()
    assert server.asked[-1] == ["bytes=100000-", None, SIZE - 100_000]


def passed(seconds: int) -> str:
    return formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
@pytest.mark.parametrize(("after", "wait"), [(None, 0), ("7", 7), ("soon", 0), (passed(-9), 0), (passed(200), 190)])
def test_a_busy_server_is_waited_for(status, after, wait, server, fetch, waited):
    server.orders = [{"cut": 100_000}, {"status": status, "headers": {"Retry-After": after}}]
    fetch()
    assert len(waited) == 2 and wait <= waited[1] <= wait * 1.1 and server.sent() == SIZE


@pytest.mark.parametrize("after", ["3600", passed(3600), "9" * 400])
def test_a_server_is_not_waited_for_for_hours(after, server, fetch):
    server.always = {"status": 503, "headers": {"Retry-After": after}}
    with pytest.raises(OSError, match=r"503 .*asks to wait (\d{4}|inf) s; run the same command again later"):
        fetch()
    assert len(server.asked) == 1


def test_redirections(server, fetch):
    away = {"status": 302, "headers": {"Location": "/a.zip"}}
    server.orders = [{"cut": 100_000}, away]
    fetch()
    assert server.asked[-1] == ["bytes=100000-", None, SIZE - 100_000]
    fetch.file.unlink()
    server.always = away
    with pytest.raises(OSError, match=r"/a.zip: .*redirects"):
        fetch()


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (410, 1), (500, 4), (503, 4)])
def test_a_server_that_refuses(status, tries, server, fetch):
    server.always = {"status": status}
    with pytest.raises(OSError, match=f"/a.zip: the server answers {status} ") as raised:
        fetch()
    assert len(server.asked) == tries and "\n" not in str(raised.value)


def test_no_server_and_no_address(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WAITS", (0,))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for url, kind in [
        ("http://127.0.0.1:1/a", OSError),
        ("ftp://127.0.0.1/a", ValueError),
        ("http://127.0.0.1:x/a", ValueError),
    ]:
        with pytest.raises(kind) as raised:
            download(url, tmp_path / "a", 1, md5(b"a"))
        assert url in str(raised.value) and "\n" not in str(raised.value)


KILLED = "import sys; from pathlib import Path; from audiolm.data.download import download\n"
KILLED += "download(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])"


def test_a_run_after_a_kill_goes_on(server, fetch):
    server.always = {"pause": 0.05}
    words = [sys.executable, "-c", KILLED, f"{server.url}/a.zip", str(fetch.file), str(SIZE), md5(BODY)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while not fetch.part.is_file() or fetch.part.stat().st_size < 50_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = fetch.part.stat().st_size
    assert 0 < there < SIZE and not fetch.file.exists()
    server.always = {}
    fetch()  # the lock went with the process
    assert server.asked[1] == [f"bytes={there}-", None, SIZE - there]


def test_two_processes_do_not_write_one_file(server, fetch):
    hold = "import sys; from filelock import FileLock\nwith FileLock(sys.argv[1]): print('held', flush=True); input()"
    words = [sys.executable, "-c", hold, f"{fetch.file}.lock"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OSError, match=r"another process is downloading into .*a.zip.lock is locked"):
            fetch()
        assert server.asked == []
        other.communicate("\n")
    fetch()


def free(monkeypatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(count))


def test_a_disk_that_is_too_small_for_what_is_missing(server, fetch, monkeypatch):
    fetch.part.write_bytes(BODY[:100_000])
    free(monkeypatch, 199_999)
    with pytest.raises(OSError, match=r"0\.00 GB are free, 0\.00 GB are needed to download a.zip"):
        fetch()
    assert server.asked == []
    free(monkeypatch, 200_000)
    fetch()


# ---- Zenodo ----


def zip_of(files: dict[str, bytes], compression=zipfile.ZIP_DEFLATED) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return whole.getvalue()


def seven_of(files: dict[str, bytes], change=lambda archive: None, **options) -> bytes:
    whole = io.BytesIO()
    with py7zr.SevenZipFile(whole, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(content, name)
        change(archive)
    return whole.getvalue()


ROWS = {f"{split}.json": f'[{{"split": "{split}"}}]'.encode() for split in ("train", "val", "test")}
CLIPS = {split: {f"{i} {split} (ü).wav": random.Random(i).randbytes(3000) for i in range(3)} for split in
         ("development", "validation", "evaluation", "audio_files")}  # fmt: skip
MAC = {"__MACOSX/audio_files/._0.wav": b"mac", "audio_files/.DS_Store": b"mac"}


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


@pytest.fixture
def zenodo(server, monkeypatch):
    """The three records with archives of the layout that they have; their pinned checksums are those of the archives here."""
    made = {
        "reasonaqa.zip": zip_of(ROWS),
        **{f"clotho_audio_{split}.7z": seven_of(below(split, CLIPS[split])) for split in CLIPS if split != "audio_files"},
        "audio_files.zip": zip_of({"audio_files/": b"", **below("audio_files", CLIPS["audio_files"]), **MAC}),
    }
    for name, source in SOURCES.items():
        archives = [dataclasses.replace(a, md5=a.md5 and md5(made[a.name]), unpacked=100_000) for a in source.archives]
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(source, archives=tuple(archives)))
        for archive in archives:
            server.files[f"/{archive.name}"] = made[archive.name]
        server.record = lambda name: f"/api/records/{SOURCES[name].record}"
        publish(server, name)
    return server


def publish(server, name: str, **changes) -> None:
    """Writes the record of a source; `changes` to the entry of its first file."""
    entries = [{"key": "captions.csv", "size": 1, "checksum": f"md5:{md5(b'')}", "links": {"self": "http://x"}}]
    for archive in SOURCES[name].archives:
        content, link = server.files[f"/{archive.name}"], {"self": f"{server.url}/{archive.name}"}
        entries.append({"key": archive.name, "size": len(content), "checksum": f"md5:{md5(content)}", "links": link})
    entries[1].update(changes)
    server.files[server.record(name)] = json.dumps({"id": SOURCES[name].record, "files": entries}).encode()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


WHOLE = {
    **ROWS,
    **{f"ClothoV21/{split}/{name}": clip for split in CLIPS if split != "audio_files" for name, clip in CLIPS[split].items()},
    **below("ClothoAQA/audio_files", CLIPS["audio_files"]),
}


def unpacked(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if not name.startswith("archives/")}


def test_all_sources_from_a_record_to_files(zenodo, tmp_path, capsys):
    get(["reasonaqa", "clotho", "clothoaqa", "clotho"], tmp_path / "data", zenodo.url)
    assert unpacked(tmp_path / "data") == WHOLE
    said, size = capsys.readouterr().out, sum(len(c) for name, c in zenodo.files.items() if name.count("/") == 1 and c != BODY)
    assert f"to download: {size / 1e6:,.1f} MB" in said and said.index("to download") < said.index("3 files in")
    assert f"{tmp_path / 'data' / 'ClothoV21' / 'development'}" in said
    assert len(zenodo.asked) == 5
    zenodo.asked.clear()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock"}
    get(["reasonaqa", "clotho", "clothoaqa"], str(tmp_path / "data"), zenodo.url + "/")
    said = capsys.readouterr().out
    assert zenodo.asked == [] and "to download: 0.0 MB" in said and said.count("unpacked already") == 5
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
    zenodo.asked.clear()
    get(["reasonaqa", "clotho"], tmp_path, zenodo.url)
    assert zenodo.asked == []  # unpacked, so that the archives may be deleted
    (tmp_path / "ClothoV21" / "validation" / "1 validation (ü).wav").unlink()
    (tmp_path / "val.json").unlink()
    (tmp_path / "archives" / "clotho_audio_evaluation.7z.unpacked").write_text('{"md5": ')
    get(["reasonaqa", "clotho"], tmp_path, zenodo.url)
    assert len(zenodo.asked) == 2  # of reasonaqa.zip the archive is there
    assert unpacked(tmp_path) == {name: content for name, content in WHOLE.items() if "AQA" not in name}


def test_a_changed_record_without_a_pinned_checksum_is_fetched(zenodo, tmp_path):
    get(["clothoaqa"], tmp_path, zenodo.url)
    zenodo.files["/audio_files.zip"] = zip_of({"audio_files/new.wav": b"new"})
    publish(zenodo, "clothoaqa")
    get(["clothoaqa"], tmp_path, zenodo.url)
    assert (tmp_path / "ClothoAQA" / "audio_files" / "new.wav").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checksum": f"md5:{md5(b'other')}"}, f"MD5 {md5(b'other')}, not [0-9a-f]{{32}}: the record has changed"),
        ({"key": "other.zip"}, "there is no reasonaqa.zip in it, but captions.csv, other.zip"),
        ({"checksum": "sha1:12"}, "has the size .* checksum 'sha1:12'"),
        ({"checksum": None}, "checksum None"),
        ({"size": 0}, "size 0"),
        ({"size": -1}, "size -1"),
        ({"size": "12"}, "size '12'"),
        ({"links": {"self": "file:///etc/passwd"}}, "link 'file:///etc/passwd'"),
        ({"links": {}}, "no JSON of a record"),
    ],
)
def test_a_record_that_is_not_what_is_wanted(changes, said, zenodo, tmp_path):
    publish(zenodo, "reasonaqa", **changes)
    with pytest.raises(ValueError, match=said) as raised:
        get(["reasonaqa"], tmp_path, zenodo.url)
    assert "/api/records/15036628: " in str(raised.value) and "\n" not in str(raised.value)
    assert zenodo.asked == [] and unpacked(tmp_path) == {}


@pytest.mark.parametrize("body", [b"<html>\nlog in", b"", b"[]", b"{}", b'{"files": 3}', b'{"files": [3]}', b"\xff", b"null"])
def test_a_record_that_is_none(body, zenodo, tmp_path):
    zenodo.files[zenodo.record("reasonaqa")] = body
    with pytest.raises(ValueError, match=r"no JSON of a record, but .*login page") as raised:
        get(["reasonaqa"], tmp_path, zenodo.url)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_record_that_is_not_there(status, zenodo, tmp_path):
    zenodo.always = {"record": True, "status": status}
    with pytest.raises(OSError, match=f"/api/records/15036628: the server answers {status}"):
        get(["reasonaqa"], tmp_path, zenodo.url)


def test_names_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"audiocaps: no source of this name; there are reasonaqa, clotho, clothoaqa"):
        get(["clotho", "audiocaps"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_disk_is_looked_at_before_anything_is_downloaded(zenodo, tmp_path, monkeypatch):
    size = len(zenodo.files["/reasonaqa.zip"])
    free(monkeypatch, size + 100_000 - 1)
    with pytest.raises(OSError, match=r"GB are free, .* GB are needed .*to download, at most .*to unpack"):
        get(["reasonaqa"], tmp_path, zenodo.url)
    assert zenodo.asked == []
    free(monkeypatch, size + 100_000)
    get(["reasonaqa"], tmp_path, zenodo.url)


def test_a_missing_py7zr_is_said_before_anything_is_downloaded(zenodo, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "py7zr", None)
    get(["reasonaqa", "clothoaqa"], tmp_path, zenodo.url)  # needs none
    zenodo.asked.clear()
    with pytest.raises(ValueError, match="install the extra `prepare`"):
        get(["clotho"], tmp_path, zenodo.url)
    assert zenodo.asked == []


def test_two_processes_do_not_fill_one_folder(zenodo, tmp_path):
    hold = "import sys; from filelock import FileLock\nwith FileLock(sys.argv[1]): print('held', flush=True); input()"
    (tmp_path / "archives").mkdir()
    words = [sys.executable, "-c", hold, str(tmp_path / "archives" / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OSError, match="another process is downloading into"):
            get(["reasonaqa"], tmp_path, zenodo.url)
        other.communicate("\n")
    get(["reasonaqa"], tmp_path, zenodo.url)


def test_an_interruption_keeps_the_part(zenodo, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "contents", lambda *words: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        get(["reasonaqa"], tmp_path, zenodo.url)
    monkeypatch.undo()
    assert (tmp_path / "archives" / "reasonaqa.zip").is_file() and unpacked(tmp_path) == {}


# ---- archives ----


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
            outside = {name: kept for name, kept in tree(tmp_path).items() if not name.startswith(f"box/{out}/")}
            assert outside == {name: kept for name, kept in before.items() if not name.startswith(f"box/{out}/")}
            assert not target.exists() or not [f for f in target.rglob("*") if unpacking.SCRATCH in str(f)]
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
        (["a/x...wav", "a/..y.wav", "a/Übung 'é' & (1).wav"], ["x...wav", "..y.wav", "Übung 'é' & (1).wav"]),
        ([("a/" + "é" * 120 + ".wav")], ["é" * 120 + ".wav"]),
    ],
)
def test_drops_the_folders_that_all_files_share(pack, files, found, box):
    content = {name: name.encode() * 999 for name in files}
    assert box(pack(content)) == {
        place: content[next(n for n in files if n.replace("//", "/").endswith(place))] for place in found
    }


@PACKERS
def test_empty_files_and_files_of_several_blocks(pack, box, monkeypatch):
    monkeypatch.setattr(unpacking, "CHUNK", 1000)
    files = {"a.wav": BODY, "empty.wav": b"", "z.wav": bytes(SIZE), "folder/b.wav": BODY[:1000]}
    assert box(pack(files), limit=sum(map(len, files.values()))) == files


PPMD, DELTA = {"id": py7zr.FILTER_PPMD, "order": 6, "mem": 24}, {"id": py7zr.FILTER_DELTA}


@pytest.mark.parametrize(
    "filters", [[{"id": py7zr.FILTER_COPY}], [{"id": py7zr.FILTER_BZIP2}], [PPMD], [DELTA, {"id": py7zr.FILTER_LZMA2}]]
)
def test_ways_of_7z_to_pack(filters, box):
    assert box(seven_of(CLIPS["evaluation"], filters=filters)) == CLIPS["evaluation"]


def test_7z_in_several_blocks(box):
    whole = io.BytesIO(seven_of({"a/1.wav": BODY, "a/0.wav": b""}))
    for number in (2, 3):
        whole.seek(0)
        with py7zr.SevenZipFile(whole, "a") as archive:
            archive.writestr(BODY[number:], f"a/{number}.wav")
    assert box(whole.getvalue()) == {"0.wav": b"", "1.wav": BODY, "2.wav": BODY[2:], "3.wav": BODY[3:]}


def test_names_of_a_zip_that_does_not_say_that_they_are_utf_8(box):
    unsaid = bytearray(zip_of({"a/fü.wav": b"x", "a/b.wav": b"y"}))
    for at in range(len(unsaid) - 4):
        if unsaid[at : at + 4] == b"PK\x03\x04":
            unsaid[at + 7] &= ~8
        elif unsaid[at : at + 4] == b"PK\x01\x02":
            unsaid[at + 9] &= ~8
    assert sorted(box(bytes(unsaid))) == ["b.wav", "fü.wav"]
    assert sorted(box(bytes(unsaid).replace(b"f\xc3\xbc", b"f\x81\x81"), out="dos")) == ["b.wav", "füü.wav"]  # cp437


def named(pack, *names: str) -> bytes:
    """An archive whose members have names that its writer would not write."""
    safe = {name: "".join("#" if c in "/\\:.\0" else c for c in name).ljust(len(name), "#") for name in names}
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


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
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


@pytest.mark.parametrize("attributes", [0x8000 | stat.S_IFLNK << 16, 0x410, 0x400, 0x8000 | stat.S_IFCHR << 16,
                                        0x8000 | stat.S_IFIFO << 16, 0x8000 | stat.S_IFSOCK << 16])  # fmt: skip
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
    with pytest.raises(ValueError, match=r"it would unpack to 50,000,000 bytes, at most 1,000,000 are expected"):
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


@pytest.mark.parametrize(("brought", "said"), [(bytes(10**7), "'a' in it is larger than the 3 bytes"), (b"ab", "2 of 3 bytes")])
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
    made = pack(below("a", {f"{number}.wav": BODY[number : number + 20_000] for number in range(5)}))
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
    assert not (box.folder / "out" / "b" / "x.wav").is_symlink() and tree(elsewhere) == {"x.wav": b"mine"}


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
