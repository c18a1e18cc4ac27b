"""`run_prepare.py check`: each kind of damage is counted, named and decides the exit status; verdicts are remembered."""

import csv
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from support.builders import EMPTY, MCQ, SHARED, YES_NO, clip, needs_shared

from audiolm.data import audio_check as audio
from audiolm.data import check_audio, load_reasonaqa
from audiolm.data import prepare as run_prepare
from audiolm.data.audio_check import clip_facts, inspect_clips
from audiolm.data.cache import Remembered
from audiolm.data.corpus_check import CLIP_KINDS, CorpusCheck, table

RATE = 8000
TALK = {"subtype": "T.json", "input": "caption first audio"}
ONE, FOUR = (
    {**MCQ, "input": "Which? A) low"},
    {**MCQ, "input": "Which? A) dog B) cat C) cow D) hen"},
)
SAME = {**YES_NO, "input": "IS it\n low? Answer only using yes or no."}  # the same question


def row(kind, answer, name="t0.wav", **more):
    return {**EMPTY, "filepath1": name, "answer": answer, **kind, **more}


def write(folder, name, seconds=0.6, gain=1.0, seed=0):
    soundfile.write(folder / "audio" / name, gain * clip(seconds, RATE, seed), RATE)


def add(folder, split, *rows):
    file = folder / f"{split}.json"
    file.write_text(json.dumps([*(json.loads(file.read_text()) if file.exists() else []), *rows]))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A corpus with nothing the matter: a question about t0, t1 and t2 to train on, about v0 and about e0."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data" / "audio").mkdir(parents=True)
    for seed, (name, split) in enumerate(
        [("t0", "train"), ("t1", "train"), ("t2", "train"), ("v0", "val"), ("e0", "test")]
    ):
        write(tmp_path / "data", f"{name}.wav", seed=seed)
        add(tmp_path / "data", split, row(YES_NO, "yes", f"{name}.wav"))
    return tmp_path / "data"


@pytest.fixture
def check(folder, capsys):
    def checked(*options, data=folder):
        """Exit status, what is printed with single spaces, the report, and its count of each finding."""
        output = folder.parent / "made" / "check.json"
        with pytest.raises(SystemExit) as end:
            run_prepare.main(["check", str(data), "--output", str(output), *map(str, options)])
        report, printed = json.loads(output.read_text()), " ".join(capsys.readouterr().out.split())
        for name, finding in report["findings"].items():
            assert (
                f"{'WRONG' if finding['wrong'] else 'note'} {finding['count']} {name}: {finding['what_to_do']}"
                in printed
            )
            assert " ".join(finding["examples"][0].split()) in printed
        return (
            end.value.code,
            printed,
            report,
            {name: finding["count"] for name, finding in report["findings"].items()},
        )

    return checked


@needs_shared
def test_nothing_is_the_matter_with_mini_reasonaqa(check, monkeypatch):
    first = status, printed, report, _ = check(data=SHARED)
    assert (
        status == 0
        and report["wrong"] == []
        and "WRONG" not in printed
        and "train all 4,372 480 480 0 0 0 0 0 0" in printed
    )
    parts = {split: subtypes["all"] for split, subtypes in report["splits"].items()}
    assert {split: part["rows"] for split, part in parts.items()} == {
        "train": 4372,
        "val": 1436,
        "test": 1444,
    }
    assert (
        sum(part["found"] for part in parts.values())
        == sum(part["clips"] for part in parts.values())
        == 800
    )
    monkeypatch.setattr(
        audio.soundfile, "SoundFile", None
    )  # nothing can be decoded: all is remembered
    assert check(data=SHARED) == first


