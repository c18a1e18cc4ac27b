"""Downloads from a server with faults to order: a file is complete and verified, or absent."""

import signal
import subprocess
import sys
import time

import pytest
from support.faulty_server import BODY, SIZE, Server, free, md5

from audiolm.data.download import transfer
from audiolm.data.download.transfer import download
from audiolm.runtime import UserError

CHUNK = transfer.CHUNK_BYTES
BREAK_OFF = {"cut": 3 * CHUNK}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "MAX_WAIT_SECONDS", 0)
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


def ranges(server) -> list[str]:
    return [requested for requested, _, _ in server.requested]


def test_download_leaves_the_file_alone(fetch, tmp_path):
    assert fetch() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_download_of_a_complete_file_asks_for_nothing(server, fetch):
    fetch()
    server.requested.clear()
    fetch()
    assert server.requested == []


def test_download_continues_where_the_connection_broke(server, fetch):
    server.orders = [BREAK_OFF] * 5
    assert fetch() == BODY
    assert ranges(server) == [f"bytes={start}-" for start in range(0, 16 * CHUNK, 3 * CHUNK)]


def test_download_does_not_count_failures_that_bring_new_bytes(server, fetch):
    server.orders = [{"cut": CHUNK}] * 15
    assert transfer.MAX_FAILURES < 15
    assert fetch() == BODY


def test_download_gives_up_without_new_bytes_and_keeps_the_part(server, fetch):
    server.orders = [{"cut": 7 * CHUNK}]
    server.always = {"cut": 0}
    with pytest.raises(UserError, match="Run the command again; it resumes"):
        fetch()
    assert fetch.part.stat().st_size == 7 * CHUNK


def test_download_of_a_second_run_fetches_only_the_rest(server, fetch):
    fetch.part.write_bytes(BODY[:120_000])
    assert fetch() == BODY
    assert server.sent() == SIZE - 120_000


def test_download_after_a_kill_fetches_only_the_rest(server, fetch):
    server.always = {"pause": 0.05}
    program = (
        "import sys; from pathlib import Path\n"
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
    fetch()
    assert server.requested[-1][0] == f"bytes={received}-"


def test_silence_counts_as_a_broken_connection(server, fetch, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT_SECONDS", 0.2)
    server.orders = [{"pause": 1}]
    assert fetch() == BODY


def test_server_without_ranges_sends_all_again(server, fetch):
    server.orders = [{"cut": 100_000}, {"ranges": False}]
    assert fetch() == BODY
    assert server.sent() == 100_000 + SIZE


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_server_is_asked_again(status, server, fetch):
    server.orders = [{"status": status}]
    assert fetch() == BODY


@pytest.mark.parametrize("status", [403, 404, 410])
def test_refusal_ends_the_download_at_once(status, server, fetch):
    server.always = {"status": status}
    with pytest.raises(UserError, match=f"{status} "):
        fetch()
    assert len(server.requested) == 1


@pytest.mark.parametrize("part", [BODY[:-1] + b"x", bytes(100_000)])
def test_part_of_another_file_is_an_error_and_goes(part, fetch):
    fetch.part.write_bytes(part)
    with pytest.raises(UserError, match=r"a\.zip"):
        fetch()
    assert not fetch.file.exists()
    assert fetch() == BODY


def test_larger_part_is_replaced(fetch):
    fetch.part.write_bytes(BODY + b"x")
    assert fetch() == BODY


@pytest.mark.parametrize("length", [SIZE - 1, SIZE + 1])
def test_another_length_than_the_records_is_an_error(length, server, fetch):
    server.always = {"length": length}
    with pytest.raises(UserError, match=f"offers {length} bytes, expected {SIZE}"):
        fetch()


def test_more_bytes_than_stated_are_not_written(server, fetch):
    server.always = {"body": BODY + bytes(20 * SIZE), "length": None}
    assert fetch() == BODY


def test_web_page_in_between_leaves_the_part(server, fetch):
    fetch.part.write_bytes(BODY[:100_000])
    page = {"body": b"<html>log in</html>", "headers": {"Content-Type": "text/html"}}
    server.orders = [{"status": 200, **page, "length": None}]
    with pytest.raises(UserError, match="login page"):
        fetch()
    assert fetch.part.stat().st_size == 100_000


def test_full_disk_is_noticed_before_the_download(server, fetch, monkeypatch):
    fetch.part.write_bytes(BODY[:100_000])
    free(monkeypatch, 199_999)
    with pytest.raises(UserError, match=r"200\.0 kB are free, but 200\.0 kB are needed"):
        fetch()
    assert server.requested == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a", "ftp://127.0.0.1/a", "no address"])
def test_missing_server_or_wrong_address_is_one_line(url, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_FAILURES", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UserError) as raised:
        download(url, tmp_path / "a", 1, md5(b"a"))
    assert "\n" not in str(raised.value)
