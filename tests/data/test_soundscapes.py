"""The synthetic corpus: its audio, its questions, what their text gives away, and its files."""

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
from support.recording_tables import make_table
from support.scenes import draw_clean_scene

from audiolm.data.answer_parsing import option_texts, parse_answer
from audiolm.data.audio_check import check_audio
from audiolm.data.reasonaqa import QUESTION_TYPES, load_rows, question_type
from audiolm.data.soundscapes import corpus as soundscapes
from audiolm.data.soundscapes import is_synthetic
from audiolm.data.soundscapes.corpus import (
    draw_corpus,
    main,
    make_soundscapes,
    write_labels,
)
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


@pytest.fixture(scope="module", params=["synthesised", "recordings"])
def drawn(request, tmp_path_factory):
    recordings = None
    if request.param == "recordings":
        recordings = make_table(tmp_path_factory.mktemp("recordings"), CLASSES)
    return draw_corpus(4000, 0, recordings)


def contents(output):
    return {
        str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()
    }


# Sound


def test_render_depends_on_the_scene_only():
    first, other = (draw_scene(np.random.default_rng(seed)) for seed in (0, 1))
    sound = render(first)
    assert sound.dtype == np.float32 and len(sound) == int(first.seconds * SAMPLE_RATE)
    assert np.array_equal(sound, render(first))
    assert not np.array_equal(sound[:96000], render(other)[:96000])
    assert not np.array_equal(sound, render(dataclasses.replace(first, seed=first.seed + 1)))


def test_recordings_are_as_loud_as_their_scene_says():
    random = np.random.default_rng(2)
    scenes = [draw_scene(random) for _ in range(24)]
    assert {scene.condition for scene in scenes} == set(CONDITIONS)
    levels = defaultdict(list)
    for scene in scenes:
        sound = render(scene)
        assert np.isfinite(sound).all() and np.abs(sound).max() <= 1
        levels[scene.level_word].append(10 * np.log10(np.square(sound).mean()))
    assert min(levels["loud"]) > max(levels["quiet"]) + 3


@pytest.mark.parametrize("name", CLASSES)
def test_far_is_quieter_and_duller(name):
    scene = draw_clean_scene(np.random.default_rng(4), name)

    def energy_and_centroid(distance):
        spectrum = np.square(
            np.abs(
                np.fft.rfft(render_event(dataclasses.replace(scene.events[0], distance=distance)))
            )
        )
        hertz = np.linspace(0, SAMPLE_RATE / 2, len(spectrum))
        return spectrum.sum(), (spectrum * hertz).sum() / spectrum.sum()

    near, middle, far = map(energy_and_centroid, ("near", "middle", "far"))
    assert near[0] > 2 * middle[0] > 4 * far[0]
    assert near[1] > far[1]


def timbre(sound):
    """Spectrum of the loud frames, variation of bands and pace of loudness, whatever the level."""
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
    sounds = np.array([timbre(render(draw_clean_scene(random, str(name)))) for name in names])
    train = np.arange(len(names)) % 14 < 9
    centres = np.array([sounds[train & (names == name)].mean(0) for name in CLASSES])
    spread = sounds[train] - np.repeat(centres, 9, axis=0)
    covariance = spread.T @ spread / len(spread)
    covariance += 0.3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    whiten = np.linalg.cholesky(np.linalg.inv(covariance))
    distance = np.square((sounds[~train] @ whiten)[:, None] - centres @ whiten).sum(-1)
    accuracy = (np.array(list(CLASSES))[distance.argmin(1)] == names[~train]).mean()
    assert accuracy > 0.7, accuracy  # chance: 0.05


def test_render_is_much_faster_than_real_time():
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
            assert answer in (("yes", "no") if kind == "yes_no" else option_texts(row["input"]))
            assert len(set(option_texts(row["input"]).values())) == len(option_texts(row["input"]))


