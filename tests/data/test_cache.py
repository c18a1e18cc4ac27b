"""The key-value cache: corrupt files, and two processes that write at once."""

import subprocess
import sys

import pytest

from audiolm.data import cache
from audiolm.data.cache import JsonCache

WRITER = """
import pathlib, runpy, sys
_, module, folder, name = sys.argv
pathlib.Path(folder, name).touch()
while len(list(pathlib.Path(folder).glob("?"))) < 2: pass
for i in range(50):
    cache = runpy.run_path(module)["JsonCache"](folder + "/cache.sqlite")
    cache.put({f"{name} {i}": i, "both": i})
    assert cache.get([f"{name} {i}"])
"""


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"torn" * 99, lambda b: b[:9000], lambda b: b[:4096] + b"\1" * len(b[4096:])],
)
def test_json_cache_of_a_corrupt_file_warns_and_lasts_as_long_as_the_object(
    damage, tmp_path, caplog
):
    file = tmp_path / "cache.sqlite"
    values = {f"key {i}": [i, "x" * 50] for i in range(2000)}
    JsonCache(file).put(values)
    assert JsonCache(file).get([*values, "no key"]) == values
    assert caplog.text == ""
    file.write_bytes(damage(file.read_bytes()))
    corrupt = JsonCache(file)
    assert len(corrupt.get(list(values))) < 2000
    corrupt.put({"new": 1})
    assert corrupt.get(["new"]) == {"new": 1}
    assert caplog.text.count(f"{file}: the cache cannot be used") == 1


def test_json_cache_two_processes_write_at_once(tmp_path):
    command = [sys.executable, "-c", WRITER, cache.__file__, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in "ab"
    ]
    results = [(writer.communicate()[1], writer.returncode) for writer in writers]
    assert results == [("", 0), ("", 0)]
    expected = {f"a {i}": i for i in range(50)} | {f"b {i}": i for i in range(50)} | {"both": 49}
    assert JsonCache(tmp_path / "cache.sqlite").get(list(expected)) == expected
