"""Accuracy of closed questions by hand."""

import evaluate
import numpy as np
import pytest
from support.evaluation import MCQ_QUESTION

from audiolm.data.answer_parsing import parse_answer
from audiolm.evaluation.metric import ReasonAQAMetric, accuracies

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
    # Two clips leave one degree of freedom.
    cell = {"n": 2, "accuracy": 0.5, "ci95_low": 0.0, "ci95_high": 1.0}
    assert result["category"] == {
        "count": {**cell, "n_unparsed": 0},
        "sound event": {**cell, "n_unparsed": 1},
    }


def test_metric_of_entailment_by_hand():
    """Right answers a a b; said a b and nothing: recall of a 1/2, of b 0."""
    result = ReasonAQAMetric().compute(
        predictions=["a", "b", ""], references=["a", "a", "b"], question_type=["entailment"] * 3
    )
    assert result["question_type"]["entailment"]["balanced_accuracy"] == 0.25


def test_metric_is_exported_and_is_an_evaluate_metric():
    assert isinstance(ReasonAQAMetric(), evaluate.Metric)


def test_metric_has_the_interval_of_a_t_test_over_clips():
    """12 of 20 clips are right, each in all of its 5 rows."""
    right = [number < 12 for number in range(20) for _ in range(5)]
    clips = [(f"{number}",) for number in range(20) for _ in range(5)]
    answers = {
        "predictions": ["a" if is_right else "b" for is_right in right],
        "references": ["a"] * 100,
        "question_type": ["mcq"] * 100,
    }
    by_clip = ReasonAQAMetric().compute(**answers, clips=clips)["question_type"]["mcq"]
    margin = (by_clip["ci95_high"] - by_clip["ci95_low"]) / 2
    assert margin == pytest.approx(2.093 * (0.6 * 0.4 / 20) ** 0.5, rel=0.05)
    by_row = ReasonAQAMetric().compute(**answers)["question_type"]["mcq"]
    assert margin > 2 * (by_row["ci95_high"] - by_row["ci95_low"]) / 2


def test_metric_of_all_right_answers_has_an_interval_with_a_width():
    answers = {"predictions": ["a"] * 10, "references": ["a"] * 10, "question_type": ["mcq"] * 10}
    cell = ReasonAQAMetric().compute(**answers)["micro"]
    assert 0.7 < cell["ci95_low"] < 0.8
    assert cell["ci95_high"] == 1


def count_held_truths(simulations: int) -> float:
    """Share of intervals that hold the true accuracy .6 of 60 clips with 25 rows each."""
    rng = np.random.default_rng(0)
    clips = [(f"{number}",) for number in range(60) for _ in range(25)]
    is_held = []
    for _ in range(simulations):
        # A clip's rows are right with a probability of its own, whose mean is .6.
        chance = np.repeat(rng.beta(1.8, 1.2, 60), 25)
        pairs = [("a" if right else "b", "a") for right in rng.random(len(clips)) < chance]
        cell = accuracies(pairs, {"all": ["x"] * len(pairs)}, clips)["all"]["x"]
        is_held.append(cell["ci95_low"] <= 0.6 <= cell["ci95_high"])
    return float(np.mean(is_held))


def test_intervals_of_25_rows_a_clip_hold_the_truth():
    """3 standard errors of .95 of 150 simulations are .053. Wilson's held it in .6 of them."""
    assert count_held_truths(150) > 0.89


@pytest.mark.slow
def test_intervals_of_25_rows_a_clip_hold_the_truth_in_long_simulation():
    share = count_held_truths(3000)
    print(f"\nintervals of 60 clips with 25 rows that hold the truth: {100 * share:.1f} %")
    assert share >= 0.94
