import json
from pathlib import Path

import evaluate
import pytest
from support.builders import EMPTY

from audiolm.evaluation import ReasonAQAMetric, metric, parse_answer
from audiolm.evaluation import text_metrics as texts
from audiolm.evaluation.metric import wilson
from audiolm.evaluation.scores import (
    audio_gain,
    clips_of,
    option_probabilities,
    predicted_rows,
    score,
)
from audiolm.evaluation.tables import main as print_table
from audiolm.evaluation.tables import table

MCQ = "What is it? A) rain B) heavy rain C) a dog barking D) wind"
ENTAILMENT = 'the hypothesis - "x"? a) It is definitely true b) It is definitely false c) It is plausible d) I cannot determine'


ROUND = "Which sound(s) can be heard? (A) a dog (B) a cat"


@pytest.mark.parametrize(
    ("kind", "question", "text", "parsed"),
    [
        ("mcq", ROUND, "(B) a cat", "b"),
        ("mcq", ROUND, "a dog can be heard", "a"),
        ("mcq", ROUND, "s.", None),
        ("mcq", MCQ, "B) heavy rain", "b"),
        ("mcq", MCQ, "c", "c"),
        ("mcq", MCQ, "(d) wind", "d"),
        ("mcq", MCQ, "A.", "a"),
        ("mcq", MCQ, "It is heavy rain.", "b"),
        ("mcq", MCQ, "a dog barking", "c"),
        ("mcq", MCQ, "wind and a dog barking", None),
        ("mcq", MCQ, "E) thunder", None),
        ("mcq", MCQ, "a", "a"),
        ("mcq", MCQ, "", None),
        ("mcq", MCQ, "rainbow", None),
        ("entailment", ENTAILMENT, "It is plausible", "c"),
        ("entailment", ENTAILMENT, "d) I cannot determine", "d"),
        ("yes_no", "?", "Yes.", "yes"),
        ("yes_no", "?", "there is noise", None),
        ("yes_no", "?", "yes and no", None),
        ("caption", "?", "a) rain", None),
    ],
)
def test_parse_answer(kind, question, text, parsed):
    assert parse_answer(kind, question, text) == parsed


ANSWERED = {
    "predictions": ["a", "b", "", "yes"],
    "references": ["a", "a", "c", "yes"],
    "question_type": ["mcq", "mcq", "mcq", "yes_no"],
}


def test_metric_by_hand():
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


def test_entailment_by_hand():
    """Right answers a a b; said a b and nothing: precision, recall of a 1, 1/2, of b 0, 0."""
    result = ReasonAQAMetric().compute(
        predictions=["a", "b", ""], references=["a", "a", "b"], question_type=["entailment"] * 3
    )
    found = result["question_type"]["entailment"]
    assert found["confusion"] == {"a": {"a": 1, "b": 1}, "b": {"": 1}}
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["balanced_accuracy"] == 0.25


def test_the_metric_works_alone():
    """As `evaluate` loads any metric: from its file."""
    alone = evaluate.load(metric.__file__).compute(**ANSWERED)
    assert alone == ReasonAQAMetric().compute(**ANSWERED)
    spoken = {
        "predictions": ["rain falls on a roof", "wind"],
        "references": [["rain falls on the roof"], ["a dog", "wind"]],
    }
    found = evaluate.load(texts.__file__).compute(**spoken, java=False)
    assert found["n"] == 2
    assert found["rouge_l"] == pytest.approx((0.8 + 1) / 2)


def test_wilson_by_hand():
    assert wilson(8, 10) == pytest.approx(
        (0.4901625, 0.9433178), abs=1e-6
    )  # Newcombe 1998's formula
    assert wilson(0, 0) == (0.0, 1.0)


def said(text: str, **scores: float) -> dict:
    return {
        "loss": 1.0,
        "n_tokens": 2,
        "text": text,
        "scores": {option: (total, 2) for option, total in scores.items()},
    }


def rows_of(
    *answered: tuple[dict, dict[str, dict]], seconds: float = 5.0, training=None
) -> list[dict]:
    rows = [
        {**EMPTY, "filepath1": f"{i}.wav", "audio": [f"{i}.wav"], **row}
        for i, (row, _) in enumerate(answered)
    ]
    return predicted_rows(
        rows, [of for _, of in answered], {row["audio"][0]: seconds for row in rows}, training
    )


RAIN = {"question_type": "mcq", "input": MCQ, "answer": "A) rain", "subtype": "X-MCQ"}
CAPTION = {
    "question_type": "caption",
    "input": "caption first audio",
    "answer": "It rains on a roof",
    "subtype": "X",
}


