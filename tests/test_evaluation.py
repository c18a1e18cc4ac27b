import pytest

from audiolm.evaluation import ReasonAQAMetric, parse_answer
from audiolm.evaluation.metric import wilson
from audiolm.run_eval import score, table

MCQ = "What is it? A) rain B) heavy rain C) a dog barking D) wind"
ENTAILMENT = 'the hypothesis - "x"? a) It is definitely true b) It is definitely false c) It is plausible d) I cannot determine'


ROUND = "Which sound(s) can be heard? (A) a dog (B) a cat"


@pytest.mark.parametrize(("kind", "question", "text", "parsed"), [
    ("mcq", ROUND, "(B) a cat", "b"), ("mcq", ROUND, "a dog can be heard", "a"), ("mcq", ROUND, "s.", None),
    ("mcq", MCQ, "B) heavy rain", "b"), ("mcq", MCQ, "c", "c"), ("mcq", MCQ, "(d) wind", "d"), ("mcq", MCQ, "A.", "a"),
    ("mcq", MCQ, "It is heavy rain.", "b"), ("mcq", MCQ, "a dog barking", "c"), ("mcq", MCQ, "wind and a dog barking", None),
    ("mcq", MCQ, "E) thunder", None), ("mcq", MCQ, "a", "a"), ("mcq", MCQ, "", None), ("mcq", MCQ, "rainbow", None),
    ("entailment", ENTAILMENT, "It is plausible", "c"), ("entailment", ENTAILMENT, "d) I cannot determine", "d"),
    ("yes_no", "?", "Yes.", "yes"), ("yes_no", "?", "there is noise", None), ("yes_no", "?", "yes and no", None),
    ("caption", "?", "a) rain", None),
])  # fmt: skip
def test_parse_answer(kind, question, text, parsed):
    assert parse_answer(kind, question, text) == parsed


def test_metric_by_hand():
    result = ReasonAQAMetric().compute(
        predictions=["a", "b", "", "yes"], references=["a", "a", "c", "yes"],
        question_type=["mcq", "mcq", "mcq", "yes_no"], subtype=["X-MCQ", "X-MCQ", "Y-MCQ", "XAQA"],
        category=["sound event", "count", "sound event", "count"],
    )  # fmt: skip
    assert result["question_type"]["mcq"]["accuracy"] == pytest.approx(1 / 3)
    assert result["question_type"]["mcq"]["n_unparsed"] == 1
    assert result["micro"]["accuracy"] == 0.5 and result["macro_accuracy"] == pytest.approx(2 / 3)
    assert result["subtype"]["Y-MCQ"]["accuracy"] == 0
    low, high = wilson(1, 2)
    assert result["category"] == {
        "count": {"n": 2, "accuracy": 0.5, "ci95_low": low, "ci95_high": high, "n_unparsed": 0},
        "sound event": {"n": 2, "accuracy": 0.5, "ci95_low": low, "ci95_high": high, "n_unparsed": 1},
    }


def test_wilson_by_hand():
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)  # Newcombe 1998's formula
    assert wilson(0, 0) == (0.0, 1.0)


def test_an_unparsed_answer_is_wrong_and_counted():
    rows = [{"question_type": "mcq", "input": MCQ, "answer": "A) rain", "subtype": "X-MCQ", "filepath2": "", "generated": g,
             "loss": 1.0, "n_tokens": 2} for g in ("A) rain", "thunder")]  # fmt: skip
    rows.append({**rows[0], "question_type": "caption", "generated": "some three words"})
    metrics = score(rows)
    assert metrics["micro"]["n_unparsed"] == 1 and metrics["micro"]["accuracy"] == 0.5
    assert metrics["text"]["caption"] == {"n": 1, "loss_per_answer_token": 0.5, "mean_words": 3.0}
    name = rows[0]["category"]
    assert metrics["category"] == {name: metrics["question_type"]["mcq"]}
    assert f"{name:<20}      2     0.500" in table(metrics)
