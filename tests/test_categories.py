"""What questions are about: generated ones, whose category is known, and ReasonAQA's own."""

import json

import pytest
from conftest import SHARED, needs_shared

from audiolm.data import QUESTION_TYPES
from audiolm.data.reasonaqa import question_type
from audiolm.data.soundscapes import draw_corpus
from audiolm.evaluation.categories import CATEGORIES, category


def test_closed_soundscape_questions_have_the_category_that_was_meant():
    for split in draw_corpus(2000, seed=5).values():
        closed = [(r, c) for r, c in zip(split.rows, split.categories) if question_type(r) in QUESTION_TYPES[:3]]
        assert [category(row) for row, _ in closed] == [meant for _, meant in closed]


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("What is the primary sound event present in the clip? A) A car driving by B) A first drum", "sound event"),
        ("are any people talking? Answer only using yes or no.", "sound event"),
        ('Based on the audio, what can be said about the hypothesis - "A dog barks."? a) It is definitely true', "sound event"),
        ("What is the loudness level of this sound?", "acoustic property"),
        ("What is the texture of the sound?", "acoustic property"),
        ("How many times does the bird chirp?", "count"),
        ("Which sound is heard last? A) rain B) thunder", "time order"),
        ("What is the mood of the clip? a) calm b) tense", "mood"),
        ("What is the most likely environment of this recording? A) a home B) a beach", "environment"),
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
