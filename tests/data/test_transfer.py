"""Downloads from a server with faults to order: a file is complete and verified, or absent."""

import signal
import subprocess
import sys
import time

import pytest
from huggingface_hub import constants, file_download
from support.faulty_server import BODY, SIZE, Server, md5

from audiolm.data.download.transfer import download
from audiolm.runtime import UserError

CHUNK = 1 << 14
BREAK_OFF = {"cut": 3 * CHUNK}
SLEEP = time.sleep


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    with Server() as served:
        served.files["/a.zip"] = BODY
        yield served


class Download:
    """A download of a.zip into a folder of its own."""

    def __init__(self, url: str, folder):
        self.url = f"{url}/a.zip"
        self.file = folder / "a.zip"
        self.part = folder / "a.zip.part"

    def __call__(self) -> bytes:
        download(self.url, self.file, SIZE, md5(BODY))
        return self.file.read_bytes()


@pytest.fixture
def fetch(server, tmp_path):
    return Download(server.url, tmp_path)


def test_download_leaves_the_file_alone_and_asks_once(server, fetch, tmp_path):
    assert fetch() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    fetch()
    assert len(server.requested) == 1


def test_download_continues_where_the_connection_broke(server, fetch):
    server.orders = [BREAK_OFF] * 5
    assert fetch() == BODY
    starts = range(3 * CHUNK, 16 * CHUNK, 3 * CHUNK)
    ranges = [requested for requested, _, _ in server.requested]
    assert ranges == [None, *(f"bytes={start}-" for start in starts)]


def test_download_does_not_count_failures_that_bring_new_bytes(server, fetch):
    server.orders = [{"cut": CHUNK}] * 15
    assert fetch() == BODY


def test_download_gives_up_without_new_bytes_and_keeps_the_part(server, fetch):
    server.orders = [{"cut": 7 * CHUNK}]
    server.always = {"cut": 0}
    with pytest.raises(UserError, match="Run the command again; it resumes") as raised:
        fetch()
    assert "\n" not in str(raised.value)
    assert fetch.part.stat().st_size == 7 * CHUNK
    server.always = {}
    assert fetch() == BODY
    assert server.requested[-1][0] == f"bytes={7 * CHUNK}-"


def test_download_after_a_kill_fetches_only_the_rest(server, fetch, monkeypatch):
    monkeypatch.setattr(file_download.time, "sleep", SLEEP)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    server.always = {"pause": 0.05}
    program = (
        "import sys; from pathlib import Path; from huggingface_hub import constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 10_000\n"
        "from audiolm.data.download.transfer import download\n"
        "download(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])"
    )
    argv = [sys.executable, "-c", program, fetch.url, str(fetch.file), str(SIZE), md5(BODY)]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    while not fetch.part.is_file() or fetch.part.stat().st_size == 0:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    received = fetch.part.stat().st_size
    server.always = {}
    assert fetch() == BODY
    assert server.requested[-1][0] == f"bytes={received}-"


def test_server_without_ranges_sends_all_again(server, fetch):
    server.orders = [{"cut": 6 * CHUNK}, {"ranges": False}]
    assert fetch() == BODY
    assert server.sent() == 6 * CHUNK + SIZE


@pytest.mark.parametrize("status", [403, 404, 503])
def test_refusal_ends_the_download_at_once(status, server, fetch):
    server.always = {"status": status}
    with pytest.raises(UserError, match=f"{status} ") as raised:
        fetch()
    assert len(server.requested) == 1
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("part", [BODY[:-1] + b"x", bytes(100_000)])
def test_part_of_another_file_is_an_error_and_goes(part, fetch):
    fetch.part.write_bytes(part)
    with pytest.raises(UserError, match=r"a\.zip: its MD5 is not"):
        fetch()
    assert not fetch.file.exists()
    assert fetch() == BODY


def test_larger_part_is_replaced(fetch):
    fetch.part.write_bytes(BODY + b"x")
    assert fetch() == BODY


def test_web_page_in_between_is_an_error(server, fetch):
    page = {"body": b"<html>log in</html>", "headers": {"Content-Type": "text/html"}}
    server.always = {"status": 200, **page}
    with pytest.raises(UserError, match="Consistency check failed"):
        fetch()
    assert not fetch.file.exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a", "ftp://127.0.0.1/a", "no address"])
def test_missing_server_or_wrong_address_is_one_line(url, server, tmp_path):
    with pytest.raises(UserError) as raised:
        download(url, tmp_path / "a", 1, md5(b"a"))
    assert "\n" not in str(raised.value)
