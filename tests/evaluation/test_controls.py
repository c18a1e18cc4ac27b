"""Controls by hand, and artefacts planted on purpose: each is exposed by the control that is meant for it, from end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.builders import EMPTY, MCQ, TWO_PROCESSES, YES_NO, arguments, clip

from audiolm.data import load_reasonaqa
from audiolm.evaluation.arguments import parse_arguments
from audiolm.evaluation.controls import (
    commonest_answers,
    noise_of_equal_power,
    shift_option_letters,
)
from audiolm.evaluation.evaluate import main as evaluate
from audiolm.evaluation.predict import chunks
from audiolm.training.train import main as train


def test_noise_has_the_clips_power_and_nothing_else_of_it():
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


def test_options_move_on_by_a_letter_by_hand():
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
    training = [{**MCQ, "answer": a} for a in ("A) low", "B) high", "B) high")]
    training += [
        {**MCQ, "subtype": "U-MCQ.json", "answer": "A) low"}
    ] * 3  # over both subtypes, a is commoner
    training += [{**YES_NO, "answer": a} for a in ("yes", "no")]  # a tie: the alphabet's first
    rows = [
        {**row, "question_type": kind}
        for kind, row in (
            ("mcq", MCQ),
            ("mcq", {**MCQ, "subtype": "new-MCQ.json"}),
            ("yes_no", YES_NO),
        )
    ]
    assert commonest_answers(training, rows) == ["b", "a", "no"]
    assert commonest_answers([], rows) == [None, None, None]


def make(folder: Path, rows: list[dict]) -> Path:
    """A corpus of clips of two tones: row i is about a low one if i is even, a high one if it is odd.

    All are of one length, which a model without audio knows too.
    """
    for i, row in enumerate(rows):
        row["filepath1"] = f"{i}.wav"
        soundfile.write(folder / f"{i}.wav", clip(0.4, seed=i % 2 * 9), 24000)
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def results(folder: Path, tokenizer, rows: list[dict], *trained: str, controls=("all",)) -> dict:
    """Trains a small model on rows, and a question-only one beside it; `metrics.json` of the first with its controls."""
    corpus = make(folder, rows)
    options = arguments(
        corpus, "htsat", tokenizer, "--max_steps", "60", "--eval_strategy", "no", *trained
    )
    deaf = [*options, "--no_audio", "true", "--output_dir", str(corpus / "deaf")]
    train(options)
    train(deaf)
    data = str(corpus / "rows.json")
    evaluate(
        [
            "--model_name_or_path",
            str(corpus / "out"),
            "--test_file",
            data,
            "--audio_dir",
            str(corpus),
            "--output_dir",
            str(corpus / "results"),
            "--max_new_tokens",
            "4",
            "--protocol",
            "likelihood",
            "--controls",
            *controls,
            "--train_file",
            data,
            "--question_only_model",
            str(corpus / "deaf"),
        ]
    )
    return json.loads((corpus / "results" / "metrics.json").read_text())


def accuracy(metrics: dict, control: str | None = None) -> float:
    of = metrics["controls"][control] if control else metrics
    return of["question_type"]["mcq"]["accuracy"]


def test_a_model_that_listens_is_better_than_every_control(tmp_path, tokenizer):
    rows = [{**MCQ, "answer": "B) high" if i % 2 else "A) low"} for i in range(24)]
    metrics = results(tmp_path, tokenizer, rows)
    assert accuracy(metrics) == 1
    for control in ("majority", "no_audio", "question_only"):
        assert accuracy(metrics, control) == 0.5
    assert accuracy(metrics, "noise") <= 0.75
    assert accuracy(metrics, "mismatched_audio") <= 0.75
    above = metrics["audio_gain"]["mcq"]
    assert above["difference"] == pytest.approx(1 - above["control_accuracy"])
    assert above["ci95_low"] > 0


def test_position_bias_is_exposed_by_other_letters_and_the_majority(tmp_path, tokenizer):
    """The right option is always the first: a model may say "A" and be right without knowing anything."""
    orders = ["Which tone? A) low B) high", "Which tone? A) high B) low"]
    rows = [
        {**MCQ, "input": orders[i % 2], "answer": "A) high" if i % 2 else "A) low"}
        for i in range(24)
    ]
    metrics = results(tmp_path, tokenizer, rows)
    assert accuracy(metrics) == 1
    assert accuracy(metrics, "majority") == 1
    option_relabel = metrics["controls"]["option_relabel"]
    assert option_relabel["consistency"]["mcq"] == {"n": 24, "same_option": 0.0}
    assert accuracy(metrics, "option_relabel") == 0
    assert metrics["audio_gain"]["mcq"]["difference"] == 0
    assert metrics["audio_gain"]["mcq"]["ci95_low"] == 0


def test_text_that_leaks_the_answer_is_exposed_by_the_question_only_model(tmp_path, tokenizer):
    """The question holds the answer: a model that never heard anything is as good."""
    leaks = ["Which tone, deep? A) low B) high", "Which tone, shrill? A) low B) high"]
    rows = [
        {**MCQ, "input": leaks[i % 2], "answer": "B) high" if i % 2 else "A) low"}
        for i in range(24)
    ]
    metrics = results(tmp_path, tokenizer, rows)
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


def test_a_deaf_model_is_exposed_by_noise_and_other_audio(tmp_path, tokenizer):
    """Trained without audio and passed off as one that hears: whatever is played, it answers the same."""
    rows = [{**MCQ, "answer": "B) high" if i % 2 else "A) low"} for i in range(24)]
    metrics = results(tmp_path, tokenizer, rows, "--no_audio", "true")
    said = [
        json.loads(line)
        for line in (tmp_path / "results" / "predictions.jsonl").read_text().split("\n")[:-1]
    ]
    for row in said:
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    """A corpus whose clips have several rows of every type, and a model."""
    folder, rows = tmp_path_factory.mktemp("evaluated"), []
    for i in range(30):
        row = (MCQ, YES_NO, {**EMPTY, "input": "caption first audio", "subtype": "T.json"})[i % 3]
        rows.append(
            {
                **row,
                "answer": (("A) low", "B) high"), ("yes", "no"), ("a deep tone", "a shrill tone"))[
                    i % 3
                ][i % 2],
            }
        )
    corpus = make(folder, rows)
    for i, row in enumerate(rows):
        row["filepath1"] = f"{i % 7}.wav"
    rows[5]["filepath2"] = rows[11]["filepath2"] = "6.wav"
    (corpus / "rows.json").write_text(json.dumps(rows))
    train(arguments(corpus, "mimi_full", tokenizer, "--max_steps", "3", "--eval_strategy", "no"))
    return corpus


def command(corpus: Path, name: str, *more: str) -> list[str]:
    return [
        "--model_name_or_path",
        str(corpus / "out"),
        "--test_file",
        str(corpus / "rows.json"),
        "--audio_dir",
        str(corpus),
        "--output_dir",
        str(corpus / name),
        "--max_new_tokens",
        "6",
        "--controls",
        "all",
        "--batch_size",
        "4",
        *more,
    ]


def written(corpus: Path, name: str) -> list[bytes]:
    assert not list((corpus / name).glob("*part*"))
    return [(corpus / name / file).read_bytes() for file in ("predictions.jsonl", "metrics.json")]


@pytest.fixture(scope="module")
def first(trained):
    from audiolm.evaluation import predict as predictions

    predictions.ROWS_PER_CHUNK = 8  # several chunks of few rows
    evaluate(command(trained, "first"))
    yield written(trained, "first")
    predictions.ROWS_PER_CHUNK = 256


def test_the_order_is_the_files_and_the_batch_size_changes_nothing(trained, first):
    rows = [json.loads(line) for line in first[0].decode().split("\n")[:-1]]
    assert [row["input"] for row in rows] == [
        row["input"] for row in json.loads((trained / "rows.json").read_text())
    ]
    evaluate([*command(trained, "other"), "--batch_size", "7"])
    others = [json.loads(line) for line in written(trained, "other")[0].decode().split("\n")[:-1]]
    for row, other in zip(rows, others):
        assert row["answers"].keys() == other["answers"].keys()
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-4)
        for protocol, answer in row["answers"].items():
            assert answer["parsed"] == other["answers"][protocol]["parsed"]
            assert answer.get("text") == other["answers"][protocol].get("text")
        for option, (total, _) in row["answers"].get("likelihood", {}).get("scores", {}).items():
            assert other["answers"]["likelihood"]["scores"][option][0] == pytest.approx(
                total, abs=1e-4
            )


def test_a_feature_cache_gives_the_same_answers(trained, first):
    evaluate([*command(trained, "cached"), "--feature_cache", str(trained / "cache")])
    assert written(trained, "cached")[0] == first[0]


def test_an_interrupted_evaluation_goes_on_and_writes_the_same_bytes(trained, first, monkeypatch):
    from audiolm.evaluation import predict as predictions

    whole, asked, inner = [], [], predictions.answer_batch
    monkeypatch.setattr(predictions, "answer_batch", lambda *a: whole.append(1) or inner(*a))
    evaluate(command(trained, "whole"))

    def interrupted(*arguments):
        asked.append(1)
        if len(asked) == len(whole) - 1:
            raise KeyboardInterrupt
        return inner(*arguments)

    monkeypatch.setattr(predictions, "answer_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(command(trained, "again"))
    (part,) = (trained / "again").glob("predictions.part0.jsonl")
    assert len(part.read_text().split("\n")) > 2  # settings and a chunk
    part.write_text(
        part.read_text() + '{"chunk": 1, "resu'
    )  # as a kill in the middle of writing leaves it
    done = len(asked)
    evaluate(command(trained, "again"))
    assert written(trained, "again") == first
    assert len(asked) - done < len(whole)  # what was answered was not asked again


def test_answers_of_another_evaluation_are_not_gone_on_with(trained, first, capsys):
    (trained / "mixed").mkdir()
    (trained / "mixed" / "predictions.part0.jsonl").write_text(
        '{"rows_sha256": "other"}\n{"chunk": 0, "results": {}}\n'
    )
    evaluate(command(trained, "mixed"))
    assert "is of another evaluation" in capsys.readouterr().err
    assert written(trained, "mixed") == first


def test_two_processes_write_what_one_writes(trained, first):
    script = "from audiolm.evaluation import predict as predictions; predictions.ROWS_PER_CHUNK = 8; from audiolm.run_eval import main; main()"
    (trained / "eval.py").write_text(script)
    launch = [sys.executable, *TWO_PROCESSES, str(trained / "eval.py"), *command(trained, "two")]
    done = subprocess.run(
        launch,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert written(trained, "two") == first


def test_chunks_hold_whole_clips(trained):
    rows = load_reasonaqa({"test": trained / "rows.json"}, trained)["test"]
    made = chunks(rows, 8)
    assert sorted(i for chunk in made for i in chunk) == list(range(30))
    assert len(made) > 1
    clips = [{rows[i]["filepath1"] for i in chunk} for chunk in made]
    assert sum(map(len, clips)) == len(set.union(*clips))
    assert all(len(of) > 1 for of in clips)
    assert chunks(rows, 8) == made


def test_controls_that_cannot_be_run_are_named(trained, capsys):
    args = parse_arguments(command(trained, "x"))
    assert args.controls == ["no_audio", "noise", "mismatched_audio", "option_relabel"]
    left = {
        "majority": "--train_file was not given",
        "question_only": "--question_only_model was not given",
    }
    assert args.not_run == {**left, "meteor, spice, spider": "--java_metrics was not given"}
    for control, option in (("majority", "train_file"), ("question_only", "question_only_model")):
        with pytest.raises(SystemExit):
            parse_arguments([*command(trained, "x"), "--controls", control])
        assert f"--controls {control}: give --{option} with it" in capsys.readouterr().err
    assert parse_arguments(
        [*command(trained, "x"), "--controls", "noise", "--train_file", "t"]
    ).controls == ["majority", "noise"]
    with pytest.raises(SystemExit, match="was trained without --no_audio"):
        evaluate([*command(trained, "x"), "--question_only_model", str(trained / "out")])


def test_bf16_runs_and_stays_close(trained, first):
    evaluate([*command(trained, "bf16"), "--precision", "bf16", "--controls", "noise"])
    rows, low = (
        [json.loads(line) for line in written(trained, name)[0].decode().split("\n")[:-1]]
        for name in ("first", "bf16")
    )
    losses = np.array([[row["loss"], other["loss"]] for row, other in zip(rows, low)])
    assert 0 < np.abs(losses[:, 0] - losses[:, 1]).max() < 0.05 * losses[:, 0].max()


def test_a_benchmark_gets_its_own_metric_and_a_submission(trained, tmp_path, capsys):
    items = [
        {
            "id": f"m{i}",
            "audio_id": f"./test-mini-audios/{i}.wav",
            "question": "Which tone?",
            "choices": ["low", "high"],
            "answer": ("low", "high")[i % 2],
            "task": "sound",
            "difficulty": "easy",
            "sub-category": "x",
        }
        for i in range(4)
    ]
    (tmp_path / "mmau-test-mini.json").write_text(json.dumps(items))
    model = [
        "--model_name_or_path",
        str(trained / "out"),
        "--audio_dir",
        str(trained),
        "--output_dir",
        str(tmp_path / "o"),
    ]
    mmau = [
        *model,
        "--benchmark",
        "mmau",
        "--test_file",
        str(tmp_path / "mmau-test-mini.json"),
        "--max_new_tokens",
        "4",
    ]
    evaluate(mmau)
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    official = metrics["official"]
    assert official["benchmark"] == "mmau"
    assert official["protocol"] == "MMAU string match"
    assert official["total"]["n_answered"] == 4
    assert metrics["protocol"] == "likelihood"
    assert metrics["question_type"]["mcq"]["n"] == 4
    assert "mmau's own metric" in capsys.readouterr().out
    handed_in = json.loads((tmp_path / "o" / "submission.json").read_text())
    rows = [
        json.loads(line)
        for line in (tmp_path / "o" / "predictions.jsonl").read_text().split("\n")[:-1]
    ]
    assert [item["id"] for item in handed_in] == [item["id"] for item in items]
    texts = [row["answers"]["generate"]["text"] for row in rows]
    assert [item["model_output"] for item in handed_in] == texts  # none names an option
    with pytest.raises(SystemExit):
        parse_arguments([*mmau, "--protocol", "likelihood"])
    assert "the protocol generate" in capsys.readouterr().err
