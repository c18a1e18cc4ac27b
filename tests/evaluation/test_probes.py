"""Linear probes find what is planted, and nothing else. Test clips have no influence."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.builders import SHARED, clip, needs_shared

from audiolm.evaluation import probe_command, probes
from audiolm.evaluation.probe_command import parse_arguments, read_labels
from audiolm.evaluation.probes import Fold, build_folds

DEMO = Path(probe_command.__file__).parents[1] / "demo"
ARMS = ["htsat", "mimi_full"]
ENCODERS = {arm: str(DEMO / arm.split("_")[0]) for arm in ARMS}


def write_csv(file: Path, header: str, rows: list) -> Path:
    file.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return file


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """18 clips of a low or a high tone in three folds of six."""
    folder = tmp_path_factory.mktemp("tones")
    rows = []
    for i in range(18):
        soundfile.write(folder / f"{i}.wav", clip(0.3 + i / 50, seed=i % 2 * 9), 24000)
        rows.append((f"{i}.wav", ("low", "high")[i % 2], i // 6 + 1))
    write_csv(folder / "labels.csv", "filename,label,fold", rows)
    return folder


def arguments(folder, *more, arms=ARMS, labels="labels.csv"):
    return [
        "--encoder_type",
        *arms,
        "--encoder_name_or_path",
        *(ENCODERS[arm] for arm in arms),
        "--labels",
        str(folder / labels),
        "--audio_dir",
        str(folder),
        *more,
    ]


def report(folder) -> dict:
    return json.loads((Path(folder) / "probes.json").read_text())


def test_probe_command_separates_tones_and_writes_equal_files_with_a_cache(tones, tmp_path, capsys):
    both = ["--pooling", "mean", "mean_deviation"]
    for name, cache in {"first": "none", "cached": str(tmp_path / "cache")}.items():
        more = ["--feature_cache", cache]
        probe_command.main(arguments(tones, "--output_dir", str(tmp_path / name), *both, *more))
    for file in ("probes.json", "probe_predictions.csv"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "cached" / file).read_bytes()
    result = report(tmp_path / "first")
    for pooling in ("mean", "mean_deviation"):
        assert {
            arm: group["accuracy"] for arm, group in result["results"][pooling].items()
        } == dict.fromkeys(ARMS, 1.0)
        assert [pair["difference"] for pair in result["differences"][pooling]] == [0]
    assert list(result["shuffled_labels"]) == ["mean"]
    assert list(result["shuffled_labels"]["mean"]) == ARMS
    assert result["majority"]["accuracy"] == 0.5
    assert result["classes"] == {"high": 9, "low": 9}
    assert result["folds"] == {fold: {"train": 12, "validation": 6, "test": 6} for fold in "123"}
    assert result["encoders"]["htsat"]["dim"] == 192
    assert result["encoders"]["mimi_full"]["name_or_path"] == str(DEMO / "mimi")
    with open(tmp_path / "first" / "probe_predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "filename",
        "part",
        "label",
        *(f"{p}_{arm}" for p in ("mean", "mean_deviation") for arm in ARMS),
    ]
    assert len(rows) == 18
    assert all(row["label"] == row["mean_deviation_htsat"] for row in rows)
    printed = capsys.readouterr().out.split("\n")
    assert printed[0] == "htsat: accuracy with mean pooling 1.000, mean_deviation pooling 1.000"
    assert printed[2].split()[2:] == ["%)", *ARMS]
    assert any(line.startswith("mean pooling, htsat - mimi_full: +0.000") for line in printed)


def test_probe_command_that_was_interrupted_runs_the_other_arms_alone(tones, tmp_path, monkeypatch):
    argv = arguments(tones, "--output_dir", str(tmp_path))
    original, probed = probe_command.encode, []

    def interrupted(args, arm, *rest):
        probed.append(arm)
        if probed.count("mimi_full") == 1:
            raise KeyboardInterrupt
        return original(args, arm, *rest)

    monkeypatch.setattr(probe_command, "encode", interrupted)
    with pytest.raises(SystemExit, match="130"):
        probe_command.main(argv)
    probe_command.main(argv)
    position = ARMS.index("mimi_full")
    assert probed == [*ARMS[: position + 1], *ARMS[position:]]
    probe_command.main([*argv, "--seed", "1"])
    assert probed[-2:] == ARMS


def test_probe_command_with_a_split_tests_only_its_test_clips(tones, tmp_path):
    rows = [
        (f"{i}.wav", ("low", "high")[i % 2], ("train", "val", "test")[i // 6]) for i in range(18)
    ]
    write_csv(tmp_path / "labels.csv", "filename,category,split", rows)
    probe_command.main(
        arguments(
            tones, "--output_dir", str(tmp_path), arms=["mimi_full"], labels=tmp_path / "labels.csv"
        )
    )
    result = report(tmp_path)
    assert result["folds"] == {"test": {"train": 12, "validation": 6, "test": 6}}
    assert result["results"]["mean"]["mimi_full"]["n"] == 6
    assert result["results"]["mean"]["mimi_full"]["accuracy"] == 1


def accuracy(features, labels, folds, **options) -> float:
    task = probes.ProbeTask(labels, folds, 0)
    predictions, _ = task.run(features, **options)
    return float(np.mean(predictions == task.test_labels))


def folds_for(labels, count=5):
    """Folds of neighbouring clips."""
    parts = np.arange(len(labels)) * count // len(labels)
    return build_folds(labels, parts.astype(str), is_split=False)


def test_mean_deviation_pooling_finds_what_the_mean_lacks():
    """Classes differ in how much a channel varies over time, not in its mean."""
    random = np.random.default_rng(0)
    labels = np.array([str(i % 2) for i in range(120)])
    clips = [random.standard_normal((60, 8)) * (1 + int(label)) for label in labels]
    folds = folds_for(labels)[:3]
    means = np.stack([probes.pool(clip, "mean") for clip in clips])
    both = np.stack([probes.pool(clip, "mean_deviation") for clip in clips])
    assert both.shape == (120, 16)
    assert accuracy(means, labels, folds) < 0.75
    assert accuracy(both, labels, folds) > 0.95


def test_probes_of_random_labels_are_at_chance():
    random = np.random.default_rng(0)
    labels = random.choice(["a", "b"], 300)
    means = np.stack([random.standard_normal((9, 8)).mean(0) for _ in labels])
    assert abs(accuracy(means, labels, folds_for(labels)) - 0.5) < 0.09


@pytest.mark.parametrize("count", [2, 3, 5])
def test_build_folds_tests_each_clip_once_and_never_trains_on_it(count):
    folds = folds_for(np.array(list("abc") * 20), count)
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(60))
    for fold in folds:
        assert not set(fold.train) & set(fold.test)
        assert len(fold.train) + len(fold.test) == 60
        assert set(fold.validation) < set(fold.train)
        # Of two folds, none is left to choose C on.
        assert len(fold.validation) == (60 // count if count > 2 else 0)


def test_build_folds_chooses_c_on_the_next_fold():
    folds = folds_for(np.array(list("abc") * 20), 3)
    for fold, following in zip(folds, folds[1:] + folds[:1]):
        assert np.array_equal(fold.validation, following.test)


def test_probes_do_not_read_test_labels():
    random = np.random.default_rng(0)
    labels = np.where(np.arange(100) % 5 == 0, "rare", "often")
    features = random.standard_normal((100, 3)) + 4 * (labels == "rare")[:, None]
    fold = folds_for(labels)[0]
    predictions, chosen = probes.probe_features(features, labels, fold)
    assert chosen > probes.REGRESSION["C"][0]
    flipped, other = labels.copy(), features.copy()
    flipped[fold.test], other[fold.test] = "rare", 1e3
    assert np.array_equal(probes.probe_features(features, flipped, fold)[0], predictions)
    assert probes.probe_features(other, labels, fold)[1] == chosen
    flat = np.zeros((100, 3))  # all C are equally bad: the smallest
    classes = np.array(list("ab") * 50)
    assert probes.probe_features(flat, classes, fold)[1] == probes.REGRESSION["C"][0]


def test_score_and_intervals_by_hand():
    labels = np.array(["a", "a", "b", "a", "a", "b"])
    folds = [
        Fold("1", np.arange(3, 6), np.array([5]), np.arange(3)),
        Fold("2", np.arange(3), np.array([2]), np.arange(3, 6)),
    ]
    right, wrong = labels.copy(), np.array(["a", "b", "b", "b", "b", "b"])
    task = probes.ProbeTask(labels, folds, 0)
    result = {"x": task.score(right), "y": task.score(wrong)}
    assert result["y"]["accuracy"] == 0.5
    assert result["y"]["macro_f1"] == pytest.approx(
        (2 * 1 / (2 + 0 + 3) + 2 * 2 / (4 + 3)) / 2
    )  # 2 tp / (2 tp + fp + fn)
    assert task.predict_majority().tolist() == ["a"] * 6
    [pair] = probes.add_intervals(result, {"x": right, "y": wrong}, labels, 0)
    assert (result["x"]["ci95_low"], result["x"]["ci95_high"]) == (1, 1)
    assert pair["first"] == "x"
    assert pair["difference"] == 0.5
    assert pair["ci95_low"] == pytest.approx(
        1 - result["y"]["ci95_high"]
    )  # paired: x is always right


def test_add_intervals_has_the_width_of_a_binomial_interval():
    right, predictions = np.full(400, "a"), np.where(np.arange(400) % 4 == 0, "b", "a")
    result = {"x": {}}
    probes.add_intervals(result, {"x": predictions}, right, 0)
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert abs(result["x"]["ci95_low"] - 0.75 + half) < 0.006
    assert abs(result["x"]["ci95_high"] - 0.75 - half) < 0.006


HEADER = "filename,label,fold"
GOOD = [(f"{i}.wav", "ab"[i % 2], i // 6) for i in range(18)]
FAULTS = {
    "absent": ("not a readable table", None, []),
    "column": (
        "has the columns name, label, fold: expected filename",
        ("name,label,fold", GOOD),
        [],
    ),
    "label column": ("expected filename, genre", (HEADER, GOOD), ["--label_column", "genre"]),
    "empty": ("has no rows", (HEADER, []), []),
    "no file": (
        r"1 audio files .*absent\.wav: missing",
        (HEADER, [*GOOD, ("absent.wav", "a", 1)]),
        [],
    ),
    "corrupt": (
        r"corrupt\.wav: not readable as audio",
        (HEADER, [*GOOD, ("corrupt.wav", "a", 1)]),
        [],
    ),
    "no folds": (
        "expected also label or category or target, and fold or split",
        ("filename,label", [row[:2] for row in GOOD]),
        [],
    ),
    "empty fold": ("a value is empty: 0.wav, a,", (HEADER, [*GOOD, ("0.wav", "a", "")]), []),
    "short row": ("a value is empty: 0.wav", (HEADER, [*GOOD, ("0.wav",)]), []),
    "comma": (
        "Expected 3 fields in line 20, saw 4",
        (HEADER, [*GOOD, ("0.wav", "dog", " barking", 1)]),
        [],
    ),
    "one fold": ("all clips are in fold 1", (HEADER, [(*row[:2], 1) for row in GOOD]), []),
    "unknown split": (
        "expected the splits train, test and, if any, val, not tset",
        ("filename,label,split", [(*row[:2], "tset") for row in GOOD]),
        [],
    ),
    "new in test": (
        "class 'c' is in test only",
        (
            "filename,label,split",
            [(*row[:2], "train") for row in GOOD[:16]]
            + [("16.wav", "c", "test"), ("17.wav", "c", "test")],
        ),
        [],
    ),
    "two labels": (
        r"0\.wav occurs twice, with another label or fold",
        (HEADER, [*GOOD, ("0.wav", "b", 0)]),
        [],
    ),
    "one class": (
        "all clips have the label 'a'",
        (HEADER, [(row[0], "a", row[2]) for row in GOOD]),
        [],
    ),
    "class in a fold": (
        "class 'c' is in 2 only",
        (HEADER, [*GOOD[:16], ("16.wav", "c", 2), ("17.wav", "c", 2)]),
        [],
    ),
    "other encoder": (
        "needs a 'mimi' encoder_config",
        (HEADER, GOOD),
        ["--encoder_name_or_path", str(DEMO / "htsat")],
    ),
    "no encoder": (
        "no file, and no folder or Hub repository with model.safetensors",
        (HEADER, GOOD),
        ["--encoder_name_or_path", "/no/such/encoder"],
    ),
    "no checkpoint": (
        "not a readable checkpoint",
        (HEADER, GOOD),
        ["--encoder_name_or_path", "CORRUPT"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_probe_command_of_wrong_input_is_one_line(fault, tones, tmp_path, capsys):
    expected, labels, more = FAULTS[fault]
    for i in range(18):
        (tmp_path / f"{i}.wav").symlink_to(tones / f"{i}.wav")
    (tmp_path / "corrupt.wav").write_bytes(b"no audio at all")
    if labels:
        write_csv(tmp_path / "labels.csv", *labels)
    more = [str(tmp_path / "corrupt.wav") if word == "CORRUPT" else word for word in more]
    with pytest.raises(SystemExit) as stopped:
        probe_command.main(
            arguments(tmp_path, "--output_dir", str(tmp_path / "out"), *more, arms=["mimi_full"])
        )
    message = str(stopped.value.code)
    assert message.startswith("audiolm probe: ")
    assert "\n" not in message
    assert re.search(expected, message), message


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--encoder_type", "htsat", "htsat"], "each arm once"),
        (
            ["--encoder_type", "htsat", "mimi_full", "--encoder_name_or_path", "x"],
            "1 given; expected one for each of 2 encoder types",
        ),
        (["--encoder_type", "soundstream"], "--encoder_type 'soundstream': expected one of htsat"),
        (
            ["--encoder_type", "htsat", "--max_audio_seconds", "nan"],
            "--max_audio_seconds nan: expected a positive number",
        ),
    ],
)
def test_parse_arguments_of_conflicting_options_is_an_error(argv, expected, capsys):
    with pytest.raises(SystemExit):
        probe_command.main([*argv, "--labels", "x", "--audio_dir", "x", "--output_dir", "x"])
    assert expected in capsys.readouterr().err.split("\n")[-2]


def test_parse_arguments_takes_weights_in_order():
    rest = [
        "--encoder_type",
        "htsat",
        "mimi_full",
        "--labels",
        "x",
        "--audio_dir",
        "x",
        "--output_dir",
        "x",
        "--encoder_name_or_path",
    ]
    assert parse_arguments([*rest, "a", "c"]).encoders == {"htsat": "a", "mimi_full": "c"}
    published = parse_arguments([*rest, "published", "c"]).encoders
    assert published == {"htsat": None, "mimi_full": "c"}


def test_probe_command_skips_bad_audio_on_request(tones, tmp_path):
    rows = [(tones / row[0], *row[1:]) for row in GOOD]
    (tmp_path / "corrupt.wav").write_bytes(b"no audio at all")
    write_csv(tmp_path / "labels.csv", HEADER, [*rows, (tmp_path / "corrupt.wav", "a", 1)])
    probe_command.main(
        arguments(
            tmp_path,
            "--output_dir",
            str(tmp_path / "out"),
            "--on_bad_audio",
            "skip",
            arms=["mimi_full"],
        )
    )
    assert report(tmp_path / "out")["clips"] == 18
    assert "corrupt.wav" in (tmp_path / "out" / "bad_audio.txt").read_text()


def test_read_labels_reads_esc50(tmp_path):
    header = "filename,fold,target,category,esc10,src_file,take"
    row = ("1-100032-A-0.wav", 1, 0, "dog", True, 100032, "A")
    clips, is_split = read_labels(str(write_csv(tmp_path / "esc50.csv", header, [row])))
    assert clips.values.tolist() == [["1-100032-A-0.wav", "dog", "1"]]
    assert not is_split


def esc10_labels() -> dict[str, str]:
    """The class of the clips of four of ESC-10's classes, as their captions say it."""
    class_words, labels = ("rooster", "clock", "helicopter", "rain"), {}
    for split in ("train", "val", "test"):
        for row in json.loads((SHARED / f"{split}.json").read_text()):
            if not row["filepath2"] and "scene" not in row["filepath1"]:
                matches = [word for word in class_words if word in row["caption1"].lower()]
                labels |= {row["filepath1"]: matches[0]} if len(matches) == 1 else {}
    return labels


@needs_shared
def test_probe_command_of_real_recordings_is_better_than_chance(tmp_path, capsys):
    """Encoders trained on synthetic sounds separate real ones, across ESC-10's folds."""
    chosen, counts = [], {}
    for name, label in sorted(esc10_labels().items()):
        key = label, Path(name).name[0]
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= 2:
            chosen.append((name, label, Path(name).name[0]))
    assert len(chosen) == 40
    write_csv(tmp_path / "labels.csv", "filename,label,fold", chosen)
    probe_command.main(
        [
            "--encoder_type",
            "htsat",
            "mimi_full",
            "--encoder_name_or_path",
            str(DEMO / "htsat"),
            str(DEMO / "mimi"),
            "--labels",
            str(tmp_path / "labels.csv"),
            "--audio_dir",
            str(SHARED / "audio"),
            "--output_dir",
            str(tmp_path),
        ]
    )
    result = report(tmp_path)
    assert list(result["folds"]) == list("12345")
    for arm in ("htsat", "mimi_full"):
        assert result["results"]["mean"][arm]["ci95_low"] > 0.3
        assert result["shuffled_labels"]["mean"][arm]["accuracy"] < 0.5
