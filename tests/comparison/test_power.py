"""comparison/power.py: `audiolm compare --plan_power`."""

import json

import pytest
from support.small_comparisons import make_seeds

from audiolm.comparison.compare import compare
from audiolm.comparison.power import Noise, power, read_noise
from audiolm.comparison.run import compare_encoders, parse_arguments
from audiolm.runtime import UserError

NOISE = Noise(scatter=0.9, clip_error=1.4, clips=120)


def test_power_without_a_difference_is_below_the_level():
    assert power(NOISE, 0.0, seeds=3, clips=120) < 0.05 / NOISE.pairs


def test_power_of_a_large_difference_is_near_1():
    assert power(NOISE, 15.0, seeds=5, clips=120) > 0.99


@pytest.mark.parametrize(("seeds", "clips"), [(10, 600), (5, 1200)])
def test_power_grows_with_seeds_and_clips(seeds, clips):
    assert power(NOISE, 3.0, seeds, clips) > power(NOISE, 3.0, 5, 600) + 0.05


@pytest.fixture
def comparison_file(tmp_path):
    """A comparison of two arms that scatter by 0 and by one of 40 mcq rows."""
    rows = [1, 1, 1, 1, 1, 0] * 20
    fewer = [0, *rows[1:]]
    comparison = compare({"a": make_seeds(rows, rows), "b": make_seeds(rows, fewer)})
    file = tmp_path / "comparison.json"
    file.write_text(json.dumps(comparison))
    return file


def test_read_noise_of_a_comparison_is_its_errors(comparison_file):
    noise = read_noise(comparison_file)
    # One of 40 mcq rows, a third of macro accuracy. Two seeds, one of two arms.
    assert noise.scatter == pytest.approx(100 / 40 / 3 / 2**0.5 / 2**0.5)
    pair = json.loads(comparison_file.read_text())["statistics"]["primary"][0]
    assert noise.clip_error == pytest.approx(100 * pair["clip_error"])
    assert (noise.clips, noise.pairs) == (120, 1)


def test_read_noise_of_one_seed_is_an_error(tmp_path):
    rows = [1, 1, 0] * 10
    comparison = compare({"a": make_seeds(rows), "b": make_seeds(rows)})
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    with pytest.raises(UserError, match="one seed does not show the scatter"):
        read_noise(tmp_path / "comparison.json")


def test_plan_power_command_prints_seeds_and_clips(comparison_file, capsys):
    compare_encoders(parse_arguments(["--plan_power", "5", "--comparison", str(comparison_file)]))
    text = capsys.readouterr().out
    assert "Power to find a difference of 5 points" in text
    assert "80 % power: " in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--plan_power", "3"], "--plan_power: add --comparison"),
        (["--config", "demo", "--comparison", "c.json"], "use it with --plan_power"),
        (["--plan_power", "-1", "--comparison", "c"], "--plan_power -1: expected a positive"),
    ],
)
def test_plan_power_with_unsuitable_options_is_an_error(argv, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(argv)
    assert message in capsys.readouterr().err
