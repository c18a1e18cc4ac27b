"""`audiolm prepare check`: each kind of damage is counted, named and sets the exit status."""

import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from support.builders import EMPTY, MCQ, SHARED, YES_NO, clip, needs_shared
from support.recordings import make_recording

from audiolm.data import audio_check, prepare
from audiolm.data.audio_check import check_audio, clip_facts, inspect_clips
from audiolm.data.audit.corpus_check import CLIP_PROBLEMS, check_corpus, format_report
from audiolm.data.reasonaqa import load_rows

RATE = 8000
CAPTION = {"subtype": "T.json", "input": "caption first audio"}
ONE_OPTION = {**MCQ, "input": "Which? A) low"}
FOUR_OPTIONS = {**MCQ, "input": "Which? A) dog B) cat C) cow D) hen"}
# The question of YES_NO in another case and with other spaces.
SAME_QUESTION = {**YES_NO, "input": "IS it\n low? Answer only using yes or no."}


def row(question, answer, name="t0.wav", **more):
    return {**EMPTY, "filepath1": name, "answer": answer, **question, **more}


def write(folder, name, seconds=0.6, gain=1.0, seed=0):
    soundfile.write(folder / "audio" / name, gain * clip(seconds, RATE, seed), RATE)


def add(folder, split, *rows):
    file = folder / f"{split}.json"
    earlier = json.loads(file.read_text()) if file.exists() else []
    file.write_text(json.dumps([*earlier, *rows]))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A corpus without findings: one question about each of t0, t1, t2 (train), v0 and e0."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "data"
    (data / "audio").mkdir(parents=True)
    names = {"t0": "train", "t1": "train", "t2": "train", "v0": "val", "e0": "test"}
    for seed, (name, split) in enumerate(names.items()):
        write(data, f"{name}.wav", seed=seed)
        add(data, split, row(YES_NO, "yes", f"{name}.wav"))
    return data


class Result(NamedTuple):
    """Result of a check. `printed` has single spaces."""

    status: int
    printed: str
    report: dict

    @property
    def counts(self) -> dict[str, int]:
        return {name: finding["count"] for name, finding in self.report["findings"].items()}

    def part(self, split: str) -> dict:
        """The counts of a split over all subtypes."""
        parts = self.report["splits"]
        return next(part for part in parts if (part["split"], part["subtype"]) == (split, "all"))

    def examples(self, name: str) -> list[str]:
        return self.report["findings"][name]["examples"]


@pytest.fixture
def check(folder, capsys):
    def run_check(*options, data=folder) -> Result:
        output = folder.parent / "made" / "check.json"
        argv = ["check", str(data), "--output", str(output), *map(str, options)]
        with pytest.raises(SystemExit) as end:
            prepare.main(argv)
        printed = " ".join(capsys.readouterr().out.split())
        return Result(end.value.code, printed, json.loads(output.read_text()))

    return run_check


@needs_shared
def test_check_of_mini_reasonaqa_finds_its_one_copy_and_is_cached(check, monkeypatch):
    """ESC-10 holds one recording twice, in folds 3 and 5."""
    result = check(data=SHARED)
    assert result.status == 1
    assert result.report["wrong"] == ["copied audio in two splits"]
    copy = "train and test: ESC10/3-151080-A.ogg is ESC10/5-151085-A.ogg"
    assert result.examples("copied audio in two splits") == [copy]
    assert "train all 4372 480 0 0 0 0 0 0" in result.printed
    parts = [result.part(split) for split in ("train", "val", "test")]
    assert [part["rows"] for part in parts] == [4372, 1436, 1444]
    assert sum(part["clips"] for part in parts) == 800
    # Without a decoder the second check has only the cache.
    monkeypatch.setattr(soundfile, "SoundFile", None)
    assert check(data=SHARED) == result


# Kind of the clip t1, the start of its example, and what is done to the clip.
BAD_CLIPS = [
    ("missing", "missing", Path.unlink),
    ("unreadable", "not readable as audio", lambda file: file.write_text("this is no audio")),
    ("unreadable", "empty file", lambda file: file.write_bytes(b"")),
    ("unreadable", "truncated: 4992 of 9636 bytes", lambda file: os.truncate(file, 5000)),
    ("not finite", "NaN or infinite samples", np.array([0.1, np.nan] * 3000)),
    ("too loud", "samples up to 2.5", np.full(6000, -2.5)),
    ("silent", "0.75 s, peak 0.00009", np.full(6000, 9e-5)),
    ("too short", "0.49 s, peak 0.50000", np.full(3920, 0.5)),
]


