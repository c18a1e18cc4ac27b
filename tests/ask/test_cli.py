"""Asking: questions with options, several models, tables that resume, the one entry point."""

import csv
import importlib.util
import io
import json
import re
import shutil
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

from audiolm import __main__ as entry
from audiolm import __version__
from audiolm.ask import cli as run_ask
from audiolm.ask import table as question_table
from audiolm.ask.model import LoadedModel
from audiolm.data.answer_parsing import (
    add_options,
    infer_answer_format,
    option_texts,
    parse_answer,
)
from audiolm.data.soundscapes.corpus import make_soundscapes
from audiolm.demo import FOLDER, MODEL_NAMES
from audiolm.evaluation.scores import softmax_scores
from audiolm.runtime import read_table

ROOT = Path(__file__).parents[2]
ALARM = ["Which sound can be heard?", "--options", "cricket", "engine", "footsteps", "alarm"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The demo's test scenes of seed 7, and their rows."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = json.loads(make_soundscapes(folder, 40, 7)["test"].read_text())
    (folder / "not_audio.wav").write_text("RIFF, but no more than that")
    return folder, rows


@pytest.fixture(scope="module")
def model():
    return LoadedModel("mimi_full")


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


def write_questions(scenes, folder) -> Path:
    """Writes a table of 42 questions beside its clips, of which five cannot be answered."""
    shutil.copytree(scenes[0] / "audio", folder / "audio")
    shutil.copyfile(scenes[0] / "not_audio.wav", folder / "not_audio.wav")
    rows = [
        {"audio": row["filepath1"], "audio2": row["filepath2"], "question": row["input"]}
        for row in scenes[1][:36]
    ]
    rows += [
        {"audio": "not_audio.wav", "question": "What?"},
        {"audio": "", "question": "What?"},
        {
            "audio": "audio/test/00000.flac",
            "question": 'Which, of\nthese, "is" it?',
            "options": "only one",
        },
        {"audio": "audio/test/00000.flac", "question": ""},
    ]
    rows.append({"audio": "audio/test/00000.flac", "question": "What? " * 5000})
    rows.insert(
        5, {"audio": "audio/test/00000.flac", "question": ALARM[0], "options": "|".join(ALARM[2:])}
    )
    with open(folder / "q.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "audio", "audio2", "question", "options"])
        writer.writeheader()
        writer.writerows({"id": i, **row} for i, row in enumerate(rows))
    return folder


@pytest.fixture
def table(scenes, tmp_path):
    return write_questions(scenes, tmp_path)


def ask_table(folder, *argv) -> str:
    with pytest.raises(SystemExit) as ended:
        run_ask.main(["--csv", str(folder / "q.csv"), "--output", str(folder / "a.csv"), *argv])
    return ended.value.code


def test_a_table_is_answered_row_by_row(table, scenes, model):
    assert ask_table(table, "--batch_size", "7") == (
        f"audiolm ask: rows not answered: 5. The column `error` of {table}/a.csv says why. "
        "Delete that file to ask all of them again."
    )
    rows = list(csv.DictReader(io.StringIO((table / "a.csv").read_text())))
    assert [row["id"] for row in rows] == [str(i) for i in range(42)]
    assert (
        rows[5]["answer"] == "alarm"
        and rows[5]["text"] == "D) alarm"
        and rows[5]["choice"] == "d"
        and float(rows[5]["probability"]) > 0.9
    )
    errors = {int(row["id"]): row["error"] for row in rows if row["error"]}
    assert list(errors) == [37, 38, 39, 40, 41] and re.search(
        r"have [\d,]+ tokens; mimi_full takes up to [\d,]+$", errors[41]
    )
    assert errors[37].endswith(
        "not_audio.wav: Error opening "
        + repr(str(table / "not_audio.wav"))
        + ": Format not recognised."
    )
    assert (
        errors[38] == "no clip is named"
        and errors[39].startswith("expected 2 to 26 different options")
        and errors[40] == "the question is empty"
    )
    for row in rows[:5] + rows[6:37]:
        clips = [str(table / row[name]) for name in ("audio", "audio2") if row[name]]
        (alone,) = model.ask([row["question"]], [model.encode(clips)])
        assert row["text"] == alone.text
        assert row["answer"] == alone.reply
        assert row["choice"] == (alone.choice or "")
        assert len(row["used_seconds"].split()) == len(clips) and row["model"].startswith(
            "mimi_full "
        )
        if alone.choice:
            assert float(row["probability"]) == pytest.approx(alone.options[alone.choice], abs=2e-4)


def test_table_resumes_wherever_its_output_was_cut(table, model, monkeypatch):
    """The same bytes, and each row is asked at most once more."""
    rows = (table / "q.csv").read_text().split("\n")
    broken = [*rows[:4], '5,nothing.wav,,"Which, of', 'these?",', ""]
    (table / "q.csv").write_bytes("\ufeff".encode() + "\r\n".join(broken).encode())
    argv = ["--csv", table / "q.csv", "--output", table / "a.csv", "--batch_size", "2"]
    args = run_ask.parse_arguments([str(word) for word in argv])
    questions = read_table(args.csv, "audio", "question")
    assert question_table.answer_table(args, questions, model) == 1
    complete = (table / "a.csv").read_bytes()
    answers = {row["id"]: row for row in csv.DictReader(io.StringIO(complete.decode()))}
    columns = question_table.ADDED_COLUMNS
    ids = []

    def look_up(args, rows, model):
        ids.extend(row["id"] for row in rows)
        return [{c: answers[row["id"]][c] for c in columns} for row in rows]

    monkeypatch.setattr(question_table, "answer_rows", look_up)
    digest = question_table.weights_digest(model.model)
    monkeypatch.setattr(question_table, "weights_digest", lambda model: digest)
    for cut in range(0, len(complete) + 1, 5):
        (table / "a.csv").write_bytes(complete[:cut])
        ids.clear()
        question_table.answer_table(args, questions, model)
        assert (table / "a.csv").read_bytes() == complete, cut
        assert len(ids) <= complete[cut:].count(b"\n") + 1, cut


@pytest.fixture(scope="module")
def answered_once(scenes, tmp_path_factory):
    folder = write_questions(scenes, tmp_path_factory.mktemp("answered"))
    ask_table(folder)
    return folder


@pytest.fixture
def answered(answered_once, tmp_path):
    """A table with its answers. No test changes the answers."""
    shutil.copytree(answered_once, tmp_path, dirs_exist_ok=True)
    yield tmp_path
    assert (tmp_path / "a.csv").read_bytes() == (answered_once / "a.csv").read_bytes()


@pytest.mark.parametrize(
    "options", [["--no_audio"], ["--model", "htsat"], ["--max_new_tokens", "9"]]
)
def test_table_of_another_model_is_left_alone(answered, options):
    assert "answers to other questions or of another model" in ask_table(answered, *options)


def test_table_of_other_questions_is_left_alone(answered):
    text = (answered / "q.csv").read_text()
    (answered / "q.csv").write_text(text.replace("Can the cat", "Can the dog", 1))
    assert "answers to other questions" in ask_table(answered)


def test_table_with_fewer_questions_than_answers_is_left_alone(answered):
    text = (answered / "q.csv").read_text()
    (answered / "q.csv").write_text("\n".join(text.split("\n")[:4]) + "\n")
    assert "answers to other questions" in ask_table(answered)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"audio,what\n", "has the columns audio, what: expected audio, question"),
        (b"audio;question\n", "has the columns audio;question: expected"),
        (b"audio,question,answer\n", "expected no column answer or probability"),
        (b"audio,question,question\n", "has the columns audio, question, question: expected"),
        (b"", "No columns to parse from file"),
        (b"\xff\xfe\x00", "not a readable table"),
    ],
)
def test_table_that_cannot_be_read_is_one_line(answered, content, message):
    (answered / "q.csv").write_bytes(content)
    assert message in ask_table(answered)


