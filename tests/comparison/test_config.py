"""comparison/config.py: YAML files, presets, and what is wrong in them."""

import json
from pathlib import Path

import pytest
from support.small_comparisons import write_config

from audiolm.comparison.config import read_config
from audiolm.run_compare import main
from audiolm.runtime import UserError
from audiolm.training.arguments import find_preset

ARMS = {"mimi_full": {"encoder_type": "mimi_full"}}
ARM_B = {**ARMS, "b": {"encoder_type": "htsat", "learning_rate": 0.1}}
DATA = {"train_file": "rows.json", "validation_file": "rows.json", "audio_dir": "."}
TEST = {"test_file": "rows.json", "audio_dir": "."}
HTSAT = {"arms": {"a": {"encoder_type": "htsat"}}}
DIFFERENT = "expected a list of different"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a data file of no rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps([]))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sed": 1}, "unknown keys sed. Expected: arms, output_dir"),
        ({"arms": {}}, "`arms` names no arm"),
        ({"arms": {"a": {}}}, "arm a lacks encoder_type"),
        ({"arms": {"../a": ARMS["mimi_full"]}}, "arm '../a' cannot be a folder name"),
        ({"arms": {"corpus": ARMS["mimi_full"]}}, "arm 'corpus' cannot be"),
        (
            {"arms": ARM_B},
            "arm b sets learning_rate. Arms may differ only in audio_tokens, band_limit, "
            "encoder_name_or_path, encoder_type",
        ),
        ({"arms": {"x": {"encoder_type": "x"}}}, "encoder_type 'x'"),
        (
            {"train": {**DATA, "learning_speed": 1}},
            "train: unrecognized arguments: --learning_speed 1",
        ),
        ({"eval": {**TEST, "batch": 1}}, "eval: unrecognized arguments: --batch 1"),
        (
            {"train": {**DATA, "seed": 1}},
            "train sets seed, which a comparison does not accept there",
        ),
        (
            {"corpus": {"rows": 8, "seed": 0}},
            "train sets audio_dir, train_file, validation_file",
        ),
        ({"corpus": {"row": 8}}, "corpus takes rows and seed, not row"),
        (
            {"corpus": {"rows": 8, "seed": 0, "recordings": {"csv": "a.csv", "labels": "b"}}},
            "corpus: recordings is {'csv': 'a.csv', 'labels': 'b'}: RecordingTable",
        ),
        ({"eval": {**TEST, "test_file": "nowhere.json"}}, "nowhere.json: file not found"),
        ({"eval": 3}, "eval is 3: expected options"),
    ],
)
def test_command_with_a_wrong_config_exits_with_one_line(folder, changes, message):
    config = {"arms": ARMS, "train": DATA, "eval": TEST}
    path = write_config(folder / "wrong.yaml", config, **changes)
    with pytest.raises(SystemExit) as error:
        main(["--config", path, "--output_dir", str(folder / "never")])
    assert str(error.value).startswith(f"run_compare.py: --config {path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "never").exists()


@pytest.mark.parametrize("text", ["a: [", "- a"])
def test_command_with_a_file_that_is_no_mapping_exits_with_one_line(folder, text):
    (folder / "c.yaml").write_text(text)
    with pytest.raises(SystemExit, match=r"run_compare.py: --config .*c.yaml: ") as error:
        main(["--config", str(folder / "c.yaml")])
    assert "\n" not in str(error.value)


def test_command_without_its_config_says_what_to_give(folder):
    with pytest.raises(SystemExit, match=r"none.yaml: file not found\. Give a YAML file"):
        main(["--config", str(folder / "none.yaml")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 3}, f"seeds is 3: {DIFFERENT} integers"),
        ({"seeds": []}, rf"seeds is \[\]: {DIFFERENT} integers"),
        ({"seeds": [1, 1]}, rf"seeds is \[1, 1\]: {DIFFERENT} integers"),
        ({"data_dir": "d", "corpus": {"rows": 9, "seed": 0}}, "both `data_dir` and `corpus`"),
        ({"probe": {"pooling": ["mean"]}}, "probe lacks `labels`"),
    ],
)
def test_read_config_with_a_wrong_value_is_refused(folder, changes, message):
    path = write_config(folder / "c.yaml", HTSAT, **changes)
    with pytest.raises(UserError, match=message):
        read_config(path)


def test_read_config_with_options_of_a_push_is_refused_without_the_token(folder):
    train = {"push_to_hub": True, "hub_token": "hf_secret"}
    path = write_config(folder / "c.yaml", HTSAT, train=train)
    with pytest.raises(UserError, match=r"train sets hub_token, push_to_hub, which") as error:
        read_config(path)
    assert "hf_secret" not in str(error.value)


def test_read_config_with_overrides_uses_them(folder):
    path = write_config(folder / "c.yaml", HTSAT, seeds=[1, 2], output_dir="o")
    config = read_config(path, seeds=[7], output_dir="p")
    assert config.seeds == [7]
    assert config.output_dir == "p"


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "configs/demo.yaml"])
def test_read_config_with_the_name_of_a_preset_reads_the_package(folder, name):
    config = read_config(name)
    assert list(config.arms) == ["htsat", "mimi_semantic", "mimi_full", "text_only"]
    assert config.path == name


def test_find_preset_with_a_file_of_that_name_returns_the_file(folder):
    path = write_config(folder / "demo.yaml", HTSAT)
    assert find_preset("demo.yaml") == Path("demo.yaml")
    assert find_preset(path) == Path(path)
    assert find_preset("other/demo.yaml") == Path("other/demo.yaml")