def test_check_finds_a_re_encoded_copy_in_another_split(check, folder):
    recording = make_recording(0)
    soundfile.write(folder / "audio" / "a.wav", recording, 44100)
    soundfile.write(folder / "audio" / "copy.mp3", 0.7 * recording, 44100)
    soundfile.write(folder / "audio" / "other.wav", make_recording(1), 44100)
    add(folder, "train", row(YES_NO, "yes", "a.wav"))
    add(folder, "test", row(YES_NO, "yes", "copy.mp3"), row(YES_NO, "no", "other.wav"))
    result = check()
    assert result.counts == {"copied audio in two splits": 1}
    assert result.examples("copied audio in two splits") == ["train and test: a.wav is copy.mp3"]
    assert result.status == 1
    assert check("--allow", "copied audio in two splits").status == 0


def spoil(file, change):
    if callable(change):
        change(file)
    else:
        soundfile.write(file, change, RATE, subtype="FLOAT")


@pytest.fixture(params=BAD_CLIPS, ids=lambda case: case[0])
def bad_clip(request, folder):
    """Kind and start of the example of the bad clip t1, which two rows are about."""
    kind, example, change = request.param
    file = folder / "audio" / "t1.wav"
    spoil(file, change)
    add(folder, "train", row(CAPTION, "A dog.", "t1.wav"))
    return kind, f"{file}: {example}"


def test_check_bad_clip_is_an_error_unless_allowed(bad_clip, check):
    kind, example = bad_clip
    result = check()
    assert result.status == 1
    assert result.counts == {kind: 1}
    assert result.report["wrong"] == [kind]
    assert f"do not train on this corpus: {kind}" in result.printed
    assert result.examples(kind)[0].startswith(example)
    assert " ".join(result.examples(kind)[0].split()) in result.printed
    remedy = result.report["findings"][kind]["what_to_do"]
    assert f"ERROR 1 {kind}: {remedy}" in result.printed
    # It counts once in its split.
    expected = {"rows": 4, "clips": 3} | {name: int(name == kind) for name in CLIP_PROBLEMS}
    part = result.part("train")
    assert {name: part[name] for name in expected} == expected
    assert f"train all {' '.join(map(str, expected.values()))} 0.0" in result.printed
    assert "val all 1 1 0 0 0 0 0 0" in result.printed
    allowed = check("--allow", kind)
    assert allowed.status == 0
    assert allowed.report["wrong"] == []
    assert "no errors" in allowed.printed


def test_check_audio_refuses_what_training_cannot_use(bad_clip, folder):
    kind, _ = bad_clip
    faults = check_audio([str(folder / "audio" / "t1.wav")])
    assert bool(faults) == (kind not in ("silent", "too short"))


def test_check_long_clip_counts_its_used_seconds(folder, check):
    spoil(folder / "audio" / "t1.wav", np.full(60 * RATE, 0.5))
    result = check("--max_audio_seconds", 35)
    assert result.status == 0
    assert result.counts == {}
    # 0.6 + 0.6 + 35 s of 61.2 s
    assert result.part("train")["hours"] == 0.01


# Finding, count, start of the first example, split, and the rows that are added to it.
BAD_ROWS = [
    ("same clip in two splits", 1, "train and val: t0.wav", "val", row(CAPTION, "x")),
    (
        "same clip in two splits",
        1,
        "val and test: e0.wav",
        "val",
        row(CAPTION, "x", "v0.wav", filepath2="e0.wav"),
    ),
    (
        "same audio in two splits",
        1,
        "train and test: t0.wav is copy.flac",
        "test",
        row(CAPTION, "x", "copy.flac"),
    ),
    ("same audio in two splits", 0, "", "test", row(CAPTION, "x", "slow.wav")),
    (
        "unparsable",
        1,
        f"val row 1: {ONE_OPTION['input']!r} → 'A) low'",
        "val",
        row(ONE_OPTION, "A) low", "v0.wav"),
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
        row(SAME_QUESTION, "Yes."),
        row(SAME_QUESTION, "no"),
        row(SAME_QUESTION, "no"),
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
        "train row 4: 301 words",
        "train",
        row(CAPTION, "a " * 300),
        row(CAPTION, "a " * 301),
    ),
    # Always "b" is 0.75 above chance. Three standard errors are 3 * sqrt(3/16 / 4) = 0.65 for
    # 4 rows, and 0.92 for 2.
    (
        "answer-position bias",
        1,
        "train T-MCQ: 'b' is correct in 4 of 4, by chance 0.250",
        "train",
        *[row(FOUR_OPTIONS, "B) cat")] * 4,
    ),
    ("answer-position bias", 0, "", "train", *[row(FOUR_OPTIONS, "B) cat")] * 2),
]
WARNINGS = ("contradiction", "long answer", "answer-position bias")


