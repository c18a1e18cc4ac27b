"""The report: its pictures by hand, what it escapes, its clips, and its rows, filters and widths in a browser."""

import base64
import io
import json
import math
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolm.comparison import compare as comparison
from audiolm.comparison.compare import compare
from audiolm.comparison.report.build import (
    control_rows,
    pair_rows,
    points,
    shown_folder,
    write_report,
)
from audiolm.comparison.report.charts import (
    dot_rows,
    forest,
    line_chart,
    reliability,
    smooth,
    ticks,
)
from audiolm.comparison.report.examples import browsed_rows, chosen_rows, filters
from audiolm.comparison.runs import Run
from audiolm.data import clip_preview as report_media
from audiolm.data.clip_preview import BANDS, COLOURS, SHADES, picture, png, spectrogram
from audiolm.evaluation.scores import score

SECTIONS = ("overall", "question_type", "category")
BREAK_OUT = "</style></title>\"'><script>alert(1)</script><img src=x onerror=alert(1)>"
MCQ = "Which tone? A) low B) high C) none"
YES_NO = "Is it low? Answer only using yes or no."
# question type, category, question, right option, clips, seconds of each
ASKED = [
    ("mcq", "count", MCQ, "b", (0,)),
    ("mcq", "sound event", MCQ, "a", (1,)),
    ("mcq", "sound event", MCQ, "b", (2,)),
    ("mcq", "count", MCQ, "a", (0,)),
    ("yes_no", "count", YES_NO, "no", (1,)),
    ("yes_no", "sound event", YES_NO, "yes", (2,)),
    ("difference", "comparison", "explain the difference", None, (0, 1)),
    ("caption", "other", "caption first audio", None, (3,)),
]
RIGHT = {
    "htsat": ("111010", "111110"),
    "mimi_full": ("110011", "010011"),
    "text_only": ("100010", "100010"),
}
SECONDS = (0.6, 0.8, 1.0, 1.6)


def options(kind):
    return {"mcq": ["a", "b", "c"], "yes_no": ["no", "yes"]}[kind]


def given(kind, right, correct, share=0.5):
    """The answer of who gives one option this probability and another the rest."""
    picked = right if correct else next(o for o in options(kind) if o != right)
    rest = next(o for o in options(kind) if o != picked)
    scores = {
        o: [math.log(share if o == picked else 1 - share if o == rest else 1e-9), 2]
        for o in options(kind)
    }
    found = {"parsed": picked, "correct": correct}
    return {"likelihood": {**found, "scores": scores}, "likelihood_normalised": found}


def answered(number, arm, seed, deaf, asked=ASKED):
    kind, category, question, right, clips = asked[number]
    row = {
        "taskname": "",
        "caption1": "",
        "caption2": "",
        "input": question,
        "subtype": f"T-{kind}",
        "question_type": kind,
        "filepath1": f"audio/{clips[0]}.flac",
        "filepath2": f"audio/{clips[1]}.flac" if len(clips) > 1 else "",
        "seconds": [SECONDS[i] for i in clips],
        "category": category,
        "reference": right,
        "n_tokens": 2,
        "loss": 3.0,
        "answer": {
            "mcq": f"{str(right).upper()}) {dict(a='low', b='high').get(right)}",
            "yes_no": right,
        }.get(kind, "a tone"),
        "controls": {},
    }
    if right is None:
        row["answers"] = {"generate": {"text": f"a tone of {arm}", "parsed": None, "correct": None}}
        row["controls"] = {} if deaf else {"noise": {"loss": 4.0, "answers": {}}}
        return row
    correct = RIGHT[arm][seed][number] == "1"
    row["answers"] = {
        **given(kind, right, correct, 0.75),
        "generate": {"text": "B", "parsed": None, "correct": False},
    }
    row["controls"]["majority"] = {
        "answers": {
            name: {"parsed": options(kind)[0], "correct": right == options(kind)[0]}
            for name in row["answers"]
        }
    }
    row["controls"]["noise"] = {"loss": 4.0, "answers": given(kind, right, number == 1, 0.6)}
    if not deaf and kind == "mcq" and number < 3:  # a row less than was heard
        row["controls"]["option_relabel"] = {
            "loss": 4.0,
            "answers": given(kind, right, number < 2, 0.6),
        }
    return row


