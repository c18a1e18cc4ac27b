"""The demo corpus: what is heard, what is asked, what the text gives away, and what an interrupted run leaves behind."""

import csv
import dataclasses
import itertools
import json
import re
import time
from collections import Counter, defaultdict

import numpy as np
import pytest
import soundfile

from audiolm.data import QUESTION_TYPES, check_audio, load_reasonaqa
from audiolm.data.answer_parsing import options, parse_answer
from audiolm.data.reasonaqa import question_type
from audiolm.data.soundscapes import corpus as soundscapes
from audiolm.data.soundscapes.corpus import draw_corpus, main, make_soundscapes, write_labels
from audiolm.data.soundscapes.events import render_event
from audiolm.data.soundscapes.scenes import (
    CLASSES,
    CONDITIONS,
    SAMPLE_RATE,
    draw_scene,
    labels,
    render,
)

CLOSED = ("mcq", "yes_no", "entailment")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    output = tmp_path_factory.mktemp("soundscapes")
    return output, make_soundscapes(output, rows=200, seed=3)


@pytest.fixture(scope="module")
def drawn():
    return draw_corpus(4000, seed=0)


def contents(output):
    return {
        str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()
    }


# Sound


def test_a_scene_always_sounds_the_same_and_no_other_like_it():
    one, other = (draw_scene(np.random.default_rng(seed)) for seed in (0, 1))
    sound = render(one)
    assert sound.dtype == np.float32 and len(sound) == int(one.seconds * SAMPLE_RATE)
    assert np.array_equal(sound, render(one))
    assert not np.array_equal(sound[:96000], render(other)[:96000])
    assert not np.array_equal(sound, render(dataclasses.replace(one, seed=one.seed + 1)))


def test_recordings_are_as_loud_as_their_scene_says():
    random = np.random.default_rng(2)
    scenes = [draw_scene(random, condition=condition) for condition in CONDITIONS for _ in range(6)]
    levels = defaultdict(list)
    for scene in scenes:
        sound = render(scene)
        assert np.isfinite(sound).all() and np.abs(sound).max() <= 1
        levels[scene.level_word].append(10 * np.log10(np.square(sound).mean()))
    assert min(levels["loud"]) > max(levels["quiet"]) + 3


@pytest.mark.parametrize("name", CLASSES)
def test_far_is_quieter_and_duller(name):
    scene = draw_scene(np.random.default_rng(4), 1, [name], "clean", "outdoors")

    def heard(distance):
        spectrum = np.square(
            np.abs(
                np.fft.rfft(render_event(dataclasses.replace(scene.events[0], distance=distance)))
            )
        )
        hertz = np.linspace(0, SAMPLE_RATE / 2, len(spectrum))
        return spectrum.sum(), (spectrum * hertz).sum() / spectrum.sum()

    near, middle, far = map(heard, ("near", "middle", "far"))
    assert near[0] > 2 * middle[0] > 4 * far[0]
    assert near[1] > far[1]


