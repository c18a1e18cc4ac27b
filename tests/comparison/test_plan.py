"""comparison/plan.py: the runs of a config, their command lines, and what they read."""

from pathlib import Path

import pytest
from support.small_comparisons import write_config

from audiolm.comparison.config import read_config
from audiolm.comparison.plan import (
    digest_paths,
    find_demo_checkpoint,
    plan_comparison,
    plan_runs,
    probe_argv,
)
from audiolm.evaluation.arguments import parse_arguments as parse_eval
from audiolm.evaluation.probe_command import parse_arguments as parse_probe_arguments
from audiolm.training.arguments import parse_arguments as parse

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path):
    """`train` and `eval` of a config, with a data file of no rows."""
    (tmp_path / "rows.json").write_text("[]")
    rows = str(tmp_path / "rows.json")
    return {
        "train": {"train_file": rows, "audio_dir": str(tmp_path)},
        "eval": {"test_file": rows, "audio_dir": str(tmp_path)},
    }


def write_text_only_config(tmp_path, **evaluation):
    return write_config(
        tmp_path / "c.yaml",
        {
            "corpus": {"rows": 8, "seed": 3},
            "arms": {"a": {"encoder_type": "htsat", "no_audio": True}},
            "train": {"freeze_lm": False, "learning_rate": 1e-3, "max_train_samples": None},
            "eval": evaluation,
            "output_dir": "o",
        },
    )


def test_plan_runs_with_a_corpus_gives_its_files(tmp_path):
    path = write_text_only_config(tmp_path, batch_size=64, controls=["all"])
    (run,) = plan_runs(read_config(path, seeds=[7]))
    train = (
        "--train_file o/corpus/train.json --validation_file o/corpus/val.json "
        "--audio_dir o/corpus --freeze_lm false --learning_rate 0.001 --encoder_type htsat "
        "--no_audio true --output_dir o/a --seed 7"
    )
    evaluation = (
        "--train_file o/corpus/train.json --test_file o/corpus/test.json --audio_dir o/corpus "
        "--batch_size 64 --controls majority --model_name_or_path o/a "
        "--output_dir o/a/evaluation"
    )
    assert run.argv["train"] == train.split()
    assert run.argv["evaluate"] == evaluation.split()


@pytest.mark.parametrize("controls", [None, ["no_audio"]])
def test_plan_comparison_of_a_text_only_arm_drops_controls_that_remove_audio(tmp_path, controls):
    config = read_config(write_text_only_config(tmp_path, controls=controls))
    (run,) = plan_comparison(config)
    assert "--controls" not in run.argv["evaluate"]


def test_plan_runs_with_seeds_gives_each_a_folder(tmp_path):
    path = write_config(
        tmp_path / "c.yaml",
        {
            "arms": {"a": {"encoder_type": "htsat"}, "b": {"encoder_type": "mimi_full"}},
            "seeds": [0, 1],
            "output_dir": "o",
        },
    )
    runs = plan_runs(read_config(path))
    expected = ["o/a/seed-0", "o/b/seed-0", "o/a/seed-1", "o/b/seed-1"]
    assert [run.folder.as_posix() for run in runs] == expected


@pytest.mark.parametrize("name", ["compare", "compare_clotho", "ablation"])
def test_configs_read_what_prepare_download_writes(name):
    config = read_config(str(ROOT / "configs" / f"{name}.yaml"), data_dir="somewhere")
    run = plan_runs(config)[0]
    _, data, _ = parse(run.argv["train"])
    assert data.train_file == "somewhere/train.json"
    assert data.validation_file == "somewhere/val.json"
    assert data.audio_dir == ["somewhere"]
    evaluation = parse_eval(run.argv["evaluate"])
    assert evaluation.test_file == "somewhere/test.json"
    assert evaluation.train_file == "somewhere/train.json"


def test_plan_runs_of_compare_yaml_is_the_experiment():
    config = read_config(str(ROOT / "configs" / "compare.yaml"))
    assert list(config.arms) == ["htsat", "mimi_semantic", "mimi_full", "text_only"]
    assert config.seeds == [0, 1, 2]
    for arm in config.arms:
        run = next(run for run in plan_runs(config) if run.arm == arm)
        model, data, args = parse(run.argv["train"])
        processes = max(1, args.n_gpu)
        batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
        assert (args.max_steps, args.learning_rate) == (20_000, 1e-4)
        assert data.max_audio_seconds == 10.0
        assert batch_size == 16
        assert model.no_audio == (arm == "text_only")
        assert model.freeze_lm


