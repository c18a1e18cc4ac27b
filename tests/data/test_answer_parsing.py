"""Parses of generated texts: a table labelled by a careful reader, rules, random texts."""

import csv
import random
import time
from pathlib import Path

import pytest

from audiolm.data.answer_parsing import (
    named_letter_and_words,
    option_texts,
    parse_answer,
    parse_option,
    tokenize,
)
from audiolm.data.answer_text import final_answers, strip_thoughts

QUESTION = "What is it? A) rain B) heavy rain C) a dog barking D) wind"
with open(Path(__file__).with_name("generated_texts.tsv"), encoding="utf-8", newline="") as table:
    TEXTS = list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))


OPTIONS = {"a": "a dog", "b": "rain", "c": "wind"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it was, sound(b) of something", None),
        ("maybe b: yes", "b"),
        ("it is loud, c.g. so", None),
        ("It says 'B' here.", "b"),
        ("It says 'E' here, B.", None),
        ("E: thunder, B.", None),
        ("option E here, B.", None),
        ("The answer is E.", None),
        ("so pick B please", "b"),
        ("so B because it rains", "b"),
        ("so B rain", "b"),
        ("we pick A.", "a"),
        ("it is a cat", None),
        ("so A is right", "a"),
        ("maybe A/A", "a"),
        ("答案是A", "a"),
    ],
)
def test_parse_option_letter_counts_by_what_stands_around_it(text, expected):
    assert parse_option(OPTIONS, text) == expected


def test_parse_option_the_last_one_is_the_last_option():
    assert parse_option({"a": "x", "b": "y"}, "the last one") == "b"


def test_table_of_texts_is_large_and_without_repetition():
    assert len({tuple(row.values()) for row in TEXTS}) == len(TEXTS)
    assert len(TEXTS) > 200


def test_table_of_texts_has_every_parse():
    assert {row["expected parse"] for row in TEXTS} == {"a", "b", "c", "d", "e", "yes", "no", "-"}


@pytest.mark.parametrize("question_type", sorted({row["question type"] for row in TEXTS}))
def test_parse_answer_generated_texts_match_a_careful_reader(question_type):
    rows = [tuple(row.values()) for row in TEXTS if row["question type"] == question_type]
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
def test_parse_answer_ignores_line_breaks(text):
    assert parse_answer("mcq", QUESTION, text) == "b"


def closed_questions() -> list[str]:
    closed = {row["question"] for row in TEXTS if row["question type"] in ("mcq", "entailment")}
    return sorted(closed)


@pytest.mark.parametrize("question", closed_questions())
@pytest.mark.parametrize("form", ["{LETTER}) {text}", "({letter}) {text}.", "{TEXT}"])
def test_parse_answer_correct_answer_names_its_option(question, form):
    parses = {}
    for letter, text in option_texts(question).items():
        answer = form.format(letter=letter, LETTER=letter.upper(), text=text, TEXT=text.upper())
        parses[letter] = parse_answer("mcq", question, answer)
    assert parses == {letter: letter for letter in parses}


@pytest.mark.parametrize(
    ("text", "letter"),
    [("1.63 seconds", None), ("A) 1.63 seconds", "a"), ("c", "c"), ("2.74 seconds", "b")],
)
def test_parse_option_equal_texts_are_told_apart_by_letter(text, letter):
    options = {"a": "1.63 seconds", "b": "2.74 seconds", "c": "1.63 seconds"}
    assert parse_option(options, text) == letter


def test_parse_option_without_options_is_none():
    assert parse_option({}, "the last one") is None


def parsing_seconds(piece: str, question_type: str, characters: int) -> float:
    """Fastest of three readings of a text of so many characters, in processor seconds."""
    text = (piece * characters)[:characters]
    seconds = []
    for _ in range(3):
        started = time.process_time()
        parse_answer(question_type, QUESTION, text)
        seconds.append(time.process_time() - started)
    return min(seconds)


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
@pytest.mark.parametrize("question_type", ["mcq", "yes_no"])
def test_parse_answer_takes_time_in_proportion_to_the_text(piece, question_type):
    # Eight times the text takes 8 times as long, or 64 times where the cost is quadratic. Below a
    # quarter of a second, other programs decide.
    expected = parsing_seconds(piece, question_type, 10_000)
    assert parsing_seconds(piece, question_type, 80_000) < 24 * expected + 0.25


@pytest.fixture(scope="module")
def random_texts() -> list[str]:
    rng = random.Random(0)
    vocabulary = (
        "rain heavy dog barking not no isn't is the option answer last first one but yes and of"
    )
    pieces = [*"abcdei().,:\"'*-?\n2🐕", *vocabulary.split()]
    return [
        rng.choice(["", " "]).join(rng.choices(pieces, k=rng.randint(0, 8))) for _ in range(3000)
    ]


@pytest.mark.parametrize(
    ("question_type", "question", "allowed"),
    [
        ("mcq", QUESTION, {None, *"abcd"}),
        ("yes_no", "?", {None, "yes", "no"}),
        ("mcq", "no options", {None}),
        ("detail", QUESTION, {None}),
    ],
)
def test_parse_answer_random_text_gives_an_option_or_none(
    random_texts, question_type, question, allowed
):
    assert {parse_answer(question_type, question, text) for text in random_texts} <= allowed


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("Rain? Final answer: wind. It howls.", ["wind"]),
        ("The answer is a dog because it barks", ["a dog"]),
        ("Answer: B. No, the answer is C!", ["c", "b"]),
        ("The answer", []),
    ],
)
def test_final_answers_are_the_clauses_after_the_cues(text, answers):
    parts = [" ".join(answer.text.tokens) for answer in final_answers(tokenize(text))]
    assert parts == answers


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>rain?</think> B", "B"),
        ("The sound is a", "The sound is"),
        ("The sound is a.", "The sound is a."),
        ("The sound is A", "The sound is A"),
        ("option a", "option a"),
        ("a", "a"),
        ("", ""),
    ],
)
def test_strip_thoughts_leaves_what_may_be_an_answer(text, rest):
    assert strip_thoughts(text) == rest


@pytest.mark.parametrize(
    ("text", "letter", "option_with_words"),
    [
        ("B) heavy rain", "b", "b"),
        ("A) heavy rain", "a", "b"),
        ("heavy rain", None, "b"),
        ("D", "d", None),
        ("B) a dog", "b", None),
        ("rain or wind", None, None),
        ("The answer is C) wind", "c", "d"),
    ],
)
def test_named_letter_and_words_are_read_apart(text, letter, option_with_words):
    assert named_letter_and_words(QUESTION, text) == (letter, option_with_words)
