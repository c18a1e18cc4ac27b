"""Asking: questions with options, several models, wrong input, and the demo's models."""

import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from audiolm.ask import cli as run_ask
from audiolm.ask.model import LoadedModel
from audiolm.data.answer_parsing import (
    add_options,
    infer_answer_format,
    option_texts,
    parse_answer,
)
from audiolm.demo import FOLDER, MODEL_NAMES
from audiolm.evaluation.scores import softmax_scores

ROOT = Path(__file__).parents[2]
ALARM = ["Which sound can be heard?", "--options", "cricket", "engine", "footsteps", "alarm"]


def clip(scenes, number: int = 0) -> str:
    return str(scenes[0] / "audio" / "test" / f"{number:05}.flac")


def test_options_become_reasonaqas_words():
    assert add_options(" Which? ", []) == "Which?" and infer_answer_format("Which?") == "open"
    requested = add_options("Which?", ["rain", " a dog ", ""])
    assert requested == "Which? A) rain B) a dog" and infer_answer_format(requested) == "mcq"
    requested = add_options("Is it rain?", ["No", "yes"])
    assert (
        requested == "Is it rain? Answer only using yes or no."
        and infer_answer_format(requested) == "yes_no"
    )
    assert add_options(requested, ["yes", "no"]) == requested
    for wrong in (["rain"], ["rain", "Rain"], [str(i) for i in range(27)], ["a b) c", "d"]):
        with pytest.raises(ValueError):
            add_options("Which?", wrong)
    with pytest.raises(ValueError, match="options already"):
        add_options(requested, ["a", "b"])


@given(
    st.lists(
        st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1), min_size=2, max_size=8
    )
)
def test_options_are_read_as_they_were_given_or_refused(given_options):
    try:
        requested = add_options("Which?", given_options)
    except ValueError:
        return
    if infer_answer_format(requested) == "mcq":
        assert list(option_texts(requested).values()) == [
            option.strip() for option in given_options if option.strip()
        ]


def test_probabilities_are_of_the_sums():
    actual = softmax_scores({"a": (-1000.0, 3), "b": (-1000.0 - np.log(3), 1)})
    assert actual == pytest.approx({"a": 0.75, "b": 0.25}) and softmax_scores({}) == {}


def test_a_question(scenes, capsys):
    run_ask.main([clip(scenes), *ALARM])
    out, err = capsys.readouterr()
    answer, shares, text = out.splitlines()
    assert answer.startswith("alarm (99.")
    assert shares.startswith("    A) cricket ")
    assert "D) alarm 99." in shares
    assert text == "    free text: D) alarm"
    assert "mimi_full; a demo model, which knows synthetic sounds only; encoded in " in err


def test_several_models_as_json(scenes, capsys):
    run_ask.main([clip(scenes), *ALARM, "--model", *MODEL_NAMES, "--json"])
    actual = json.loads(capsys.readouterr().out)
    assert (
        actual["question"] == "Which sound can be heard? A) cricket B) engine C) footsteps D) alarm"
    )
    assert actual["clips"] == [clip(scenes)] and [
        entry_values["model"] for entry_values in actual["answers"]
    ] == list(MODEL_NAMES)
    for entry_values in actual["answers"]:
        assert (
            entry_values["choice"] == "d"
            and sum(entry_values["options"].values()) == pytest.approx(1, abs=1e-4)
            and entry_values["text"]
        )
        assert entry_values["answer"] == "alarm"
        assert entry_values["probability"] == pytest.approx(
            entry_values["options"]["D) alarm"], abs=1e-6
        )
        assert (
            entry_values["seconds"]["clips"] == entry_values["seconds"]["used"] == [4.208]
            and not entry_values["no_audio"]
        )


def test_muted_only_the_clips_length_is_known(scenes, model):
    question, features = (
        add_options(ALARM[0], ALARM[2:]),
        {i: model.encode([clip(scenes, i)]) for i in range(8)},
    )
    by_frames: dict[int, set] = {}
    for encoded in features.values():
        (answer,) = model.ask([question], [encoded], no_audio=True)
        by_frames.setdefault(encoded[0].features.shape[-1], set()).add(
            (answer.text, *answer.options.values())
        )
    assert all(len(actual) == 1 for actual in by_frames.values())
    encoded = {
        model.ask([question], [entry_values])[0].options["d"] for entry_values in features.values()
    }
    assert max(encoded) > 0.9 and min(encoded) < 0.1


def test_of_a_long_clip_it_says_what_was_heard(scenes, tmp_path, capsys):
    soundfile.write(tmp_path / "long.wav", 0.1 * np.sin(np.arange(12 * 24000) / 9), 24000)
    run_ask.main([str(tmp_path / "long.wav"), clip(scenes), "explain the difference in few words"])
    assert "clip 1: only the first 5 of 12.0 s were used;" in capsys.readouterr().err