@pytest.fixture(params=BAD_ROWS, ids=lambda case: case[0])
def bad_rows(request, folder):
    """Finding, count and start of the first example of rows that are added to the corpus."""
    finding, count, example, split, *rows = request.param
    samples, _ = soundfile.read(folder / "audio" / "t0.wav", dtype="int16")
    soundfile.write(folder / "audio" / "copy.flac", samples, RATE)
    soundfile.write(folder / "audio" / "slow.wav", samples, RATE // 2)
    add(folder, split, *rows)
    return finding, count, example


def test_check_bad_rows_are_found_and_set_the_exit_status(bad_rows, check):
    finding, count, example = bad_rows
    result = check()
    assert result.counts == ({finding: count} if count else {})
    is_error = count > 0 and finding not in WARNINGS
    assert result.report["wrong"] == ([finding] if is_error else [])
    assert result.status == int(is_error)
    if count:
        assert result.examples(finding)[0].startswith(example)
        assert f"{'ERROR' if is_error else 'note'} {count} {finding}: " in result.printed
    if is_error:
        assert check("--allow", finding).status == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"input": "x"}]', "row 0: field 'taskname' is missing"),
        ("[1]", "row 0: expected a JSON list of objects, found '[1]'"),
        ("[", "row 0: expected a JSON list of objects, found '['"),
    ],
)
def test_check_unreadable_row_is_one_line(text, message, folder):
    (folder / "val.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        prepare.main(["check", str(folder), "--output", str(folder / "check.json")])
    assert end.value.code == f"audiolm prepare check: {folder}/val.json, {message}"
    assert not (folder / "check.json").exists()


class Inspection(NamedTuple):
    """Facts in the order in which they came, and the names of the files that were read."""

    facts: dict
    names: list[str]


def inspect(folder, used_seconds=10.0, stop_after=10**9, delays=None) -> Inspection:
    """Inspects all clips twice. Raises KeyboardInterrupt after `stop_after` files."""
    names = []
    numbers = itertools.count()

    def look(path, seconds):
        if next(numbers) >= stop_after:
            raise KeyboardInterrupt
        names.append(Path(path).stem)
        time.sleep((delays or {}).get(path, 0))
        return clip_facts(path, seconds)

    clips = sorted(map(str, (folder / "audio").iterdir()))
    return Inspection(inspect_clips(clips * 2, used_seconds, read_facts=look), sorted(names))


def test_inspect_clips_reads_a_file_once(folder):
    first = inspect(folder)
    assert first.names == ["e0", "t0", "t1", "t2", "v0"]
    assert inspect(folder) == Inspection(first.facts, [])


def test_inspect_clips_changed_file_is_read_again(folder):
    facts = inspect(folder).facts
    # A silent clip of the same size.
    write(folder, "t1.wav", gain=0)
    (folder / "audio" / "t2.wav").unlink()
    changed = inspect_clips(list(facts))
    kinds = [changed[str(folder / "audio" / f"t{i}.wav")].kind for i in range(3)]
    assert kinds == ["sound", "silent", "missing"]
    assert inspect(folder).names == []


def test_inspect_clips_other_seconds_are_read_again(folder):
    inspect(folder)
    assert len(inspect(folder, used_seconds=0.3).names) == 5


def test_inspect_clips_interruption_saves_what_was_read(folder, monkeypatch):
    monkeypatch.setattr(audio_check, "AT_ONCE", 4)
    monkeypatch.setattr(audio_check, "ThreadPoolExecutor", lambda: ThreadPoolExecutor(2))
    for seed in range(15):
        write(folder, f"more{seed}.wav", seed=seed)
    with pytest.raises(KeyboardInterrupt):
        inspect(folder, stop_after=7)
    assert len(inspect(folder).names) == 13
    assert inspect(folder).names == []


def test_report_does_not_depend_on_the_order_of_workers(folder, monkeypatch):
    for i in range(9):
        write(folder, f"mute{i}.wav", gain=0)
        add(folder, "train", row(CAPTION, "x", f"mute{i}.wav"))
    data = load_rows({"train": folder / "train.json"}, folder / "audio")
    clips = sorted(inspect(folder).facts)
    reports = []
    for number, order in enumerate((clips, clips[::-1])):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / f"cache{number}"))
        delays = {path: 0.01 * i for i, path in enumerate(order)}
        reports.append(check_corpus(data, inspect(folder, delays=delays).facts))
    first, second = reports
    assert first["findings"]["silent"]["count"] == 9
    assert json.dumps(first) == json.dumps(second)
    assert format_report(first) == format_report(second)