BAD = [  # of which kind t1 is, what is said of it, and what is done to it
    ("missing", "missing", Path.unlink),
    ("unreadable", "not readable as audio", lambda file: file.write_text("this is no audio")),
    ("unreadable", "empty file", lambda file: file.write_bytes(b"")),
    ("unreadable", "truncated: 5000 of 9644 bytes", lambda file: os.truncate(file, 5000)),
    ("not finite", "NaN or infinite samples", np.array([0.1, np.nan] * 3000)),
    ("too loud", "samples up to 2.5", np.full(6000, -2.5)),
    ("silent", "0.75 s, peak 0.00009", np.full(6000, 9e-5)),
    ("too short", "0.49 s, peak 0.50000", np.full(3920, 0.5)),
    ("nothing", "", np.full(84800, 0.5)),  # 10.6 s, of which 10 s are used
]


@pytest.mark.parametrize("case", BAD, ids=itertools.count())
def test_a_clip(case, folder, check):
    (kind, said, spoil), file = case, folder / "audio" / "t1.wav"
    spoil(file) if callable(spoil) else soundfile.write(file, spoil, RATE, subtype="FLOAT")
    add(folder, "train", row(TALK, "A dog.", "t1.wav"))  # a clip counts once
    status, printed, report, counts = check()
    part = {
        "rows": 4,
        "clips": 3,
        "found": 3 - (kind == "missing"),
        **{k: int(k == kind) for k in CLIP_KINDS},
    }
    assert {
        k: report["splits"]["train"]["all"][k] for k in part
    } == part and "val all 1 1 1 0 0 0 0 0 0" in printed
    assert f"train all {' '.join(map(str, part.values()))} 0.00" in printed
    assert bool(check_audio([str(file)])) == (
        kind not in ("silent", "too short", "nothing")
    )  # these can be used
    if kind == "nothing":
        assert (status, counts) == (0, {}) and report["splits"]["train"]["all"][
            "seconds"
        ] == 0.6 + 0.6 + 10
        return
    assert (status, counts, report["wrong"]) == (
        1,
        {kind: 1},
        [kind],
    ) and f"would be wrong: {kind}" in printed
    assert report["findings"][kind]["examples"][0].startswith(f"{file}: {said}")
    status, printed, report, counts = check("--allow", kind)
    assert (status, counts, report["wrong"]) == (
        0,
        {kind: 1},
        [],
    ) and "nothing in it makes training on it wrong" in printed


ROWS = [  # a finding and how often it is made, what is said of the first, and the rows that are added to a split
    ("same clip in two splits", 1, "train and val: t0.wav", "val", row(TALK, "x")),
    (
        "same clip in two splits",
        1,
        "val and test: e0.wav",
        "val",
        row(TALK, "x", "v0.wav", filepath2="e0.wav"),
    ),
    (
        "same audio in two splits",
        1,
        "train and test: t0.wav is copy.flac",
        "test",
        row(TALK, "x", "copy.flac"),
    ),
    ("same audio in two splits", 0, "", "test", row(TALK, "x", "slow.wav")),
    (
        "unparsable",
        1,
        f"val row 1: {ONE['input']!r} → 'A) low'",
        "val",
        row(ONE, "A) low", "v0.wav"),
    ),
    (
        "unparsable",
        2,
        f"train row 3: {MCQ['input']!r} → 'C) mid'",
        "train",
        row(MCQ, "C) mid"),
        row(MCQ, "mid", "t1.wav"),
    ),
    (
        "unparsable",
        1,
        "train row 3: ",
        "train",
        row({**YES_NO, "input": "Is it? Answer using yes or no."}, "maybe"),
    ),
    (
        "contradiction",
        1,
        "train row 4: t0.wav: ",
        "train",
        row(SAME, "Yes."),
        row(SAME, "no"),
        row(SAME, "no"),
    ),
    (
        "contradiction",
        1,
        f"train row 4: t0.wav: {MCQ['input']!r} → 'low' and 'high'",
        "train",
        row(MCQ, "low"),
        row(MCQ, "B"),
    ),
    (
        "contradiction",
        0,
        "",
        "train",
        row(MCQ, "A) low"),
        row(MCQ, "low"),
        row(MCQ, "B)", "t1.wav"),
    ),
    (
        "long answer",
        1,
        "train row 4: 6 words",
        "train",
        row(TALK, "a b c d e"),
        row(TALK, "a b c d e f"),
    ),
    # always b is 0.75 above chance; 3 standard errors are 3 × √(3/16 / 4) = 0.65 for 4 rows, and 0.92 for 2
    (
        "leaning letter",
        1,
        "train T-MCQ: 'b' is right in 4 of 4, by chance 0.250",
        "train",
        *[row(FOUR, "B) cat")] * 4,
    ),
    ("leaning letter", 0, "", "train", *[row(FOUR, "B) cat")] * 2),
]


