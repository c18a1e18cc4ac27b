"""MMAU, MMAR and ClothoAQA: files as published, submissions, and metrics computed by hand."""

import csv
import io
import json
from itertools import product

import pytest

from audiolm.data import benchmarks
from audiolm.data.benchmarks import read_benchmark
from audiolm.data.reasonaqa import SCHEMA
from audiolm.evaluation import parse_answer
from audiolm.evaluation.benchmarks import (
    official_accuracy,
    official_metrics,
    string_match,
    submission,
)
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
CLOTHO = """file_name,QuestionText,answer,confidence
Mom&Dad.wav,Is it raining?,yes,yes
Mom&Dad.wav,Is it raining?,Yes,no
Mom&Dad.wav,Is it raining?,no,yes
Mom&Dad.wav,"What barks, loudly?",dog,yes
Mom&Dad.wav,"What barks, loudly?",Dog,yes
Mom&Dad.wav,"What barks, loudly?",dog,yes
rain on roof.wav,Is it raining?,no,yes
rain on roof.wav,Is it raining?,no,yes
rain on roof.wav,Is it raining?,no,maybe
rain on roof.wav,What falls?,rain,yes
rain on roof.wav,What falls?,water,yes
rain on roof.wav,What falls?,drops,no
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "mmau-test-mini.json").write_text(json.dumps(MMAU, indent=2), encoding="utf-8")
    (tmp_path / "MMAR-meta.json").write_text(json.dumps(MMAR, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "clotho_aqa_test.csv").write_text(CLOTHO, encoding="utf-8")
    return {
        "mmau": tmp_path / "mmau-test-mini.json",
        "mmar": tmp_path / "MMAR-meta.json",
        "clothoaqa": tmp_path / "clotho_aqa_test.csv",
    }


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def test_read_benchmark_mmau_rows_are_like_reasonaqas(files, tmp_path):
    rows = read_benchmark("mmau", files["mmau"], tmp_path)
    assert rows.column_names == [*SCHEMA.names, "id", "choices", "item"]
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
        "id": "3f-1",
        "choices": MAN,
        "item": json.dumps(MMAU[0]),
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


def test_read_benchmark_clothoaqa_has_one_row_per_question(files, tmp_path):
    rows = read_benchmark("clothoaqa", files["clothoaqa"], tmp_path)
    assert rows["input"][:] == [
        "Is it raining? Answer only using yes or no.",
        "What barks, loudly?",
        "Is it raining? Answer only using yes or no.",
        "What falls?",
    ]
    assert rows["question_type"][:] == ["yes_no", "detail", "yes_no", "detail"]
    assert rows["answer"][:] == ["yes", "dog", "no", "rain"]
    assert rows["id"][:] == [
        "Mom&Dad.wav#0",
        "Mom&Dad.wav#1",
        "rain on roof.wav#0",
        "rain on roof.wav#1",
    ]
    assert set(rows["subtype"]) == {"ClothoAQA"}
    assert rows["choices"][:] == [[]] * 4
    assert json.loads(rows["item"][0]) == {
        "file_name": "Mom&Dad.wav",
        "QuestionText": "Is it raining?",
        "answers": ["yes", "Yes", "no"],
        "confidences": ["yes", "no", "yes"],
    }


def test_read_benchmark_clothoaqa_in_latin_1_is_read(tmp_path):
    file = tmp_path / "clotho_aqa_test.csv"
    file.write_bytes(CLOTHO.replace("Mom&Dad", "café").encode("latin-1"))
    assert read_benchmark("clothoaqa", file, tmp_path)["filepath1"][0] == "café.wav"


@pytest.fixture
def first_path(files, tmp_path):
    """Returns the audio path of a benchmark's first row."""
    return lambda name: read_benchmark(name, files[name], tmp_path / "audio")["audio"][0][0]


def test_audio_path_missing_file_has_its_published_path(first_path, tmp_path):
    assert first_path("mmau") == str(tmp_path / "audio/test-mini-audios/3f-1.wav")
    assert first_path("clothoaqa") == str(tmp_path / "audio/Mom&Dad.wav")


