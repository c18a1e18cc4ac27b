"""Downloads from a server with faults to order: a file is there whole and right, or not at all."""

import signal
import subprocess
import sys
import time
from collections import namedtuple
from email.utils import formatdate

import pytest
from support.faulty_server import BODY, SIZE, Server, free, md5

from audiolm.data.download import transfer as module
from audiolm.data.download.transfer import download


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
    server.orders = [
        {"cut": 50_000} for _ in range(5)
    ]  # more faults than tries: each brings something new
    fetch()
    assert [count for _, _, count in server.asked] == [50_000] * 6
    assert [asked for asked, _, _ in server.asked[1:]] == [
        f"bytes={at}-" for at in range(50_000, SIZE, 50_000)
    ]
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
    assert [asked for asked, _, _ in server.asked] == [
        None,
        "bytes=100000-",
    ] and server.sent() == 100_000 + SIZE


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
    server.orders = [
        {
            "status": 200,
            "body": b"<html>log in</html>",
            "length": None,
            "headers": {"Content-Type": "text/html"},
        }
    ]
    with pytest.raises(ValueError, match="a login page"):
        fetch()
    fetch()
    assert server.asked[-1] == ["bytes=100000-", None, SIZE - 100_000]


def retry_after(said: str | int | None) -> dict:
    """The header; of a number, the date in so many seconds."""
    return {
        "Retry-After": formatdate(time.time() + said, usegmt=True)
        if isinstance(said, int)
        else said
    }


@pytest.mark.parametrize("status", [429, 500, 502, 503])
@pytest.mark.parametrize(("after", "wait"), [(None, 0), ("7", 7), ("soon", 0), (-9, 0), (200, 190)])
def test_a_busy_server_is_waited_for(status, after, wait, server, fetch, waited):
    server.orders = [{"cut": 100_000}, {"status": status, "headers": retry_after(after)}]
    fetch()
    assert len(waited) == 2 and wait <= waited[1] <= wait * 1.1 and server.sent() == SIZE


@pytest.mark.parametrize("after", ["3600", 3600, "9" * 400])
def test_a_server_is_not_waited_for_for_hours(after, server, fetch):
    server.always = {"status": 503, "headers": retry_after(after)}
    with pytest.raises(
        OSError, match=r"503 .*asks to wait (\d{4}|inf) s; run the same command again later"
    ):
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


KILLED = (
    "import sys; from pathlib import Path; from audiolm.data.download.transfer import download\n"
)
KILLED += "download(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])"


def test_a_run_after_a_kill_goes_on(server, fetch):
    server.always = {"pause": 0.05}
    words = [
        sys.executable,
        "-c",
        KILLED,
        f"{server.url}/a.zip",
        str(fetch.file),
        str(SIZE),
        md5(BODY),
    ]
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
        with pytest.raises(
            OSError, match=r"another process is downloading into .*a.zip.lock is locked"
        ):
            fetch()
        assert server.asked == []
        other.communicate("\n")
    fetch()


def test_a_disk_that_is_too_small_for_what_is_missing(server, fetch, monkeypatch):
    fetch.part.write_bytes(BODY[:100_000])
    free(monkeypatch, 199_999)
    with pytest.raises(OSError, match=r"0\.00 GB are free, 0\.00 GB are needed to download a.zip"):
        fetch()
    assert server.asked == []
    free(monkeypatch, 200_000)
    fetch()