def test_check_without_a_cache_folder_warns_once(folder, check, caplog, monkeypatch):
    first = check()
    (folder / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    assert check() == first
    # The facts and the fingerprints of clips have a cache each.
    assert caplog.text.count("audio_checks.sqlite: the cache cannot be used") == 1
    assert caplog.text.count("fingerprints.sqlite: the cache cannot be used") == 1


@pytest.fixture
def damaged_copy(tmp_path):
    """A copy of mini_reasonaqa with every kind of damage. Returns its folder and the bad clips."""
    copy = tmp_path / "mini"
    (copy / "audio" / "ESC10").mkdir(parents=True)
    for file in (SHARED / "audio" / "ESC10").iterdir():
        (copy / "audio" / "ESC10" / file.name).symlink_to(file)
    splits = ("train", "val", "test")
    rows = {split: json.loads((SHARED / f"{split}.json").read_text()) for split in splits}
    train_clips = sorted({row["filepath1"] for row in rows["train"]})
    val_clips = sorted({row["filepath1"] for row in rows["val"]})
    damage = {
        "missing": None,
        "unreadable": b"no audio",
        "not finite": np.array([0.1, np.nan] * 30_000),
        "silent": np.zeros(60_000),
        "too loud": np.full(60_000, 100.0),
        "too short": np.full(4_000, 0.3),
    }
    bad_clips = dict(zip(damage, train_clips))
    for kind, content in damage.items():
        file = copy / "audio" / bad_clips[kind]
        file.unlink()
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            # A WAV file under any name.
            soundfile.write(file, content, 44_100, format="WAV", subtype="FLOAT")
    (copy / "audio" / "ESC10" / "other.ogg").symlink_to(copy / "audio" / val_clips[0])
    by_subtype = {
        row["subtype"]: row for row in rows["train"] if row["filepath1"] == train_clips[9]
    }
    yes_no, mcq = by_subtype["ESC10AQA.json"], by_subtype["ESC10-MCQ.json"]
    other_question = {**yes_no, "input": "is it? Answer only using yes or no."}
    rows["train"] += [
        {**yes_no, "answer": "no" if yes_no["answer"] == "yes" else "yes"},
        {**mcq, "answer": "e) all"},
        {**other_question, "filepath1": val_clips[1]},
        {**other_question, "filepath1": "ESC10/other.ogg"},
        {**rows["train"][0], "subtype": "ESC10-Detail.json", "answer": "and " * 301},
    ]
    for split, content in rows.items():
        (copy / f"{split}.json").write_text(json.dumps(content))
    return copy, bad_clips


@needs_shared
def test_check_finds_every_damage_in_a_copy_of_mini_reasonaqa(check, damaged_copy):
    copy, bad_clips = damaged_copy
    result = check(data=copy)
    counts = result.counts
    counts.pop("answer-position bias", None)
    assert result.status == 1
    assert counts == {
        **dict.fromkeys(bad_clips, 1),
        "same clip in two splits": 1,
        "same audio in two splits": 1,
        # One is ESC-10's own. Scenes of val contain the two clips of val that train now has.
        "copied audio in two splits": 4,
        "unparsable": 1,
        # The unparsable answer is a contradiction too.
        "contradiction": 2,
        "long answer": 1,
    }
    assert "train all 4377 482 1 1 1 1 1 1" in result.printed
    assert "val all 1436 160 0 0 0 0 0 0" in result.printed
    assert result.examples("missing") == [f"{copy / 'audio' / bad_clips['missing']}: missing"]