@pytest.mark.parametrize("output", ["nowhere/a.csv", "audio"])
def test_output_that_cannot_be_written_is_refused(table, output, capsys):
    with pytest.raises(SystemExit) as ended:
        run_ask.main(["--csv", str(table / "q.csv"), "--output", str(table / output)])
    assert ended.value.code == 2
    assert "--output" in capsys.readouterr().err


def test_a_comma_that_is_not_quoted_is_an_error(table):
    (table / "q.csv").write_text(
        "audio,question\naudio/test/00000.flac,What is heard, if anything?\n"
    )
    assert "Expected 2 fields in line 2, saw 3" in ask_table(table)


def test_a_row_without_a_question_says_so(table):
    (table / "q.csv").write_text("audio,question\naudio/test/00000.flac\n")
    ask_table(table)
    (row,) = csv.DictReader(io.StringIO((table / "a.csv").read_text()))
    assert row["error"] == "the question is empty"


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


def test_one_entry_point(capsys):
    with pytest.raises(SystemExit) as ended:
        entry.main(["--help"])
    text = capsys.readouterr().out
    assert not ended.value.code and text.startswith("usage: audiolm")
    for command, module in entry.COMMANDS.items():
        assert (
            f"  {command} " in text
            and ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file()
            and len(entry.first_docstring_line(module)) > 15
        )
    entry.main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"
    for argv, message in (
        (["trian"], "audiolm: unknown command 'trian'. Commands: ask, app, train, "),
        ([], ""),
    ):
        with pytest.raises(SystemExit) as ended:
            entry.main(argv)
        assert ended.value.code == 2 and capsys.readouterr().err.startswith(message)
    light = (
        "import sys; from audiolm import __main__; from audiolm.ask import cli; "
        "__main__.help_text(); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", light]).returncode == 0


