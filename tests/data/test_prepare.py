"""`run_prepare.py` from the outside: a data set that is pushed trains from the Hub, AudioCaps is found in any layout."""

import json

import pytest
import soundfile
from support.builders import arguments, clip, make_corpus, run, train
from support.hub_server import READER, Hub

from audiolm.data import load_reasonaqa
from audiolm.data.download.audiocaps import youtube_id, youtube_index
from audiolm.data.prepare import main


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub") / "hub") as served:
        yield served


@pytest.fixture(scope="module")
def pushed_data(hub, tmp_path_factory):
    """A converted data set whose rows hold their audio, pushed as me/data, and the corpus that it is of."""
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text((folder / "rows.json").read_text())
    words = ["convert", str(folder), "--output", str(folder / "shards"), "--audio", "embedded"]
    small = "from audiolm.data import convert as conversion; conversion.EMBEDDED_PER_GROUP = 4; import sys; from audiolm.data import prepare as run_prepare; "
    made = run(hub, "-c", small + "run_prepare.main(sys.argv[1:])", *words)
    assert made.returncode == 0 and "16 clips and 32 rows" in made.stdout, (
        made.stderr
    )
    sent = run(
        hub,
        "-m",
        "audiolm.data.prepare",
        "push",
        str(folder / "shards"),
        "--hub_dataset_id",
        "me/data",
        "--private",
    )
    assert sent.returncode == 0 and "run_train.py --dataset_name me/data" in sent.stdout, (
        sent.stderr
    )
    return folder


def test_what_is_pushed(hub, pushed_data):
    held = hub.files("datasets/me/data")
    assert {
        "README.md",
        "audiolm.json",
        "rows/train-00000-of-00001.parquet",
        "rows/val-00000-of-00001.parquet",
    } == {path for path in held if path != ".gitattributes"}
    shard = "rows/train-00000-of-00001.parquet"
    assert hub.read("datasets/me/data", shard) == (pushed_data / "shards" / shard).read_bytes()
    assert hub.repos["datasets/me/data"]["private"]
    again = run(
        hub,
        "-m",
        "audiolm.data.prepare",
        "push",
        str(pushed_data / "shards"),
        "--hub_dataset_id",
        "me/data",
    )
    assert again.returncode == 0


@pytest.mark.parametrize("more", [[], ["--streaming", "true", "--dataloader_num_workers", "2"]])
def test_it_trains_from_the_hub(more, hub, pushed_data, tokenizer):
    words = arguments(
        pushed_data, "mimi_semantic", tokenizer, "--max_steps", "2", "--eval_steps", "2", *more
    )
    for option in ("--train_file", "--validation_file", "--audio_dir"):
        at = words.index(option)
        del words[at : at + 2]
    done = train(hub, [*words, "--dataset_name", "me/data", "--shuffle_buffer", "8"])
    assert done.returncode == 0 and "mcq loss" in done.stdout, done.stderr[-2000:]
    card = (pushed_data / "out" / "README.md").read_text()
    assert "`me/data`, SHA-256 `" in card and "16 rows about 16 clips" in card
    assert [request for request in hub.unknown if "agent-harnesses" not in request] == []


@pytest.mark.slow
def test_who_may_not_push(hub, pushed_data):
    for token, said in ((READER, "not pushed to me/data"), (None, "not pushed to me/data")):
        words = [
            "-m",
            "audiolm.data.prepare",
            "push",
            str(pushed_data / "shards"),
            "--hub_dataset_id",
            "me/data",
        ]
        refused = run(hub, *words, token=token, home=f"home {token}")
        assert (
            refused.returncode == 1 and said in refused.stderr and "Traceback" not in refused.stderr
        )
    gone = run(
        hub, "-m", "audiolm.data.prepare", "push", str(pushed_data), "--hub_dataset_id", "me/data"
    )
    assert gone.returncode == 1 and "no converted data set" in gone.stderr
    missing = train(hub, ["--dataset_name", "me/nothing", "--output_dir", str(pushed_data / "o")])
    assert (
        missing.returncode == 1
        and "--dataset_name me/nothing: neither a folder nor a data set on the Hub"
        in missing.stderr
    )


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Yabcdefghijk", ("abcdefghijk", None)),
        ("abcdefghijk", ("abcdefghijk", None)),
        ("track01", None),
        ("Yabcdefghij", ("Yabcdefghij", None)),
        ("YYabcdefghij", ("Yabcdefghij", None)),
        ("abcdefghijk lecture", None),
        ("abcdefghijk_30", ("abcdefghijk", 30)),
        ("Yabcdefghij_30", ("Yabcdefghij", 30)),
        ("-_cdefghij-_0_10", ("-_cdefghij-", 0)),
        ("Yabcdefghij__30", ("abcdefghij_", 30)),
        ("abcdefghijk_30.5_40.5", ("abcdefghijk", 30.5)),
    ],
)
def test_youtube_ids_in_names(name, found):
    assert youtube_id(name) == found