@pytest.mark.parametrize("case", ROWS, ids=itertools.count())
def test_rows(case, folder, check):
    finding, count, named, split, *rows = case
    samples, _ = soundfile.read(folder / "audio" / "t0.wav", dtype="int16")
    soundfile.write(folder / "audio" / "copy.flac", samples, RATE)
    soundfile.write(folder / "audio" / "slow.wav", samples, RATE // 2)
    add(folder, split, *rows)
    status, printed, report, counts = check("--max_answer_words", 5)
    wrong = [
        name for name in counts if name not in ("contradiction", "long answer", "leaning letter")
    ]
    assert (
        counts == ({finding: count} if count else {})
        and report["wrong"] == wrong
        and status == len(wrong)
    )
    assert not count or report["findings"][finding]["examples"][0].startswith(named)
    assert not wrong or check("--allow", finding)[0] == 0
    assert finding != "leaning letter" or f"train T-MCQ b 1.000 0.250 b {len(rows)}" in printed


def test_entailment_labels(folder, check):
    labels = [
        [
            "Prompt",
            "Dataset",
            "Audio file",
            "Caption",
            "Entailment",
            "Neutral",
            "Contradiction",
            "Full response",
        ],
        [
            "p",
            "Clotho",
            "t0.wav",
            "c",
            "A dog barks.",
            "It is, say, old.",
            "Nothing is heard.",
            "1\n2",
        ],
        ["p", "Clotho", "Mom&amp;Dad.wav", "c", "Two talk.", "They are wed.", "One sings.", "1"],
    ]
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(labels)
    write(folder, "Mom&Dad.wav", seed=7)
    said = {
        "t": "a) It is definitely true",
        "f": "b) It is definitely false",
        "p": "c) It is plausible.",
    }
    for name, hypothesis, answer in [
        ("t0", "A dog barks.", "t"),
        ("t0", "It is, say, old.", "f"),
        ("t0", "Nothing  is heard.", "f"),
        ("Mom&amp;Dad", "They are wed.", "p"),
        ("Mom&Dad", "One sings.", "t"),
        ("t0", "Who knows?", "f"),
        ("t2", "A dog barks.", "p"),
    ]:
        asked = f'what can be said about the hypothesis - "{hypothesis}"? {" ".join(said.values())} d) I cannot determine'
        add(
            folder,
            "train",
            row({"subtype": "CLE.json", "input": asked}, said[answer], f"{name}.wav"),
        )
    status, _, report, _ = check()
    assert status == 0 and report["entailment_labels"] is None
    status, printed, report, _ = check("--entailment_csv", folder / "labels.csv")
    assert status == 1 and report["entailment_labels"] == {"right": 3, "wrong": 2, "unknown": 2}
    assert "CLE against AudioEntailment's labels: 3 right, 2 unknown, 2 wrong" in printed
    one, two = report["findings"]["wrong entailment label"]["examples"]
    assert (
        one.startswith("train row 4: 'b) It is definitely false' instead of 'it is plausible'")
        and "train row 7" in two
    )
    assert (
        check("--entailment_csv", folder / "labels.csv", "--allow", "wrong entailment label")[0]
        == 0
    )


@pytest.mark.parametrize(
    "text, said",
    [
        ('[{"input": "x"}]', ", row 0: field 'taskname' is"),
        ("[1]", ", row 0: an object"),
        ("[", ": not a readable JSON file"),
    ],
)
def test_a_row_that_cannot_be_read(text, said, folder):
    (folder / "val.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        run_prepare.main(["check", str(folder), "--output", str(folder / "check.json")])
    assert end.value.code.startswith(f"run_prepare.py check: {folder}/val.json{said}")
    assert "\n" not in end.value.code and not (folder / "check.json").exists()


def looked(folder, used=10.0, stop=10**9, wait=None):
    """Facts of all clips as they came, and which were looked at; after `stop` of them it is as if Ctrl-C were pressed."""
    seen, numbers = [], itertools.count()

    def look(path, seconds):
        if next(numbers) >= stop:
            raise KeyboardInterrupt
        seen.append(Path(path).stem)
        time.sleep((wait or {}).get(path, 0))
        return clip_facts(path, seconds)

    return inspect_clips(
        sorted(map(str, (folder / "audio").iterdir())) * 2, used, look=look
    ), sorted(seen)


def test_a_file_is_looked_at_once_until_it_changes(folder):
    facts, seen = looked(folder)
    assert seen == ["e0", "t0", "t1", "t2", "v0"] and looked(folder) == (facts, [])
    write(folder, "t1.wav", gain=0)  # of the same size
    (folder / "audio" / "t2.wav").unlink()
    changed = inspect_clips(list(facts))
    assert [changed[str(folder / "audio" / f"t{i}.wav")].kind for i in range(3)] == [
        "sound",
        "silent",
        "missing",
    ]
    assert (
        looked(folder)[1] == [] and len(looked(folder, 0.3)[1]) == 4
    )  # other seconds of them are used


def test_an_interruption_keeps_what_was_found(folder, monkeypatch):
    monkeypatch.setattr(audio, "AT_ONCE", 4)
    monkeypatch.setattr(audio, "ThreadPoolExecutor", lambda: ThreadPoolExecutor(2))
    for seed in range(15):
        write(folder, f"more{seed}.wav", seed=seed)
    with pytest.raises(KeyboardInterrupt):
        looked(folder, stop=7)
    assert len(looked(folder)[1]) == 13 and looked(folder)[1] == []


def test_the_order_of_workers_does_not_change_the_report(folder, monkeypatch):
    for i in range(9):
        write(folder, f"mute{i}.wav", gain=0)
        add(folder, "train", row(TALK, "x", f"mute{i}.wav"))
    data, clips, came = (
        load_reasonaqa({"train": folder / "train.json"}, folder / "audio"),
        sorted(looked(folder)[0]),
        [],
    )
    for order in (clips, clips[::-1]):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / order[0][-8:]))
        came.append(looked(folder, wait={c: 0.01 * i for i, c in enumerate(order)})[0])
    one, two = (CorpusCheck(data, facts).report() for facts in came)
    assert list(came[0]) != list(came[1]) and one["findings"]["silent"]["count"] == 9
    assert json.dumps(one) == json.dumps(two) and table(one) == table(two)


