"""Corpora from labelled recordings: splits, excerpts, errors, and ESC-50 itself."""

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.recording_tables import make_table

from audiolm.data.audio_check import clip_facts
from audiolm.data.download import archives
from audiolm.data.prepare import main
from audiolm.data.soundscapes import is_synthetic
from audiolm.data.soundscapes.corpus import draw_corpus, make_soundscapes
from audiolm.data.soundscapes.events import SAMPLE_RATE
from audiolm.data.soundscapes.recordings import Excerpt, RecordingTable, read_recordings
from audiolm.runtime import UserError

LABELS = ("door_wood_knock", "dog", "sea_waves", "clock-tick", "rain", "siren")
ESC50 = Path(__file__).parents[3] / "shared" / "data" / "esc50"


def paths_by_split(table, seed=0):
    classes = read_recordings(table, seed)
    return {
        split: {Path(path).name for event_class in by_name.values() for path in event_class.files}
        for split, by_name in classes.items()
    }


def rewrite(table, change):
    lines = Path(table.csv).read_text().splitlines()
    Path(table.csv).write_text("\n".join([lines[0], *map(change, lines[1:])]) + "\n")


def write_sounds(table, rate=16000):
    """Writes a tone of another pitch for each label, loud from 2 s to 2.5 s, in quiet noise."""
    rng = np.random.default_rng(0)
    for line in Path(table.csv).read_text().splitlines()[1:]:
        name = line.split(",")[0]
        tone = np.sin(2 * np.pi * 300 * (1 + int(name.split("-")[1])) * np.arange(rate // 2) / rate)
        sound = 0.001 * rng.standard_normal(3 * rate)
        sound[2 * rate : 2 * rate + len(tone)] += 0.5 * tone
        soundfile.write(Path(table.audio_dir, name), sound, rate)


# Splits


def test_splits_share_no_fold(tmp_path):
    parts = paths_by_split(make_table(tmp_path / "r", LABELS))
    folds = {split: {name.split("-")[0] for name in names} for split, names in parts.items()}
    assert folds == {"train": {"0", "1", "2"}, "val": {"3"}, "test": {"4"}}


def test_recording_whose_group_is_in_the_test_split_is_not_trained_on(tmp_path, caplog):
    table = make_table(tmp_path / "r", LABELS)
    rewrite(
        table,
        lambda line: line.replace(
            "1-0-0.wav,door_wood_knock,1,0-1", "1-0-0.wav,door_wood_knock,1,0-4"
        ),
    )
    parts = paths_by_split(table)
    assert "1-0-0.wav" not in parts["train"] and "1-0-1.wav" in parts["train"]
    assert "train: 1 recordings of a group of another split are not used" in caplog.text


def test_table_without_folds_splits_each_class_by_group(tmp_path):
    table = dataclasses.replace(make_table(tmp_path / "r", LABELS), fold=None)
    parts = paths_by_split(table, seed=1)
    sources = {split: {name.rsplit("-", 1)[0] for name in names} for split, names in parts.items()}
    assert sum(map(len, sources.values())) == len(LABELS) * 5
    assert [len(parts[split]) for split in ("train", "val", "test")] == [36, 12, 12]
    assert paths_by_split(table, seed=1) == parts != paths_by_split(table, seed=2)


def test_class_without_recordings_in_each_split_is_left_out(tmp_path, caplog):
    table = make_table(tmp_path / "r", LABELS)
    rewrite(table, lambda line: line.replace(",siren,4,", ",siren,3,"))
    assert "siren" not in read_recordings(table, 0)["train"]
    assert "classes without recordings in each split: siren" in caplog.text


def test_file_may_have_another_suffix_than_in_the_table(tmp_path):
    table = make_table(tmp_path / "r", LABELS)
    rewrite(table, lambda line: line.replace(".wav", ".ogg"))
    assert "0-0-0.wav" in paths_by_split(table)["train"]


@pytest.mark.parametrize(
    ("changes", "change", "message"),
    [
        ({"csv": "absent.csv"}, None, "absent.csv: not a readable table"),
        ({"label": "class"}, None, "fold, src_file: expected class"),
        ({}, lambda line: line.replace("0-0-0.wav", "x.wav"), "x.wav: file not found"),
        ({}, lambda line: line.replace(",dog,", ",dog (big),"), r"label 'dog \(big\)'"),
        (
            {},
            lambda line: line.replace(",dog,", ",rain,").replace(",siren,", ",rain,"),
            "4 classes have recordings",
        ),
        ({"fold": "category"}, lambda line: line.replace(",dog,", ",rain,"), "classes have"),
        ({"fold": "take"}, None, "expected .* take"),
    ],
)
def test_wrong_table_is_an_error_that_says_why(tmp_path, changes, change, message):
    table = dataclasses.replace(make_table(tmp_path / "r", LABELS), **changes)
    if change:
        rewrite(table, change)
    with pytest.raises(UserError, match=message):
        read_recordings(table, 0)


# Excerpts


def excerpt(path, duration=1.0):
    return Excerpt("dog", 0.0, duration, None, None, None, 0.0, "near", 0, path=str(path))


def test_excerpt_is_the_loudest_part(tmp_path):
    sound = np.full(5 * 16000, 1e-4)
    sound[48000:56000] = 0.5 * np.sin(np.arange(8000))
    soundfile.write(tmp_path / "a.wav", sound, 16000)
    part = excerpt(tmp_path / "a.wav").synthesise(SAMPLE_RATE, np.random.default_rng(0))
    assert len(part) == SAMPLE_RATE
    energy = np.square(part).sum() * 16000 / SAMPLE_RATE
    assert energy == pytest.approx(np.square(sound).sum(), rel=0.05)


def test_excerpt_of_a_short_recording_ends_in_silence(tmp_path):
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(np.arange(8000)), 16000)
    part = excerpt(tmp_path / "a.wav").synthesise(SAMPLE_RATE, np.random.default_rng(0))
    assert len(part) == SAMPLE_RATE and part[:12000].any() and not part[12100:].any()


@pytest.mark.parametrize("samples", [np.zeros(16000), np.full(16000, np.nan)])
def test_recording_without_sound_is_an_error_that_names_it(tmp_path, samples):
    soundfile.write(tmp_path / "a.wav", samples, 16000, "FLOAT")
    with pytest.raises(UserError, match=r"a.wav: silent, or not finite"):
        excerpt(tmp_path / "a.wav").synthesise(SAMPLE_RATE, np.random.default_rng(0))


def test_unreadable_recording_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a.wav").write_text("no audio")
    with pytest.raises(UserError, match=r"a.wav: not readable as audio"):
        excerpt(tmp_path / "a.wav").synthesise(SAMPLE_RATE, np.random.default_rng(0))


# Corpora


def test_corpus_of_recordings_has_their_sounds_and_labels(tmp_path):
    table = make_table(tmp_path / "r", LABELS)
    write_sounds(table)
    files = make_soundscapes(tmp_path / "c", 40, 0, table)
    assert not is_synthetic(tmp_path / "c")
    text = files["train"].read_text()
    assert "door wood knock" in text and "clock-tick" in text and "bell" not in text
    scenes = json.loads((tmp_path / "c" / "soundscapes.json").read_text())["scenes"]
    for path, scene in scenes.items():
        folds = {Path(event["path"]).name[0] for event in scene["events"]}
        assert folds <= {"train": set("012"), "val": {"3"}, "test": {"4"}}[path.split("/")[1]]
    path, scene = next((p, s) for p, s in scenes.items() if len(s["events"]) == 1)
    [event] = scene["events"]
    sound, _ = soundfile.read(tmp_path / "c" / path)
    start = int(event["onset"] * SAMPLE_RATE)
    spectrum = np.abs(np.fft.rfft(sound[start : start + int(event["duration"] * SAMPLE_RATE)]))
    number = LABELS.index(event["name"].replace(" ", "_"))
    hertz = spectrum.argmax() * SAMPLE_RATE / (2 * len(spectrum) - 2)
    assert hertz == pytest.approx(300 * (number + 1), rel=0.05)


def test_changed_table_makes_another_corpus(tmp_path):
    table = make_table(tmp_path / "r", LABELS)
    write_sounds(table)
    make_soundscapes(tmp_path / "c", 40, 0, table)
    before = (tmp_path / "c" / "soundscapes.json").read_bytes()
    make_soundscapes(tmp_path / "c", 40, 0, table)
    assert (tmp_path / "c" / "soundscapes.json").read_bytes() == before
    rewrite(table, lambda line: line.replace(",dog,", ",cat,"))
    with pytest.raises(UserError, match="holds a corpus of"):
        make_soundscapes(tmp_path / "c", 40, 0, table)


def test_loud_ogg_is_usable_and_loud_wav_is_not(tmp_path):
    tone = 1.7 * np.sin(np.arange(24000) / 10)
    soundfile.write(tmp_path / "a.ogg", tone, 24000, format="OGG", subtype="VORBIS")
    soundfile.write(tmp_path / "a.wav", tone, 24000, "FLOAT")
    facts = clip_facts(str(tmp_path / "a.ogg"))
    assert facts.peak > 1.5 and facts.fault is None
    assert clip_facts(str(tmp_path / "a.wav")).kind == "too loud"


# ESC-50


@pytest.mark.skipif(not ESC50.is_dir(), reason="ESC-50 is not beside the checkout")
def test_esc50_gives_a_corpus_with_all_classes(tmp_path):
    table = RecordingTable(
        str(ESC50 / "esc50.csv"), str(ESC50 / "audio"), "category", fold="fold", group="src_file"
    )
    classes = read_recordings(table, 0)
    assert {split: len(names) for split, names in classes.items()} == dict.fromkeys(classes, 50)
    assert sum(len(part.files) for part in classes["train"].values()) == 1200
    files = make_soundscapes(tmp_path, 40, 0, table)
    assert files["test"].is_file()
    assert not any(clip_facts(str(path)).fault for path in tmp_path.rglob("*.flac"))
    rows = draw_corpus(400, 0, table)["train"].rows
    assert {row["subtype"] for row in rows} >= {"Soundscapes-MCQ.json", "SoundscapesE.json"}


def esc50_archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("ESC-50-master/meta/esc50.csv", "filename,fold,category,src_file\n")
        for number in range(3):
            archive.writestr(f"ESC-50-master/audio/{number}.wav", b"RIFF")
    return content.getvalue()


@pytest.fixture
def served(monkeypatch):
    """Content in place of ESC-50's archive, and the addresses that were asked for."""
    answers = {"content": esc50_archive(), "urls": []}

    def download(url, path, size, md5):
        answers["urls"].append(url)
        path.write_bytes(answers["content"])

    monkeypatch.setattr(archives, "download", download)
    return answers


def test_download_esc50_unpacks_the_archive_once(tmp_path, served, capsys):
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["download", str(tmp_path / "esc50")])
    assert served["urls"] == [archives.ESC50_URL]
    assert (tmp_path / "esc50" / "meta" / "esc50.csv").is_file()
    assert len(list((tmp_path / "esc50" / "audio").glob("*.wav"))) == 3
    assert "4 files in" in capsys.readouterr().out


def test_download_esc50_of_something_else_is_an_error_and_goes(tmp_path, served):
    served["content"] = b"<html>"
    with pytest.raises(SystemExit, match="cannot be unpacked"):
        main(["download", str(tmp_path), "--what", "esc50"])
    assert not (tmp_path / "archives" / "ESC-50.zip").exists()