def test_audiocaps_is_found_by_index(tmp_path, caplog):
    layouts = {
        "AAAAAAAAAAA": ["train/YAAAAAAAAAAA.wav"],
        "BBBBBBBBBBB": ["deep/er/BBBBBBBBBBB.flac"],
        "CCCCCCCCCCC": ["CCCCCCCCCCC_30.ogg"],
        "DDDDDDDDDDD": ["x/DDDDDDDDDDD.mp3", "y/DDDDDDDDDDD.wav"],
        "EEEEEEEEEEE": ["EEEEEEEEEEE_30.wav", "EEEEEEEEEEE_60.wav"],
        "FFFFFFFFFFF": ["FFFFFFFFFFF.txt"],
    }
    own = tmp_path / "mine"
    for files in layouts.values():
        for file in files:
            (own / file).parent.mkdir(parents=True, exist_ok=True)
            (own / file).touch() if file.endswith("txt") else soundfile.write(
                own / file, clip(0.5), 24000
            )
    (own / "loop").symlink_to(own)
    index = youtube_index(own)
    assert {key: path.removeprefix(f"{own}/") for key, path in index.items()} == {
        "AAAAAAAAAAA": "train/YAAAAAAAAAAA.wav",
        "BBBBBBBBBBB": "deep/er/BBBBBBBBBBB.flac",
        "CCCCCCCCCCC": "CCCCCCCCCCC_30.ogg",
        "DDDDDDDDDDD": "y/DDDDDDDDDDD.wav",
    }
    assert "1 YouTube ids have files of different starts (such as EEEEEEEEEEE)" in caplog.text
    row = {
        "taskname": "",
        "filepath2": "",
        "caption1": "",
        "caption2": "",
        "input": "caption first audio",
        "answer": "x",
        "subtype": "AudioCaps.json",
    }
    rows = [{**row, "filepath1": f"AudioCapsLarger/train/Y{key}.wav"} for key in layouts]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "AudioCapsLarger").symlink_to(own)
    for roots in ({"AudioCapsLarger": str(own)}, tmp_path / "audio"):
        found = load_reasonaqa({"train": tmp_path / "train.json"}, roots)["train"]["audio"]
        names = [path.split("/")[-1] for [path] in found]
        wanted = [
            "YAAAAAAAAAAA.wav",
            "BBBBBBBBBBB.flac",
            "CCCCCCCCCCC_30.ogg",
            "DDDDDDDDDDD.wav",
            "YEEEEEEEEEEE.wav",
            "YFFFFFFFFFFF.wav",
        ]
        assert names == wanted  # the last two are missing, and are called as they are wanted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "nowhere"], "nowhere: no train.json, val.json or test.json is there"),
        (["convert", "nowhere", "--output", "out"], "nowhere: no train.json"),
        (["push", "nowhere", "--hub_dataset_id", "me/x"], "nowhere: no converted data set"),
        (["download", "data", "--server", "ftp://x"], "no address that can be asked"),
        (["check", "nowhere", "--entailment_csv", "gone.csv"], "gone.csv: not a readable csv"),
    ],
)
def test_mistakes_end_in_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(words)
    assert (
        str(end.value).startswith(f"run_prepare.py {words[0]}: ")
        and said in str(end.value)
        and "\n" not in str(end.value)
    )


def test_help_names_every_command(capsys):
    for words in ([], ["download"], ["check"], ["convert"], ["push"]):
        with pytest.raises(SystemExit) as end:
            main([*words, "--help"])
        assert end.value.code == 0
    assert "--hub_dataset_id" in capsys.readouterr().out
