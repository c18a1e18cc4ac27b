"""Accuracy of closed questions by hand."""

import evaluate
import pytest
from support.evaluation import MCQ_QUESTION

from audiolm.evaluation import ReasonAQAMetric, TextMetric, parse_answer
from audiolm.evaluation.metric import wilson

ENTAILMENT = (
    'the hypothesis - "x"? a) It is definitely true b) It is definitely false c) It is plausible '
    "d) I cannot determine"
)


ROUND = "Which sound(s) can be heard? (A) a dog (B) a cat"


@pytest.mark.parametrize(
    ("kind", "question", "text", "parsed"),
    [
        ("mcq", ROUND, "(B) a cat", "b"),
        ("mcq", ROUND, "a dog can be heard", "a"),
        ("mcq", ROUND, "s.", None),
        ("mcq", MCQ_QUESTION, "B) heavy rain", "b"),
        ("mcq", MCQ_QUESTION, "c", "c"),
        ("mcq", MCQ_QUESTION, "(d) wind", "d"),
        ("mcq", MCQ_QUESTION, "A.", "a"),
        ("mcq", MCQ_QUESTION, "It is heavy rain.", "b"),
        ("mcq", MCQ_QUESTION, "a dog barking", "c"),
        ("mcq", MCQ_QUESTION, "wind and a dog barking", None),
        ("mcq", MCQ_QUESTION, "E) thunder", None),
        ("mcq", MCQ_QUESTION, "a", "a"),
        ("mcq", MCQ_QUESTION, "", None),
        ("mcq", MCQ_QUESTION, "rainbow", None),
        ("entailment", ENTAILMENT, "It is plausible", "c"),
        ("entailment", ENTAILMENT, "d) I cannot determine", "d"),
        ("yes_no", "?", "Yes.", "yes"),
        ("yes_no", "?", "there is noise", None),
        ("yes_no", "?", "yes and no", None),
        ("caption", "?", "a) rain", None),
    ],
)
def test_parse_answer_of_short_answers(kind, question, text, parsed):
    assert parse_answer(kind, question, text) == parsed


ANSWERED = {
    "predictions": ["a", "b", "", "yes"],
    "references": ["a", "a", "c", "yes"],
    "question_type": ["mcq", "mcq", "mcq", "yes_no"],
}


def test_metric_of_closed_questions_by_hand():
    groups = {
        "subtype": ["X-MCQ", "X-MCQ", "Y-MCQ", "XAQA"],
        "category": ["sound event", "count", "sound event", "count"],
    }
    result = ReasonAQAMetric().compute(**ANSWERED, groups=groups)
    mcq = result["question_type"]["mcq"]
    assert mcq["accuracy"] == pytest.approx(1 / 3)
    assert mcq["n_unparsed"] == 1
    assert mcq["balanced_accuracy"] == pytest.approx(
        (1 / 2 + 0) / 2
    )  # right answers: a twice, of which one is found, and c
    assert result["micro"]["accuracy"] == 0.5
    assert result["macro_accuracy"] == pytest.approx(2 / 3)
    assert result["subtype"]["Y-MCQ"]["accuracy"] == 0
    low, high = wilson(1, 2)
    assert result["category"] == {
        "count": {"n": 2, "accuracy": 0.5, "ci95_low": low, "ci95_high": high, "n_unparsed": 0},
        "sound event": {
            "n": 2,
            "accuracy": 0.5,
            "ci95_low": low,
            "ci95_high": high,
            "n_unparsed": 1,
        },
    }


def test_metric_of_entailment_by_hand():
    """Right answers a a b; said a b and nothing: precision, recall of a 1, 1/2, of b 0, 0."""
    result = ReasonAQAMetric().compute(
        predictions=["a", "b", ""], references=["a", "a", "b"], question_type=["entailment"] * 3
    )
    metrics = result["question_type"]["entailment"]
    assert metrics["confusion"] == {"a": {"a": 1, "b": 1}, "b": {"": 1}}
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["balanced_accuracy"] == 0.25


def test_metrics_are_exported_and_are_evaluate_metrics():
    assert isinstance(ReasonAQAMetric(), evaluate.Metric)
    texts = {
        "predictions": ["rain falls on a roof", "wind"],
        "references": [["rain falls on the roof"], ["a dog", "wind"]],
    }
    result = TextMetric().compute(**texts)
    assert isinstance(TextMetric(), evaluate.Metric)
    assert result["n"] == 2
    # Four of five words in order, and all words.
    assert result["rouge_l"] == pytest.approx((0.8 + 1) / 2)


def test_wilson_by_hand():
    assert wilson(8, 10) == pytest.approx(
        (0.4901625, 0.9433178), abs=1e-6
    )  # Newcombe 1998's formula
    assert wilson(0, 0) == (0.0, 1.0)
