"""run_compare.py from end to end with small models, and comparisons of finished evaluations."""

import json

import pytest
from support.builders import small_model
from support.small_comparisons import write_config, write_corpus

from audiolm.comparison.config import read_config
from audiolm.comparison.experiment import generate_corpus, run_probes
from audiolm.comparison.runs import read_run
from audiolm.run_compare import main

ARMS = ("mimi_full", "text_only")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A corpus of 12 rows, checkpoints, and `compare.yaml`, a comparison of two arms."""
    folder = tmp_path_factory.mktemp("compare")
    config = {"note": "small", **write_corpus(folder, tokenizer, True)}
    mimi = {"encoder_type": "mimi_full", "encoder_name_or_path": str(folder / "mimi")}
    config["arms"] = {"mimi_full": mimi, "text_only": {**mimi, "no_audio": True}}
    config["train"]["eval_steps"] = 1
    config["eval"] |= {"max_new_tokens": 8, "controls": ["all"]}
    write_config(folder / "compare.yaml", config)
    return folder


@pytest.fixture(scope="module")
def output(folder):
    """Folder of the finished comparison."""
    main(["--config", str(folder / "compare.yaml"), "--output_dir", str(folder / "first")])
    return folder / "first"


@pytest.fixture(scope="module")
def comparison(output):
    return json.loads((output / "comparison.json").read_text())


def read_metrics(output, arm):
    return json.loads((output / arm / "evaluation" / "metrics.json").read_text())


def test_comparison_of_a_config_has_its_arms_and_rows(comparison):
    assert list(comparison["arms"]) == list(ARMS)
    assert comparison["rows"] == {"train": 12, "test": 12}


@pytest.mark.parametrize("arm", ARMS)
def test_comparison_of_a_config_has_the_numbers_of_each_evaluation(output, comparison, arm):
    metrics = read_metrics(output, arm)
    results = comparison["arms"][arm]
    loss = metrics["text"]["difference"]["loss_per_answer_token"]
    assert metrics["protocol"] == "likelihood"
    assert comparison["protocol"] == "likelihood"
    assert results["macro_accuracy"] == metrics["macro_accuracy"]
    assert results["macro_by_seed"] == [metrics["macro_accuracy"]]
    assert results["text"]["difference"]["loss_per_answer_token"] == loss


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("grouping", ["question_type", "category"])
def test_comparison_of_a_config_has_the_groups_of_each_evaluation(
    output, comparison, arm, grouping
):
    metrics = read_metrics(output, arm)
    for name, cell in comparison["arms"][arm][grouping].items():
        assert cell["n"] == metrics[grouping][name]["n"]
        assert cell["accuracy"] == metrics[grouping][name]["accuracy"]


@pytest.mark.parametrize("arm", ARMS)
def test_comparison_of_a_config_has_learning_curves_and_tokens(comparison, arm):
    curves = comparison["arms"][arm]["learning_curves"]
    assert [step for step, _ in curves["train_loss"]] == [1, 2]
    assert [step for step, _ in curves["eval_loss"]["difference"]] == [1, 2]
    assert comparison["arms"][arm]["tokens_per_clip"] == 125


def test_comparison_of_a_config_counts_trained_parameters(comparison):
    language_model = small_model("mimi_full").language_model
    text = sum(parameter.numel() for parameter in language_model.parameters())
    # The mapper goes from 32 channels over 576 to 32.
    mapper = 32 * 576 + 576 + 576 * 32 + 32
    assert comparison["arms"]["mimi_full"]["trained_parameters"] == mapper + text


def test_comparison_of_a_config_has_baselines(comparison):
    majority = comparison["majority"]["question_type"]
    assert {name: cell["accuracy"] for name, cell in majority.items()} == {
        "mcq": 0.5,
        "yes_no": 0.5,
    }
    gain = comparison["arms"]["mimi_full"]["audio_gain"]["macro"]
    assert gain["control_accuracy"] >= comparison["arms"]["text_only"]["macro_accuracy"]


def test_comparison_of_a_config_writes_a_report(output):
    assert "mimi_full" in (output / "report.html").read_text(encoding="utf-8")


def test_comparison_with_the_same_seed_is_the_same_and_runs_no_finished_arm(output, folder, capsys):
    second = folder / "second"
    argv = ["--config", str(folder / "compare.yaml"), "--output_dir", str(second)]
    main(argv)
    expected = (output / "comparison.json").read_bytes()
    assert (second / "comparison.json").read_bytes() == expected
    out = capsys.readouterr().out
    assert out.count("small") == 2
    assert "text_only: evaluating…" in out
    assert "[2/2] text_only: finished (" in out
    assert "differences" not in out
    assert "audio gain over" in out

    models = [second / arm / "model.safetensors" for arm in ARMS]
    before = [file.stat().st_mtime_ns for file in models]
    (second / "comparison.json").unlink()
    main(argv)
    assert capsys.readouterr().out.count("not run again") == 4
    assert [file.stat().st_mtime_ns for file in models] == before
    assert (second / "comparison.json").read_bytes() == expected

    # With another record of its checkpoints, the second arm alone runs again.
    record = second / "text_only" / "planned_run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "checkpoints": "others"}))
    main(argv)
    after = [file.stat().st_mtime_ns for file in models]
    assert after[0] == before[0]
    assert after[1] > before[1]
    assert (second / "comparison.json").read_bytes() == expected
    assert "others" not in record.read_text()


@pytest.fixture(scope="module")
def evaluations(output):
    return [f"{arm}={output / arm / 'evaluation'}" for arm in ARMS]


def test_evaluations_option_gives_the_same_accuracies(
    output, comparison, folder, evaluations, tmp_path, capsys
):
    argv = ["--evaluations", *evaluations, "--output_dir", str(tmp_path)]
    main([*argv, "--audio_dir", str(folder)])
    assert "closed examples about" in capsys.readouterr().out
    result = json.loads((tmp_path / "comparison.json").read_text())
    for arm in ARMS:
        expected = comparison["arms"][arm]["question_type"]
        assert result["arms"][arm]["question_type"] == expected
    assert (tmp_path / "report.html").is_file()


def test_evaluations_option_with_wrong_values_exits_with_one_line(evaluations, tmp_path):
    first = evaluations[0]
    for wrong, message in (
        ([first, "b"], "expected ARM=FOLDER"),
        ([first], "expected at least two arms"),
        ([first, f"b={tmp_path}"], "no evaluation that can be compared"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["--evaluations", *wrong, "--output_dir", str(tmp_path)])


def test_evaluations_option_with_another_precision_is_refused(output, evaluations, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("metrics.json", "predictions.jsonl"):
        text = (output / "text_only" / "evaluation" / name).read_text()
        (other / name).write_text(text.replace('"fp32"', '"bf16"'))
    assert read_run(other).metrics["settings"]["precision"] == "bf16"
    message = r"differ in more than the arm: precision \(fp32 and bf16\)"
    with pytest.raises(SystemExit, match=message):
        main(["--evaluations", evaluations[0], f"b={other}", "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "c.yaml", "--parallel", "0"], "--parallel 0: expected a positive number"),
        (
            ["--config", "c.yaml", "--processes_per_run", "2"],
            "--processes_per_run 2: add --parallel",
        ),
        (["--evaluations", "a=b", "--parallel", "2"], "--parallel: use it with --config"),
        (["--evaluations", "a=b", "--ray_address", "x"], "--ray_address: use it with --config"),
        (["--evaluations", "a=b", "--seeds", "1"], "--seeds: use it with --config"),
        (["--evaluations", "a=b", "--data_dir", "x"], "--data_dir: use it with --config"),
        (["--config", "demo", "--audio_dir", "x"], "--audio_dir: use it with --evaluations"),
        (["--config", "demo", "--trust_remote_code"], "use it with --evaluations"),
    ],
)
def test_options_that_contradict_each_other_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit):
        main(argv)
    assert message in capsys.readouterr().err


def test_corpus_of_another_size_in_the_folder_is_named(tmp_path):
    (tmp_path / "o" / "corpus").mkdir(parents=True)
    (tmp_path / "o" / "corpus" / "train.json").write_text("[]")
    config = {"corpus": {"rows": 40, "seed": 0}, "arms": {"a": {"encoder_type": "htsat"}}}
    path = write_config(tmp_path / "c.yaml", config, output_dir=str(tmp_path / "o"))
    with pytest.raises(SystemExit, match=f"run_compare.py: --config {path}: corpus: "):
        main(["--config", path])


def test_probes_that_fail_are_named_and_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_config(
        tmp_path / "c.yaml",
        {
            "arms": {"a": {"encoder_type": "htsat", "encoder_name_or_path": "random"}},
            "probe": {"labels": {"room": "absent.csv"}, "audio_dir": "."},
        },
    )
    config = read_config(path)
    results, (failure,) = run_probes(config, generate_corpus(config))
    assert results == {}
    assert failure.startswith("probes of room: audiolm probe: absent.csv: not a readable table")
