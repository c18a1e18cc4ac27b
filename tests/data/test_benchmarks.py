"""MMAU and MMAR: files as published become examples."""

import json

import pytest

from audiolm.data import benchmarks
from audiolm.data.answer_parsing import parse_answer
from audiolm.data.benchmarks import read_benchmark
from audiolm.data.reasonaqa import SCHEMA
from audiolm.runtime import UserError

MAN = ["A man", "A woman", "A child", "Two men"]
MMAU = [
    {
        "id": "3f-1",
        "audio_id": "./test-mini-audios/3f-1.wav",
        "question": "Who speaks?",
        "choices": MAN,
        "answer": "A woman",
        "dataset": "AudioSet",
        "task": "speech",
        "split": "test-mini",
        "category": "Reasoning",
        "sub-category": "Speaker",
        "difficulty": "easy",
    },
    {
        "id": "3f-2",
        "audio_id": "./test-mini-audios/3f-2.wav",
        "question": "Which chords (C:maj/1) are played?",
        "choices": ["C:maj/1 to G:maj/1", "F:maj/5 to C:maj/1"],
        "answer": "C:maj/1 to G:maj/1",
        "dataset": "guitarset",
        "task": "music",
        "split": "test-mini",
        "category": "Reasoning",
        "sub-category": "Temporal",
        "difficulty": "hard",
    },
    {
        "id": "3f-3",
        "audio_id": "./test-mini-audios/3f-3.wav",
        "question": "How long is it?",
        "choices": ["1.63 seconds", "2.74 seconds", "1.63 seconds"],
        "answer": "1.63 seconds",
        "dataset": "guitarset",
        "task": "music",
        "split": "test-mini",
        "category": "Reasoning",
        "sub-category": "Temporal",
        "difficulty": "easy",
    },
]
MMAR = [
    {
        "id": "f0V_00-11-10_00-11-30",
        "audio_path": "./audio/f0V_00-11-10_00-11-30.wav",
        "question": "What makes the sound?",
        "choices": ["Owl", "Robot", "Parrot"],
        "answer": "Parrot ",
        "modality": "sound",
        "category": "Signal Layer",
        "sub-category": "Acoustics",
        "language": "en",
        "source": "youtube",
        "url": "https://x",
        "timestamp": "00:11:10,00:11:30",
    },
    {
        "id": "BV1",
        "audio_path": "./audio/BV1.wav",
        "question": "Which instrument?",
        "choices": ["二胡", "琵琶"],
        "answer": "琵琶",
        "modality": "mix-music-speech",
        "category": "Cultural Layer",
        "sub-category": "Culture",
        "language": "zh",
        "source": "bilibili",
        "url": "https://y",
        "timestamp": "00:00:03,00:00:21",
    },
]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "mmau-test-mini.json").write_text(json.dumps(MMAU, indent=2), encoding="utf-8")
    (tmp_path / "MMAR-meta.json").write_text(json.dumps(MMAR, ensure_ascii=False), encoding="utf-8")
    return {
        "mmau": tmp_path / "mmau-test-mini.json",
        "mmar": tmp_path / "MMAR-meta.json",
    }


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def test_read_benchmark_mmau_rows_are_like_reasonaqas(files, tmp_path):
    rows = read_benchmark("mmau", files["mmau"], tmp_path)
    assert rows.column_names == SCHEMA.names
    assert rows[0] == {
        "taskname": "MMAU",
        "filepath1": "./test-mini-audios/3f-1.wav",
        "filepath2": "",
        "caption1": "",
        "caption2": "",
        "input": "Who speaks? A) A man B) A woman C) A child D) Two men",
        "answer": "B) A woman",
        "subtype": "MMAU/speech",
        "question_type": "mcq",
        "audio": [str(tmp_path / "test-mini-audios/3f-1.wav")],
    }
    assert [parse_answer("mcq", row["input"], row["answer"]) for row in rows] == ["b", "a", "a"]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_read_benchmark_mmar_list_or_lines_are_read(suffix, tmp_path):
    file = tmp_path / f"MMAR-meta.{suffix}"
    lines = "\n".join(json.dumps(item) for item in MMAR)
    file.write_text(lines + "\n" if suffix == "jsonl" else json.dumps(MMAR), encoding="utf-8")
    rows = read_benchmark("mmar", file, tmp_path)
    assert rows["subtype"][:] == ["MMAR/sound", "MMAR/mix-music-speech"]
    assert rows["answer"][:] == ["C) Parrot", "B) 琵琶"]
    assert rows["input"][0] == "What makes the sound? A) Owl B) Robot C) Parrot"


