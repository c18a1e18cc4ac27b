"""comparison/sweep.py: several runs at once, in parts, failing, interrupted, and with budgets."""

import json
import os
import signal
import sys
import threading
import time

import pytest
from support.small_comparisons import write_config, write_corpus

from audiolm.comparison.config import read_config
from audiolm.comparison.plan import PlannedRun, Setting, plan_runs
from audiolm.comparison.runs import read_run
from audiolm.comparison.sweep import Sweep, as_json, command, devices, last_words, part_of
from audiolm.run_compare import main
from audiolm.training.resume import RECORD


@pytest.fixture(scope="module")
def config(tmp_path_factory, tokenizer):
    """A folder, and the config of a comparison of two arms and two seeds, of 8 rows and 2 steps."""
    folder = tmp_path_factory.mktemp("sweep")
    shared = write_corpus(folder, tokenizer, with_pairs=False)
    shared["train"]["eval_steps"] = 2
    shared["eval"] |= {"protocol": ["likelihood"], "controls": ["no_audio"]}
    mimi = str(folder / "mimi")
    arms = {
        arm: {"encoder_type": arm, "encoder_name_or_path": mimi}
        for arm in ("mimi_semantic", "mimi_full")
    }
    return folder, {"feature_cache": True, "seeds": [0, 1], "arms": arms, **shared}


def command_line(folder, config, output, **changes):
    """The command line for a config; `changes` replace sections of it."""
    path = folder / f"{output}.yaml"
    return [
        "--config",
        write_config(path, config, output_dir=str(folder / output), **changes),
    ]


@pytest.fixture(scope="module")
def in_turn(config):
    """All runs one after another, and two budgets."""
    folder, options = config
    main(command_line(folder, options, "in_turn", budgets=[1, 2]))
    return folder / "in_turn"


def comparison_of(folder):
    found = json.loads((folder / "comparison.json").read_text())
    return {key: value for key, value in found.items() if key not in ("command", "budgets")}


def test_budgets_have_folders_and_a_table_of_their_own(in_turn, config, capsys):
    found = json.loads((in_turn / "comparison.json").read_text())
    assert list(found["budgets"]) == ["1", "2"]
    for steps, of in found["budgets"].items():
        for arm in config[1]["arms"]:
            inside = in_turn / arm / ("steps-1" if steps == "1" else "")
            macros = [
                json.loads((inside / f"seed-{seed}" / "evaluation" / "metrics.json").read_text())
                for seed in (0, 1)
            ]
            assert of[arm]["macro"]["accuracy"] == pytest.approx(
                sum(one["macro_accuracy"] for one in macros) / 2
            )
            assert json.loads((inside / "seed-1" / "trainer_state.json").read_text())[
                "global_step"
            ] == int(steps)
            assert of[arm]["audio_gain"]["best_control"] == "no_audio"
    assert found["budgets"]["2"]["mimi_full"]["macro"] == found["arms"]["mimi_full"]["macro"]
    main(command_line(config[0], config[1], "in_turn", budgets=[1, 2]))
    said = capsys.readouterr().out
    assert (
        said.count("not run again") == 16
        and "macro accuracy by steps              1         2" in said
    )
    page = (in_turn / "report.html").read_text()
    assert 'id="budgets"' in page and 'id="costs"' in page
    for arm, frames in (("mimi_semantic", 1), ("mimi_full", 8)):  # 12.5 frames/s of codes of 64
        assert (
            found["arms"][arm]["bits_per_second"] == 12.5 * frames * 6
            and found["arms"][arm]["tokens_per_second"] == 12.5
        )
        assert f"{arm}: " in (in_turn / "figure.svg").read_text()


