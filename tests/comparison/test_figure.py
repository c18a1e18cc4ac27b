"""Plots by matplotlib: figure.svg with its bits, learning curves, reliability."""

import re
import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import pytest
import torch
from matplotlib.figure import Figure

from audiolm import AudioLMConfig
from audiolm.comparison.report.figure import (
    cost_pictures,
    cost_points,
    draw_costs,
    learning_curve_pictures,
    moving_average,
    reliability_picture,
    write_figure,
)
from audiolm.comparison.report.styles import COLOURS, export_picture, shared_style, style_arms
from audiolm.comparison.runs import Run, bits_per_second, check_comparable
from audiolm.encoders_audiolm import build_encoder

# frames/s times codebooks times log2(codebook size), or frames/s times channels times 16
BITS = {
    "mimi_semantic": 12.5 * 11,
    "mimi_full": 12.5 * 8 * 11,
    "mimi_acoustic": 12.5 * 7 * 11,
    "mimi_levels=32": 12.5 * 32 * 11,
    "mimi_continuous": 12.5 * 512 * 16,
    "mimi_transformer_layer=2": 25 * 512 * 16,
    "encodec": 75 * 8 * 10,
    "dac": 44100 / 512 * 9 * 10,
    "htsat": 64 / 7 * 768 * 16,
}
NAN = float("nan")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("arm", BITS)
def test_bits_per_second_of_an_encoder_matches_its_formula(arm):
    with torch.device("meta"):
        encoder = build_encoder(AudioLMConfig(arm).encoder_config)
    assert bits_per_second(encoder) == pytest.approx(BITS[arm])


def test_bits_per_second_of_a_pair_is_the_sum():
    with torch.device("meta"):
        pair = build_encoder(AudioLMConfig("htsat+mimi_full").encoder_config)
    assert bits_per_second(pair) == pytest.approx(BITS["htsat"] + BITS["mimi_full"])


def arm_results(bits, tokens, points, **more):
    """An arm's results with an audio gain in points, give or take two."""
    gain = {
        "difference": points / 100,
        "ci95_low": points / 100 - 0.02,
        "ci95_high": points / 100 + 0.02,
    }
    return {
        "no_audio": False,
        "bits_per_second": bits,
        "tokens_per_second": tokens,
        "audio_gain": {"macro": gain},
        **more,
    }


ARMS = {
    "a": arm_results(100, 10, 2),
    "b": arm_results(10_000, 40, 8),
    "c": arm_results(1_000, 20, 5),
    "zero": arm_results(0, 10, 0),
    "text_only": arm_results(None, 10, 1, no_audio=True),
    "without_controls": arm_results(100, 10, 1, audio_gain={}),
}
NOTHING_TO_DRAW = {name: ARMS[name] for name in ("text_only", "without_controls")}


def axes_of(arms, field):
    """Axes drawn from a comparison of these arms."""
    comparison = {"arms": arms}
    with shared_style():
        axes = Figure().subplots()
        draw_costs(axes, field, cost_points(comparison)[field], style_arms(comparison))
        axes.figure.draw_without_rendering()
    return axes


def tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def pixels(axes, arm):
    """Position of an arm's mark."""
    (line,) = (line for line in axes.lines if (line.get_gid() or "").startswith(f"tooltip: {arm}:"))
    return axes.transData.transform(line.get_xydata())[0]


def test_cost_points_leave_out_arms_without_audio_gain_or_cost():
    points = cost_points({"arms": ARMS})["bits_per_second"]
    assert [point.arm for point in points] == ["a", "b", "c", "zero"]


def test_cost_points_have_the_interval_in_points():
    point = cost_points({"arms": ARMS})["bits_per_second"][2]
    assert point[1:] == pytest.approx((1000, 5, 3, 7))


def test_cost_points_without_any_cost_are_empty():
    assert cost_points({"arms": NOTHING_TO_DRAW}) == {}
    assert cost_points({"arms": {"zero": arm_results(0, 0, 1)}}) == {}


def test_draw_costs_has_a_logarithmic_axis_with_zero_at_its_left():
    axes = axes_of(ARMS, "bits_per_second")
    a, b, c, zero = (pixels(axes, arm) for arm in ("a", "b", "c", "zero"))
    assert c == pytest.approx((a + b) / 2)
    assert zero[0] < a[0] - 20
    assert tick_labels(axes.xaxis) == ["0", "100", "1k", "10k"]


