"""Categories of generated questions, which are known, and of ReasonAQA's."""

import csv
import json
from pathlib import Path

import pytest
from support import full_size
from support.builders import SHARED, needs_shared

from audiolm.data.reasonaqa import QUESTION_TYPES, question_type
from audiolm.data.soundscapes.corpus import draw_corpus
from audiolm.evaluation.categories import CATEGORIES, category


def test_category_of_soundscape_questions_is_the_intended_one():
    for split in draw_corpus(2000, seed=5).values():
        closed = [
            (r, c)
            for r, c in zip(split.rows, split.categories)
            if question_type(r) in QUESTION_TYPES[:3]
        ]
        assert [category(row) for row, _ in closed] == [meant for _, meant in closed]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (
            "What is the primary sound event present in the clip? "
            "A) A car driving by B) A first drum",
            "sound event",
        ),
        ("are any people talking? Answer only using yes or no.", "sound event"),
        (
            "Based on the audio, what can be said about the hypothesis - "
            '"A dog barks."? a) It is definitely true',
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
def test_category_follows_the_wording_and_ignores_options(question, expected):
    assert category({"input": question, "filepath2": ""}) == expected


@needs_shared
def test_category_of_real_records_is_known():
    records = json.loads((SHARED / "reasonaqa_records.json").read_text())
    names = [category(record) for record in records]
    assert set(names) <= set(CATEGORIES)
    closed = [c for record, c in zip(records, names) if question_type(record) in QUESTION_TYPES[:3]]
    assert closed
    assert "other" not in closed
    assert all(c == "comparison" for record, c in zip(records, names) if record["filepath2"])


def hand_labelled(name: str) -> list[tuple[str, str]]:
    with open(Path(__file__).with_name(name), encoding="utf-8", newline="") as file:
        return [
            (row["question"], row["category"])
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


@pytest.mark.parametrize(
    ("name", "count", "right", "precision"),
    [
        # The rules were written for the first file, and have never seen the second one.
        ("questions_seen.tsv", 220, 0.98, 0.95),
        ("questions_held_out.tsv", 283, 0.81, 0.66),
    ],
)
def test_category_agrees_with_manual_labels(name, count, right, precision):
    labelled = hand_labelled(name)
    assert len({question for question, _ in labelled}) == len(labelled) == count
    pairs = [
        (category({"input": question, "filepath2": ""}), label) for question, label in labelled
    ]
    assert sum(predicted == label for predicted, label in pairs) / count >= right
    for name in CATEGORIES:
        labels = [label for predicted, label in pairs if predicted == name]
        assert sum(label == name for _, label in pairs) >= 12, name
        assert labels.count(name) / len(labels) >= precision, name


def test_question_type_counts_match_published_counts():
    """A third party counts differences as comparison, and multiple choice with entailment."""
    rows = {name.removesuffix(".json"): count for name, (count, *_) in full_size.ROWS.items()}
    assert (
        round(sum(rows[f"{source}D-{i}"] for source in ("CL", "AC") for i in (1, 2, 3)) / 1000)
        == 204
    )
    assert int((rows["Clotho-MCQ"] + rows["AudioCaps-MCQ"] + rows["CLE"]) / 1000) == 348
    assert round(rows["ClothoAQA"] / 1000) == 14