def test_standard_input(scenes, monkeypatch, capsys):
    def run(*argv, entry_values: bytes) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(entry_values)))
        run_ask.main(list(argv))
        return capsys.readouterr().out.splitlines()[0]

    content = Path(clip(scenes)).read_bytes()
    assert run("-", *ALARM, entry_values=content).startswith("alarm (99.")
    answer = run(clip(scenes), "-", *ALARM[1:], entry_values=b"Which sound can be heard?\n")
    assert answer.startswith("alarm (99.")
    with pytest.raises(SystemExit, match=r"^audiolm ask: a clip without a name: "):
        run("-", "What?", entry_values=b"no audio")
    with pytest.raises(SystemExit, match="the question is empty"):
        run("-", "-", entry_values=b"no audio")
    argv = [sys.executable, "-m", "audiolm", "ask", "-", *ALARM]
    done = subprocess.run(
        argv, input=Path(clip(scenes)).read_bytes(), capture_output=True, cwd=scenes[0]
    )
    assert (done.returncode, done.stdout.split(b"\n")[0]) == (0, b"alarm (99.9%)")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (
            ["clip"],
            2,
            "expected one or two clips and a question, before --options and --model; got 1",
        ),
        (["a", "b", "c", "d"], 2, "got 4"),
        (["CLIP", "What?", "--max_new_tokens", "0"], 2, "--max_new_tokens 0: expected 1 or more"),
        (
            ["CLIP", "What?", "--csv", "q.csv", "--output", "a.csv"],
            2,
            "--csv: the table holds clips, questions and options",
        ),
        (["--csv", "q.csv"], 2, "--csv and --output: give both or neither"),
        (
            ["CLIP", "What?", "--model", "a", "b", "--revision", "main"],
            2,
            "--revision: needs exactly one --model",
        ),
        (["missing.wav", "What?"], 1, "audiolm ask: missing.wav: file not found"),
        (["NOT_AUDIO", "What?"], 1, "not_audio.wav: Error opening"),
        (["CLIP", "  "], 1, "the question is empty"),
        (["CLIP", "CLIP"], 2, "is a file, but the question comes last"),
        (["CLIP", "What\udcff?"], 1, "the question is not valid UTF-8 text"),
        (
            ["CLIP", "What?", "--options", "A) rain", "B) wind"],
            1,
            "pass the options without letters: they are added",
        ),
        (["CLIP", "What?", "--options", "rain"], 1, "expected 2 to 26 different options"),
        (["CLIP", "What?", "--revision", "main"], 1, "models/mimi_full is not on the Hub"),
        (
            ["CLIP", "What?", "--model", "nothing"],
            1,
            "audiolm ask: --model nothing is neither a folder with config.json nor a Hub",
        ),
    ],
)
def test_what_is_wrong_is_one_line(scenes, argv, code, message, capsys):
    named = {"CLIP": clip(scenes), "NOT_AUDIO": str(scenes[0] / "not_audio.wav")}
    with pytest.raises(SystemExit) as ended:
        run_ask.main([named.get(word, word) for word in argv])
    output_values = (
        ended.value.code
        if isinstance(ended.value.code, str)
        else capsys.readouterr().err.splitlines()[-1]
    )
    assert (
        message in output_values
        and "\n" not in output_values
        and (1 if isinstance(ended.value.code, str) else ended.value.code) == code
    )


def test_asking_leaves_no_thread_behind(scenes, model):
    before = threading.active_count()
    for _ in range(20):
        model.encode([clip(scenes), clip(scenes, 1)])
    time.sleep(0.2)
    assert threading.active_count() <= before + 1


def test_the_demos_models_are_whole():
    for arm in MODEL_NAMES:
        folder = FOLDER / arm
        model = LoadedModel(arm)
        assert model.model.config.encoder_type == arm and model.is_demo
        assert LoadedModel(str(folder)).is_demo is False
        config = (folder / "config.json").read_text()
        assert "/home" not in config and "/root" not in config and "/tmp" not in config


def test_the_demos_models_listen(scenes):
    """They answer many more of 72 closed questions about new scenes with the audio than without."""
    folder, rows = scenes
    rows = [row for row in rows if infer_answer_format(row["input"]) != "open"]
    clips = [
        [str(folder / row[name]) for name in ("filepath1", "filepath2") if row[name]]
        for row in rows
    ]
    every = sorted({clip for entry_values in clips for clip in entry_values})
    for arm in MODEL_NAMES:
        model, right = LoadedModel(arm), []
        encoded = dict(zip(every, model.encode(every)))
        for muted in (False, True):
            requested = [row["input"] for row in rows]
            answers = model.ask(
                requested,
                [[encoded[clip] for clip in entry_values] for entry_values in clips],
                no_audio=muted,
            )
            right.append(
                sum(
                    answer.choice
                    == parse_answer(infer_answer_format(row["input"]), row["input"], row["answer"])
                    for row, answer in zip(rows, answers)
                )
            )
        assert len(rows) == 72 and right[0] > 36 and right[0] - right[1] > 10, (arm, right)