@pytest.mark.parametrize("command", [name for name in entry.COMMANDS if name not in ("ask", "app")])
def test_each_command_is_its_script(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["audiolm"])
    with pytest.raises(SystemExit) as ended:
        entry.main([command, "--no_such_option"])
    assert ended.value.code == 2
    assert f"audiolm {command}" in capsys.readouterr().err


def test_the_page_of_options_is_what_the_commands_say():
    spec = importlib.util.spec_from_file_location(
        "build_commands", ROOT / "docs" / "build_commands.py"
    )
    build_commands = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build_commands)
    saved = json.loads((ROOT / "configs" / "options.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert build_commands.build_page(saved) == page, "run: python docs/build_commands.py"
    assert build_commands.build_options() == saved, "run: python docs/build_commands.py"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--encoder_typ", "htsat"], "unrecognized arguments: --encoder_typ. Did you mean"),
        (["--max_steps", "ten"], "--max_steps 'ten': expected a whole number"),
        (["--max-steps=1.5"], "--max-steps '1.5': expected a whole number"),
        (["--learning_rate", "fast"], "--learning_rate 'fast': expected a number"),
    ],
)
def test_answer_early_refuses_wrong_options_without_torch(argv, message):
    program = f"import sys; sys.argv[1:] = {argv}; from audiolm.run_train import main; "
    program += "import atexit; atexit.register(lambda: print('torch' in sys.modules)); main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"run_train.py: error: {message}")
    assert done.stdout == "False\n"


@pytest.mark.parametrize("command", [*entry.COMMANDS, "prepare download"])
def test_help_of_each_command_needs_no_torch(command):
    program = f"import sys; from audiolm.__main__ import main; main({[*command.split(), '--help']})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")


def test_help_all_lists_stock_options_that_help_leaves_out(capsys):
    texts = []
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit):
            entry.answer_early("train", [flag], "run_train.py")
        texts.append(capsys.readouterr().out)
    assert "--adam_beta1" not in texts[0]
    assert "--adam_beta1" in texts[1]
    assert len(texts[0].splitlines()) < 150