def timbre(sound):
    """Spectrum of the loud frames, how bands vary, and at what pace loudness varies: none depends on level."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, 1024)[::480] * np.hanning(1024).astype(
        np.float32
    )
    edges = np.unique(np.round(np.geomspace(2, 512, 41)).astype(int))
    bands = np.add.reduceat(np.square(np.abs(np.fft.rfft(frames))), edges[:-1], axis=1) / np.diff(
        edges
    )
    decibel = 10 * np.log10(bands / bands.max() + 1e-6)
    loud = decibel[decibel.max(1) >= np.quantile(decibel.max(1), 0.85)]
    power = 10 * np.log10(bands.sum(1) + 1e-6)
    pace = (
        np.abs(np.fft.rfft((power - power.mean()) * np.hanning(len(power)), 512))[:100]
        .reshape(20, 5)
        .mean(1)
    )
    return np.concatenate(
        [loud.mean(0) - loud.mean(), loud.std(0), decibel.std(0), 20 * np.log10(pace + 1)]
    )


def test_classes_sound_different():
    random = np.random.default_rng(0)
    names = np.repeat(list(CLASSES), 14)
    sounds = np.array(
        [timbre(render(draw_scene(random, 1, [str(name)], "clean"))) for name in names]
    )
    train = np.arange(len(names)) % 14 < 9
    centres = np.array([sounds[train & (names == name)].mean(0) for name in CLASSES])
    spread = sounds[train] - np.repeat(centres, 9, axis=0)
    covariance = spread.T @ spread / len(spread)
    covariance += 0.3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whiten = np.linalg.cholesky(np.linalg.inv(covariance))
    distance = np.square((sounds[~train] @ whiten)[:, None] - centres @ whiten).sum(-1)
    accuracy = (np.array(list(CLASSES))[distance.argmin(1)] == names[~train]).mean()
    assert accuracy > 0.7, accuracy  # chance: 0.05


def test_rendering_is_much_faster_than_listening():
    random = np.random.default_rng(0)
    scenes = [draw_scene(random) for _ in range(20)]
    render(scenes[0])
    start = time.process_time()
    for scene in scenes:
        render(scene)
    speed = sum(scene.seconds for scene in scenes) / (time.process_time() - start)
    assert speed > 60, f"{speed:.0f} times real time"


# Rows


def test_every_type_and_category_is_asked_about(drawn):
    for split in drawn.values():
        assert set(map(question_type, split.rows)) == set(QUESTION_TYPES)
        assert Counter(question_type(r) for r in split.rows)["mcq"] > len(split.rows) / 4
        closed = {c for r, c in zip(split.rows, split.categories) if question_type(r) in CLOSED}
        assert closed == {
            "sound event",
            "acoustic property",
            "environment",
            "recording quality",
            "time order",
            "count",
            "comparison",
        }
        assert len({(r["input"], r["filepath1"], r["filepath2"]) for r in split.rows}) == len(
            split.rows
        )
        assert set(split.paths) == {r["filepath1"] for r in split.rows}


def test_every_closed_answer_is_one_of_the_options(drawn):
    for row in drawn["train"].rows:
        kind = question_type(row)
        if kind in CLOSED:
            answer = parse_answer(kind, row["input"], row["answer"])
            assert answer in (("yes", "no") if kind == "yes_no" else options(row["input"]))
            assert len(set(options(row["input"]).values())) == len(options(row["input"]))


def test_splits_share_no_scene_and_no_parameter(drawn):
    def parameters(split):
        events = [event for scene in split.scenes for event in scene.events]
        return {e.seed for e in events} | {s.seed for s in split.scenes}, {
            (e.onset, e.duration, e.pitch) for e in events
        }

    found = [parameters(split) for split in drawn.values()]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not found[i][0] & found[j][0] and not found[i][1] & found[j][1]


def test_answers_agree_with_the_scenes(drawn):
    checked = Counter()
    for split in drawn.values():
        scenes = dict(zip(split.paths, split.scenes))
        for row in split.rows:
            scene, text = scenes[row["filepath1"]], row["input"]
            named = re.sub(r"^[A-Da-d]\) ", "", row["answer"])
            at = {event.name: event for event in scene.events}
            if text.startswith("Which sound can be heard?"):
                wanted = [name for name in options(text).values() if name in at]
                assert wanted == [named]
            elif found := re.match(r"Can the (\w+) be heard\?", text):
                assert row["answer"] == ("yes" if found[1] in at else "no")
            elif found := re.match(r"Can the (\w+) be heard before the (\w+)\?", text):
                assert row["answer"] == ("yes" if at[found[1]].onset < at[found[2]].onset else "no")
            elif text.startswith("How many sounds"):
                assert named == ["one", "two", "three", "four"][len(at) - 1]
            elif text.startswith("Which sound is the loudest?"):
                assert named == max(scene.events, key=lambda e: e.level_db).name
            elif text.startswith("Where was it recorded?"):
                assert (
                    named
                    == {"dry": "outdoors", "small": "small room", "large": "large room"}[scene.room]
                )
            elif found := re.search(r"The sound of the (\w+) is (near|far)", text):
                event = at.get(found[1])
                wanted = (
                    "I cannot determine"
                    if event is None
                    else "It is plausible"
                    if event.distance == "middle"
                    else (
                        "It is definitely true"
                        if event.distance == found[2]
                        else "It is definitely false"
                    )
                )
                assert named == wanted
            elif found := re.match(r"Which audio has the (\w+)\?", text):
                has = found[1] in at, found[1] in labels(scenes[row["filepath2"]])
                assert (
                    named
                    == {
                        (1, 0): "audio 1",
                        (0, 1): "audio 2",
                        (1, 1): "both audios",
                        (0, 0): "neither",
                    }[has]
                )
            elif found := re.match(r"Is audio 1 (louder|quieter)", text):
                louder = scene.level_db > scenes[row["filepath2"]].level_db
                assert row["answer"] == ("yes" if louder == (found[1] == "louder") else "no")
            else:
                continue
            checked[text.split("?")[0].split(" the ")[0]] += 1
    assert len(checked) >= 9 and min(checked.values()) >= 15, checked


# What the text alone says


def closed_rows(split):
    return [
        (kind, meant, row["input"], parse_answer(kind, row["input"], row["answer"]))
        for row, meant in zip(split.rows, split.categories)
        if (kind := question_type(row)) in CLOSED
    ]


def by_letter(train, questions):
    """Naive Bayes of the answer (letter, yes or no) on words and pairs of them."""

    def words(text):
        found = re.findall(r"[\w-]+|\)", text.lower())
        return {*found, *itertools.pairwise(found)}

    n, counts = Counter(a for _, a in train), defaultdict(Counter)
    for text, answer in train:
        counts[answer].update(words(text))
    known = set().union(*counts.values())
    return [
        max(
            sorted(n),
            key=lambda a: np.log(n[a]) + sum(np.log((counts[a][w] + 1) / (n[a] + 2)) for w in seen),
        )
        for seen in (words(text) & known for text in questions)
    ]


def by_content(train, questions):
    """The option whose words, alone and beside the question, were right most often."""

    def features(text, option):
        return {option, (text.split(" A) ")[0], option), *option.split()}

    right, wrong = Counter(), Counter()
    for text, answer in train:
        for letter, option in options(text).items():
            (right if letter == answer else wrong).update(features(text, option))
    odds = {f: np.log((right[f] + 1) / (wrong[f] + 3)) for f in {*right, *wrong}}
    return [
        max(
            options(text).items(),
            key=lambda option: sum(odds.get(f, np.log(1 / 3)) for f in features(text, option[1])),
        )[0]
        for text in questions
    ]


def by_majority(train, questions):
    return [Counter(a for _, a in train).most_common(1)[0][0]] * len(questions)


def deviations(train, test):
    """How many standard deviations above chance each reader of the text alone gets, by question type and category."""
    found = {}
    for kind in CLOSED:
        known = [(text, answer) for k, _, text, answer in train if k == kind]
        asked = [row for row in test if row[0] == kind]
        chance = np.array([1 / (len(options(text)) or 2) for _, _, text, _ in asked])
        for reader in (by_majority, by_letter, by_content)[: 3 if kind == "mcq" else 2]:
            given = reader(known, [text for _, _, text, _ in asked])
            hits = np.array([a == row[3] for a, row in zip(given, asked)])
            for meant in {row[1] for row in asked} | {"all"}:
                of = np.array([meant in (row[1], "all") for row in asked])
                deviation = (hits - chance)[of].sum() / np.sqrt((chance * (1 - chance))[of].sum())
                found[kind, meant, reader.__name__] = float(deviation)
    return found


def test_the_text_alone_says_nothing(drawn):
    found = deviations(closed_rows(drawn["train"]), closed_rows(drawn["test"]))
    assert len(found) > 30
    assert not {key: z for key, z in found.items() if abs(z) > 3}


def test_a_leak_in_the_text_would_be_noticed(drawn):
    random = np.random.default_rng(0)

    def without(rows, dropped):
        return [row for row in rows if not (dropped(*row) and random.random() < 0.85)]

    favoured = set(list(CLASSES)[:10])

    def named(text, answer):
        found = re.search(
            "|".join(CLASSES), text if answer in ("yes", "no") else options(text)[answer]
        )
        return found and found[0] in favoured

    leaks = {
        ("yes_no", "sound event", "by_letter"): lambda k, c, text, a: (
            k == "yes_no" and (named(text, a) is True) == (a == "no")
        ),
        ("mcq", "all", "by_majority"): lambda k, c, text, a: k == "mcq" and a != "b",
        ("mcq", "sound event", "by_content"): lambda k, c, text, a: (
            k == "mcq" and c == "sound event" and not named(text, a)
        ),
    }
    for key, dropped in leaks.items():
        train, test = (without(closed_rows(drawn[split]), dropped) for split in ("train", "test"))
        assert deviations(train, test)[key] > 3, key


# Files


def test_corpus_loads_like_reasonaqa(corpus, tmp_path):
    output, files = corpus
    data = load_reasonaqa(files, output)
    assert {split: len(rows) for split, rows in data.items()} == {
        "train": 200,
        "val": 40,
        "test": 80,
    }
    paths = [path for rows in data.values() for audio in rows["audio"] for path in audio]
    assert check_audio(paths, cache_file=tmp_path / "checks.json") == {}
    assert soundfile.info(paths[0]).samplerate == SAMPLE_RATE
    truth = json.loads((output / "soundscapes.json").read_text())
    assert {len(truth["categories"][split]) for split in data} == {200, 40, 80}
    assert set(truth["scenes"]) == {p for p in truth["files"] if p.startswith("audio/")}


def test_the_same_seed_gives_the_same_bytes(corpus, tmp_path):
    output, _ = corpus
    make_soundscapes(tmp_path / "again", rows=200, seed=3)
    assert contents(tmp_path / "again") == contents(output)
    make_soundscapes(tmp_path / "other", rows=40, seed=4)
    make_soundscapes(tmp_path / "third", rows=40, seed=5)
    one, two = contents(tmp_path / "other"), contents(tmp_path / "third")
    assert set(one) == set(two) and not [name for name in one if one[name] == two[name]]


def test_what_is_missing_or_broken_is_made_again_and_nothing_else(corpus):
    output, _ = corpus
    before, times = contents(output), {p: p.stat().st_mtime_ns for p in output.rglob("*.flac")}
    short, gone, flipped = sorted(times)[:3]
    short.write_bytes(short.read_bytes()[:-1000])
    gone.unlink()
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"x")
    (output / "test.json").write_text("[]")
    make_soundscapes(output, rows=200, seed=3)
    assert contents(output) == before
    assert {p for p in times if p.stat().st_mtime_ns != times[p]} == {short, gone, flipped}
    (output / "soundscapes.json").unlink()
    make_soundscapes(output, rows=200, seed=3)
    assert contents(output) == before
    (output / "soundscapes.json").write_bytes(before["soundscapes.json"][:-100])
    make_soundscapes(output, rows=200, seed=3)
    assert contents(output) == before


def test_a_complete_corpus_is_left_alone(corpus, monkeypatch):
    output, files = corpus
    monkeypatch.setattr(soundscapes, "draw_corpus", None)
    assert make_soundscapes(output, rows=200, seed=3) == files


def test_another_corpus_or_other_files_are_an_error_in_one_line(corpus, tmp_path):
    output, _ = corpus
    for arguments in (["--rows", "200", "--seed", "4"], ["--rows", "400", "--seed", "3"]):
        with pytest.raises(
            SystemExit, match=r"holds a corpus of version 1, rows 200, seed 3, not of"
        ) as error:
            main(["--output", str(output), *arguments])
        assert "\n" not in str(error.value)
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(SystemExit, match=r"train\.json is not of this corpus"):
        main(["--output", str(tmp_path), "--rows", "40"])
    assert contents(tmp_path) == {"train.json": b"[]"}
    with pytest.raises(SystemExit, match="at least 40"):
        main(["--output", str(tmp_path / "few"), "--rows", "3"])
    with pytest.raises(SystemExit, match="Not a directory"):
        main(["--output", str(tmp_path / "train.json"), "--rows", "40"])


def test_labels_of_the_clips(tmp_path):
    """What is heard in a scene, how it was recorded and where, for the probes."""
    make_soundscapes(tmp_path, rows=80, seed=3)
    scenes = json.loads((tmp_path / "soundscapes.json").read_text())["scenes"]
    files = write_labels(tmp_path)
    found = {}
    for kind, file in files.items():
        with open(file, newline="") as lines:
            found[kind] = {
                row["filename"]: (row["split"], row["label"]) for row in csv.DictReader(lines)
            }
    assert set(found["room"]) == set(found["quality"]) == set(scenes)
    for path, scene in scenes.items():
        assert found["room"][path] == (path.split("/")[1], scene["room"])
        names = {event["name"] for event in scene["events"]}
        assert (path in found["sound"]) == (len(names) == 1)
        assert found["sound"].get(path, (None, *names))[1] in names
    assert {label for _, label in found["quality"].values()} <= {
        "clean",
        "noisy",
        "clipped",
        "band-limited",
    }
