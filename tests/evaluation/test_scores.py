"""Rows of predictions.jsonl and numbers of metrics.json, by hand."""

import pytest
from support.evaluation import CAPTION, RAIN, make_output, make_predictions

from audiolm.evaluation.scores import (
    audio_gain,
    mark_training_clips,
    option_probabilities,
    score,
)
from audiolm.evaluation.tables import format_metrics


def test_score_counts_an_unparsed_answer_as_wrong():
    rows = make_predictions(
        (RAIN, {"audio": make_output("A) rain", a=-1, b=-2)}),
        (RAIN, {"audio": make_output("thunder", a=-3, b=-2)}),
        (CAPTION, {"audio": make_output("some three words")}),
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
    assert metrics["protocol"] == "generate"
    assert f"{name} 2 0.500" in " ".join(format_metrics(metrics).split())
    assert "greedy text, parsed" in format_metrics(metrics)


def test_predicted_rows_relabelled_options_have_original_letters():
    """ "A) rain" is "B) rain" when all options move on by a letter."""
    moved = make_output("B) rain", a=-5, b=-1, c=-4, d=-3)
    (row,) = make_predictions(
        (RAIN, {"audio": make_output("A) rain", a=-1, b=-2, c=-3, d=-4), "option_relabel": moved})
    )
    answers = row["controls"]["option_relabel"]["answers"]
    assert answers["generate"]["parsed"] == "a"
    assert answers["likelihood"]["parsed"] == "a"
    assert answers["likelihood"]["correct"]
    assert answers["likelihood"]["scores"] == {
        "a": [-1, 2],
        "b": [-4, 2],
        "c": [-3, 2],
        "d": [-5, 2],
    }
    metrics = score([row], "likelihood", 10.0)
    assert metrics["controls"]["option_relabel"]["consistency"] == {
        "mcq": {"n": 1, "same_option": 1.0}
    }


def test_score_groups_rows_by_truncation():
    full = make_predictions((RAIN, {"audio": make_output("", a=-1, b=-2)}), seconds=10.0)
    cut = make_predictions((RAIN, {"audio": make_output("", a=-2, b=-1)}), seconds=10.1)
    groups = score(full + cut, "likelihood", 10.0)["truncation"]
    assert (groups["full"]["accuracy"], groups["truncated"]["accuracy"]) == (1, 0)


def test_audio_gain_by_hand():
    """3 of 4 are right with audio, 1 without it, 2 with noise: noise is the best baseline."""

    def row(right, ablated, noise):
        return (
            RAIN,
            {
                "audio": make_output("", a=-1 if right else -3, b=-2),
                "no_audio": make_output("", a=-1 if ablated else -3, b=-2),
                "noise": make_output("", a=-1 if noise else -3, b=-2),
            },
        )

    rows = make_predictions(row(1, 0, 1), row(1, 0, 1), row(1, 1, 0), row(0, 0, 0))
    gain = audio_gain(rows, "likelihood")["mcq"]
    assert gain["best_control"] == "noise"
    assert gain["difference"] == 0.25
    assert (gain["accuracy"], gain["control_accuracy"]) == (0.75, 0.5)
    # The differences are 0, 0, 0 and 1. Four clips have 3 degrees of freedom.
    error = (0.25 * 0.75 / 4) ** 0.5
    margin = (gain["ci95_high"] - gain["ci95_low"]) / 2
    assert margin == pytest.approx(error * 3.182, rel=0.05)


def test_score_has_training_majority_as_control():
    training = [{**RAIN, "filepath2": "", "answer": "B) heavy rain"}] * 2 + [
        {**RAIN, "filepath2": ""}
    ]
    metrics = score(
        make_predictions((RAIN, {"audio": make_output("", a=-1, b=-2)}), training_rows=training),
        "likelihood",
        10.0,
    )
    assert metrics["controls"]["majority"]["micro"]["accuracy"] == 0
    assert metrics["micro"]["accuracy"] == 1


def test_option_probabilities_by_hand():
    (row,) = make_predictions((RAIN, {"audio": make_output("", a=-1.0, b=-2.0)}))
    probabilities = option_probabilities(row)
    assert probabilities["a"] == pytest.approx(1 / (1 + 2.718281828**-1))
    assert sum(probabilities.values()) == pytest.approx(1)


def test_score_by_a_protocol_without_control_answers_leaves_controls_out():
    (row,) = make_predictions((RAIN, {"audio": make_output("A) rain", a=-1, b=-2)}))
    row["controls"]["noise"] = {
        "loss": 1.0,
        "answers": {"likelihood": row["answers"]["likelihood"]},
    }
    assert list(score([row], "likelihood", 10.0)["controls"]) == ["noise"]
    assert score([row], "generate", 10.0)["controls"] == {}


def test_score_warns_of_options_written_in_another_way():
    dotted = {**RAIN, "input": "What is heard? A. rain B. wind", "answer": "A. rain"}
    rows = make_predictions((dotted, {"audio": make_output("A. rain")}))
    metrics = score(rows, "generate", 10.0)
    (warning,) = metrics["warnings"]
    assert warning.startswith("the correct answers of 1 of 1 closed rows name no option")
    assert "Write options as `A) rain B) wind`" in warning
    assert f"warning: {warning}" in format_metrics(metrics)


def test_score_warns_of_texts_that_name_no_option():
    rows = make_predictions(
        *[(RAIN, {"audio": make_output("A) rain")})] * 8,
        (RAIN, {"audio": make_output("thunder")}),
    )
    (warning,) = score(rows, "generate", 10.0)["warnings"]
    assert warning.startswith("1 of 9 generated texts name no option, or several.")
    assert "First: 'thunder' to " in warning


def test_score_of_few_unparsed_texts_warns_of_nothing():
    rows = make_predictions(
        *[(RAIN, {"audio": make_output("A) rain")})] * 19,
        (RAIN, {"audio": make_output("thunder")}),
    )
    assert score(rows, "generate", 10.0)["warnings"] == []


def test_table_without_a_text_only_model_says_what_is_not_shown():
    answers = {"audio": make_output("", a=-1, b=-2), "noise": make_output("", a=-3, b=-2)}
    table = format_metrics(score(make_predictions((RAIN, answers)), "likelihood", 10.0))
    assert "no text-only model: the points below are not shown to come from the audio" in table


def test_score_reports_texts_that_contradict_themselves():
    """The right answer is "A) rain". By letter, 2 of 4 are right, by words 2."""
    texts = ["A) rain", "B) rain", "A) wind", "B"]
    rows = make_predictions(
        *((RAIN, {"audio": make_output(text, a=-1, b=-2)}) for text in texts),
    )
    metrics = score(rows, "generate", 10.0)
    assert metrics["contradictions"] == {
        "mcq": {"n": 4, "contradictory": 0.5, "by_letter": 0.5, "by_words": 0.5}
    }
    assert "mcq: 50.0 % of 4 generated texts name one option's letter" in format_metrics(metrics)


def test_score_without_generated_texts_reports_no_contradictions():
    output = make_output("", a=-1, b=-2)
    del output["text"]
    rows = make_predictions((RAIN, {"audio": output}))
    assert score(rows, "likelihood", 10.0)["contradictions"] == {}


def long_answers(count: int) -> list[dict]:
    """Rows with right answers of 3 words. The sum of their log-likelihoods is lower than b's."""
    row = {
        **RAIN,
        "answer": "A) heavy rain falling",
        "input": "What? A) heavy rain falling B) wind",
    }
    output = make_output("")
    output["scores"] = {"a": (-4.0, 4), "b": (-3.0, 1)}
    return make_predictions(*((row, {"audio": output}) for _ in range(count)))


def test_score_warns_where_sum_and_mean_of_log_likelihoods_disagree():
    metrics = score(long_answers(20), "likelihood", 10.0)
    assert "answers of 4-6 words 0.0 and 100.0 %" in metrics["length_warning"]
    table = format_metrics(metrics)
    assert "warning: the sum of an option's log-likelihoods, which decides" in table
    (line,) = [line.split() for line in table.split("\n") if line.startswith("4-6 words")]
    assert (line[2:4], line[-1]) == (["20", "0.000"], "1.000")


def test_score_without_such_a_difference_does_not_warn():
    rows = make_predictions(*((RAIN, {"audio": make_output("", a=-1, b=-2)}) for _ in range(20)))
    assert score(rows, "likelihood", 10.0)["length_warning"] is None
    assert score(long_answers(20), "likelihood_normalised", 10.0)["length_warning"] is None


@pytest.mark.parametrize("training_clips", [{"0.wav"}, {"folder/1.wav", "digest of 0"}])
def test_score_reports_rows_whose_clip_occurs_in_training(training_clips):
    rows = make_predictions(
        (RAIN, {"audio": make_output("", a=-1, b=-2)}),
        (RAIN, {"audio": make_output("", a=-3, b=-2)}),
    )
    rows[0]["audio_digests"] = ["digest of 0"]
    mark_training_clips(rows, training_clips)
    metrics = score(rows, "likelihood", 10.0)
    groups = metrics["training_clips"]
    assert groups["clip in training"]["accuracy"] == 1
    assert groups["new clip"]["accuracy"] == 0
    assert "warning: the clips of 1 rows occur in training" in format_metrics(metrics)