def test_audio_path_file_name_alone_is_found(first_path, tmp_path):
    path = touch(tmp_path / "audio/3f-1.wav")
    assert first_path("mmau") == path


def test_audio_path_published_path_comes_first(first_path, tmp_path):
    touch(tmp_path / "audio/3f-1.wav")
    path = touch(tmp_path / "audio/test-mini-audios/3f-1.wav")
    assert first_path("mmau") == path


def test_audio_path_clothoaqa_folder_is_searched(first_path, tmp_path):
    path = touch(tmp_path / "audio/audio_files/Mom&Dad.wav")
    assert first_path("clothoaqa") == path


def test_audio_path_clothoaqa_name_comes_before_its_folder(first_path, tmp_path):
    touch(tmp_path / "audio/audio_files/Mom&Dad.wav")
    path = touch(tmp_path / "audio/Mom&Dad.wav")
    assert first_path("clothoaqa") == path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "A robot"}, "item 1 (3f-2): the answer 'A robot' is not among the choices"),
        (
            {"answer": "(A) C:maj/1 to G:maj/1"},
            "item 1 (3f-2): the answer '(A) C:maj/1 to G:maj/1' is not among",
        ),
        ({"answer": None}, "item 1 (3f-2): field 'answer' is None, expected text"),
        ({"choices": []}, "is not among the choices []"),
        ({"choices": "['a', 'b']"}, "field 'choices' is \"['a', 'b']\", expected a list of texts"),
        ({"choices": [1, 2]}, "field 'choices' is [1, 2], expected a list of texts"),
        ({"choices": [f"choice {n}" for n in range(27)]}, "27 choices, expected at most 26"),
        (
            {"choices": ["C:maj/1 to G:maj/1", "plan B) of it"]},
            "cannot be told apart in a question",
        ),
        (
            {"audio_id": "../../etc/passwd"},
            "the audio path '../../etc/passwd' leaves the audio directory",
        ),
        ({"audio_id": "./test-mini-audios/../../x.wav"}, "leaves the audio directory"),
        ({"audio_id": "..\\x.wav"}, "leaves the audio directory"),
        ({"audio_id": "./"}, "names no file"),
        ({"id": 7}, "item 1 (7): field 'id' is 7, expected text"),
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
        ("mmau", "[]", "the list of items is empty"),
        ("mmau", "{}", "expected a JSON list of objects"),
        ("mmau", "[3]", "row 0: expected a JSON list of objects"),
        ("clothoaqa", "file_name,answer\n", "missing: QuestionText, confidence"),
        (
            "clothoaqa",
            "file_name,QuestionText,answer,confidence\nx.wav,Why?\n",
            "line 2: file_name, QuestionText or answer is empty",
        ),
        (
            "clothoaqa",
            "file_name,QuestionText,answer,confidence\n../x.wav,Why?,no,yes\n",
            "leaves the audio directory",
        ),
        ("mmaupro", "[]", "benchmark 'mmaupro': choose from mmau, mmar, clothoaqa"),
    ],
)
def test_read_benchmark_bad_file_is_refused(name, text, message, tmp_path):
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_benchmark(name, file, tmp_path)


def test_read_benchmark_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone.csv: not readable"):
        read_benchmark("clothoaqa", tmp_path / "gone.csv", tmp_path)


