"""JSON tables: equal to json.loads for chunks of any size; the cache is used while it is valid."""

import json
import os
import tracemalloc

import pytest
from support import full_size
from support.builders import SHARED, needs_shared

from audiolm.data import json_table
from audiolm.data.json_table import stream_array
from audiolm.data.reasonaqa import load_reasonaqa, load_rows
from audiolm.runtime import UserError

VALUES = [
    {"a": 0, "b": [1e5, -2, 1.25, True, None]},
    {"a": 'b"]},{[' * 3, "n": [1, {"x": None}]},
    {},
    {"ü": "\\ \u2028 \U0001f415"},
    {"a": [], "b": {}, "c": "text"},
    {"a": {"b": {"c": [[{}]]}}},
    {"number": -1.5e3},
]
ROW = '{"a": 1}'


@pytest.mark.parametrize("values", [VALUES, [], [{}], VALUES * 3])
@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 22])
@pytest.mark.parametrize(
    "options", [{}, {"indent": 2}, {"ensure_ascii": False, "separators": (",", ":")}]
)
def test_stream_array_chunks_of_any_size_equal_json(values, chunk, options, tmp_path, monkeypatch):
    monkeypatch.setattr(json_table, "CHUNK_CHARACTERS", chunk)
    file = tmp_path / "a.json"
    file.write_text(" \n" + json.dumps(values, **options) + "\n", encoding="utf-8")
    assert list(stream_array(file)) == values


