"""Reading JSON of any length: the same as json.loads, in chunks of any size, and kept only as long as it is true."""

import json
import os
import tracemalloc

import pytest
from support import full_size
from support.builders import SHARED, needs_shared

from audiolm.data import json_table as json_rows
from audiolm.data import load_reasonaqa
from audiolm.data.json_table import stream_array

VALUES = [
    0,
    1e5,
    -2,
    1.25,
    {"a": 'b"]},{[' * 3, "n": [1, {"x": None}]},
    {},
    {"ü": "\\ \u2028 \U0001f415"},
    [],
    "text",
    12345,
    -1.5e3,
    True,
    None,
]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 22])
@pytest.mark.parametrize(
    "options", [{}, {"indent": 2}, {"ensure_ascii": False, "separators": (",", ":")}]
)
def test_streams_what_json_reads(chunk, options, tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    file = tmp_path / "a.json"
    for value in (VALUES, [], [[]], VALUES * 3):
        file.write_text(" \n" + json.dumps(value, **options) + "\n", encoding="utf-8")
        assert list(stream_array(file)) == value


@pytest.mark.parametrize("chunk", [3, 1 << 22])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": [1]}', "a list of rows is wanted, not dict"),
        ("12", "a list of rows is wanted, not int"),
        ("", "not a readable JSON file"),
        ("[", "not a readable JSON file"),
        ('[{"a": 1}', "or ] is wanted, not 'its end'"),
        ('[{"a": 1} {"a": 2}]', "or ] is wanted, not '{'"),
        ('[{"a": 1}, ]', "not a readable JSON file"),
        ('[{"a": 1},{"a": "torn', "not a readable JSON file"),
        ("[1] [2]", "more follows its array"),
        (b'[{"a": "\xff"}]', "not a readable JSON file"),
    ],
)
def test_names_a_file_that_is_none(text, said, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    file = tmp_path / "broken.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"broken.json: ") as error:
        list(stream_array(file))
    assert said in str(error.value)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Every file counts as large, and what is kept lies in `tmp_path`."""
    monkeypatch.setattr(json_rows, "LARGE", 0)
    monkeypatch.setattr(json_rows, "BATCH", 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def made_again(monkeypatch, *arguments) -> bool:
    read = []
    inner = json_rows.stream_array

    def watched(path):
        read.append(path)
        yield from inner(path)

    monkeypatch.setattr(json_rows, "stream_array", watched)
    load_reasonaqa(*arguments)
    monkeypatch.setattr(json_rows, "stream_array", inner)
    return bool(read)


@needs_shared
def test_a_kept_table_holds_the_same_rows(large, monkeypatch):
    files = {"train": SHARED / "train.json"}
    kept = load_reasonaqa(files, SHARED / "audio")["train"]
    assert kept.cache_files and str(large) in kept.cache_files[0]["filename"]
    monkeypatch.setattr(json_rows, "LARGE", 1 << 40)
    whole = load_reasonaqa(files, SHARED / "audio")["train"]
    assert (
        not whole.cache_files
        and whole.to_list() == kept.to_list()
        and whole.features == kept.features
    )
    assert [
        {k: row[k] for k in row if k not in ("question_type", "audio")} for row in whole
    ] == json.loads(files["train"].read_text())


def test_a_kept_table_is_used_while_it_is_true(large, monkeypatch):
    file, folder = large / "train.json", large / "audio"
    full_size.main(str(file), "0.001")
    rows = json.loads(file.read_text())
    rows[5]["filepath1"] = "ClothoV21/development/Mom&amp;Dad.wav"
    file.write_text(json.dumps(rows))
    files = {"train": file}
    assert made_again(monkeypatch, files, folder)
    assert not made_again(monkeypatch, files, folder)
    assert made_again(monkeypatch, files, large / "elsewhere")
    # another name of a clip is the right one now
    (folder / "ClothoV21" / "development").mkdir(parents=True)
    escaped = folder / "ClothoV21" / "development" / "Mom&amp;Dad.wav"
    escaped.touch()
    assert made_again(monkeypatch, files, folder)
    assert load_reasonaqa(files, folder)["train"][5]["audio"][0] == str(escaped)
    assert not made_again(monkeypatch, files, folder)
    # the file changes in place, to the same size
    status = file.stat()
    file.write_text(file.read_text().replace("caption first audio", "caption first sound"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert made_again(monkeypatch, files, folder)
    assert any(
        row["input"] == "caption first sound" for row in load_reasonaqa(files, folder)["train"]
    )
    # torn by something else than us
    for kept in (large / "cache" / "audiolm" / "rows").glob("*.arrow"):
        kept.write_bytes(b"torn")
    assert len(load_reasonaqa(files, folder)["train"]) == len(rows)
    # an interrupted run leaves nothing that counts
    for kept in (large / "cache" / "audiolm" / "rows").glob("*.json"):
        kept.unlink()
    assert made_again(monkeypatch, files, folder)


def test_wrong_rows_leave_no_table(large):
    file = large / "train.json"
    full_size.main(str(file), "0.001")
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([*rows, {**rows[0], "answer": ""}]))
    for _ in range(2):
        with pytest.raises(
            ValueError, match=rf"train.json, row {len(rows)}: field 'answer' is empty"
        ):
            load_reasonaqa({"train": file}, large)
    assert not list((large / "cache" / "audiolm" / "rows").iterdir())


def test_rows_are_read_where_nothing_can_be_kept(large, monkeypatch, caplog):
    file = large / "train.json"
    full_size.main(str(file), "0.001")
    (large / "cache").write_text("a file where a folder is wanted")
    rows = load_reasonaqa({"train": file}, large)["train"]
    assert len(rows) == len(json.loads(file.read_text())) and "cannot be written" in caplog.text


def test_memory_does_not_grow_with_the_rows(large, monkeypatch):
    monkeypatch.setattr(full_size, "CLIPS", dict.fromkeys(full_size.CLIPS, 50))
    peaks = []
    for share in ("0.02", "0.06"):
        file = large / f"{share}.json"
        full_size.main(str(file), share)
        tracemalloc.start()
        load_reasonaqa({"train": file}, "/nowhere")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert os.path.getsize(large / "0.02.json") > 9e6 and peaks[1] < 1.2 * peaks[0] + 2e6


def test_the_full_size_has_the_real_counts():
    assert (
        sum(count for count, *_ in full_size.ROWS.values()) == 968_071
        and sum(full_size.CLIPS.values()) == 54_046
    )
