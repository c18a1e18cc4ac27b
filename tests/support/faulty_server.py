"""A server of files with faults to order, and archives that tests make."""

import hashlib
import io
import random
import shutil
import threading
import time
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import py7zr

SIZE = 300_000
BODY = random.Random(0).randbytes(SIZE)
BLOCK = 10_000  # bytes that the server sends at once


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Server:
    """Serves files and records by their path, with faults to order.

    `orders` are the faults of the next requests for files, one each. `always` holds those of all.
    `cut`: bytes after which the connection breaks. `status`, `headers`, `body`: in place of its
    own. `ranges=False`: sends everything. `start`: sends from there. `length`: the stated length
    (None: none). `pause`: seconds before each block. An order with `record` is for records.
    `asked` has the Range, the If-Range and the bytes that were sent of each request for a file.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.orders: list[dict] = []
        self.always: dict = {}
        self.requested: list[list] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *argv):
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
        return sum(count for _, _, count in self.requested)

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        is_record = to.path.startswith("/api/records/")
        order = {} if is_record and "record" not in self.always else self.always
        if self.orders and not is_record:
            order = self.orders.pop(0)
        entry = [to.headers["Range"], to.headers["If-Range"], 0]
        if not is_record:
            self.requested.append(entry)
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
                entry[2] += len(block)  # before the client may go on
                to.wfile.write(block)
                if at + BLOCK >= order.get("cut", SIZE * 100):
                    return to.wfile.flush()
        except OSError:  # the client went away
            pass


def zip_of(files: dict[str, bytes], compression=zipfile.ZIP_DEFLATED) -> bytes:
    complete = io.BytesIO()
    with zipfile.ZipFile(complete, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return complete.getvalue()


def seven_of(files: dict[str, bytes], change=lambda archive: None, **options) -> bytes:
    complete = io.BytesIO()
    with py7zr.SevenZipFile(complete, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(content, name)
        change(archive)
    return complete.getvalue()


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def free(monkeypatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(count))