@pytest.fixture
def first_path(files, tmp_path):
    """Returns the audio path of a benchmark's first row."""
    return lambda name: read_benchmark(name, files[name], tmp_path / "audio")["audio"][0][0]


def test_audio_path_missing_file_has_its_published_path(first_path, tmp_path):
    assert first_path("mmau") == str(tmp_path / "audio/test-mini-audios/3f-1.wav")


def test_audio_path_file_name_alone_is_found(first_path, tmp_path):
    path = touch(tmp_path / "audio/3f-1.wav")
    assert first_path("mmau") == path


def test_audio_path_published_path_comes_first(first_path, tmp_path):
    touch(tmp_path / "audio/3f-1.wav")
    path = touch(tmp_path / "audio/test-mini-audios/3f-1.wav")
    assert first_path("mmau") == path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "item 1: field 'answer' is None, expected text"),
        ({"choices": "['a', 'b']"}, "field 'choices' is \"['a', 'b']\", expected a list of texts"),
        ({"choices": [1, 2]}, "field 'choices' is [1, 2], expected a list of texts"),
        (
            {"audio_id": "../../etc/passwd"},
            "item 1: '../../etc/passwd' leaves its folder",
        ),
        ({"audio_id": "./test-mini-audios/../../x.wav"}, "leaves its folder"),
        ({"audio_id": "..\\x.wav"}, "leaves its folder"),
        ({"audio_id": "./"}, "is not a file name"),
    ],
)
def test_read_benchmark_bad_item_is_named(change, message, tmp_path):
    file = tmp_path / "mmau-test-mini.json"
    file.write_text(json.dumps([MMAU[0], MMAU[1] | change]))
    with pytest.raises(UserError) as raised:
        read_benchmark("mmau", file, tmp_path)
    assert str(raised.value).startswith(str(file))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mmau.json", "[]", "expected a list of objects"),
        ("mmau.json", "{}", "expected a list of objects"),
        ("mmau.json", "[3]", "expected a list of objects"),
        ("mmau.jsonl", "[]\n", "expected a list of objects"),
        ("mmau.jsonl", "{}\n{\n", r"not readable as JSON: .*line 2"),
    ],
)
def test_read_benchmark_bad_file_is_refused(name, text, message, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_benchmark("mmau", file, tmp_path)


def test_read_benchmark_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone.json: not readable"):
        read_benchmark("mmau", tmp_path / "gone.json", tmp_path)


@pytest.fixture
def write_mmau(tmp_path):
    """Writes an item of MMAU with changes, and returns its row."""

    def write(**changes):
        file = tmp_path / "mmau-test-mini.json"
        file.write_text(json.dumps([MMAU[0] | changes]))
        return read_benchmark("mmau", file, tmp_path)[0]

    return write


def test_audio_path_absolute_path_is_refused(write_mmau):
    with pytest.raises(UserError, match=r"item 0: '/somewhere/3f-1.wav' is an absolute path"):
        write_mmau(audio_id="/somewhere/3f-1.wav")


@pytest.mark.parametrize(
    "changes",
    [
        {"answer": "A robot"},
        {"answer": "(B) A woman"},
        {"answer": "Owl\nRobot"},
        {"choices": []},
        {"choices": ["A woman", "plan B) of it"]},
        {"choices": [*MAN, *map(str, range(23))]},
    ],
)
def test_read_benchmark_unclear_item_has_the_published_answer(changes, write_mmau):
    row = write_mmau(**changes)
    assert row["answer"] == " ".join((MMAU[0] | changes)["answer"].split())


def test_read_benchmark_answer_that_is_no_choice_names_no_option(write_mmau):
    row = write_mmau(answer="Owl\nRobot")
    assert parse_answer("mcq", row["input"], row["answer"]) is None


def test_read_benchmark_answer_in_another_case_names_its_choice(write_mmau):
    assert write_mmau(answer="a WOMAN")["answer"] == "B) A woman"


def test_module_docstring_states_the_position_bias_of_mmau():
    assert "39.5 %" in benchmarks.__doc__
