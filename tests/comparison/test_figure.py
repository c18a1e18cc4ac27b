"""figure.svg of a comparison, and the bits of a representation that it draws."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from audiolm import AudioLMConfig
from audiolm.comparison.report.figure import (
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    log_ticks,
    panel,
    panels,
    short,
    wrapped,
    write_figure,
)
from audiolm.comparison.runs import Run, bits_per_second, check_comparable
from audiolm.encoders_audiolm import build_encoder

BITS = {  # frames/s times levels times log2(codebook size), or times channels times 16
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


@pytest.mark.parametrize("arm", BITS)
def test_bits_per_second_by_hand(arm):
    with torch.device("meta"):
        encoder = build_encoder(AudioLMConfig(arm).encoder_config)
    assert bits_per_second(encoder) == pytest.approx(BITS[arm])


def test_a_pair_has_the_bits_of_both():
    class Pair:
        pass

    pair = Pair()
    with torch.device("meta"):
        pair.first, pair.second = (
            build_encoder(AudioLMConfig(arm).encoder_config) for arm in ("htsat", "mimi_full")
        )
    assert bits_per_second(pair) == pytest.approx(BITS["htsat"] + BITS["mimi_full"])


def arm(bits, tokens, points, **more):
    macro = {
        "difference": points / 100,
        "ci95_low": points / 100 - 0.02,
        "ci95_high": points / 100 + 0.02,
    }
    return {
        "no_audio": False,
        "bits_per_second": bits,
        "tokens_per_second": tokens,
        "audio_gain": {"macro": macro},
        **more,
    }


def test_points_stand_where_the_figures_are():
    arms = {
        "a": arm(100, 10, 2),
        "b": arm(10_000, 40, 8),
        "c": arm(1_000, 20, 5),
        "nothing": arm(0, 10, 0),
        "deaf": arm(None, 10, 1, no_audio=True),
        "unasked": arm(100, 10, 1, listening={}),
    }
    of = panel({"arms": arms}, "bits_per_second")
    assert [point["arm"] for point in of["points"]] == ["a", "b", "c", "nothing"]
    a, b, c, nothing = of["points"]
    assert (
        c["x"] == pytest.approx((a["x"] + b["x"]) / 2)
        and nothing["x"] < a["x"]
        and nothing["y"] == of["zero"]
    )
    assert c["y"] == pytest.approx((a["y"] + b["y"]) / 2) and a["high"] < a["y"] < a["low"]
    assert [text for _, text in of["x"]] == ["0", "100", "1k", "10k"]
    assert (
        of["x"][1][0] == pytest.approx(a["x"])
        and c["says"] == "c: +5.0 points (+3.0 to +7.0), 1,000 bits/s"
    )
    tokens = panel({"arms": arms}, "tokens_per_second")
    assert [text for _, text in tokens["x"]] == ["10", "20", "50"] and tokens["points"][0][
        "x"
    ] > LEFT
    assert panels({"arms": {"deaf": arms["deaf"], "unasked": arms["unasked"]}}) == []


def test_names_do_not_stand_on_each_other():
    """14 arms, half of them at the same tokens/s and within 3 points."""
    arms = {
        f"an_arm_of_{i}": arm(100 * 2**i, 12.5 if i % 2 else 10 + i, 10 + i * 3 / 14)
        for i in range(14)
    }
    for of in panels({"arms": arms}):
        boxes = [
            (x, y - 9.5, x + 6.3 * len(point["arm"]), y + 3.5)
            for point in of["points"]
            for x, y in (point["label"],)
        ]
        for i, one in enumerate(boxes):
            assert one[0] >= LEFT - 1 and one[2] <= WIDTH and one[1] >= TOP - 1 and one[3] <= HEIGHT
            assert not any(
                one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
                for other in boxes[:i]
            )


def test_the_file_is_one_svg_without_scripts(tmp_path):
    arms = {"<a&b>": arm(100, 10, 2), "b": arm(10_000, 40, float("nan"))}
    arms["b"]["audio_gain"]["macro"] |= {"difference": 0.01}
    assert write_figure(tmp_path / "figure.svg", {"arms": arms})
    text = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert (
        root.tag.endswith("svg")
        and "script" not in text
        and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    )
    names = [of.text for of in root.iter("{http://www.w3.org/2000/svg}text")]
    assert (
        names.count("<a&b>") == 2
        and "bits/s of the representation" in names
        and "prefers-color-scheme: dark" in text
    )
    assert not write_figure(tmp_path / "none.svg", {"arms": {"a": arm(1, 1, 1, listening={})}})
    assert not Path(tmp_path, "none.svg").exists()


def test_round_numbers_of_axes():
    assert log_ticks(8, 130) == [10, 20, 50, 100] and log_ticks(90, 200_000) == [
        100,
        1_000,
        10_000,
        100_000,
    ]
    assert [short(number) for number in (0, 50, 1_000, 20_000, 3e6)] == [
        "0",
        "50",
        "1k",
        "20k",
        "3M",
    ]
    assert wrapped("ab cd ef", 5) == ["ab cd", "ef"] and math.isclose(log_ticks(0.9, 1.5)[0], 1)


@pytest.mark.parametrize(
    "name", ["audio_tokens", "band_limit", "window_seconds", "learn_code_embeddings"]
)
def test_arms_may_differ_in_what_seeds_of_one_may_not(name, tmp_path):
    def run(arm, seed, value):
        model = {
            "encoder_type": "htsat",
            "no_audio": False,
            "training": {"seed": seed},
            name: value,
        }
        return Run(
            tmp_path / f"{arm}{seed}", {"protocol": "likelihood", "settings": {"model": model}}, []
        )

    check_comparable(
        {"a": [run("a", 0, None), run("a", 1, None)], "b": [run("b", 0, 5), run("b", 1, 5)]}
    )
    with pytest.raises(ValueError, match=rf"differ in more than the arm: {name} \(None and 5\)"):
        check_comparable({"a": [run("a", 0, None), run("a", 1, 5)]})
