"""run_compare.py: what its config describes, and from end to end with small models. Its numbers are in test_comparison.py, its
report in test_report.py."""

import json
from pathlib import Path

import pytest
import soundfile
import yaml
from support.builders import EMPTY, MCQ, YES_NO, clip, save_parts, small_model

from audiolm.comparison.plan import Planned, probe_flags, read_config, runs
from audiolm.comparison.run import best_rates, main
from audiolm.comparison.runs import read_run
from audiolm.evaluation.probe_command import parse as probe_options
from audiolm.training.train import parse

DIFFERENCE = {**EMPTY, "input": "explain the difference in detail", "subtype": "TD-1.json"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory, tokenizer):
    """A corpus of 12 rows, checkpoints, and the config of a comparison of two arms."""
    folder = tmp_path_factory.mktemp("compare")
    rows = []
    for i in range(12):
        soundfile.write(folder / f"{i}.flac", clip(0.5 + i / 20, seed=i % 2 * 9), 24000)
        high = i % 2
        answer = [
            ("B) high" if high else "A) low"),
            ("no" if high else "yes"),
            "the first is lower",
        ][i // 4]
        rows.append(
            {**(MCQ, YES_NO, DIFFERENCE)[i // 4], "filepath1": f"{i}.flac", "answer": answer}
        )
        if i >= 8:
            rows[-1]["filepath2"] = f"{i - 8}.flac"
    (folder / "rows.json").write_text(json.dumps(rows))
    save_parts(folder, tokenizer)
    data, audio = str(folder / "rows.json"), str(folder)
    config = {
        "note": "small",
        "feature_cache": True,
        "arms": {
            "mimi_full": {
                "encoder_type": "mimi_full",
                "encoder_name_or_path": str(folder / "mimi"),
            },
            "text_only": {
                "encoder_type": "mimi_full",
                "encoder_name_or_path": str(folder / "mimi"),
                "no_audio": True,
            },
        },
        "train": {
            "train_file": data,
            "validation_file": data,
            "audio_dir": audio,
            "max_steps": 2,
            "logging_steps": 1,
            "eval_steps": 1,
            "save_strategy": "no",
            "text_model_name_or_path": str(folder / "text"),
            "freeze_lm": False,
            "learning_rate": 0.01,
            "dataloader_num_workers": 0,
        },
        "eval": {"test_file": data, "audio_dir": audio, "max_new_tokens": 8, "controls": ["all"]},
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder, config


@pytest.fixture(scope="module")
def compared(parts):
    folder, _ = parts
    main(["--config", str(folder / "compare.yaml"), "--output_dir", str(folder / "first")])
    return folder / "first"


def test_end_to_end(compared, parts):
    comparison = json.loads((compared / "comparison.json").read_text())
    assert list(comparison["arms"]) == ["mimi_full", "text_only"] and comparison["rows"] == {
        "train": 12,
        "test": 12,
    }
    for arm, of in comparison["arms"].items():
        metrics = json.loads((compared / arm / "evaluation" / "metrics.json").read_text())
        assert metrics["protocol"] == comparison["protocol"] == "likelihood"
        assert of["macro_accuracy"] == metrics["macro_accuracy"] and of["macro_by_seed"] == [
            metrics["macro_accuracy"]
        ]
        for grouping in ("question_type", "category"):
            for name, group in of[grouping].items():
                assert all(group[key] == metrics[grouping][name][key] for key in ("n", "accuracy"))
        assert (
            of["text"]["difference"]["loss_per_answer_token"]
            == metrics["text"]["difference"]["loss_per_answer_token"]
        )
        assert [step for step, _ in of["learning_curves"]["train_loss"]] == [1, 2]
        assert [step for step, _ in of["learning_curves"]["eval_loss"]["difference"]] == [1, 2]
        assert of["tokens_per_clip"] == 125
    # the mapper from 32 channels over 576 to 32, and the language model
    text = sum(p.numel() for p in small_model("mimi_full").language_model.parameters())
    assert (
        comparison["arms"]["mimi_full"]["trained_parameters"]
        == 32 * 576 + 576 + 576 * 32 + 32 + text
    )
    assert {k: g["accuracy"] for k, g in comparison["majority"]["question_type"].items()} == {
        "mcq": 0.5,
        "yes_no": 0.5,
    }
    above = comparison["arms"]["mimi_full"]["audio_gain"]["macro"]
    assert (
        above["control_accuracy"] >= comparison["arms"]["text_only"]["macro_accuracy"]
    )  # a control of the arm with audio
    timings = json.loads((compared / "timings.json").read_text())
    assert set(timings["arms"]["text_only"]) == {"train", "evaluate"}
    assert "mimi_full" in (compared / "report.html").read_text(encoding="utf-8")


def test_the_same_seed_gives_the_same_numbers_and_a_finished_arm_is_not_run_again(
    compared, parts, capsys
):
    folder, config = parts
    second = folder / "second"
    options = ["--config", str(folder / "compare.yaml"), "--output_dir", str(second)]
    main(options)
    expected = (compared / "comparison.json").read_bytes()
    assert (second / "comparison.json").read_bytes() == expected
    out = capsys.readouterr().out
    assert (
        out.count("small") == 2
        and "[2/2] text_only: evaluating… (" in out
        and "accuracy by category" in out
    )

    models = [second / arm / "model.safetensors" for arm in config["arms"]]
    before = [file.stat().st_mtime_ns for file in models]
    (second / "comparison.json").unlink()
    main(options)
    assert capsys.readouterr().out.count("not run again") == 4
    assert [file.stat().st_mtime_ns for file in models] == before
    assert (second / "comparison.json").read_bytes() == expected

    # the second arm's record says something else than today's options: that arm is run again, and only that one
    record = second / "text_only" / "train.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "checkpoints": "others"}))
    main(options)
    after = [file.stat().st_mtime_ns for file in models]
    assert after[0] == before[0] and after[1] > before[1]
    assert (
        second / "comparison.json"
    ).read_bytes() == expected and "others" not in record.read_text()


def written(folder, config):
    (folder / "wrong.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(folder / "wrong.yaml"), "--output_dir", str(folder / "never")]


def test_wrong_configs_are_one_line(parts, tmp_path):
    folder, config = parts
    arms, one = config["arms"], config["arms"]["mimi_full"]
    wrongs = {
        "unknown keys sed; known are arms": {**config, "sed": 1},
        "`arms` names no arm": {**config, "arms": {}},
        "arm a lacks encoder_type": {**config, "arms": {"a": {}}},
        "arm '../a' cannot be a folder's name": {**config, "arms": {"../a": one}},
        "arm 'corpus' cannot be": {**config, "arms": {"corpus": one}},
        "arm b sets learning_rate; arms may differ in audio_tokens, band_limit, encoder_name_or_path, encoder_type": {
            **config,
            "arms": {**arms, "b": {**one, "learning_rate": 0.1}},
        },
        "train: unrecognized arguments: --learning_speed 1": {
            **config,
            "train": {**config["train"], "learning_speed": 1},
        },
        "eval: unrecognized arguments: --batch 1": {
            **config,
            "eval": {**config["eval"], "batch": 1},
        },
        "train: --encoder_type 'x' is none of": {**config, "arms": {"x": {"encoder_type": "x"}}},
        "train sets seed, which": {**config, "train": {**config["train"], "seed": 1}},
        "train sets audio_dir, train_file, validation_file": {
            **config,
            "corpus": {"rows": 8, "seed": 0},
        },
        "corpus takes rows and seed, not row": {**config, "corpus": {"row": 8}},
        "there is no file nowhere.json": {
            **config,
            "eval": {**config["eval"], "test_file": "nowhere.json"},
        },
        "eval is 3, not options": {**config, "eval": 3},
    }
    for message, wrong in wrongs.items():
        with pytest.raises(SystemExit) as error:
            main(written(folder, wrong))
        assert message in str(error.value) and str(error.value).startswith("run_compare.py: ")
        assert "\n" not in str(error.value)
    for text in ("a: [", "- a"):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(SystemExit, match=r"run_compare.py: --config .*c.yaml: "):
            main(["--config", str(tmp_path / "c.yaml")])
    with pytest.raises(SystemExit, match="No such file"):
        main(["--config", str(tmp_path / "none.yaml")])
    assert not (folder / "never").exists()


def test_flags_of_an_arm_with_a_corpus_of_its_own(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "corpus: {rows: 8, seed: 3}\narms: {a: {encoder_type: htsat, no_audio: true}}\n"
        "train: {freeze_lm: false, learning_rate: 1.0e-3, max_train_samples: null}\neval: {batch_size: 64, controls: [all]}\n"
        "output_dir: o\n"
    )
    (run,) = runs(read_config(str(tmp_path / "c.yaml"), seeds=[7]))
    assert run.train == [
        "--encoder_type",
        "htsat",
        "--no_audio",
        "true",
        "--freeze_lm",
        "false",
        "--learning_rate",
        "0.001",
        "--train_file",
        "o/corpus/train.json",
        "--validation_file",
        "o/corpus/val.json",
        "--audio_dir",
        "o/corpus",
        "--output_dir",
        "o/a",
        "--seed",
        "7",
    ]
    assert run.evaluate == [
        "--train_file",
        "o/corpus/train.json",
        "--batch_size",
        "64",
        "--controls",
        "majority",
        "--test_file",
        "o/corpus/test.json",
        "--audio_dir",
        "o/corpus",
        "--model_name_or_path",
        "o/a",
        "--output_dir",
        "o/a/evaluation",
    ]


def test_seeds_and_learning_rates_make_runs(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "arms: {a: {encoder_type: htsat}, b: {encoder_type: mimi_full}}\nseeds: [0, 1]\noutput_dir: o\n"
        "learning_rates: [3.0e-5, 1.0e-4]\ntrain: {learning_rate: 1.0e-4}\n"
    )
    made = runs(read_config(str(tmp_path / "c.yaml")))
    assert [run.folder.as_posix() for run in made] == [
        "o/a/seed-0",
        "o/b/seed-0",
        "o/a/seed-1",
        "o/b/seed-1",
        "o/a/lr-3e-05/seed-0",
        "o/b/lr-3e-05/seed-0",
        "o/a/lr-3e-05/seed-1",
        "o/b/lr-3e-05/seed-1",
    ]
    for run in made:
        assert run.train[
            run.train.index("--learning_rate") + 1
        ] == f"{run.learning_rate:g}".replace("0.0001", "0.0001")
    for wrong in ("seeds: 3", "seeds: []", "seeds: [1, 1]", "learning_rates: [x]"):
        (tmp_path / "w.yaml").write_text(f"arms: {{a: {{encoder_type: htsat}}}}\n{wrong}\n")
        with pytest.raises(ValueError, match=f"{wrong.split(':')[0]} is .*; a list of different"):
            read_config(str(tmp_path / "w.yaml"))


def test_arms_are_not_pushed_from_a_comparison(tmp_path):
    arms = "arms: {a: {encoder_type: htsat}}\ntrain: {push_to_hub: true, hub_token: hf_secret}\n"
    (tmp_path / "c.yaml").write_text(arms)
    with pytest.raises(
        ValueError, match=r"train sets hub_token, push_to_hub; push an arm with run_train.py"
    ) as error:
        read_config(str(tmp_path / "c.yaml"))
    assert "hf_secret" not in str(error.value)


def test_the_experiments_config_is_the_experiment():
    """configs/compare.yaml: the three arms and the control, and run_train.py's defaults for all of them."""
    config = read_config(str(Path(__file__).parents[2] / "configs" / "compare.yaml"))
    assert list(config["arms"]) == ["htsat", "mimi_semantic", "mimi_full", "text_only"]
    for arm in config["arms"]:
        model, data, args = parse(next(run.train for run in runs(config) if run.arm == arm))
        assert (args.max_steps, args.learning_rate, data.max_audio_seconds) == (20_000, 1e-4, 10.0)
        assert (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * max(1, args.n_gpu)
            == 16
        )
        assert model.no_audio == (arm == "text_only") and model.freeze_lm
    assert config["seeds"] == [0, 1, 2] and config["learning_rates"] == [3e-5, 1e-4, 3e-4]


def test_probes_are_asked_of_each_encoder_that_hears(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "corpus: {rows: 8, seed: 3}\narms: {a: {encoder_type: htsat, encoder_name_or_path: e}, b: {encoder_type: mimi_full}, "
        "c: {encoder_type: htsat, encoder_name_or_path: e, no_audio: true}}\ntrain: {max_audio_seconds: 5}\noutput_dir: o\n"
        "probe: {pooling: [mean]}\n"
    )
    words = probe_flags(read_config(str(tmp_path / "c.yaml")), {"room": Path("l.csv")})["room"]
    args = probe_options(words)
    assert (
        args.encoders == {"htsat": "e", "mimi_full": None}
        and args.pooling == ["mean"]
        and args.max_audio_seconds == 5
    )
    assert (args.labels, args.audio_dir, args.output_dir) == ("l.csv", "o/corpus", "o/probes/room")
    (tmp_path / "c.yaml").write_text("arms: {a: {encoder_type: htsat}}\nprobe: {pooling: [mean]}\n")
    with pytest.raises(ValueError, match="probe wants `labels`"):
        read_config(str(tmp_path / "c.yaml"))


def test_the_best_learning_rate_is_chosen_on_validation(tmp_path):
    made = []
    for rate, losses in ((1e-4, (2.0, 1.0)), (3e-4, (1.0, 1.4))):
        for seed, last in enumerate(losses):
            folder = tmp_path / f"{rate}-{seed}"
            folder.mkdir()
            log = [
                {"step": 1, "eval_mcq_token_loss": 0.1},
                {"step": 9, "eval_mcq_token_loss": last, "loss": 9.0},
            ]
            (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
            made.append(Planned("a", seed, rate, 9, folder, [], []))
    found = best_rates(made)["a"]
    assert found["best"] == 3e-4 and found["loss"] == {"0.0001": 1.5, "0.0003": pytest.approx(1.2)}


def test_folders_are_compared_or_refused(compared, parts, tmp_path, capsys):
    folder, _ = parts
    words = [f"{arm}={compared / arm / 'evaluation'}" for arm in ("mimi_full", "text_only")]
    main(["--evaluations", *words, "--output_dir", str(tmp_path), "--audio_dir", str(folder)])
    assert "closed rows about" in capsys.readouterr().out
    made, before = (json.loads((of / "comparison.json").read_text()) for of in (tmp_path, compared))
    for arm in before["arms"]:
        assert made["arms"][arm]["question_type"] == before["arms"][arm]["question_type"]
    assert (tmp_path / "report.html").is_file()
    for wrong, message in (
        ([words[0], "b"], "ARM=FOLDER is wanted"),
        (words[:1], "two arms or more"),
        ([words[0], f"b={tmp_path}"], "holds no evaluation that can be compared"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["--evaluations", *wrong, "--output_dir", str(tmp_path)])
    other = tmp_path / "other"
    other.mkdir()
    for name in ("metrics.json", "predictions.jsonl"):
        (other / name).write_text(
            (compared / "text_only" / "evaluation" / name).read_text().replace('"fp32"', '"bf16"')
        )
    assert read_run(other).metrics["settings"]["precision"] == "bf16"
    with pytest.raises(
        SystemExit, match=r"differ in more than the arm: precision \(fp32 and bf16\)"
    ):
        main(["--evaluations", words[0], f"b={other}", "--output_dir", str(tmp_path)])
