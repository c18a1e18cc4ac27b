"""comparison/sweep.py and planned_run.py: runs in turn, failing and resumed."""

import json

import pytest
from support.small_comparisons import command_line, write_two_arms

from audiolm.comparison.planned_run import PlannedRun, last_line
from audiolm.comparison.sweep import without_failures
from audiolm.run_compare import main

ARMS = ("mimi_semantic", "mimi_full")


@pytest.fixture(scope="module")
def config(tmp_path_factory, tokenizer):
    """A folder, and the config of a comparison of two arms and two seeds in it."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, write_two_arms(folder, tokenizer)


@pytest.fixture(scope="module")
def in_turn(config):
    """Folder of all runs one after another."""
    main(command_line(*config, "in_turn"))
    return config[0] / "in_turn"


def read_json(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def comparison(in_turn):
    return read_json(in_turn / "comparison.json")


# 12.5 frames/s of codes of 6 bits, from 1 and from 8 codebooks.
@pytest.mark.parametrize(("arm", "bits"), [("mimi_semantic", 75), ("mimi_full", 600)])
def test_comparison_has_bits_and_tokens_per_second(in_turn, comparison, arm, bits):
    assert comparison["arms"][arm]["bits_per_second"] == bits
    assert comparison["arms"][arm]["tokens_per_second"] == 12.5
    assert f"{arm}: " in (in_turn / "figure.svg").read_text()


def test_report_has_a_section_of_costs(in_turn):
    assert 'id="costs"' in (in_turn / "report.html").read_text()


def test_finished_runs_are_not_run_again(in_turn, config, capsys):
    main(command_line(*config, "in_turn"))
    output = capsys.readouterr().out
    assert output.count("not run again") == 8


def test_record_of_a_run_has_the_seconds_of_each_stage(in_turn):
    record = read_json(in_turn / "mimi_full" / "seed-1" / "planned_run.json")
    assert list(record["seconds"]) == ["train", "evaluate"]


def forget_stages(folder):
    """Leaves the record of a training that has begun."""
    record = read_json(folder / "planned_run.json")
    (folder / "planned_run.json").write_text(json.dumps({**record, "seconds": {}}))


def test_training_that_broke_off_resumes_from_its_checkpoint(config, in_turn):
    train = {**config[1]["train"], "save_strategy": "steps", "save_steps": 1}
    arms = {"mimi_full": config[1]["arms"]["mimi_full"]}
    argv = command_line(*config, "resumed", train=train, seeds=[0], arms=arms)
    main(argv)
    folder = config[0] / "resumed" / "mimi_full"
    weights = (folder / "model.safetensors").read_bytes()
    forget_stages(folder)
    (folder / "model.safetensors").unlink()
    for file in (folder / "checkpoint-2").iterdir():
        file.unlink()
    main(argv)
    log = read_json(folder / "trainer_state.json")["log_history"]
    assert (folder / "model.safetensors").read_bytes() == weights
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    assert "--resume_from_checkpoint" in read_json(folder / "run_info.json")["command"]


def test_training_with_other_options_deletes_checkpoints_and_starts_again(tmp_path):
    other = {"train": ["y"], "evaluate": [], "processes": 1, "seconds": {}}
    run = PlannedRun("a", 0, "a", tmp_path, {"train": ["x"], "evaluate": []})
    (tmp_path / "planned_run.json").write_text(json.dumps(other))
    (tmp_path / "checkpoint-2").mkdir()
    assert run.prepare("train") == ["x"]
    assert not list(tmp_path.glob("checkpoint-*"))
    assert read_json(tmp_path / "planned_run.json") == {**other, "train": ["x"]}


def test_stage_without_its_result_fails_with_the_last_line_of_its_log(tmp_path):
    run = PlannedRun("a", 0, "a", tmp_path, {"train": [], "evaluate": []})

    def execute(module, argv, log):
        log.write_text("still\nhere")

    assert run.do(execute) == (
        f"training failed: it ended without trainer_state.json; here ({tmp_path / 'train.log'})"
    )
    assert run.remaining_stages() == ["train", "evaluate"]


def test_without_failures_leaves_out_arms_of_which_a_seed_failed(tmp_path):
    runs = []
    for name in ("a0", "b0", "a1", "b1"):
        runs.append(PlannedRun(name[0], int(name[1]), name, tmp_path, {}))
    assert [run.name for run in without_failures(runs, {"a1": "x"})] == ["b0", "b1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it wrote nothing"),
        ("a\n 3 %\r 6 %\n\n", "6 %"),
        ("run_train.py: no room\n", "run_train.py: no room"),
        (
            "ValueError: x\n[rank1]: torch.OutOfMemoryError: y\n=====\nx.ChildFailedError:\n"
            "subprocess.CalledProcessError: z",
            "torch.OutOfMemoryError: y",
        ),
    ],
)
def test_last_line_of_a_log_names_the_error(tmp_path, text, expected):
    log = tmp_path / "a.log"
    log.write_text(text)
    assert last_line(log) == expected
