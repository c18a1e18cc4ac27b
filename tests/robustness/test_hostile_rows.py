"""Hostile rows and paths, fuzzed: refused in one line, without a traceback, a hang or much memory.

Each run draws the same examples. Inputs that once broke something are examples of their own.
"""

import json
import posixpath
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.hostile import PIECES, VALUES, fuzz, one_line

from audiolm.data import json_table
from audiolm.data.benchmarks import read_benchmark
from audiolm.data.reasonaqa import FIELDS, load_reasonaqa, load_rows, resolve_path

pytestmark = pytest.mark.usefixtures("same_examples")

# --- rows ---
ROW = {
    "taskname": "audioqa",
    "filepath1": "a/x.wav",
    "filepath2": "",
    "caption1": "",
    "caption2": "",
    "input": "Is it low? Answer only using yes or no.",
    "answer": "yes",
    "subtype": "ClothoAQA.json",
}
WHOLE = json.dumps([ROW, {**ROW, "answer": "é\u2028\U0001f415"}], ensure_ascii=False).encode()


def json_of_row(**fields) -> bytes:
    return json.dumps([{**ROW, **fields}]).encode()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(json_table, "CHUNK_CHARACTERS", 64)


def reads_or_refuses(folder: Path, content: bytes) -> None:
    file = folder / "rows.json"
    file.write_bytes(content)
    try:
        rows = load_rows({"train": file}, folder)["train"]
    except ValueError as error:
        return one_line(error, file)
    assert [{name: row[name] for name in FIELDS} for row in rows] == [
        {name: row[name] for name in FIELDS} for row in json.loads(content)
    ]


@fuzz(150)
@given(
    st.binary(max_size=100)
    | st.text(st.sampled_from('[]{}",:0e.-nulltrue \\ud8\n'), max_size=60).map(str.encode)
)
@example(b"[" * 100_000)
@example(b'[{"a":' * 50_000)
@example(b"[" + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"]")
@example(b"[" + b"1" * 5000 + b"]")
@example(b"\xef\xbb\xbf" + WHOLE)
@example(json.dumps([ROW]).encode("utf-16"))
@example(b"\0" * 100)
@example(b"[NaN, 1e999, -Infinity]")
def test_load_reasonaqa_any_bytes_are_read_or_refused(tmp_path, small_chunks, content):
    reads_or_refuses(tmp_path, content)


@fuzz(100)
@given(
    st.integers(0, len(WHOLE)),
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=3),
)
@example(len(WHOLE), [])
def test_load_reasonaqa_damaged_file_is_read_or_refused(tmp_path, small_chunks, size, changes):
    content = bytearray(WHOLE)
    for at, byte in changes:
        content[at] = byte
    reads_or_refuses(tmp_path, bytes(content[:size]))


@fuzz(150)
@given(
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3),
    st.sets(st.sampled_from(FIELDS), max_size=1),
)
@example({"answer": "yes\ud800"}, set())
@example({"filepath1": "\udcff.wav"}, set())
@example({"input": "x" * 10**6, "subtype": "unknown"}, set())
@example({"answer": 10**4000, "input": 1e308}, set())
def test_load_reasonaqa_any_values_are_read_or_refused(tmp_path, changes, missing):
    row = {name: value for name, value in {**ROW, **changes}.items() if name not in missing}
    reads_or_refuses(tmp_path, json.dumps([row]).encode())


def test_load_reasonaqa_last_of_two_equal_keys_counts(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([ROW])[:-2] + ', "answer": "no"}]')
    assert load_reasonaqa({"train": tmp_path / "rows.json"}, tmp_path)["train"]["answer"] == ["no"]


@pytest.fixture
def short_elements(monkeypatch):
    """Elements may have 2,000 characters."""
    monkeypatch.setattr(json_table, "CHUNK_CHARACTERS", 100)
    monkeypatch.setattr(json_table, "MAX_ELEMENT_CHARACTERS", 2000)


def test_load_reasonaqa_long_element_is_read(tmp_path, short_elements):
    file = tmp_path / "rows.json"
    file.write_bytes(json_of_row(caption1="x" * 1500))
    assert len(load_reasonaqa({"train": file}, tmp_path)["train"]) == 1


@pytest.mark.parametrize(
    "content", [json_of_row(caption1="x" * 2500), b'[{"a": [' + b"0," * 2000, b'[{"' + b"x" * 3000]
)
def test_load_reasonaqa_element_without_end_is_refused(content, tmp_path, short_elements):
    """Each further chunk would parse it again, which takes quadratic time."""
    file = tmp_path / "rows.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"row 0: more than 2,000 characters") as error:
        load_reasonaqa({"train": file}, tmp_path)
    one_line(error.value, file)