def test_draw_costs_of_a_narrow_range_has_more_ticks():
    assert tick_labels(axes_of(ARMS, "tokens_per_second").xaxis) == ["10", "20", "50"]


def test_draw_costs_of_a_very_narrow_range_has_several_ticks():
    arms = {"a": arm_results(1, 9.2, 2), "b": arm_results(1, 12.5, 2)}
    assert len(tick_labels(axes_of(arms, "tokens_per_second").xaxis)) >= 3


def test_draw_costs_labels_both_axes():
    axes = axes_of(ARMS, "bits_per_second")
    assert axes.get_xlabel() == "bits/s of the representation"
    assert axes.get_ylabel() == "audio gain (points)"
    assert "+4" in tick_labels(axes.yaxis)


def test_cost_pictures_describe_every_point():
    bits, _ = cost_pictures({"arms": ARMS})
    assert "c: +5.0 points (+3.0 to +7.0), 1,000 bits/s" in bits.description
    assert "<title>c: +5.0 points (+3.0 to +7.0), 1,000 bits/s</title>" in bits.body


def test_cost_pictures_without_points_are_none():
    assert cost_pictures({"arms": NOTHING_TO_DRAW}) == []


@pytest.fixture
def figure_text(tmp_path):
    arms = {"<a&b>": arm_results(100, 10, 2), "_b $x$": arm_results(10_000, 40, 1)}
    write_figure(tmp_path / "figure.svg", {"arms": arms})
    return (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_write_figure_is_one_svg_without_scripts_and_links(figure_text):
    assert ElementTree.fromstring(figure_text).tag == f"{SVG}svg"
    assert "script" not in figure_text
    assert "http" not in figure_text.replace("http://www.w3.org/2000/svg", "")


def test_write_figure_writes_names_as_text_once(figure_text):
    texts = [element.text for element in ElementTree.fromstring(figure_text).iter(f"{SVG}text")]
    assert texts.count("<a&b>") == 1
    assert texts.count("_b $x$") == 1
    assert "bits/s of the representation" in texts
    assert "audio tokens/s" in texts


def test_write_figure_has_a_caption_and_a_description(figure_text):
    root = ElementTree.fromstring(figure_text)
    assert "Bits/s of codes" in " ".join(root.itertext())
    assert "<a&b>: +2.0 points" in root.get("aria-label")
    assert root.get("role") == "img"


def test_write_figure_follows_the_theme_of_the_page(figure_text):
    assert "prefers-color-scheme: dark" in figure_text
    style, _, drawing = figure_text.partition("</style>")
    assert f"--hue0: {COLOURS['hue0'].dark}" in style
    assert "var(--hue0)" in drawing
    assert not re.search("#[0-9a-f]{6}", drawing)


def test_write_figure_twice_gives_the_same_bytes(tmp_path, monkeypatch):
    write_figure(tmp_path / "first.svg", {"arms": ARMS})
    monkeypatch.setitem(mpl.rcParams, "lines.linewidth", 9.0)
    write_figure(tmp_path / "second.svg", {"arms": ARMS})
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


def test_write_figure_without_points_writes_nothing(tmp_path):
    write_figure(tmp_path / "none.svg", {"arms": NOTHING_TO_DRAW})
    assert not (tmp_path / "none.svg").exists()


def test_write_figure_of_many_long_names_keeps_the_legend_inside(tmp_path, browser):
    arms = {}
    for number in range(14):
        tokens = 12.5 if number % 2 else 10 + number
        arms[f"an_arm_of_{number}"] = arm_results(100 * 2**number, tokens, 10 + number * 3 / 14)
    write_figure(tmp_path / "figure.svg", {"arms": arms})
    page = browser.new_page()
    page.goto((tmp_path / "figure.svg").as_uri())
    boxes = page.evaluate("""[...document.querySelectorAll('text')].map(text => {
        const box = text.getBoundingClientRect();
        return [box.left, box.top, box.right, box.bottom, text.textContent]; })""")
    width, height = page.evaluate("""(() => { const box = document.documentElement
        .getBoundingClientRect(); return [box.width, box.height]; })()""")
    page.close()
    assert len([name for *_, name in boxes if name.startswith("an_arm_of_")]) == 14
    for index, (left, top, right, bottom, _) in enumerate(boxes):
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
        for other in boxes[:index]:
            is_beside = right <= other[0] + 1 or other[2] <= left + 1
            is_above = bottom <= other[1] + 4 or other[3] <= top + 4
            assert is_beside or is_above


def test_style_arms_differ_for_25_arms_with_audio():
    styles = style_arms({"arms": {str(number): {"no_audio": False} for number in range(25)}})
    assert len({(style.colour, style.marker) for style in styles.values()}) == 25


def test_style_arms_marks_text_only_models():
    style = style_arms({"arms": {"text_only": {"no_audio": True}}})["text_only"]
    assert style.is_text_only


def test_moving_average_shortens_windows_at_the_ends():
    # Windows of three points
    points = moving_average([[step, float(step % 2)] for step in range(75)])
    assert points[:2] == [[0, 0.5], [1, pytest.approx(1 / 3)]]


def test_moving_average_of_one_point_is_that_point():
    assert moving_average([[1, 2.0]]) == [[1, 2.0]]


def arms_with_curves(**losses):
    arms = {}
    for arm, points in losses.items():
        curves = {"train_loss": points, "eval_loss": {"mcq": points}}
        arms[arm] = {"no_audio": False, "learning_curves": curves}
    return {"arms": arms}


def test_learning_curve_pictures_are_of_training_and_question_types():
    pictures = learning_curve_pictures(arms_with_curves(a=[[0, 3.0], [50, 2.0], [100, 1.0]]))
    assert list(pictures) == ["training", "mcq"]
    assert pictures["training"].description.endswith("At the last step: a 1.000;")


def test_learning_curve_pictures_leave_out_losses_that_are_not_numbers():
    pictures = learning_curve_pictures(arms_with_curves(a=[[5, 1.0], [10, NAN]], b=[[50, NAN]]))
    assert pictures["mcq"].description.endswith("At the last step: a 1.000;")


def test_learning_curve_pictures_without_curves_are_none():
    assert learning_curve_pictures({"arms": {"a": {"no_audio": False}}}) == {}


def test_reliability_picture_describes_every_bin():
    bins = [
        {"low": 0.5, "high": 0.6, "n": 3, "confidence": 0.55, "accuracy": 0.4},
        {"low": 0.9, "high": 1.0, "n": 1, "confidence": 0.95, "accuracy": 1.0},
    ]
    style = style_arms({"arms": {"a": {"no_audio": False}}})["a"]
    picture = reliability_picture("a", style, {"ece": 0.125, "bins": bins})
    texts = [
        "3 answers of probability 55.0 %, 40.0 % correct",
        "1 answers of probability 95.0 %, 100.0 % correct",
    ]
    assert picture.description == f"Reliability of a: {texts[0]}; {texts[1]};"
    assert [f"<title>{text}</title>" in picture.body for text in texts] == [True, True]


def test_export_picture_gives_different_ids_to_different_pictures():
    def ids(description):
        with shared_style():
            figure = Figure()
            figure.subplots().plot([0, 1], marker="o")
            return set(re.findall(r' id="([^"]*)"', export_picture(figure, description).body))

    assert ids("first")
    assert not ids("first") & ids("second")


def test_export_picture_of_half_a_surrogate_pair_can_be_encoded():
    with shared_style():
        picture = export_picture(Figure(), "a\ud800")
    assert picture.description == "a?"


@pytest.mark.parametrize(
    "name", ["audio_tokens", "band_limit", "window_seconds", "learn_code_embeddings"]
)
def test_check_comparable_lets_arms_differ_in_what_seeds_may_not(name, tmp_path):
    def run(arm, seed, value):
        training = {"seed": seed}
        model = {"encoder_type": "htsat", "no_audio": False, "training": training, name: value}
        metrics = {"protocol": "likelihood", "settings": {"model": model}}
        return Run(tmp_path / f"{arm}{seed}", metrics, [])

    a = [run("a", 0, None), run("a", 1, None)]
    check_comparable({"a": a, "b": [run("b", 0, 5), run("b", 1, 5)]})
    with pytest.raises(ValueError, match=rf"differ in more than the arm: {name} \(None and 5\)"):
        check_comparable({"a": [run("a", 0, None), run("a", 1, 5)]})