def test_read_benchmark_line_without_object_is_named(tmp_path):
    (tmp_path / "MMAR.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="line 1: expected an object, found list"):
        read_benchmark("mmar", tmp_path / "MMAR.jsonl", tmp_path)


def test_read_benchmark_first_bad_line_is_named(tmp_path):
    (tmp_path / "MMAR.jsonl").write_text("{}\n{\n")
    with pytest.raises(ValueError, match="item 0"):
        read_benchmark("mmar", tmp_path / "MMAR.jsonl", tmp_path)


def test_audio_path_absolute_path_stays_in_the_audio_directory(tmp_path):
    file = tmp_path / "mmau-test-mini.json"
    file.write_text(json.dumps([MMAU[0] | {"audio_id": "/somewhere/3f-1.wav"}]))
    assert read_benchmark("mmau", file, tmp_path)["audio"][0] == [
        str(tmp_path / "somewhere/3f-1.wav")
    ]


@pytest.fixture
def bad_item_file(tmp_path):
    file = tmp_path / "MMAR-meta.json"
    file.write_text(json.dumps([MMAR[0] | {"answer": "Owl\nRobot"}, MMAR[1]]))
    return file


def test_read_benchmark_kept_bad_item_has_an_answer_without_option(bad_item_file, tmp_path):
    rows = read_benchmark("mmar", bad_item_file, tmp_path, on_bad_item="keep")
    assert rows["answer"][0] == "Owl Robot"
    assert parse_answer("mcq", rows["input"][0], rows["answer"][0]) is None


def test_official_metrics_kept_bad_item_counts_as_wrong(bad_item_file, tmp_path):
    rows = read_benchmark("mmar", bad_item_file, tmp_path, on_bad_item="keep")
    assert official_metrics("mmar", rows, ["A", "B"])["total"]["accuracy_of_all"] == 0.5


def test_read_benchmark_other_on_bad_item_is_refused(bad_item_file, tmp_path):
    with pytest.raises(UserError, match="choose error or keep"):
        read_benchmark("mmar", bad_item_file, tmp_path, on_bad_item="skip")


def test_submission_mmau_has_published_items_and_option_texts(files, tmp_path):
    rows = read_benchmark("mmau", files["mmau"], tmp_path)
    items = submission("mmau", rows, ["B) A woman", "Some jazz.", None])
    assert items[0] == MMAU[0] | {"model_output": "A woman", "model_prediction": "A woman"}
    assert items[1]["model_output"] == "Some jazz."
    assert items[2] == MMAU[2]


def test_submission_mmar_has_published_items_and_option_texts(files, tmp_path):
    rows = read_benchmark("mmar", files["mmar"], tmp_path)
    items = submission("mmar", rows, ["(c)", "琵琶"])
    assert [item["answer_prediction"] for item in items] == ["Parrot", "琵琶"]
    prediction = {"answer_prediction": "琵琶", "model_prediction": "琵琶"}
    assert submission("mmar", rows, ["(c)", "b"])[1] == MMAR[1] | prediction


def test_submission_clothoaqa_is_a_csv(files, tmp_path):
    rows = read_benchmark("clothoaqa", files["clothoaqa"], tmp_path)
    text = submission("clothoaqa", rows, ["Yes, it is.", "dog", None, "rain, water"])
    assert list(csv.reader(io.StringIO(text))) == [
        ["file_name", "QuestionText", "answer"],
        ["Mom&Dad.wav", "Is it raining?", "yes"],
        ["Mom&Dad.wav", "What barks, loudly?", "dog"],
        ["rain on roof.wav", "Is it raining?", ""],
        ["rain on roof.wav", "What falls?", "rain, water"],
    ]


@pytest.mark.parametrize("function", [submission, official_metrics])
def test_predictions_of_another_number_are_refused(function, files, tmp_path):
    rows = read_benchmark("clothoaqa", files["clothoaqa"], tmp_path)
    with pytest.raises(ValueError, match="1 predictions for 4 rows"):
        function("clothoaqa", rows, ["yes"])


def test_official_metrics_mmau_by_hand(files, tmp_path):
    rows = read_benchmark("mmau", files["mmau"], tmp_path)
    metrics = official_metrics("mmau", rows, ["B", "I cannot say", "C) 1.63 seconds"])
    assert metrics["protocol"] == "MMAU string match"
    assert metrics["n_unparsed"] == 1
    assert metrics["total"]["official_accuracy_of_answered"] == pytest.approx(2 / 3)
    accuracies = {task: part["accuracy_of_all"] for task, part in metrics["task"].items()}
    assert accuracies == {"music": 0.5, "speech": 1.0}
    counts = {level: part["n_answered"] for level, part in metrics["difficulty"].items()}
    assert counts == {"easy": 2, "hard": 1}


def test_official_metrics_mmar_by_hand(files, tmp_path):
    rows = read_benchmark("mmar", files["mmar"], tmp_path)
    metrics = official_metrics("mmar", rows, ["Parrot", "a"])
    assert metrics["modality"]["sound"]["accuracy_of_all"] == 1
    assert metrics["category"]["Cultural Layer"]["accuracy_of_all"] == 0
    groups = {"modality", "category", "sub-category"}
    assert set(metrics) == {"protocol", "n_unparsed", "total", *groups}


def test_official_metrics_clothoaqa_by_hand(files, tmp_path):
    rows = read_benchmark("clothoaqa", files["clothoaqa"], tmp_path)
    assert official_metrics(
        "clothoaqa", rows, ["Yes, it is.", "Dog.", "there is noise", "water"]
    ) == {
        "protocol": "ClothoAQA exact match",
        "yes_no": {
            "n_questions": 2,
            "n_unparsed": 1,
            "all_answers": {"n": 6, "accuracy": 2 / 6},
            "majority": {"n": 2, "accuracy": 0.5},
            "unanimous": {"n": 1, "accuracy": 0.0},
        },
        "detail": {
            "n_questions": 2,
            "n_unparsed": 0,
            "all_answers": {"n": 6, "accuracy": 4 / 6},
            "majority": {"n": 1, "accuracy": 1.0},
            "unanimous": {"n": 1, "accuracy": 1.0},
        },
    }


def test_official_metrics_clothoaqa_answers_of_the_other_type_count_nowhere(tmp_path):
    file = tmp_path / "clotho_aqa_test.csv"
    answers = [
        ("Is it?", "yes"),
        ("Is it?", "maybe"),
        ("Is it?", "yes"),
        ("What?", "no"),
        ("What?", "rain"),
        ("What?", "?"),
    ]
    file.write_text(
        "file_name,QuestionText,answer,confidence\n"
        + "".join(f"x.wav,{q},{a},yes\n" for q, a in answers)
    )
    rows = read_benchmark("clothoaqa", file, tmp_path)
    assert rows["question_type"][:] == ["yes_no", "detail"]
    assert rows["answer"][:] == ["yes", "rain"]
    metrics = official_metrics("clothoaqa", rows, ["yes", ""])
    assert metrics["yes_no"]["all_answers"] == {"n": 2, "accuracy": 1.0}
    assert metrics["yes_no"]["unanimous"]["n"] == 0
    assert metrics["detail"]["all_answers"] == {"n": 1, "accuracy": 0.0}
    assert metrics["detail"]["n_unparsed"] == 1


@pytest.mark.parametrize(
    ("answer", "prediction", "choices", "matches"),
    [
        ("A woman", "A woman", MAN, True),
        ("A woman", "woman, a", MAN, True),
        ("A woman", "a WOMAN speaks.", MAN, True),
        ("A woman", "woman", MAN, False),
        ("A woman", "B", MAN, False),
        ("A woman", "B) A woman", MAN, True),
        ("A woman", "a woman and a man", MAN, False),
        ("A woman", "not a woman", MAN, True),
        ("A woman", "", MAN, False),
        ("A woman", "?!", MAN, False),
        ("Two men", "two men", MAN, True),
        ("Two men", "a) Two men", MAN, False),
        ("1.63 seconds", "1.63 seconds", ["1.63 seconds", "2.74 seconds", "1.63 seconds"], True),
        ("rain", "rain", ["rain", "rain, heavy", "Rain"], True),
        ("rain", "heavy rain", ["rain", "heavy"], False),
        ("?", "anything", ["?", "rain"], True),
        ("it's", "its", ["it's", "x"], False),
        ("it's", "it s", ["it's", "x"], True),
        ("snake_case", "snake case", ["snake_case", "x"], False),
        ("琵琶", "琵琶", ["二胡", "琵琶"], True),
        ("rain", "rainy", ["rain"], False),
    ],
)
def test_string_match_by_hand(answer, prediction, choices, matches):
    assert string_match(answer, prediction, choices) is matches


TEXTS = ["", "a", "b", "a b", "c", "b c"]


@pytest.mark.parametrize(("answer", "prediction", "other"), list(product(TEXTS[1:], TEXTS, TEXTS)))
def test_string_match_follows_its_definition(answer, prediction, other):
    """No word of the answer is missing. Each predicted word is in the answer or in no choice."""
    predicted, correct = prediction.split(), answer.split()
    has_all = all(word in predicted for word in correct)
    has_no_wrong = all(word in correct or word not in other.split() for word in predicted)
    expected = bool(predicted) and has_all and has_no_wrong
    assert string_match(answer, prediction, [answer, other]) == expected


@pytest.fixture
def mmau_items(files, tmp_path):
    """Rows of MMAU, their items, and the correct answers as "b) text"."""
    rows = list(read_benchmark("mmau", files["mmau"], tmp_path))
    items = [json.loads(row["item"]) for row in rows]
    answers = [f"{row['answer'][0].lower()}) {item['answer']}" for row, item in zip(rows, items)]
    return rows, items, answers


def count_matches(items, texts) -> int:
    matches = [
        string_match(item["answer"], text, item["choices"]) for item, text in zip(items, texts)
    ]
    return sum(matches)


def test_string_match_texts_match_and_letters_do_not(mmau_items):
    """Of all 1000 items of MMAU, 1000 texts match, 967 with "b) text" and 2 letters."""
    _, items, answers = mmau_items
    assert count_matches(items, [item["answer"] for item in items]) == 3
    assert count_matches(items, answers) == 3
    assert count_matches(items, [answer[0] for answer in answers]) == 0


def test_string_match_letter_that_is_a_word_of_a_wrong_choice_fails(mmau_items):
    _, items, answers = mmau_items
    items[0] |= {"choices": ["A guitar", "A drum", "Two drums"], "answer": "Two drums"}
    assert count_matches(items, ["a) Two drums", *answers[1:]]) == 2


def test_official_metrics_letters_count_because_texts_are_submitted(mmau_items):
    rows, _, answers = mmau_items
    metrics = official_metrics("mmau", rows, [answer[0] for answer in answers])
    assert metrics["total"]["accuracy_of_all"] == 1


def test_official_accuracy_items_without_prediction_count_in_one_of_two_numbers():
    right = {
        "task": "sound",
        "difficulty": "easy",
        "answer": "rain",
        "choices": ["rain", "wind"],
        "sub-category": None,
    }
    items = [
        right | {"model_output": "rain"},
        right | {"model_output": ""},
        right,
        right | {"task": "music", "model_output": None},
    ]
    assert official_accuracy(items) == {
        "total": {
            "official_accuracy_of_answered": 0.5,
            "n_answered": 2,
            "n_without_prediction": 2,
            "accuracy_of_all": 0.25,
        },
        "task": {
            "music": {
                "official_accuracy_of_answered": 0.0,
                "n_answered": 0,
                "n_without_prediction": 1,
                "accuracy_of_all": 0.0,
            },
            "sound": {
                "official_accuracy_of_answered": 0.5,
                "n_answered": 2,
                "n_without_prediction": 1,
                "accuracy_of_all": 1 / 3,
            },
        },
        "difficulty": {
            "easy": {
                "official_accuracy_of_answered": 0.5,
                "n_answered": 2,
                "n_without_prediction": 2,
                "accuracy_of_all": 0.25,
            }
        },
        "sub-category": {},
    }
    assert official_accuracy([])["total"]["n_answered"] == 0


def test_module_docstring_states_the_position_bias_of_mmau():
    assert "39.5 %" in benchmarks.__doc__