def test_two_parts_make_the_same(in_turn, config, capsys):
    folder, options = config
    given = command_line(folder, options, "parts")
    main([*given, "--share", "1/2"])
    assert (
        "Part 1 of 2 finished" in capsys.readouterr().out
        and not (folder / "parts" / "comparison.json").exists()
    )
    assert [path.parent.name for path in (folder / "parts").glob("*/seed-*")] == [
        "mimi_semantic"
    ] * 2
    main([*given, "--share", "2/2"])
    capsys.readouterr()
    main(given)
    assert capsys.readouterr().out.count("not run again") == 8
    assert comparison_of(folder / "parts") == comparison_of(in_turn)
    assert list(
        json.loads((folder / "parts" / "timings.json").read_text())["arms"]["mimi_full/seed-1"]
    ) == [
        "train",
        "evaluate",
    ]


def test_two_at_once_of_which_one_fails(in_turn, config, capsys):
    """It is named, the other's numbers are unchanged, and the same command tries it again."""
    folder, options = config
    broken = {"encoder_type": "mimi_full", "encoder_name_or_path": str(folder / "text")}
    arms = {"broken": broken, "mimi_full": options["arms"]["mimi_full"]}
    given = command_line(folder, options, "failing", arms=arms, seeds=[0])
    for more in (["--parallel", "2"], []):
        with pytest.raises(SystemExit) as error:
            main([*given, *more])
        said = capsys.readouterr()
        last = said.err.strip().split("\n")[-1]
        assert error.value.code == 1 and "1 runs failed" in said.err
        assert last.startswith("  broken: training failed: run_train.py: ")
        assert last.endswith(f"({folder / 'failing' / 'broken' / 'train.log'})")
        assert said.out.count("not run again") == (0 if more else 2)
        found = json.loads((folder / "failing" / "comparison.json").read_text())
        assert list(found["arms"]) == ["mimi_full"] and found["left_out"] == ["broken"]
    assert (
        "Left out, as a run of theirs failed: broken."
        in (folder / "failing" / "report.html").read_text()
    )
    assert "mcq loss" in (folder / "failing" / "mimi_full" / "train.log").read_text()
    alone, among = (
        read_run(of / "evaluation")
        for of in (folder / "failing" / "mimi_full", in_turn / "mimi_full" / "seed-0")
    )
    assert alone.rows == among.rows


def test_whole_are_arms_of_which_no_seed_failed(tmp_path):
    made = [
        PlannedRun(arm, seed, Setting(1e-4, steps), tmp_path / f"{arm}{seed}{steps}", [], [])
        for steps in (9, 5)
        for seed in (0, 1)
        for arm in "ab"
    ]
    sweep = Sweep(tmp_path, made, {run.folder: {} for run in made}, 0.0)
    outcome = {"a19": "it broke"}
    sweep._here = lambda stage, words, log: outcome.get(log.parent.name)
    sweep.done = lambda stage, run: False
    for run in made:
        run.folder.mkdir()
    (tmp_path / "a05" / "train.log").write_text("still\nhere")
    sweep._prepare = lambda stage, run: (
        (run.folder / "trainer_state.json").write_text("") if run.folder.name != "a05" else None
    )
    sweep.do([(run, ("train",)) for run in made])
    assert [str(failure).split(" (")[0] for failure in sweep.failures] == [
        "a19: training failed: it broke",
        "a05: training failed: it ended without trainer_state.json; here",
    ]
    assert [run.folder.name for run in sweep.whole(made)] == ["b09", "b19", "b05", "b15"]


@pytest.mark.slow
def test_a_killed_run_and_one_that_is_told_to_stop(config):
    folder, options = config
    train = {
        **options["train"],
        "max_steps": 100_000,
        "save_strategy": "steps",
        "save_steps": 100_000,
    }
    made = plan_runs(
        read_config(command_line(folder, options, "killed", train=train, seeds=[0])[1])
    )
    sweep = Sweep(folder / "killed", made, {run.folder: {} for run in made}, 0.0, parallel=2)

    def wait_for(condition):
        for _ in range(1200):
            if condition():
                return
            time.sleep(0.1)

    def disturb():
        logs = [run.folder / "train.log" for run in made]
        wait_for(lambda: all(log.is_file() and "loss " in log.read_text() for log in logs))
        first = next(process for process in sweep.started if str(made[0].folder) in process.args)
        assert os.getpgid(first.pid) == first.pid  # a group of its own
        first.kill()
        wait_for(lambda: sweep.failures)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=disturb)
    thread.start()
    with pytest.raises(SystemExit) as error:
        sweep.do([(run, ("train", "evaluate")) for run in made])
    thread.join()
    assert error.value.code == 128 + signal.SIGTERM and not sweep.started
    (failure,) = sweep.failures
    assert str(failure).startswith("mimi_semantic: training failed: killed by SIGKILL; ")
    assert "stopped by SIGTERM" in (made[1].folder / "train.log").read_text()
    assert list(made[1].folder.glob(f"checkpoint-*/{RECORD}")) and not sweep.done("train", made[1])