def run_of(folder, arm, seed, deaf=False, rows=None, seconds=1.0):
    rows = [answered(i, arm, seed, deaf) for i in range(len(ASKED))] if rows is None else rows
    metrics = score([row for row in rows if row["reference"]], "likelihood", seconds)
    generated = {"bleu_4": 0.111, "rouge_l": 0.222, "cider_d": 0.333, "spice": None, "by": {}}
    metrics["text"] = {
        row["question_type"]: {
            "n": 1,
            "loss_per_answer_token": 1.5,
            "generated": generated,
            "control_loss": {} if deaf else {"noise": 2.0},
        }
        for row in rows
        if not row["reference"]
    }
    model = {"encoder_type": arm, "no_audio": deaf, "training": {"seed": seed}}
    return Run(
        folder / arm / f"seed-{seed}" / "evaluation",
        {**metrics, "settings": {"model": model}},
        rows,
    )


def compared(runs, **more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "RESAMPLES", 200)
        found = compare(runs)
    return {
        "command": "run_compare.py --config x.yaml",
        "note": "",
        "corpus": None,
        "train": {},
        "eval": {},
        **found,
        **more,
    }


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Four tones, of 300, 600, 1200 and 2400 Hz."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "audio").mkdir()
    for number, seconds in enumerate(SECONDS):
        t = np.arange(int(24000 * seconds)) / 24000
        soundfile.write(
            folder / "audio" / f"{number}.flac",
            0.3 * np.sin(2 * np.pi * 300 * 2**number * t),
            24000,
        )
    return folder


@pytest.fixture(scope="module")
def made(audio):
    """Three arms of two seeds, their comparison, and its report."""
    runs = {arm: [run_of(audio, arm, seed, arm == "text_only") for seed in (0, 1)] for arm in RIGHT}
    found = compared(runs, note="small")
    curves = {"train_loss": [[10, 2.0], [20, 1.0]], "eval_loss": {"mcq": [[10, 1.5], [20, 1.25]]}}
    for of in found["arms"].values():
        of |= {"trained_parameters": 12345, "tokens_per_clip": 92, "learning_curves": curves}
    found["rows"]["train"] = 20
    write_report(audio / "report.html", found, runs, audio)
    return found, runs


def html_of(folder, found, runs, audio_dir):
    write_report(folder / "report.html", found, runs, audio_dir)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_pictures_by_hand():
    assert ticks(0.6, 1.3) == [0.6, 0.8, 1.0, 1.2, 1.4] and ticks(0, 800) == [0, 200, 400, 600, 800]
    chart = line_chart({"a": [[0, 3.0], [50, 2.0], [100, 1.0]], "b": [[50, float("nan")]]})
    assert chart["lines"] == [
        {"arm": "a", "points": [(0, 0), (50, 50), (100, 100)], "end": "1.000"}
    ]
    assert (
        chart["y"][0] == (100.0, "1.0")
        and chart["y"][-1] == (0.0, "3.0")
        and chart["x"][-1] == (100.0, "100")
    )
    assert (
        line_chart({"a": [[5, 1.0]]})["lines"][0]["points"][0][0] == 100
        and line_chart({})["lines"] == []
    )
    series = [[i, float(i % 2)] for i in range(75)]  # windows of 3 points
    assert (
        smooth(series)[0] == [0, 0.5]
        and smooth(series)[1] == [1, pytest.approx(1 / 3)]
        and smooth([[1, 2.0]]) == [[1, 2.0]]
    )
    assert [points(x) for x in (0.0123, -0.5, -1e-9)] == ["+1.2", "\N{MINUS SIGN}50.0", "+0.0"]


