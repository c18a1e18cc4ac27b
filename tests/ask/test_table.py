"""Tables of questions: answered row by row, resumed, and refused where they are not usable."""

import csv
import io
import re
import shutil
from pathlib import Path

import pytest

from audiolm.ask import cli as run_ask
from audiolm.ask import table as question_table
from audiolm.runtime import read_table

QUESTION = "Which sound can be heard?"
OPTIONS = "cricket|engine|footsteps|alarm"


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
    rows.insert(5, {"audio": "audio/test/00000.flac", "question": QUESTION, "options": OPTIONS})
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


def test_output_that_fails_to_be_written_is_one_line(table):
    with pytest.raises(SystemExit, match=r"^audiolm ask: --output /proc/a.csv: not writable: "):
        run_ask.main(["--csv", str(table / "q.csv"), "--output", "/proc/a.csv"])


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