def test_splits_share_no_scene_and_no_parameter(drawn):
    def parameters(split):
        events = [event for scene in split.scenes for event in scene.events]
        return {e.seed for e in events} | {s.seed for s in split.scenes}, {
            (e.onset, e.duration, e.pitch) for e in events
        }

    used = [parameters(split) for split in drawn.values()]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not used[i][0] & used[j][0]
        assert not used[i][1] & used[j][1]


def test_answers_agree_with_the_scenes(drawn):
    checked = Counter()
    for split in drawn.values():
        scenes = dict(zip(split.paths, split.scenes))
        for row in split.rows:
            scene, text = scenes[row["filepath1"]], row["input"]
            named = re.sub(r"^[A-Da-d]\) ", "", row["answer"])
            at = {event.name: event for event in scene.events}
            if text.startswith("Which sound can be heard?"):
                right = [name for name in option_texts(text).values() if name in at]
                assert right == [named]
            elif match := re.match(r"Can the (\w+) be heard\?", text):
                assert row["answer"] == ("yes" if match[1] in at else "no")
            elif match := re.match(r"Can the (\w+) be heard before the (\w+)\?", text):
                assert row["answer"] == ("yes" if at[match[1]].onset < at[match[2]].onset else "no")
            elif text.startswith("How many sounds"):
                assert named == ["one", "two", "three", "four"][len(at) - 1]
            elif text.startswith("Which sound is the loudest?"):
                assert named == max(scene.events, key=lambda e: e.level_db).name
            elif text.startswith("Where was it recorded?"):
                assert (
                    named
                    == {"dry": "outdoors", "small": "small room", "large": "large room"}[scene.room]
                )
            elif match := re.search(r"The sound of the (\w+) is (near|far)", text):
                event = at.get(match[1])
                right = (
                    "I cannot determine"
                    if event is None
                    else "It is plausible"
                    if event.distance == "middle"
                    else (
                        "It is definitely true"
                        if event.distance == match[2]
                        else "It is definitely false"
                    )
                )
                assert named == right
            elif match := re.match(r"Which audio has the (\w+)\?", text):
                has = match[1] in at, match[1] in labels(scenes[row["filepath2"]])
                assert (
                    named
                    == {
                        (1, 0): "audio 1",
                        (0, 1): "audio 2",
                        (1, 1): "both audios",
                        (0, 0): "neither",
                    }[has]
                )
            elif match := re.match(r"Is audio 1 (louder|quieter)", text):
                louder = scene.level_db > scenes[row["filepath2"]].level_db
                assert row["answer"] == ("yes" if louder == (match[1] == "louder") else "no")
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

    def word_pairs(text):
        tokens = re.findall(r"[\w-]+|\)", text.lower())
        return {*tokens, *itertools.pairwise(tokens)}

    n, counts = Counter(a for _, a in train), defaultdict(Counter)
    for text, answer in train:
        counts[answer].update(word_pairs(text))
    vocabulary = set().union(*counts.values())
    return [
        max(
            sorted(n),
            key=lambda a: np.log(n[a]) + sum(np.log((counts[a][w] + 1) / (n[a] + 2)) for w in seen),
        )
        for seen in (word_pairs(text) & vocabulary for text in questions)
    ]


def by_content(train, questions):
    """The option whose words, alone and beside the question, were right most often."""

    def features(text, option):
        return {option, (text.split(" A) ")[0], option), *option.split()}

    right, wrong = Counter(), Counter()
    for text, answer in train:
        for letter, option in option_texts(text).items():
            (right if letter == answer else wrong).update(features(text, option))
    odds = {f: np.log((right[f] + 1) / (wrong[f] + 3)) for f in {*right, *wrong}}
    return [
        max(
            option_texts(text).items(),
            key=lambda option: sum(odds.get(f, np.log(1 / 3)) for f in features(text, option[1])),
        )[0]
        for text in questions
    ]


def by_majority(train, questions):
    return [Counter(a for _, a in train).most_common(1)[0][0]] * len(questions)


