"""Metrics of generated texts by hand, and against sacrebleu and pycocoevalcap."""

import math
import random
import sys
from collections import Counter

import pytest
import sacrebleu

from audiolm.evaluation.text_metrics import score_texts, text_items, text_metrics, tokenise

PREDICTIONS = ["A dog barks in the rain.", "Birds sing in the old tree"]
REFERENCES = [
    ["A dog barks, in the rain"],
    ["birds sing in a tree", "Birds in the old tree chirp loudly!"],
]


def row(
    kind="caption",
    answer="rain falls",
    text="rain",
    clips=("a.wav", ""),
    prompt="caption",
    subtype="X.json",
):
    return {
        "taskname": "",
        "filepath1": clips[0],
        "filepath2": clips[1],
        "caption1": "",
        "caption2": "",
        "input": prompt,
        "answer": answer,
        "subtype": subtype,
        "question_type": kind,
        "category": "other",
        "answers": {"generate": {"text": text}},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog's bark -- high-pitched, (loud)!", "a dog's bark high-pitched loud"),
        ("It\u2019s 3.5 kHz, or 1,000 Hz.", "it's 3.5 khz or 1,000 hz"),
        ("rain,wind/thunder\nand_hail", "rain wind thunder and hail"),
        ("<b>Rain</b> &amp; wind", "b rain b amp wind"),
        ("e\u0301te\u0301 CAF\u00c9", "\u00e9t\u00e9 caf\u00e9"),
        ("", ""),
        (" ... ||| ", ""),
    ],
)
def test_tokenise(text, expected):
    assert tokenise(text) == expected


def test_text_metric_bleu_and_rouge_by_hand():
    result = score_texts(PREDICTIONS, REFERENCES)
    # Of 12 words, 10 pairs, 8 triples and 6 fours 12, 10, 7 (not "sing in the") and 4 match. The
    # closest reference has 5 words.
    assert result["n"] == 2
    assert result["bleu_1"] == 1
    assert result["bleu_4"] == pytest.approx((7 / 8 * 4 / 6) ** 0.25)
    # longest common subsequences: all; 4 of 6 and 5 words (8/11), 5 of 6 and 7 (10/13)
    assert result["rouge_l"] == pytest.approx((1 + 10 / 13) / 2)
    short = score_texts(["a dog barks"], [["a dog barks in the rain"]])
    assert short["bleu_1"] == pytest.approx(math.exp(1 - 6 / 3))
    assert short["bleu_4"] == 0


def random_items(count: int, seed: int = 0):
    rng, vocabulary = random.Random(seed), ["a", "dog", "rain", "bird", "sings", "loudly"]

    def text():
        return " ".join(rng.choices(vocabulary, k=rng.randint(1, 12)))

    return [text() for _ in range(count)], [
        [text() for _ in range(rng.randint(1, 5))] for _ in range(count)
    ]


def test_text_metric_bleu_equals_sacrebleu_with_missing_references():
    predictions, references = random_items(200)
    streams = [[texts[k] if k < len(texts) else None for texts in references] for k in range(5)]
    corpus = sacrebleu.corpus_bleu(predictions, streams, smooth_method="none", tokenize="none")
    result = score_texts(predictions, references)
    assert result["bleu_4"] == pytest.approx(corpus.score / 100)
    assert 0 < result["bleu_4"] < 1
    assert result["bleu_1"] == pytest.approx(corpus.bp * corpus.precisions[0] / 100)


def cider_d(predictions, references):
    """CIDEr-D by the formulas of Vedantam et al. (arXiv:1411.5726, section 5)."""

    def counts(text, n):
        tokens = text.split()
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    def similarity(prediction, reference, n):
        hypothesis, target = (
            {g: c * idf(g) for g, c in counts(text, n).items()} for text in (prediction, reference)
        )
        norms = [math.sqrt(sum(x * x for x in v.values())) for v in (hypothesis, target)]
        if not all(norms):
            return 0.0
        dot = sum(
            min(hypothesis[g], target[g]) * target[g] for g in hypothesis.keys() & target.keys()
        )
        apart = len(prediction.split()) - len(reference.split())
        return 10 * math.exp(-(apart**2) / (2 * 6**2)) * dot / math.prod(norms)

    def idf(gram):
        holding = sum(
            any(gram in counts(text, len(gram)) for text in texts) for texts in references
        )
        return math.log(len(references) / max(1, holding))

    items = [
        sum(similarity(p, r, n) for n in (1, 2, 3, 4) for r in texts) / 4 / len(texts)
        for p, texts in zip(predictions, references)
    ]
    return sum(items) / len(items)


def test_text_metric_cider_d_equals_the_published_formula():
    pytest.importorskip("pycocoevalcap.cider.cider")
    predictions, references = random_items(25, seed=1)
    predictions[0] = "dog dog dog dog barks"  # is clipped
    result = score_texts(predictions, references)
    assert result["cider_d"] == pytest.approx(cider_d(predictions, references))
    assert result["cider_d"] > 0.5