@pytest.mark.parametrize("name", ["esc50", "esc50_real", "esc50_real_small"])
def test_plan_of_recordings_has_a_text_only_arm_and_probes_on_the_official_folds(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = read_config(str(ROOT / "configs" / f"{name}.yaml"))
    assert {run.arm for run in plan_comparison(config)} >= {"text_only"}
    argv = probe_argv(config, "sound_class", Path("esc50.csv"))
    assert argv[argv.index("--audio_dir") + 1] == "esc50/audio"


def test_plan_runs_of_ablation_yaml_is_the_experiment_with_other_arms():
    config = read_config(str(ROOT / "configs" / "ablation.yaml"))
    experiment = read_config(str(ROOT / "configs" / "compare.yaml"))
    assert config.train == experiment.train
    assert config.eval == experiment.eval
    assert config.seeds == experiment.seeds
    runs = plan_runs(config)
    assert len(runs) == 15 * 3
    for run in runs:
        model, _, args = parse(run.argv["train"])
        assert args.max_steps == 20_000
        assert model.encoder_type == config.arms[run.arm]["encoder_type"]


def test_plan_runs_of_demo_ablation_yaml_names_encoders_of_the_package():
    runs = plan_runs(read_config(str(ROOT / "configs" / "demo_ablation.yaml")))
    assert len(runs) == 18
    for run in runs:
        model, _, _ = parse(run.argv["train"])
        assert (ROOT / model.encoder_name_or_path / "config.json").is_file()


def test_plan_comparison_of_a_preset_in_an_empty_folder_reads_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = {run.arm: run.checkpoints for run in plan_comparison(read_config("demo"))}
    assert checkpoints["htsat"] == (str(ROOT / "demo/htsat"), str(ROOT / "demo/text"))
    assert checkpoints["mimi_full"] == (str(ROOT / "demo/mimi"), str(ROOT / "demo/text"))


def test_find_demo_checkpoint_with_a_folder_here_returns_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo" / "mimi").mkdir(parents=True)
    assert find_demo_checkpoint("demo/mimi") == "demo/mimi"
    assert find_demo_checkpoint("demo/htsat+demo/mimi") == f"{ROOT / 'demo/htsat'}+demo/mimi"
    assert find_demo_checkpoint("kyutai/mimi") == "kyutai/mimi"
    assert find_demo_checkpoint("demo/none") == "demo/none"


def test_plan_comparison_on_several_gpus_counts_the_processes_of_each_run(
    tmp_path, monkeypatch, data
):
    """Each run gets its own GPU, whatever the planning process sees."""
    arms = {name: {"encoder_type": name} for name in ("mimi_semantic", "mimi_full")}
    config = read_config(write_config(tmp_path / "c.yaml", {"arms": arms, **data}))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    with pytest.raises(SystemExit):
        parse(plan_runs(config)[0].argv["train"])
    assert len(plan_comparison(config)) == 2
    assert len(plan_comparison(config, processes=2)) == 2
    assert len(plan_comparison(config, processes=3)) == 2


def test_digest_paths_of_a_pair_depends_on_both_checkpoints(tmp_path, data):
    for name in "ab":
        (tmp_path / name).mkdir()
    names = f"{tmp_path / 'a'}+{tmp_path / 'b'}"
    arms = {"pair": {"encoder_type": "htsat+mimi_full", "encoder_name_or_path": names}}
    config = read_config(write_config(tmp_path / "c.yaml", {"arms": arms, **data}))
    (run,) = plan_comparison(config)
    checkpoints = run.checkpoints
    assert checkpoints[:2] == (str(tmp_path / "a"), str(tmp_path / "b"))
    before = digest_paths(checkpoints)
    (tmp_path / "b" / "model.safetensors").write_text("other")
    assert digest_paths(checkpoints) != before


def test_probe_argv_names_each_encoder_with_audio_once(tmp_path):
    htsat = {"encoder_type": "htsat", "encoder_name_or_path": "e"}
    path = write_config(
        tmp_path / "c.yaml",
        {
            "corpus": {"rows": 8, "seed": 3},
            "arms": {
                "a": htsat,
                "b": {"encoder_type": "mimi_full"},
                "c": {**htsat, "no_audio": True},
                "d": {"encoder_type": "dac", "band_limit": 24000},
            },
            "train": {"max_audio_seconds": 5},
            "output_dir": "o",
            "probe": {"pooling": ["mean"]},
        },
    )
    args = parse_probe_arguments(probe_argv(read_config(path), "room", Path("l.csv")))
    assert args.encoders == {"htsat": "e", "mimi_full": None}
    assert args.pooling == ["mean"]
    assert args.max_audio_seconds == 5
    assert (args.labels, args.audio_dir, args.output_dir) == ("l.csv", "o/corpus", "o/probes/room")


def test_plan_trusts_and_digests_the_file_of_an_encoder(tmp_path, data):
    code = "from audiolm.encoders_audiolm import FramedEncoder\n\n\nclass Own(FramedEncoder):\n"
    file = tmp_path / "plan_test_encoder.py"
    file.write_text(code + "    dim = 1\n")
    arm = {"encoder_type": f"{file}:Own", "encoder_name_or_path": "random"}
    path = write_config(tmp_path / "c.yaml", {**data, "arms": {"own": arm}})
    (run,) = plan_comparison(read_config(path))
    assert parse_eval(run.argv["evaluate"]).trust_remote_code
    assert str(file) in run.checkpoints
    assert list(parse_probe_encoders(read_config(path))) == ["plan_test_encoder.py:Own"]


def parse_probe_encoders(config):
    argv = probe_argv(config, "topic", Path("labels.csv"))
    return parse_probe_arguments([*argv, "--audio_dir", "."]).encoders