def test_an_unparsed_answer_is_wrong_and_counted():
    rows = rows_of(
        (RAIN, {"audio": said("A) rain", a=-1, b=-2)}),
        (RAIN, {"audio": said("thunder", a=-3, b=-2)}),
        (CAPTION, {"audio": said("some three words")}),
    )
    assert [row["answers"]["generate"]["correct"] for row in rows] == [True, False, None]
    assert [row["answers"].get("likelihood", {}).get("correct") for row in rows] == [
        True,
        False,
        None,
    ]
    metrics = score(rows, "generate", 10.0)
    assert metrics["micro"]["n_unparsed"] == 1
    assert metrics["micro"]["accuracy"] == 0.5
    assert metrics["other_protocols"]["likelihood"]["micro"]["n_unparsed"] == 0
    assert metrics["text"]["caption"]["loss_per_answer_token"] == 0.5
    assert metrics["text"]["caption"]["mean_words"] == 3.0
    name = rows[0]["category"]
    assert metrics["category"][name] == {
        k: v for k, v in metrics["question_type"]["mcq"].items() if k != "balanced_accuracy"
    }
    assert f"{name:<22}      2     0.500" in table(metrics)
    assert metrics["protocol"] == "generate"
    assert "greedy text, parsed" in table(metrics)


def test_options_under_other_letters_are_counted_under_their_own():
    """ "A) rain" is "B) rain" when all options move on by a letter."""
    moved = said("B) rain", a=-5, b=-1, c=-4, d=-3)
    (row,) = rows_of(
        (RAIN, {"audio": said("A) rain", a=-1, b=-2, c=-3, d=-4), "option_relabel": moved})
    )
    of = row["controls"]["option_relabel"]["answers"]
    assert of["generate"]["parsed"] == of["likelihood"]["parsed"] == "a"
    assert of["likelihood"]["correct"]
    assert of["likelihood"]["scores"] == {"a": [-1, 2], "b": [-4, 2], "c": [-3, 2], "d": [-5, 2]}
    metrics = score([row], "likelihood", 10.0)
    assert metrics["controls"]["option_relabel"]["consistency"] == {
        "mcq": {"n": 1, "same_option": 1.0}
    }


def test_recordings_are_known_by_their_file_names():
    one = {"filepath1": "ClothoAQA\\audio_files\\Mom&amp;Dad.wav", "filepath2": ""}
    assert (
        clips_of(one)
        == clips_of({"filepath1": "ClothoV21/evaluation/Mom&Dad.wav", "filepath2": ""})
        == ("Mom&Dad.wav",)
    )
    assert clips_of({"filepath1": "a/x.wav", "filepath2": "b/y.wav"}) == ("x.wav", "y.wav")


def test_clips_heard_whole_and_cut_are_told_apart():
    whole = rows_of((RAIN, {"audio": said("", a=-1, b=-2)}), seconds=10.0)
    cut = rows_of((RAIN, {"audio": said("", a=-2, b=-1)}), seconds=10.1)
    heard = score(whole + cut, "likelihood", 10.0)["truncation"]
    assert (heard["full"]["accuracy"], heard["truncated"]["accuracy"]) == (1, 0)


def test_listening_by_hand():
    """Heard 3 of 4, without audio 1, with noise 2: noise is the best control."""

    def row(right, deaf, noise):
        return (
            RAIN,
            {
                "audio": said("", a=-1 if right else -3, b=-2),
                "no_audio": said("", a=-1 if deaf else -3, b=-2),
                "noise": said("", a=-1 if noise else -3, b=-2),
            },
        )

    rows = rows_of(row(1, 0, 1), row(1, 0, 1), row(1, 1, 0), row(0, 0, 0))
    above = audio_gain(rows, "likelihood")["mcq"]
    assert above["best_control"] == "noise"
    assert above["difference"] == 0.25
    assert (above["accuracy"], above["control_accuracy"]) == (0.75, 0.5)
    assert above["ci95_low"] == 0
    assert above["ci95_high"] == 0.75


def test_the_majority_of_training_is_a_control():
    training = [{**RAIN, "filepath2": "", "answer": "B) heavy rain"}] * 2 + [
        {**RAIN, "filepath2": ""}
    ]
    metrics = score(
        rows_of((RAIN, {"audio": said("", a=-1, b=-2)}), training=training), "likelihood", 10.0
    )
    assert metrics["controls"]["majority"]["micro"]["accuracy"] == 0
    assert metrics["micro"]["accuracy"] == 1


def test_probabilities_of_options_by_hand():
    (row,) = rows_of((RAIN, {"audio": said("", a=-1.0, b=-2.0)}))
    found = option_probabilities(row)
    assert found["a"] == pytest.approx(1 / (1 + 2.718281828**-1))
    assert sum(found.values()) == pytest.approx(1)


def test_the_table_is_printed_again_from_predictions(tmp_path, capsys):
    rows = rows_of((RAIN, {"audio": said("A) rain", a=-1, b=-2)}))
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print_table([str(file)])
    assert "mcq                         1     1.000" in capsys.readouterr().out
    print_table([str(file), "--protocol", "generate"])
    for wrong, message in (
        (Path(tmp_path, "none"), "No such file"),
        (file, "holds no answers by likelihood_normalised"),
    ):
        file.write_text(file.read_text().replace("likelihood_normalised", "x"))
        with pytest.raises(SystemExit, match=message):
            print_table([str(wrong), "--protocol", "likelihood_normalised"])
