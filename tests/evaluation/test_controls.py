"""Controls by hand, and planted artefacts: each is exposed by the control made for it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from support.builders import MCQ, YES_NO, arguments, clip
from support.evaluation import make_tone_corpus, read_jsonl

from audiolm.evaluation.controls import (
    commonest_answers,
    mismatched_clips,
    noise_of_equal_power,
    shift_option_letters,
)
from audiolm.evaluation.evaluate import main as evaluate
from audiolm.run_train import main as train


def test_noise_of_equal_power_shares_only_power_with_the_clip():
    samples = torch.from_numpy(clip(1.0))
    noise = noise_of_equal_power("x", samples)
    powers = [float(audio.square().mean()) for audio in (noise, samples)]
    assert noise.shape == samples.shape
    assert powers[0] == pytest.approx(powers[1], rel=1e-5)
    assert torch.equal(
        noise, noise_of_equal_power("elsewhere", samples.clone())
    )  # of the samples, wherever they lie
    assert abs(np.corrcoef(noise, samples)[0, 1]) < 0.03
    assert not noise_of_equal_power(
        "x", torch.zeros(100)
    ).any()  # silence stays silence, and is not NaN


def test_shift_option_letters_by_hand():
    row = {
        "question_type": "mcq",
        "input": "What is it? A) rain B) a dog C) wind Choose.",
        "answer": "B) a dog",
    }
    moved, old = shift_option_letters(row)
    assert moved["input"] == "What is it? A) wind Choose. B) rain C) a dog"
    assert moved["answer"] == "C) a dog"
    assert old == {"a": "c", "b": "a", "c": "b"}
    assert shift_option_letters({**row, "input": "What? A) rain B) none of the above"}) is None
    assert (
        shift_option_letters(
            {
                "question_type": "yes_no",
                "input": "Is it? Answer only using yes or no.",
                "answer": "yes",
            }
        )
        is None
    )


def test_commonest_answers_by_hand():
    mcq, yes_no = {**MCQ, "question_type": "mcq"}, {**YES_NO, "question_type": "yes_no"}
    training = [{**mcq, "answer": answer} for answer in ("A) low", "B) high", "B) high")]
    # Over both subtypes, a is more common.
    training += [{**mcq, "subtype": "U-MCQ.json", "answer": "A) low"}] * 3
    # Of two equal ones, the first in the alphabet counts.
    training += [{**yes_no, "answer": answer} for answer in ("yes", "no")]
    commonest = commonest_answers(training)
    assert commonest["mcq", MCQ["subtype"]] == "b"
    assert commonest["mcq", None] == "a"
    assert commonest["yes_no", YES_NO["subtype"]] == "no"
    assert commonest_answers([]) == {}


def train_models(folder: Path, tokenizer, rows: list[dict], text_only: bool = True) -> Path:
    """Trains a small model, and perhaps a text-only one, on rows. Returns their folder."""
    corpus = make_tone_corpus(folder, rows)
    options = arguments(corpus, "htsat", tokenizer, "--max_steps", "60", "--eval_strategy", "no")
    train(options)
    if text_only:
        train([*options, "--no_audio", "true", "--output_dir", str(corpus / "text_only")])
    return corpus


def evaluate_model(corpus: Path, model: str = "out") -> dict:
    """Evaluates a model with all controls. Returns its metrics."""
    data = str(corpus / "rows.json")
    text_only = corpus / "text_only"
    evaluate(
        [
            "--model_name_or_path",
            str(corpus / model),
            "--test_file",
            data,
            "--audio_dir",
            str(corpus),
            "--output_dir",
            str(corpus / model / "results"),
            "--protocol",
            "likelihood",
            "--controls",
            "all",
            "--train_file",
            data,
            *(["--question_only_model", str(text_only)] if text_only.exists() else []),
        ]
    )
    return json.loads((corpus / model / "results" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def tones(tmp_path_factory, tokenizer) -> Path:
    """A model and a text-only one, trained on questions that only the audio answers."""
    rows = [{**MCQ, "answer": "B) high" if i % 2 else "A) low"} for i in range(24)]
    return train_models(tmp_path_factory.mktemp("tones"), tokenizer, rows)


def accuracy(metrics: dict, control: str | None = None) -> float:
    condition = metrics["controls"][control] if control else metrics
    return condition["question_type"]["mcq"]["accuracy"]


def test_model_that_uses_the_audio_beats_every_baseline(tones):
    metrics = evaluate_model(tones)
    assert accuracy(metrics) == 1
    for control in ("majority", "no_audio", "question_only"):
        assert accuracy(metrics, control) == 0.5
    # The model was trained on these clips.
    assert metrics["training_clips"]["clip in training"]["n"] == 24
    assert accuracy(metrics, "noise") <= 0.75
    assert accuracy(metrics, "mismatched_audio") <= 0.75
    above = metrics["audio_gain"]["mcq"]
    assert above["difference"] == pytest.approx(1 - above["control_accuracy"])
    assert above["ci95_low"] > 0


def test_position_bias_is_exposed_by_relabelling_and_majority(tmp_path, tokenizer):
    """The right option is always the first: "A" is right without any knowledge."""
    orders = ["Which tone? A) low B) high", "Which tone? A) high B) low"]
    rows = [
        {**MCQ, "input": orders[i % 2], "answer": "A) high" if i % 2 else "A) low"}
        for i in range(24)
    ]
    metrics = evaluate_model(train_models(tmp_path, tokenizer, rows, text_only=False))
    assert accuracy(metrics) == 1
    assert accuracy(metrics, "majority") == 1
    option_relabel = metrics["controls"]["option_relabel"]
    assert option_relabel["consistency"]["mcq"] == {"n": 24, "same_option": 0.0}
    assert accuracy(metrics, "option_relabel") == 0
    assert metrics["audio_gain"]["mcq"]["difference"] == 0
    assert metrics["audio_gain"]["mcq"]["ci95_low"] == 0


def test_leaking_question_is_exposed_by_question_only_model(tmp_path, tokenizer):
    """The question contains the answer, so a text-only model is as good."""
    leaks = ["Which tone, deep? A) low B) high", "Which tone, shrill? A) low B) high"]
    rows = [
        {**MCQ, "input": leaks[i % 2], "answer": "B) high" if i % 2 else "A) low"}
        for i in range(24)
    ]
    metrics = evaluate_model(train_models(tmp_path, tokenizer, rows))
    assert accuracy(metrics) == 1
    assert accuracy(metrics, "question_only") == 1
    assert accuracy(metrics, "majority") == 0.5
    assert metrics["audio_gain"]["mcq"]["best_control"] in (
        "no_audio",
        "noise",
        "mismatched_audio",
        "question_only",
    )
    assert metrics["audio_gain"]["mcq"]["difference"] == 0


def test_text_only_model_is_exposed_by_noise_and_mismatched_audio(tones):
    """A text-only model gives the same answers whatever the audio is."""
    metrics = evaluate_model(tones, "text_only")
    for row in read_jsonl(tones / "text_only" / "results" / "predictions.jsonl"):
        for control in ("noise", "mismatched_audio", "no_audio", "question_only"):
            assert (
                row["controls"][control]["answers"]["likelihood"]["parsed"]
                == row["answers"]["likelihood"]["parsed"]
            )
    assert (
        accuracy(metrics)
        == accuracy(metrics, "noise")
        == accuracy(metrics, "mismatched_audio")
        == 0.5
    )
    assert (
        metrics["audio_gain"]["macro"]["ci95_low"]
        <= 0
        <= metrics["audio_gain"]["macro"]["ci95_high"]
    )


@pytest.mark.parametrize("num_clips", [1, 2])
def test_mismatched_clips_are_never_a_rows_own(num_clips):
    rng = random.Random(0)
    lengths = {f"{number}.wav": rng.randint(10, 200) for number in range(40)}
    rows = [{"audio": rng.sample(sorted(lengths), num_clips)} for _ in range(200)]
    mismatched = mismatched_clips(rows, lengths)
    for row, others in zip(rows, mismatched):
        assert len(set(others)) == num_clips
        assert set(others).isdisjoint(row["audio"])


def test_mismatched_clips_have_similar_lengths():
    lengths = {"a": 10, "b": 200, "c": 11, "d": 198}
    rows = [{"audio": ["a"]}, {"audio": ["b"]}, {"audio": ["a", "b"]}]
    assert mismatched_clips(rows, lengths) == [["c"], ["d"], ["c", "d"]]


def test_mismatched_clips_without_another_clip_are_a_rows_own():
    assert mismatched_clips([{"audio": ["a", "b"]}], {"a": 1, "b": 2}) == [["a", "b"]]
