"""`run_eval.py` from end to end: resumption, processes, controls, benchmarks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.builders import EMPTY, MCQ, TWO_PROCESSES, YES_NO, arguments
from support.evaluation import make_tone_corpus, read_jsonl

from audiolm.data.reasonaqa import load_rows
from audiolm.evaluation import predict
from audiolm.evaluation.arguments import parse_arguments
from audiolm.evaluation.evaluate import main as evaluate
from audiolm.evaluation.predict import split_into_chunks
from audiolm.run_train import main as train


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
    corpus = make_tone_corpus(folder, rows)
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
    """The files of an evaluation with several chunks."""
    predict.ROWS_PER_CHUNK = 8
    evaluate(command(trained, "first"))
    yield written(trained, "first")
    predict.ROWS_PER_CHUNK = 256


def test_evaluate_keeps_the_order_of_the_file_at_any_batch_size(trained, first):
    rows = read_jsonl(trained / "first" / "predictions.jsonl")
    questions = [row["input"] for row in json.loads((trained / "rows.json").read_text())]
    assert [row["input"] for row in rows] == questions
    evaluate([*command(trained, "other"), "--batch_size", "7"])
    others = read_jsonl(trained / "other" / "predictions.jsonl")
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


def test_evaluate_with_feature_cache_gives_equal_answers(trained, first):
    evaluate([*command(trained, "cached"), "--feature_cache", str(trained / "cache")])
    assert written(trained, "cached")[0] == first[0]


def test_evaluate_after_interruption_resumes_and_writes_equal_files(trained, first, monkeypatch):
    complete, interrupted, inner = [], [], predict.answer_batch

    def count(*arguments):
        complete.append(1)
        return inner(*arguments)

    def interrupt(*arguments):
        interrupted.append(1)
        if len(interrupted) == len(complete) - 1:
            raise KeyboardInterrupt
        return inner(*arguments)

    monkeypatch.setattr(predict, "answer_batch", count)
    evaluate(command(trained, "whole"))
    monkeypatch.setattr(predict, "answer_batch", interrupt)
    with pytest.raises(SystemExit, match="130"):
        evaluate(command(trained, "again"))
    (part,) = (trained / "again").glob("predictions.part0.jsonl")
    # The settings and a chunk.
    assert len(part.read_text().split("\n")) > 2
    # A kill while writing leaves an incomplete line.
    part.write_text(part.read_text() + '{"chunk": 1, "resu')
    before = len(interrupted)
    evaluate(command(trained, "again"))
    assert written(trained, "again") == first
    # Answered chunks were not answered again.
    assert len(interrupted) - before < len(complete)


def test_evaluate_ignores_partial_answers_with_other_settings(trained, first, capsys):
    (trained / "mixed").mkdir()
    (trained / "mixed" / "predictions.part0.jsonl").write_text(
        '{"rows_sha256": "other"}\n{"chunk": 0, "results": {}}\n'
    )
    evaluate(command(trained, "mixed"))
    assert "belongs to another evaluation" in capsys.readouterr().err
    assert written(trained, "mixed") == first


def test_evaluate_in_two_processes_writes_equal_files(trained, first):
    script = (
        "from audiolm.evaluation import predict; predict.ROWS_PER_CHUNK = 8; "
        "from audiolm.run_eval import main; main()"
    )
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


def test_split_into_chunks_keeps_clips_together(trained):
    rows = load_rows({"test": trained / "rows.json"}, trained)["test"]
    chunks = split_into_chunks(rows, 8)
    assert sorted(index for chunk in chunks for index in chunk) == list(range(30))
    assert len(chunks) > 1
    clips = [{rows[index]["filepath1"] for index in chunk} for chunk in chunks]
    assert sum(map(len, clips)) == len(set.union(*clips))
    assert all(len(names) > 1 for names in clips)
    assert split_into_chunks(rows, 8) == chunks


def test_plan_controls_names_those_that_cannot_run(trained):
    plan = parse_arguments(command(trained, "x")).plan_controls()
    runnable = ("no_audio", "noise", "mismatched_audio", "option_relabel")
    assert plan == {
        "majority": "--train_file was not given",
        **dict.fromkeys(runnable, ""),
        "question_only": "--question_only_model was not given",
    }


def test_plan_controls_runs_a_control_whose_option_is_given(trained):
    options = [*command(trained, "x"), "--controls", "noise", "--train_file", "t"]
    assert parse_arguments(options).plan_controls() == {"majority": "", "noise": ""}


@pytest.mark.parametrize(
    ("control", "option"), [("majority", "train_file"), ("question_only", "question_only_model")]
)
def test_parse_arguments_control_without_its_option_is_an_error(trained, capsys, control, option):
    with pytest.raises(SystemExit):
        parse_arguments([*command(trained, "x"), "--controls", control])
    assert f"--controls {control}: give --{option} with it" in capsys.readouterr().err


def test_evaluate_question_only_model_with_audio_is_one_line(trained):
    with pytest.raises(SystemExit, match=r"^run_eval.py: .* was trained without --no_audio$"):
        evaluate([*command(trained, "x"), "--question_only_model", str(trained / "out")])


@pytest.mark.parametrize("name", ["missing.json", "0.wav", "out/config.json"])
def test_evaluate_unreadable_train_file_is_one_line(trained, name):
    with pytest.raises(SystemExit, match=rf"^run_eval.py: --train_file .*{name}: not a readable"):
        evaluate([*command(trained, "x"), "--train_file", str(trained / name)])


def test_evaluate_train_file_without_a_field_is_one_line(trained, tmp_path):
    (tmp_path / "train.json").write_text('[{"input": "is there a dog?"}]')
    with pytest.raises(SystemExit, match=r"--train_file .*: a row has no field filepath1$"):
        evaluate([*command(trained, "x"), "--train_file", str(tmp_path / "train.json")])


def test_evaluate_in_bf16_stays_close_to_fp32(trained, first):
    evaluate([*command(trained, "bf16"), "--precision", "bf16", "--controls", "noise"])
    full, low = (
        np.array([row["loss"] for row in read_jsonl(trained / name / "predictions.jsonl")])
        for name in ("first", "bf16")
    )
    assert 0 < np.abs(full - low).max() < 0.05 * full.max()


def test_evaluate_benchmark_has_accuracy_and_controls(trained, tmp_path):
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
    options = {
        "--model_name_or_path": trained / "out",
        "--audio_dir": trained,
        "--output_dir": tmp_path / "o",
        "--benchmark": "mmau",
        "--test_file": tmp_path / "mmau-test-mini.json",
        "--protocol": "likelihood",
        "--controls": "option_relabel",
    }
    mmau = [str(part) for option in options.items() for part in option]
    evaluate(mmau)
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert metrics["question_type"]["mcq"]["n"] == 4
    assert metrics["subtype"]["MMAU/sound"]["n"] == 4
    assert set(metrics["controls"]) == {"option_relabel"}


@pytest.mark.parametrize("option", ["--hub_model_id", "--hub_dataset_id"])
def test_parse_arguments_name_on_the_hub_without_a_push_is_refused(trained, capsys, option):
    with pytest.raises(SystemExit):
        parse_arguments([*command(trained, "x"), option, "me/x"])
    assert "add --push_to_hub true" in capsys.readouterr().err


def test_parse_arguments_benchmark_with_two_folders_is_refused(capsys):
    with pytest.raises(SystemExit):
        options = "--model_name_or_path m --output_dir o --benchmark mmau --test_file f"
        parse_arguments([*options.split(), "--audio_dir", "a=a", "b=b"])
    assert "--benchmark mmau: expected its --test_file" in capsys.readouterr().err