def test_differences_and_their_axis_by_hand():
    nothing = {"difference": 0.0, "ci95_low": float("nan"), "ci95_high": float("nan")}
    lane = {"difference": 0.1, "ci95_low": -0.05, "ci95_high": 0.155}
    of = forest([{"name": "mcq", "lanes": [lane]}, {"name": "x", "lanes": [nothing]}])
    lane = of["rows"][0]["lanes"][0]  # an axis from -20 to +20 points
    assert (lane["at"], lane["low"], lane["high"]) == (75, 37.5, pytest.approx(88.75)) and of[
        "rows"
    ][1]["lanes"][0]["low"] == 50
    labels = [label.replace("\N{MINUS SIGN}", "-") for _, label in of["x"]]
    assert labels == ["-20", "-10", "0", "+10", "+20"] and [at for at, _ in of["x"]] == [
        0,
        25,
        50,
        75,
        100,
    ]
    assert (
        forest([{"name": "mcq", "lanes": [nothing]}])["x"][-1] == (100, "+1")
        and forest([])["rows"] == []
    )


def test_reliability_diagram_by_hand():
    bins = [
        {"low": 0.5, "high": 0.6, "n": 3, "confidence": 0.55, "accuracy": 0.4},
        {"low": 0.9, "high": 1.0, "n": 1, "confidence": 0.95, "accuracy": 1.0},
    ]
    of = reliability({"ece": 0.125, "bins": bins})
    assert [(round(p["x"]), round(p["y"]), round(p["fair"])) for p in of["points"]] == [
        (55, 60, 45),
        (95, 0, 5),
    ]
    assert of["n"] == 4 and [p["radius"] for p in of["points"]] == [
        pytest.approx(2.5 + 8 * 0.75**0.5),
        6.5,
    ]


def test_marks_stand_where_the_figures_are(made):
    found, _ = made
    rows = {row["name"]: row for row in dot_rows(found, SECTIONS)}
    assert list(rows) == [
        "mean of types",
        "all closed rows",
        "mcq",
        "yes_no",
        "sound event",
        "count",
    ]
    lanes = {lane["arm"]: lane for lane in rows["mcq"]["lanes"]}
    # 3 and 4 of 4 right, 2 and 1, 1 and 1: means over the seeds
    assert {arm: lane["at"] for arm, lane in lanes.items()} == {
        "htsat": 87.5,
        "mimi_full": 37.5,
        "text_only": 25,
    }
    assert lanes["htsat"]["low"] <= 87.5 <= lanes["htsat"]["high"] and rows["mcq"]["majority"] == 50
    # noise has 1 of 4; what was asked of fewer rows is no mark, who hears nothing has no controls
    assert lanes["htsat"]["controls"] == [("noise", 25)] and lanes["text_only"]["controls"] == []
    assert [lane["y"] for lane in rows["mcq"]["lanes"]] == [12, 37, 62] and rows["mcq"][
        "height"
    ] == 76
    mean = rows["mean of types"]
    assert mean["lanes"][0]["at"] == pytest.approx((87.5 + 50) / 2) and mean["lanes"][0][
        "controls"
    ] == [("noise", 12.5)]
    assert rows["all closed rows"]["lanes"][0]["controls"] == []

    by_arm = {
        (row["name"], row["arm"]): row for row in control_rows(found, ["noise", "option_relabel"])
    }
    noise, letters = by_arm["mcq", "htsat"]["controls"]
    assert (
        noise["accuracy"] == 0.25
        and (letters["accuracy"], letters["n"]) == (2 / 3, 3)
        and by_arm["mcq", "htsat"]["n"] == 4
    )
    assert (
        by_arm["mcq", "text_only"]["controls"][1] is None
        and by_arm["yes_no", "htsat"]["controls"][1] is None
    )
    pairs = pair_rows(found, "by_type")
    assert [(row["name"], row["lanes"][0]["difference"]) for row in pairs] == [
        ("mcq", -0.5),
        ("yes_no", 0.5),
    ]


def test_examples_are_spread_and_do_not_repeat_clips():
    about = [
        ("mcq", "count", "0"),
        ("mcq", "count", "1"),
        ("mcq", "sound event", "0"),
        ("mcq", "sound event", "2"),
        ("difference", "comparison", "3"),
        ("mcq", "no category", "5"),
    ]
    rows = [
        {
            "question_type": kind,
            "category": category,
            "filepath1": name,
            "filepath2": "4" * (kind == "difference"),
        }
        for kind, category, name in about
    ]
    assert chosen_rows(rows, 3) == [
        1,
        2,
        4,
    ]  # "0" is heard first, with the other category; count comes after
    assert chosen_rows(rows, 10) == [0, 1, 2, 3, 5, 4]


