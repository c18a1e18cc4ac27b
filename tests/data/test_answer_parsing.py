"""What generated texts name: a table of texts with the parse that a careful reader gives, and texts that nobody reads."""

import csv
import random
import time
from pathlib import Path

import pytest

from audiolm.data.answer_parsing import options, parse_answer, parse_option

QUESTION = "What is it? A) rain B) heavy rain C) a dog barking D) wind"
with open(Path(__file__).with_name("generated_texts.tsv"), encoding="utf-8", newline="") as table:
    TEXTS = list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_table_has_each_text_once_and_every_kind_of_parse():
    assert len({tuple(row.values()) for row in TEXTS}) == len(TEXTS) > 200
    assert {row["expected parse"] for row in TEXTS} == {"a", "b", "c", "d", "e", "yes", "no", "-"}


@pytest.mark.parametrize("kind", sorted({row["question type"] for row in TEXTS}))
def test_generated_texts_are_parsed_as_a_careful_reader_would(kind):
    rows = [tuple(row.values()) for row in TEXTS if row["question type"] == kind]
    wrong = [row for row in rows if (parse_answer(*row[:3]) or "-") != row[3]]
    assert not wrong


@pytest.mark.parametrize(
    "text",
    [
        "B)\nheavy rain",
        "\n\nB",
        "b\t",
        "Answer:\nB",
        "heavy\nrain",
        "It is not rain.\nIt is heavy rain.",
        "**Answer:** B) heavy rain\n",
    ],
)
def test_lines_do_not_matter(text):
    assert parse_answer("mcq", QUESTION, text) == "b"


def test_every_right_answer_is_its_own_parse_as_trained_and_as_text():
    for question in {
        row["question"] for row in TEXTS if row["question type"] in ("mcq", "entailment")
    }:
        for letter, text in options(question).items():
            assert parse_answer("mcq", question, f"{letter.upper()}) {text}") == letter
            assert parse_answer("mcq", question, f"({letter}) {text}.") == letter
            assert parse_answer("mcq", question, text.upper()) == letter


def test_options_of_one_text_are_told_apart_by_their_letters_only():
    given = {"a": "1.63 seconds", "b": "2.74 seconds", "c": "1.63 seconds"}
    assert [
        parse_option(given, text)
        for text in ("1.63 seconds", "A) 1.63 seconds", "c", "2.74 seconds")
    ] == [
        None,
        "a",
        "c",
        "b",
    ]
    assert parse_option({}, "the last one") is None


@pytest.mark.parametrize(
    "piece",
    [
        "x",
        "rain ",
        "a ",
        "b, ",
        "not rain ",
        "A) ",
        "(",
        "it's'",
        "no ",
        "yes ",
        "- ",
        "a dog ",
        " ",
        "\n",
        "heavy rain heavy ",
        "#",
        "a'",
        "A.B.",
        "9",
        "🐕",
        "the last one ",
        "not ",
        "isn't ",
        "rain is not ",
        "B" + " " * 50,
    ],
)
@pytest.mark.parametrize("kind", ["mcq", "yes_no"])
def test_a_hundred_thousand_characters_take_less_than_a_second(piece, kind):
    text = (piece * 100_000)[:100_000]
    started = time.process_time()
    parse_answer(kind, QUESTION, text)
    assert time.process_time() - started < 1


def test_whatever_is_generated_is_one_of_the_options_or_nothing():
    draw = random.Random(0)
    words = "rain heavy dog barking not no isn't is the option answer last first one but yes and of"
    pieces = [*"abcdei().,:\"'*-?\n2🐕", *words.split()]
    for _ in range(3000):
        text = draw.choice(["", " "]).join(draw.choices(pieces, k=draw.randint(0, 8)))
        assert parse_answer("mcq", QUESTION, text) in (None, *"abcd")
        assert parse_answer("yes_no", "?", text) in (None, "yes", "no")
        assert (
            parse_answer("mcq", "no options", text)
            is parse_answer("detail", QUESTION, text)
            is None
        )