def test_text_metric_of_right_answers_is_the_maximum():
    pytest.importorskip("pycocoevalcap.cider.cider")
    answers = ["a dog barks in rain", "two birds sing loudly"]
    result = score_texts(answers, [[answer] for answer in answers])
    assert [result[name] for name in ("bleu_1", "bleu_4", "rouge_l", "cider_d")] == pytest.approx(
        [1, 1, 1, 10]
    )
    assert score_texts(["a dog", "rain falls hard"], [["a dog"], ["rain falls hard"]])[
        "cider_d"
    ] == pytest.approx(10 * 5 / 8)


def test_text_metric_without_value_says_why():
    pytest.importorskip("pycocoevalcap.cider.cider")
    single = score_texts(["a dog"], [["a dog", "the dog barks"]])
    assert single["bleu_4"] is None
    assert single["not_run"]["bleu_4"] == "no reference has four words"
    assert single["cider_d"] is None
    assert "at least two items" in single["not_run"]["cider_d"]
    assert single["bleu_1"] == single["rouge_l"] == 1
    alike = score_texts(
        ["a dog", "rain"], [["a dog barks"], ["a dog barks"]]
    )  # every weight would be 0
    assert alike["cider_d"] is None
    assert score_texts(["", "?"], [["..."], ["!", "-"]])["cider_d"] is None  # no word at all


def test_text_metric_of_odd_predictions_has_values():
    odd = ["", "<p>", "a" * 5000, "\u200b\ufeff", "🐕 🐕", "a ||| b\nc"]
    result = score_texts(
        [*odd, "a bird sings loudly"],
        [*[["it rains hard today"]] * len(odd), ["a bird sings loudly"]],
    )
    assert result["rouge_l"] == pytest.approx(1 / 7)  # of the last one
    assert result["bleu_1"] == pytest.approx(
        4 / 9 * math.exp(1 - 28 / 9)
    )  # words: 0, 1, 1, 0, 0, 3 and 4


def test_text_metric_names_missing_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider_scorer", None)
    result = score_texts(PREDICTIONS, REFERENCES)
    assert result["cider_d"] is None
    assert "uv sync --extra captions" in result["not_run"]["cider_d"]
    assert result["bleu_4"]
    assert result["rouge_l"]


def test_text_items_merges_rows_that_ask_the_same():
    clotho = [
        row(answer=a, text="wind")
        for a in ("wind blows", "a wind", "strong wind in trees", "gusts", "it is windy")
    ]
    rows = [
        *clotho,
        row(
            answer="wind again", text="breeze", prompt="describe"
        ),  # another prompt, the same references
        row(answer="rain", subtype="Y.json"),  # another subtype
        row("mcq", answer="a) rain"),
        row("difference", "one is louder", "loud", ("a.wav", "b.wav"), "explain", "D-1.json"),
        row("difference", "the first is louder", "loud", ("a.wav", "b.wav"), "explain", "D-1.json"),
        row("difference", "louder", "loud", ("b.wav", "a.wav"), "explain", "D-1.json"),
        row("detail", "a room", "room", prompt="where"),
        row("detail", "at noon", "noon", prompt="when"),
    ]
    items = text_items(rows)
    summaries = {
        name: [(prediction, len(references)) for prediction, references in merged]
        for name, merged in items.items()
    }
    assert summaries == {
        "caption": [("wind", 6), ("breeze", 6), ("rain", 1)],
        "difference": [("loud", 2), ("loud", 1)],
        "detail": [("room", 1), ("noon", 1)],
    }
    assert items["caption"][0][1] == [
        "a wind",
        "gusts",
        "it is windy",
        "strong wind in trees",
        "wind again",
        "wind blows",
    ]
    reverse = text_items(rows[::-1])
    assert {name: sorted(merged) for name, merged in reverse.items()} == {
        name: sorted(merged) for name, merged in items.items()
    }


def test_text_metrics_of_each_question_type_are_those_of_its_items():
    predictions, references = random_items(40, seed=2)
    rows = [
        row(answer=answer, text=text, clips=(f"{i}.wav", ""), subtype=f"{'XY'[i % 2]}.json")
        for i, (text, answers) in enumerate(zip(predictions, references))
        for answer in answers
    ]
    rows += [row("detail", "a very small room", "a room", prompt=p) for p in "ab"]
    metrics = text_metrics(rows)
    assert list(metrics) == ["caption", "detail"]
    assert metrics["caption"] == score_texts(predictions, references)
    # Two items with one answer
    assert metrics["detail"]["not_run"]["cider_d"].startswith("needs at least two items")
    random.Random(0).shuffle(rows)
    assert text_metrics(rows) == metrics