MMAR_ITEM = {
    "id": "1",
    "audio_path": "a.wav",
    "question": "What?",
    "choices": ["x", "y"],
    "answer": "x",
    "modality": "m",
}


@fuzz(100)
@given(
    st.dictionaries(st.sampled_from(list(MMAR_ITEM)), VALUES, max_size=2), st.binary(max_size=20)
)
@example({}, b"\xff")
@example({}, b"[" * 100_000)
@example({}, b"1" * 5000)
@example({"question": "What\ud800?"}, b"")
@example({"category": "\ud800"}, b"")
@example({"audio_path": "a/&#46;&#46;/&#46;&#46;/x.wav"}, b"")
def test_read_benchmark_any_item_is_read_or_refused(tmp_path, changes, end):
    file = tmp_path / "mmar.jsonl"
    file.write_bytes(json.dumps({**MMAR_ITEM, **changes}).encode() + b"\n" + end)
    try:
        rows = read_benchmark("mmar", file, tmp_path)
        assert all(inside(path, tmp_path) for row in rows["audio"] for path in row)
    except ValueError as error:
        one_line(error, file)


# --- paths ---
def inside(path: str, folder: Path) -> bool:
    return posixpath.normpath(path).startswith(f"{folder}/") and ".." not in path.split("/")


@pytest.fixture
def folders(tmp_path):
    """A folder of audio beside one that no row may reach."""
    for name in ("audio/a", "audio/b", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.wav").touch()
    (tmp_path / "elsewhere" / "Yabcdefghijk.wav").touch()
    return tmp_path


@fuzz(400)
@given(st.lists(st.sampled_from(PIECES), max_size=7).map("".join))
@example("")
@example("/")
@example("/a/x.wav")
@example("a")
@example("../elsewhere/x.wav")
@example("a/../../elsewhere/x.wav")
@example("..\\elsewhere\\x.wav")
@example("C:\\x.wav")
@example("&#46;&#46;/elsewhere/x.wav")
@example("a/&#46;&#46;&#47;&#46;&#46;&#47;elsewhere&#47;x.wav")
@example("&#47;etc&#47;passwd")
@example("a/&#47;etc&#47;passwd")
@example("a&bsol;..&bsol;..&bsol;elsewhere&bsol;x.wav")
@example("a/" + "n" * 10_000)
def test_resolve_path_stays_in_its_folder(folders, filepath):
    audio = folders / "audio"
    for roots in (audio, {"a": audio / "a", "b": audio / "b"}):
        try:
            path = resolve_path(filepath, roots)
        except ValueError as error:
            one_line(error)
            continue
        assert inside(path, audio if isinstance(roots, Path) else roots[filepath[0]])
        # The system resolves neither lone surrogates nor names that are too long.
        if "\ud800" not in path and "n" * 999 not in path:
            assert Path(path).resolve().is_relative_to(audio)


@pytest.mark.parametrize("name", ["Yabcdefghijk.wav", "x.wav"])
@pytest.mark.parametrize(
    "way",
    [
        "..{0}elsewhere{0}",
        "a{0}..{0}..{0}elsewhere{0}",
        "{1}{0}elsewhere{0}",
        "&#46;&#46;{0}elsewhere{0}",
    ],
)
@pytest.mark.parametrize("separator", ["/", "\\", "&#47;"])
def test_load_reasonaqa_path_outside_is_refused(folders, name, way, separator):
    file, filepath = folders / "rows.json", way.format(separator, folders) + name
    file.write_bytes(json_of_row(filepath1=filepath))
    for roots in (folders / "audio", {"a": folders / "audio", "..": folders / "audio"}):
        with pytest.raises(ValueError) as error:
            load_reasonaqa({"train": file}, roots)
        one_line(error.value, f"{file}, row 0: ")


def test_resolve_path_follows_links_in_the_folder(folders):
    (folders / "audio" / "link").symlink_to(folders / "elsewhere")
    assert Path(resolve_path("link/x.wav", folders / "audio")).is_file()
    (folders / "audio" / "rows.json").write_bytes(json_of_row(filepath1="link/Yabcdefghijk.wav"))
    rows = load_rows({"train": folders / "audio" / "rows.json"}, folders / "audio")
    assert rows["train"]["audio"] == [[str(folders / "audio" / "link" / "Yabcdefghijk.wav")]]