def test_rows_to_look_through_by_hand(made, audio):
    _, runs = made
    rows = browsed_rows(runs, None, 60)
    assert [row["number"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    third = rows[2]
    assert (
        third["answers"]["htsat"] | {"correct": True, "said": "B) high", "right": 2, "of": 2}
        == third["answers"]["htsat"]
    )
    assert (
        third["answers"]["mimi_full"] | {"correct": False, "said": "A) low", "right": 0}
        == third["answers"]["mimi_full"]
    )
    low, high, none = third["options"]
    assert [option["right"] for option in third["options"]] == [False, True, False]
    assert high["given"]["htsat"] == pytest.approx(0.75) and low["given"]["htsat"] == pytest.approx(
        0.25
    )
    assert (
        high["picked"] == ["htsat"]
        and low["picked"] == ["mimi_full", "text_only"]
        and none["picked"] == []
    )
    names = [(of["kind"], of["name"]) for of in third["conditions"]]
    assert names == [
        ("protocol", "likelihood"),
        ("protocol", "likelihood_normalised"),
        ("protocol", "generate"),
        ("control", "majority"),
        ("control", "noise"),
        ("control", "option_relabel"),
    ]
    assert (
        third["conditions"][4]["cells"]["htsat"]["parsed"] == "a"
        and third["conditions"][4]["cells"]["text_only"]["parsed"] == "a"
    )
    assert third["conditions"][5]["cells"]["text_only"] is None
    assert rows[6]["conditions"][1]["cells"] == {
        "htsat": {"loss": 2.0},
        "mimi_full": {"loss": 2.0},
        "text_only": None,
    }
    assert (rows[7]["clips"][0]["whole"], rows[7]["clips"][0]["used"]) == (1.6, 1.0) and len(
        rows[6]["clips"]
    ) == 2
    groups = filters(rows)
    assert [group["title"] for group in groups] == [
        "question type",
        "category",
        "htsat",
        "mimi_full",
        "text_only",
    ]
    assert [(box["id"], box["label"], box["n"]) for box in groups[3]["boxes"]] == [
        ("f3-0", "right", 4),
        ("f3-1", "wrong", 2),
    ]
    assert rows[0]["classes"] == ["f0-0", "f1-1", "f2-0", "f3-0", "f4-0"]
    assert rows[7]["classes"][2:] == ["f2-none", "f3-none", "f4-none"]


@pytest.mark.parametrize("hertz", [200, 1000, 5000])
@pytest.mark.parametrize("rate", [24000, 44100])
def test_spectrogram_of_a_pure_tone(hertz, rate):
    shades = spectrogram(np.sin(2 * np.pi * hertz * np.arange(rate) / rate).astype("float32"), rate)
    mel = [2595 * math.log10(1 + f / 700) for f in (hertz, rate / 2)]
    expected = BANDS - 1 - int(BANDS * mel[0] / mel[1])  # the highest band is the first row
    middle = shades[:, shades.shape[1] // 4 : -shades.shape[1] // 4].mean(1)
    assert abs(int(middle.argmax()) - expected) <= 1 and shades.max() == SHADES - 1
    assert middle[abs(np.arange(BANDS) - expected) > 12].max() < SHADES / 2


def test_spectrograms_of_odd_clips():
    silent, short = (
        spectrogram(np.zeros(24000, "float32"), 24000),
        spectrogram(np.ones(10, "float32"), 24000),
    )
    assert silent.max() == 0 and silent.shape[0] == BANDS and short.shape[0] == BANDS
    click = np.zeros(48000, "float32")
    click[12000] = 1.0
    assert (
        abs(spectrogram(click, 24000).sum(0).argmax() / spectrogram(click, 24000).shape[1] - 0.25)
        < 0.02
    )
    shades = np.arange(6, dtype=np.uint8).reshape(2, 3)
    content = png(shades)
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and struct.unpack(">IIBB", content[16:26]) == (
        3,
        2,
        8,
        3,
    )
    at = content.index(b"IDAT")
    size = int.from_bytes(content[at - 4 : at], "big")
    assert zlib.decompress(content[at + 4 : at + 4 + size]) == b"\0\0\1\2\0\3\4\5"
    palette = content[content.index(b"PLTE") + 4 :][: 3 * SHADES]
    assert tuple(palette[:3]) == COLOURS[0] and tuple(palette[-3:]) == COLOURS[-1]


def decoded(uri):
    return soundfile.read(io.BytesIO(base64.b64decode(uri.partition(",")[2])), always_2d=True)


def test_clips_are_small_and_as_long_as_what_was_used(tmp_path, monkeypatch):
    noise = 0.1 * np.random.default_rng(0).standard_normal((12 * 44100, 2))
    soundfile.write(tmp_path / "long.wav", noise, 44100)
    of = picture(str(tmp_path / "long.wav"), 10.0)
    assert (of.whole, of.used) == (12, 10) and of.audio.startswith("data:audio/mpeg;base64,")
    samples, rate = decoded(of.audio)
    assert samples.shape[1] == 1 and abs(len(samples) / rate - 10) < 0.06
    assert (
        len(of.audio) < 120_000 and len(of.spectrogram) < 30_000
    )  # white noise, which nothing makes smaller
    assert of.times == [(0, "0"), (20, "2"), (40, "4"), (60, "6"), (80, "8")]
    assert [text for _, text in of.hertz] == [
        "0.5",
        "1",
        "2",
        "4",
        "8",
        "16",
    ] and of.hertz == sorted(of.hertz, reverse=True)
    assert picture(str(tmp_path / "long.wav"), 10.0) == of  # the same bytes again
    soundfile.write(tmp_path / "rate.wav", noise[:96000], 96000)
    assert picture(str(tmp_path / "rate.wav"), 10.0).audio.startswith(
        "data:audio/ogg"
    )  # MP3 knows no such rate
    for left in (1, 2, 3):
        monkeypatch.setattr(
            report_media, "FORMATS", (("NONE", "NONE", ""), *report_media.FORMATS[-left:])
        )
        samples, _ = decoded(report_media.audio_uri(noise[:4410, 0].astype("float32"), 44100))
        assert len(samples) == 4410
    monkeypatch.setattr(report_media, "FORMATS", (("NONE", "NONE", ""),))
    with pytest.raises(ValueError, match="writes none of NONE"):
        report_media.audio_uri(noise[:4410, 0], 44100)
    soundfile.write(tmp_path / "empty.wav", noise[:0], 44100)
    with pytest.raises(ValueError, match="no samples"):
        picture(str(tmp_path / "empty.wav"), 10.0)


class Tags(HTMLParser):
    """Names of the tags of a page, its attributes and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def test_everything_in_the_report_is_escaped(tmp_path):
    evil = f"x{BREAK_OUT}"
    rows = [answered(i, "htsat", 0, False) for i in range(len(ASKED))]
    for row in rows:
        row |= {
            "filepath1": f"{row['filepath1']}{evil}",
            "category": evil,
            "answer": row["answer"] + evil,
            "input": evil if row["reference"] is None else row["input"].replace("low", evil),
        }
        for answer in row["answers"].values():
            answer |= {"text": evil} if "text" in answer else {}
    deaf = {f"a{evil}": False, f"b{evil}": False, evil: True}
    runs = {arm: [run_of(tmp_path / evil, "htsat", 0, of, rows)] for arm, of in deaf.items()}
    found = compared(runs, note=evil, command=evil)
    curves = {"train_loss": [[10, 2.0]], "eval_loss": {"mcq": [[10, 1.5]]}}
    for of in found["arms"].values():
        of |= {"encoder_type": evil, "encoder_name_or_path": evil, "learning_curves": curves}
    found["best_learning_rates"] = {
        "conclusion": evil,
        "macro": {},
        "statistics": found["statistics"],
        "rates": {evil: {"best": 1e-4, "loss": {evil: 1.0}}},
    }
    probed = {"accuracy": 0.8125, "ci95_low": 0.7, "ci95_high": 0.9}
    found["probes"] = {
        evil: {
            "encoders": {evil: {}},
            "folds": {evil: {"test": 17}, "b": {"test": 3}},
            "results": {evil: {evil: probed}},
            "majority": {"accuracy": 0.1},
        }
    }
    page = html_of(tmp_path, found, runs, tmp_path)  # no clip is there: its path is in the error
    assert "<td>20</td>" in page and "81.2<small>70.0 &ndash; 90.0" in " ".join(
        page.split()
    ).replace(" <small>", "<small>")
    read = Tags(page)
    assert (
        not read.tags & {"script", "img", "iframe", "object", "embed", "base"}
        and page.count("<style>") == 1
    )
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    # nothing is fetched: the only addresses are data, or places of the page
    addresses = [
        value
        for name, value in read.attributes
        if name in ("src", "href", "xlink:href", "action", "srcset")
    ]
    assert addresses and all(value.startswith(("data:", "#")) for value in addresses)
    assert (
        "http://" not in page
        and "https://" not in page
        and "default-src 'none'" in page
        and "script-src" not in page
    )
    assert "<script" not in page and "".join(read.text).count(BREAK_OUT) > 100
    style = page[page.index("<style>") : page.index("</style>")]
    assert "alert" not in style and "url(" not in style and "@import" not in style


def test_reports_of_folders_without_audio(made, tmp_path):
    found, runs = made
    plain = json.loads(json.dumps(found))  # as --evaluations gives it
    for of in plain["arms"].values():
        for name in ("trained_parameters", "tokens_per_clip", "learning_curves"):
            del of[name]
    del plain["rows"]["train"]
    page = html_of(tmp_path, plain, runs, None)
    assert "<audio" not in page and "<image" not in page and "No folder of audio was given" in page
    assert "audio/3.flac" in page and 'id="curves"' not in page
    page = html_of(tmp_path, plain, runs, tmp_path)
    assert (
        "<audio" not in page
        and page.count("Not to be heard here") == 9
        and "there is no file" in page
    )
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "0.flac").write_bytes(b"no audio")
    assert "Not to be heard here: Error opening" in html_of(tmp_path, plain, runs, tmp_path)
    assert "no audio directory is given for" in html_of(
        tmp_path, plain, runs, {"Clotho": str(tmp_path)}
    )


def test_reports_of_other_comparisons(made, audio, tmp_path):
    _, runs = made
    alone = {"htsat": runs["htsat"][:1]}
    page = html_of(tmp_path, compared(alone), alone, audio)
    assert (
        'id="pairs"' not in page
        and "Only the audio encoder differs" not in page
        and "trained  once" in page
    )
    open_rows = {arm: [run_of(audio, arm, 0, rows=of[0].rows[6:])] for arm, of in runs.items()}
    page = html_of(tmp_path, compared(open_rows), open_rows, audio)
    assert (
        'id="accuracy"' not in page
        and 'id="open"' in page
        and "nothing is claimed" in page
        and "Calibration" not in page
    )
    bare = [
        {
            **row,
            "controls": {},
            "answers": {"likelihood": row["answers"].get("likelihood")} if row["reference"] else {},
        }
        for row in runs["htsat"][0].rows
    ]
    bare = {arm: [run_of(audio, arm, 0, rows=bare)] for arm in ("htsat", "mimi_full")}
    page = html_of(tmp_path, compared(bare), bare, audio)
    assert (
        "No control was run" in page
        and 'id="protocols"' not in page
        and "(no text was asked for)" in page
    )
    five = {
        f"{arm}-of-a-rather-long-name-{i}": [run_of(audio, arm, 0)]
        for i, arm in enumerate(["htsat", "mimi_full"] * 3)
    }
    assert len(dot_rows(compared(five), SECTIONS)[0]["lanes"]) == 6 and html_of(
        tmp_path, compared(five), five, audio
    )


def test_figures_say_where_they_come_from(made, audio):
    page = (audio / "report.html").read_text(encoding="utf-8")
    assert (
        "python -m audiolm.evaluation.tables\nhtsat/seed-0/evaluation/predictions.jsonl --max_audio_seconds 1</code>"
        in page
    )
    assert (
        "seed 1: text_only/seed-1/evaluation" in page and "run_compare.py --config x.yaml" in page
    )
    assert (
        shown_folder(Path("/a/b/c"), Path("/a")) == "b/c"
        and shown_folder(Path("/a/b"), Path("/c")) == "/a/b"
    )
    before = (audio / "report.html").read_bytes()
    write_report(audio / "report.html", *made, audio)
    assert (audio / "report.html").read_bytes() == before


@pytest.fixture
def opened(browser, made, audio):
    """The report on a phone; afterwards nothing may have been complained of or fetched."""
    wrong, asked = [], []
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((audio / "report.html").as_uri())
    yield page
    page.close()
    assert not wrong and all(url.startswith(("file:", "data:", "blob:")) for url in asked)


def shown(page):
    rows = page.evaluate(
        "[...document.querySelectorAll('.asked')].filter(r => r.offsetHeight).map(r => r.id)"
    )
    spoken = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    spoken = "".join(
        of["name"]["value"] for of in spoken if of.get("role", {}).get("value") == "StaticText"
    )
    assert f"{len(rows)} of {len(ASKED)} rows shown" in spoken
    return [int(name.removeprefix("row-")) for name in rows]


def test_filters_choose_rows_without_script(opened, made):
    _, runs = made
    assert shown(opened) == [1, 2, 3, 4, 5, 6, 7, 8]
    opened.get_by_role("checkbox", name="multiple choice").check()
    assert shown(opened) == [1, 2, 3, 4]
    opened.get_by_role("checkbox", name="caption").check()
    assert shown(opened) == [1, 2, 3, 4, 8]
    opened.get_by_role("checkbox", name="sound event").check()
    assert shown(opened) == [2, 3]
    opened.get_by_role("button", name="Show all rows").click()
    assert shown(opened) == [1, 2, 3, 4, 5, 6, 7, 8]
    for arm in RIGHT:
        group = opened.get_by_role("group", name=arm)
        wrong = [
            i + 1
            for i, row in enumerate(runs[arm][0].rows)
            if row["reference"] and not row["answers"]["likelihood"]["correct"]
        ]
        group.get_by_role("checkbox", name="wrong").check()
        assert shown(opened) == wrong
        group.get_by_role("checkbox", name="right").check()
        assert shown(opened) == [1, 2, 3, 4, 5, 6]  # the open ones are neither
        group.get_by_role("checkbox", name="right").uncheck()
        group.get_by_role("checkbox", name="wrong").uncheck()
    opened.get_by_role("group", name="htsat").get_by_role("checkbox", name="right").check()
    opened.get_by_role("group", name="mimi_full").get_by_role("checkbox", name="wrong").check()
    assert shown(opened) == [3]


def test_clips_play_and_pictures_are_drawn(opened):
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    lengths = opened.evaluate("""Promise.all([...document.querySelectorAll('audio')].map(async of => {
        while (of.readyState < 1 && !of.error) await new Promise(later => setTimeout(later, 20));
        return of.duration; }))""")
    expected = [min(1.0, SECONDS[i]) for *_, clips in ASKED for i in clips]
    assert len(lengths) == 9 and np.allclose(lengths, expected, atol=0.08)
    heard = opened.evaluate("""(async of => { const ended = new Promise(then => { of.onended = then; });
        await of.play(); await ended; return of.currentTime; })(document.querySelector('audio'))""")
    assert heard == pytest.approx(0.6, abs=0.08)
    sizes = opened.evaluate("""Promise.all([...document.querySelectorAll('image')].map(async of => {
        const image = new Image(); image.src = of.getAttribute('href'); await image.decode();
        return [image.width, image.height, of.getBoundingClientRect().width]; }))""")
    assert len(sizes) == 9 and all(
        height == BANDS and width > 5 and wide > 200 for width, height, wide in sizes
    )
    # three arms in two types, two categories, the mean and all rows
    marks = opened.evaluate(
        "[...document.querySelectorAll('#dots .mark > *')].map(m => m.getBoundingClientRect().width)"
    )
    assert len(marks) == 3 * 6 and all(5 < width < 20 for width in marks)
    lines = opened.evaluate(
        "[...document.querySelectorAll('polyline')].map(l => l.getBoundingClientRect().width)"
    )
    assert len(lines) == 3 * 2 and all(width > 50 for width in lines)


def test_marks_and_bars_in_the_browser_are_where_they_belong(opened, made):
    found, _ = made
    across = """of => { const all = of.closest('.row').querySelector('svg').getBoundingClientRect(),
        mark = of.getBoundingClientRect(); return 100 * (mark.x + mark.width / 2 - all.x) / all.width; }"""
    row = opened.locator("#dots .row", has_text="multiple choice")
    places = [mark.evaluate(across) for mark in row.locator(".mark > *").all()]
    assert np.allclose(places, [87.5, 37.5, 25], atol=0.5)
    control = row.locator(".control > path").first
    assert (
        abs(control.evaluate(across) - 25) < 0.5
        and "noise: 25.0 %" in row.locator(".control title").first.text_content()
    )
    assert row.get_by_role("img").first.get_attribute("aria-label").endswith("majority 50.0 %")
    opened.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    bars = opened.locator("#row-3 .bar .fill").evaluate_all(
        "all => all.map(bar => bar.getBoundingClientRect().width)"
    )
    tracks = opened.locator("#row-3 .bar .track").evaluate_all(
        "all => all.map(bar => bar.getBoundingClientRect().width)"
    )
    assert np.allclose(
        np.divide(bars, tracks), [0.25, 0.75, 0.75, 0.75, 0.25, 0.25, 0, 0, 0], atol=0.01
    )
    assert "right in 2 of 2 seeds" in opened.locator("#row-3").inner_text()
    text = opened.locator("main").inner_text()
    assert found["conclusion"] in text and text.index(found["conclusion"]) < text.index("Accuracy")
    for of in found["arms"].values():
        assert f"{100 * of['macro']['accuracy']:.1f}" in opened.locator(".cards").inner_text()
        assert f"ECE {100 * of['calibration']['ece']:.1f}, 12 answers" in text
    assert (
        "it decides" in text and "greedy text, parsed" in text and "0.111" in text and "cut" in text
    )


def test_by_keyboard(opened):
    """Filters come before the rows; whatever is reached shows that it is."""
    reached = []
    for _ in range(300):
        opened.keyboard.press("Tab")
        name, visible = opened.evaluate("""(() => { const of = document.activeElement; return [
            of.id || of.tagName + '.' + (of.closest('.asked')?.id ?? ''), getComputedStyle(of).outlineStyle != 'none']; })()""")
        assert (
            visible or name == "BODY." or name.startswith("AUDIO")
        )  # which shows it at its buttons
        reached.append(name)
        if name == "BODY.":  # behind the last one
            break
        if name == "f2-1":
            opened.keyboard.press("Space")
            assert opened.get_by_role("group", name="htsat").get_by_role(
                "checkbox", name="wrong"
            ).is_checked() and shown(opened) == [4, 6]
        if name == "BUTTON.":
            opened.keyboard.press("Enter")
            assert len(shown(opened)) == 8
        if name == "SUMMARY.row-2":
            assert not opened.locator("#row-2").evaluate("row => row.open")
            opened.keyboard.press("Enter")
            assert opened.locator("#row-2").evaluate("row => row.open")
    order = [
        reached.index(name)
        for name in (
            "A.",
            "f0-0",
            "f2-1",
            "BUTTON.",
            "SUMMARY.row-1",
            "AUDIO.row-2",
            "SUMMARY.row-8",
        )
    ]
    assert order == sorted(order)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.usefixtures("made")
def test_widths_and_themes(browser, audio, tmp_path, scheme):
    long = "an_arm_of_a_name_that_is_longer_than_a_phone_is_wide_and_has_no_blank"
    many = {
        name: [run_of(audio, arm, 0)]
        for name, arm in zip([long, "b", "c", "d", "e"], ["htsat", "mimi_full"] * 3)
    }
    write_report(tmp_path / "many.html", compared(many, note="n" * 100), many, audio)
    page = browser.new_page(color_scheme=scheme)
    for file in (audio / "report.html", tmp_path / "many.html"):
        page.goto(file.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        for width in (320, 390, 1200):
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 24)"
    assert dark == (scheme == "dark")
    page.close()