def test_a_training_that_broke_off_goes_on_from_its_checkpoint(config, in_turn):
    folder, options = config
    train = {**options["train"], "save_strategy": "steps", "save_steps": 1}
    given = command_line(
        folder,
        options,
        "resumed",
        train=train,
        seeds=[0],
        arms={"mimi_full": options["arms"]["mimi_full"]},
    )
    main(given)
    run = folder / "resumed" / "mimi_full"
    whole = (run / "model.safetensors").read_bytes()
    for file in (run / "train.json", run / "model.safetensors", *(run / "checkpoint-2").iterdir()):
        file.unlink()
    main(given)
    assert (run / "model.safetensors").read_bytes() == whole
    steps = [
        entry["step"]
        for entry in json.loads((run / "trainer_state.json").read_text())["log_history"]
        if "loss" in entry
    ]
    assert steps == [1, 2]
    # with other options nothing goes on from there
    record = {"train": ["x"], "evaluate": []}
    made = PlannedRun("a", 0, Setting(1e-4, 2), run, ["x"], [])
    sweep = Sweep(run.parent, [made], {run: record}, 0.0)
    assert sweep._prepare("train", made) == ["x"] and not list(run.glob("checkpoint-*"))
    assert (run / "begun.json").read_text() == as_json({**record, "processes": 1})


def test_runs_have_gpus_of_their_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices(2, 2) == ["0,1", "2,3"] and devices(3, 1) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1")
    assert devices(2, 2) == ["7,5", "3,1"]
    with pytest.raises(
        ValueError, match="--parallel 3 with 2 GPUs a run wants 6 GPUs, but 4 are here"
    ):
        devices(3, 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert devices(2, 2) == [None, None]
    assert command("audiolm.run_train", ["--seed", "1"], 1) == [
        sys.executable,
        "-m",
        "audiolm.run_train",
        "--seed",
        "1",
    ]


@pytest.mark.slow
def test_a_run_in_two_processes(config, in_turn):
    """As on two GPUs, `accelerate launch` starts them; here they are processes of the CPU."""
    folder, options = config
    (run,) = plan_runs(
        read_config(
            command_line(
                folder, options, "two", seeds=[0], arms={"mimi_full": options["arms"]["mimi_full"]}
            )[1]
        )
    )
    sweep = Sweep(folder / "two", [run], {run.folder: {}}, 0.0, parallel=1, processes=2)
    sweep.do([(run, ("train",))])
    assert not sweep.failures, sweep.failures
    assert json.loads((run.folder / "run_info.json").read_text())["machine"]["processes"] == 2


def test_what_a_log_said_last(tmp_path):
    log = tmp_path / "a.log"
    for text, last in {
        "": "it said nothing",
        "a\n 3 %\r 6 %\n\n": "6 %",
        "run_train.py: no room\n": "run_train.py: no room",
        "ValueError: x\n[rank1]: torch.OutOfMemoryError: y\n=====\nx.ChildFailedError:\n"
        "subprocess.CalledProcessError: z": "torch.OutOfMemoryError: y",
    }.items():
        log.write_text(text)
        assert last_words(log) == last


def test_part_of_a_share_is_a_pair_of_numbers():
    assert part_of("2/3") == (2, 3)