def deviations(train, test):
    """Standard deviations above chance of each text-only reader, by type and category."""
    results = {}
    for kind in CLOSED:
        examples = [(text, answer) for k, _, text, answer in train if k == kind]
        questions = [row for row in test if row[0] == kind]
        chance = np.array([1 / (len(option_texts(text)) or 2) for _, _, text, _ in questions])
        for reader in (by_majority, by_letter, by_content)[: 3 if kind == "mcq" else 2]:
            guesses = reader(examples, [text for _, _, text, _ in questions])
            hits = np.array([a == row[3] for a, row in zip(guesses, questions)])
            for meant in {row[1] for row in questions} | {"all"}:
                mask = np.array([meant in (row[1], "all") for row in questions])
                deviation = (hits - chance)[mask].sum() / np.sqrt(
                    (chance * (1 - chance))[mask].sum()
                )
                results[kind, meant, reader.__name__] = float(deviation)
    return results


def test_the_text_alone_says_nothing(drawn):
    results = deviations(closed_rows(drawn["train"]), closed_rows(drawn["test"]))
    assert len(results) > 30
    assert not {key: z for key, z in results.items() if abs(z) > 3}


# The readers are the same for both corpora.
@pytest.mark.parametrize("drawn", ["synthesised"], indirect=True)
def test_a_leak_in_the_text_would_be_noticed(drawn):
    random = np.random.default_rng(0)

    def without(rows, dropped):
        return [row for row in rows if not (dropped(*row) and random.random() < 0.85)]

    favoured = set(list(CLASSES)[:10])

    def named(text, answer):
        match = re.search(
            "|".join(CLASSES), text if answer in ("yes", "no") else option_texts(text)[answer]
        )
        return match and match[0] in favoured

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


def test_corpus_without_recordings_is_synthetic(corpus, tmp_path):
    assert is_synthetic(corpus[0]) and not is_synthetic(tmp_path)


def test_corpus_loads_like_reasonaqa(corpus, tmp_path):
    output, files = corpus
    data = load_rows(files, output)
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


def test_make_soundscapes_same_seed_writes_the_same_bytes(corpus, tmp_path):
    output, _ = corpus
    make_soundscapes(tmp_path / "again", rows=200, seed=3)
    assert contents(tmp_path / "again") == contents(output)
    make_soundscapes(tmp_path / "other", rows=40, seed=4)
    make_soundscapes(tmp_path / "third", rows=40, seed=5)
    other, third = contents(tmp_path / "other"), contents(tmp_path / "third")
    assert set(other) == set(third)
    assert not [name for name in other if other[name] == third[name]]


def test_make_soundscapes_rewrites_missing_and_broken_files_only(corpus):
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


def test_make_soundscapes_complete_corpus_is_only_read(corpus, monkeypatch):
    output, files = corpus
    monkeypatch.setattr(soundscapes, "draw_corpus", None)
    assert make_soundscapes(output, rows=200, seed=3) == files


def test_main_folder_with_other_files_is_an_error_in_one_line(corpus, tmp_path):
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


def test_write_labels_agrees_with_the_scenes(tmp_path):
    make_soundscapes(tmp_path, rows=80, seed=3)
    scenes = json.loads((tmp_path / "soundscapes.json").read_text())["scenes"]
    files = write_labels(tmp_path)
    labelled = {}
    for kind, file in files.items():
        with open(file, newline="") as lines:
            labelled[kind] = {
                row["filename"]: (row["split"], row["label"]) for row in csv.DictReader(lines)
            }
    assert set(labelled["room"]) == set(labelled["quality"]) == set(scenes)
    for path, scene in scenes.items():
        assert labelled["room"][path] == (path.split("/")[1], scene["room"])
        names = {event["name"] for event in scene["events"]}
        assert (path in labelled["sound"]) == (len(names) == 1)
        assert labelled["sound"].get(path, (None, *names))[1] in names
    assert {label for _, label in labelled["quality"].values()} <= {
        "clean",
        "noisy",
        "clipped",
        "band-limited",
    }