@pytest.mark.parametrize(
    "tear", [lambda b: b"torn" * 99, lambda b: b[:9000], lambda b: b[:4096] + b"\1" * len(b[4096:])]
)
def test_a_torn_file_is_made_anew(tear, tmp_path, caplog):
    file, values = tmp_path / "known.sqlite", {f"key {i}": [i, "x" * 50] for i in range(2000)}
    Remembered(file).put(values)
    assert Remembered(file).get([*values, "no key"]) == values
    file.write_bytes(tear(file.read_bytes()))
    torn = Remembered(file)
    assert len(torn.get(list(values))) < 2000
    torn.put({"new": 1})
    assert Remembered(file).get(["new"]) == {"new": 1} and caplog.text == ""


def test_where_nothing_can_be_remembered(folder, check, caplog, monkeypatch):
    first = check()
    (folder.parent / "cache" / "audiolm" / "audio_checks.sqlite").write_bytes(b"torn" * 99)
    with (
        monkeypatch.context() as locked
    ):  # root may do anything, so that a folder's mode would not do
        locked.setattr(Path, "unlink", Mock(side_effect=PermissionError("locked")))
        assert check() == first and caplog.text.count("cannot be used (locked)") == 1
    (folder / "file").write_text("a file where a folder is wanted")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    assert check() == first and caplog.text.count("cannot be used") == 2