@pytest.mark.parametrize("chunk", [3, 1 << 22])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": [1]}', "row 0: expected a JSON list of objects, found '{\"a\": [1]}'"),
        ("12", "row 0: expected a JSON list of objects, found '12'"),
        ("[12]", "row 0: expected a JSON list of objects, found '[12]'"),
        ("", "row 0: expected a JSON list of objects, found ''"),
        ("[", "row 0: expected a JSON list of objects, found '['"),
        (f"[{ROW}", "row 1: expected ',' and an object, or ']', found ''"),
        (f"[{ROW}, 3]", "row 1: expected ',' and an object, or ']', found ', 3]'"),
        (f"[{ROW} {ROW}]", "row 1: expected ',' and an object, or ']', found ' {\"a\": 1}]'"),
        (f"[{ROW}, ]", "row 1: expected ',' and an object, or ']', found ', ]'"),
        (f'[{ROW},{{"a": "incomplete', "row 1: not readable as JSON (Unterminated string"),
        (f"[{ROW},{{'a': 1}}]", "row 1: not readable as JSON (Expecting property name"),
        (f"[{ROW}] [2]", "row 1: expected ',' and an object, or ']', found '] [2]'"),
        ("[] [2]", "row 0: expected a JSON list of objects, found '[] [2]'"),
        (b'[{"a": "\xff"}]', "row 0: not readable as JSON ("),
    ],
)
def test_stream_array_broken_file_names_the_row(content, message, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(json_table, "CHUNK_CHARACTERS", chunk)
    file = tmp_path / "broken.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        list(stream_array(file))
    assert str(error.value).startswith(f"{file}, {message}")


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A folder. Tables of files of any size are cached in its `cache`."""
    monkeypatch.setattr(json_table, "MIN_CACHED_BYTES", 0)
    monkeypatch.setattr(json_table, "ROWS_PER_BATCH", 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def corpus_file(cached):
    """About 970 rows. Row 5 is about a clip with an HTML entity in its name."""
    file = cached / "train.json"
    full_size.main(str(file), "0.001")
    rows = json.loads(file.read_text())
    rows[5]["filepath1"] = "ClothoV21/development/Mom&amp;Dad.wav"
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture
def is_parsed(corpus_file, monkeypatch):
    """Loads the corpus file and returns whether its JSON was parsed."""
    parsed = []

    def watched(path):
        parsed.append(path)
        return stream_array(path)

    def load(audio_dir) -> bool:
        parsed.clear()
        load_reasonaqa({"train": corpus_file}, audio_dir)
        return bool(parsed)

    monkeypatch.setattr(json_table, "stream_array", watched)
    return load


def table_folder(folder):
    return folder / "cache" / "audiolm" / "rows"


@needs_shared
def test_load_json_table_cached_rows_equal_rows_in_memory(cached, monkeypatch):
    files = {"train": SHARED / "train.json"}
    mapped = load_reasonaqa(files, SHARED / "audio")["train"]
    assert str(cached) in mapped.cache_files[0]["filename"]
    monkeypatch.setattr(json_table, "MIN_CACHED_BYTES", 1 << 40)
    in_memory = load_reasonaqa(files, SHARED / "audio")["train"]
    assert not in_memory.cache_files
    assert in_memory.to_list() == mapped.to_list()
    assert in_memory.features == mapped.features
    fields = [column for column in mapped.column_names if column not in ("question_type", "audio")]
    assert mapped.select_columns(fields).to_list() == json.loads(files["train"].read_text())


def test_load_json_table_same_arguments_use_the_cache(cached, is_parsed):
    assert is_parsed(cached / "audio")
    assert not is_parsed(cached / "audio")


def test_load_json_table_other_audio_dir_is_parsed_again(cached, is_parsed):
    is_parsed(cached / "audio")
    assert is_parsed(cached / "elsewhere")


def test_load_json_table_other_name_of_a_clip_is_parsed_again(cached, corpus_file, is_parsed):
    is_parsed(cached / "audio")
    escaped = cached / "audio" / "ClothoV21" / "development" / "Mom&amp;Dad.wav"
    escaped.parent.mkdir(parents=True)
    escaped.touch()
    assert is_parsed(cached / "audio")
    rows = load_rows({"train": corpus_file}, cached / "audio")["train"]
    assert rows[5]["audio"][0] == str(escaped)
    assert not is_parsed(cached / "audio")


def test_load_json_table_file_changed_in_place_is_parsed_again(cached, corpus_file, is_parsed):
    is_parsed(cached / "audio")
    status = corpus_file.stat()
    text = corpus_file.read_text().replace("caption first audio", "caption first sound")
    corpus_file.write_text(text)
    os.utime(corpus_file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert corpus_file.stat().st_size == status.st_size
    assert is_parsed(cached / "audio")
    rows = load_rows({"train": corpus_file}, cached / "audio")["train"]
    assert "caption first sound" in rows["input"]


def test_load_json_table_damaged_table_is_parsed_again(cached, corpus_file, is_parsed):
    is_parsed(cached / "audio")
    for file in table_folder(cached).glob("*.arrow"):
        file.write_bytes(b"torn")
    assert is_parsed(cached / "audio")
    rows = load_rows({"train": corpus_file}, cached / "audio")["train"]
    assert len(rows) == len(json.loads(corpus_file.read_text()))


def test_load_json_table_interrupted_write_is_parsed_again(cached, is_parsed):
    is_parsed(cached / "audio")
    for file in table_folder(cached).glob("*.json"):
        file.unlink()
    assert is_parsed(cached / "audio")


def test_load_json_table_bad_row_is_named_and_not_cached(cached, corpus_file):
    rows = json.loads(corpus_file.read_text())
    corpus_file.write_text(json.dumps([*rows, {**rows[0], "answer": ""}]))
    message = rf"train.json, row {len(rows)}: field 'answer' is empty"
    with pytest.raises(UserError, match=message):
        load_reasonaqa({"train": corpus_file}, cached)
    with pytest.raises(UserError, match=message):
        load_reasonaqa({"train": corpus_file}, cached)
    assert not list(table_folder(cached).iterdir())


def test_load_json_table_without_a_cache_folder_reads_into_memory(cached, corpus_file, caplog):
    (cached / "cache").write_text("not a folder")
    rows = load_rows({"train": corpus_file}, cached)["train"]
    assert len(rows) == len(json.loads(corpus_file.read_text()))
    assert "cannot cache" in caplog.text


def peak_memory(folder, share: str) -> int:
    """Returns the peak of Python's memory while a file of this share of the full size is loaded."""
    file = folder / f"{share}.json"
    full_size.main(str(file), share)
    tracemalloc.start()
    load_reasonaqa({"train": file}, "/nowhere")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_load_json_table_memory_does_not_grow_with_rows(cached, monkeypatch):
    monkeypatch.setattr(full_size, "CLIPS", dict.fromkeys(full_size.CLIPS, 50))
    small = peak_memory(cached, "0.02")
    assert os.path.getsize(cached / "0.02.json") > 9e6
    assert peak_memory(cached, "0.06") < 1.2 * small + 2e6


def test_full_size_has_the_counts_of_reasonaqa():
    assert sum(count for count, *_ in full_size.ROWS.values()) == 968_071
    assert sum(full_size.CLIPS.values()) == 54_046
