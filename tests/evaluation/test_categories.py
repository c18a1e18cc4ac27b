"""What questions are about: generated ones, whose category is known, and ReasonAQA's own."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pytest
from support import full_size
from support.builders import SHARED, needs_shared

from audiolm.data import QUESTION_TYPES
from audiolm.data.reasonaqa import question_type
from audiolm.data.soundscapes.corpus import draw_corpus
from audiolm.evaluation.categories import CATEGORIES, categories, category


def test_closed_soundscape_questions_have_the_category_that_was_meant():
    for split in draw_corpus(2000, seed=5).values():
        closed = [
            (r, c)
            for r, c in zip(split.rows, split.categories)
            if question_type(r) in QUESTION_TYPES[:3]
        ]
        assert [category(row) for row, _ in closed] == [meant for _, meant in closed]


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        (
            "What is the primary sound event present in the clip? A) A car driving by B) A first drum",
            "sound event",
        ),
        ("are any people talking? Answer only using yes or no.", "sound event"),
        (
            'Based on the audio, what can be said about the hypothesis - "A dog barks."? a) It is definitely true',
            "sound event",
        ),
        ("What is the loudness level of this sound?", "acoustic property"),
        ("What is the texture of the sound?", "acoustic property"),
        ("How many times does the bird chirp?", "count"),
        ("Which sound is heard last? A) rain B) thunder", "time order"),
        ("What is the mood of the clip? a) calm b) tense", "mood"),
        (
            "What is the most likely environment of this recording? A) a home B) a beach",
            "environment",
        ),
        ("How is the audio quality of the clip?", "recording quality"),
        ("How does the sound of the rain compare to the sound of the thunder?", "comparison"),
        ("caption first audio", "other"),
        ("What is the purpose of the sound in the clip?", "other"),
    ],
)
def test_category_follows_the_wording_and_not_the_options(question, wanted):
    assert category({"input": question, "filepath2": ""}) == wanted


@needs_shared
def test_every_real_record_has_a_category():
    records = json.loads((SHARED / "reasonaqa_records.json").read_text())
    found = [category(record) for record in records]
    assert set(found) <= set(CATEGORIES)
    closed = [c for record, c in zip(records, found) if question_type(record) in QUESTION_TYPES[:3]]
    assert closed and "other" not in closed
    assert all(c == "comparison" for record, c in zip(records, found) if record["filepath2"])


def hand_labelled(name: str) -> list[tuple[str, str]]:
    with open(Path(__file__).with_name(name), encoding="utf-8", newline="") as file:
        return [
            (row["question"], row["category"])
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


@pytest.mark.parametrize(
    ("name", "count", "right", "precision"),
    [
        # what the rules were written by, and what they had never seen: docs/data.md has the table
        ("questions_seen.tsv", 220, 0.98, 0.95),
        ("questions_held_out.tsv", 283, 0.81, 0.66),
    ],
)
def test_categories_against_labels_by_hand(name, count, right, precision):
    labelled = hand_labelled(name)
    assert len({question for question, _ in labelled}) == len(labelled) == count
    found = [
        (category({"input": question, "filepath2": ""}), wanted) for question, wanted in labelled
    ]
    assert sum(a == b for a, b in found) / count >= right
    for name in CATEGORIES:
        named = [wanted for got, wanted in found if got == name]
        assert (
            sum(wanted == name for _, wanted in found) >= 12
            and named.count(name) / len(named) >= precision
        ), name


def test_many_rows_at_once_have_the_same_categories():
    questions = [question for question, _ in hand_labelled("questions_held_out.tsv")] * 2
    second = ["x.wav" if i % 7 == 0 else "" for i in range(len(questions))]
    found = categories(
        pa.chunked_array([questions[:100], questions[100:]]), pa.chunked_array([second])
    )
    assert found.tolist() == [
        category({"input": q, "filepath2": s}) for q, s in zip(questions, second)
    ]


def test_the_third_partys_counts_are_those_of_question_types():
    """It counts differences as comparison, and multiple choice with entailment: by rows of the real train.json."""
    rows = {name.removesuffix(".json"): count for name, (count, *_) in full_size.ROWS.items()}
    assert (
        round(sum(rows[f"{source}D-{i}"] for source in ("CL", "AC") for i in (1, 2, 3)) / 1000)
        == 204
    )
    assert int((rows["Clotho-MCQ"] + rows["AudioCaps-MCQ"] + rows["CLE"]) / 1000) == 348
    assert round(rows["ClothoAQA"] / 1000) == 14