WRITER = """
import pathlib, runpy, sys
_, module, folder, name = sys.argv
pathlib.Path(folder, name).touch()
while len(list(pathlib.Path(folder).glob("?"))) < 2: pass
for i in range(50):
    known = runpy.run_path(module)["Remembered"](folder + "/known.sqlite")
    known.put({f"{name} {i}": i, "both": i})
    assert known.get([f"{name} {i}"])
"""


def test_two_processes_at_once(tmp_path):
    words = [
        sys.executable,
        "-c",
        WRITER,
        audio.__file__.replace("audio_check.py", "cache.py"),
        str(tmp_path),
    ]
    both = [subprocess.Popen([*words, name], stderr=subprocess.PIPE, text=True) for name in "ab"]
    assert [(process.communicate()[1], process.returncode) for process in both] == [("", 0)] * 2
    wanted = {f"{name} {i}": i for name in "ab" for i in range(50)} | {"both": 49}
    assert Remembered(tmp_path / "known.sqlite").get(list(wanted)) == wanted


@needs_shared
def test_every_damage_at_once_in_a_copy_of_mini_reasonaqa(check, tmp_path):
    copy = tmp_path / "mini"
    (copy / "audio" / "ESC10").mkdir(parents=True)
    for file in (SHARED / "audio" / "ESC10").iterdir():
        (copy / "audio" / "ESC10" / file.name).symlink_to(file)
    rows = {
        split: json.loads((SHARED / f"{split}.json").read_text())
        for split in ("train", "val", "test")
    }
    of_train, of_val = (
        sorted({row["filepath1"] for row in rows[split]}) for split in ("train", "val")
    )
    damage = {
        "missing": None,
        "unreadable": b"no audio",
        "not finite": np.array([0.1, np.nan] * 30_000),
        "silent": np.zeros(60_000),
        "too loud": np.full(60_000, 100.0),
        "too short": np.full(4_000, 0.3),
    }
    for name, content in zip(of_train, damage.values()):
        file = copy / "audio" / name
        file.unlink()
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:  # by its content, whatever it is called
            soundfile.write(file, content, 44_100, format="WAV", subtype="FLOAT")
    (copy / "audio" / "ESC10" / "other.ogg").symlink_to(copy / "audio" / of_val[0])
    about = {row["subtype"]: row for row in rows["train"] if row["filepath1"] == of_train[9]}
    yes_no, mcq = about["ESC10AQA.json"], about["ESC10-MCQ.json"]
    again = {**yes_no, "input": "is it? Answer only using yes or no."}
    rows["train"] += [
        {**yes_no, "answer": "no" if yes_no["answer"] == "yes" else "yes"},
        {**mcq, "answer": "e) all"},
        {**again, "filepath1": of_val[1]},
        {**again, "filepath1": "ESC10/other.ogg"},
        {**rows["train"][0], "subtype": "ESC10-Detail.json", "answer": "and " * 301},
    ]
    for split, content in rows.items():
        (copy / f"{split}.json").write_text(json.dumps(content))
    status, printed, report, counts = check(data=copy)
    counts.pop("leaning letter", None)
    assert status == 1 and counts == {
        **dict.fromkeys(damage, 1),
        "same clip in two splits": 1,
        "same audio in two splits": 1,
        "unparsable": 1,
        "contradiction": 2,
        "long answer": 1,  # what cannot be parsed contradicts too
    }
    assert (
        "train all 4,377 482 481 1 1 1 1 1 1" in printed
        and "val all 1,436 160 160 0 0 0 0 0 0" in printed
    )
    assert report["findings"]["missing"]["examples"] == [f"{copy / 'audio' / of_train[0]}: missing"]
