"""`audiolm prepare`: a pushed data set trains from the Hub, AudioCaps is found in any layout."""

import json

import pytest
import soundfile
from support.builders import arguments, clip, make_corpus, run, train
from support.hub_server import READER, Hub

from audiolm.data.download.audiocaps import youtube_id, youtube_index
from audiolm.data.prepare import build_parser, main
from audiolm.data.reasonaqa import load_rows

SMALL_GROUPS = """
import sys
from audiolm.data import convert, prepare
convert.EMBEDDED_PER_GROUP = 4
prepare.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub") / "hub") as server:
        yield server


def push(hub, folder, *options, **variables):
    command = ["-m", "audiolm", "prepare", "push", str(folder), "--hub_dataset_id", "me/data"]
    return run(hub, *command, *options, **variables)


@pytest.fixture(scope="module")
def pushed_data(hub, tmp_path_factory):
    """Folder of a corpus whose shards with embedded audio are pushed as me/data."""
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text((folder / "rows.json").read_text())
    argv = ["convert", str(folder), "--output", str(folder / "shards"), "--audio", "embedded"]
    converted = run(hub, "-c", SMALL_GROUPS, *argv)
    assert converted.returncode == 0, converted.stderr
    assert "16 clips and 32 rows" in converted.stdout
    pushed = push(hub, folder / "shards", "--private")
    assert pushed.returncode == 0, pushed.stderr
    assert "run_train.py --dataset_name me/data" in pushed.stdout
    return folder


def test_push_uploads_shards_manifest_and_card(hub, pushed_data):
    files = set(hub.files("datasets/me/data")) - {".gitattributes"}
    shards = {f"rows/{split}-00000-of-00001.parquet" for split in ("train", "val")}
    assert files == {"README.md", "audiolm.json", *shards}


def test_push_shards_are_unchanged(hub, pushed_data):
    shard = "rows/train-00000-of-00001.parquet"
    assert hub.read("datasets/me/data", shard) == (pushed_data / "shards" / shard).read_bytes()


def test_push_private_is_private(hub, pushed_data):
    assert hub.repos["datasets/me/data"]["private"]


def test_push_again_succeeds(hub, pushed_data):
    assert push(hub, pushed_data / "shards").returncode == 0


STREAMING = ["--streaming", "true", "--shuffle_buffer", "8", "--dataloader_num_workers", "2"]


@pytest.mark.parametrize("more", [[], STREAMING])
def test_train_reads_a_pushed_data_set(more, hub, pushed_data, tokenizer):
    options = ["--max_steps", "2", "--eval_steps", "2", *more]
    argv = arguments(pushed_data, "mimi_semantic", tokenizer, *options)
    for option in ("--train_file", "--validation_file", "--audio_dir"):
        start = argv.index(option)
        del argv[start : start + 2]
    trained = train(hub, [*argv, "--dataset_name", "me/data"])
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert "mcq loss" in trained.stdout
    card = (pushed_data / "out" / "README.md").read_text()
    assert "`me/data`, SHA-256 `" in card
    assert "16 rows about 16 clips" in card
    assert [request for request in hub.unknown if "agent-harnesses" not in request] == []


@pytest.mark.slow
@pytest.mark.parametrize("token", [READER, None])
def test_push_without_permission_is_one_line(token, hub, pushed_data):
    refused = push(hub, pushed_data / "shards", token=token, home=f"home {token}")
    assert refused.returncode == 1
    assert "audiolm prepare push: not pushed to me/data" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_push_other_folder_is_refused(hub, pushed_data):
    refused = push(hub, pushed_data)
    assert refused.returncode == 1
    assert "no converted data set" in refused.stderr


@pytest.mark.slow
def test_train_missing_data_set_is_named(hub, pushed_data):
    refused = train(hub, ["--dataset_name", "me/nothing", "--output_dir", str(pushed_data / "o")])
    assert refused.returncode == 1
    message = "--dataset_name me/nothing: neither a folder nor a data set on the Hub"
    assert message in refused.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
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
def test_youtube_id_of_a_file_name(name, expected):
    assert youtube_id(name) == expected


LAYOUTS = {
    "AAAAAAAAAAA": ["train/YAAAAAAAAAAA.wav"],
    "BBBBBBBBBBB": ["deep/er/BBBBBBBBBBB.flac"],
    "CCCCCCCCCCC": ["CCCCCCCCCCC_30.ogg"],
    "DDDDDDDDDDD": ["x/DDDDDDDDDDD.mp3", "y/DDDDDDDDDDD.wav"],
    "EEEEEEEEEEE": ["EEEEEEEEEEE_30.wav", "EEEEEEEEEEE_60.wav"],
    "FFFFFFFFFFF": ["FFFFFFFFFFF.txt"],
}


@pytest.fixture
def audiocaps(tmp_path):
    """A copy of AudioCaps with files in several layouts."""
    folder = tmp_path / "mine"
    for files in LAYOUTS.values():
        for file in files:
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".txt":
                path.touch()
            else:
                soundfile.write(path, clip(0.5), 24000)
    return folder


def test_youtube_index_finds_files_in_any_layout(audiocaps, caplog):
    index = youtube_index(audiocaps)
    assert {key: path.removeprefix(f"{audiocaps}/") for key, path in index.items()} == {
        "AAAAAAAAAAA": "train/YAAAAAAAAAAA.wav",
        "BBBBBBBBBBB": "deep/er/BBBBBBBBBBB.flac",
        "CCCCCCCCCCC": "CCCCCCCCCCC_30.ogg",
        "DDDDDDDDDDD": "y/DDDDDDDDDDD.wav",
    }
    assert "EEEEEEEEEEE" in caplog.text


@pytest.mark.parametrize("is_linked", [False, True])
def test_load_reasonaqa_finds_audiocaps_by_id(is_linked, audiocaps, tmp_path):
    fields = ("taskname", "filepath2", "caption1", "caption2")
    question = {"input": "caption first audio", "answer": "x", "subtype": "AudioCaps.json"}
    row = dict.fromkeys(fields, "") | question
    rows = [{**row, "filepath1": f"AudioCapsLarger/train/Y{key}.wav"} for key in LAYOUTS]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    roots = {"AudioCapsLarger": str(audiocaps)}
    if is_linked:
        roots = tmp_path / "audio"
        roots.mkdir()
        (roots / "AudioCapsLarger").symlink_to(audiocaps)
    paths = load_rows({"train": tmp_path / "train.json"}, roots)["train"]["audio"]
    # The last two are missing, and keep ReasonAQA's names.
    assert [path.split("/")[-1] for [path] in paths] == [
        "YAAAAAAAAAAA.wav",
        "BBBBBBBBBBB.flac",
        "CCCCCCCCCCC_30.ogg",
        "DDDDDDDDDDD.wav",
        "YEEEEEEEEEEE.wav",
        "YFFFFFFFFFFF.wav",
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["check", "nowhere"], "nowhere: no train.json, val.json or test.json found"),
        (["convert", "nowhere", "--output", "out"], "nowhere: no train.json"),
        (["push", "nowhere", "--hub_dataset_id", "me/x"], "nowhere: no converted data set"),
        (["download", "data", "--audiocaps", "gone"], "--audiocaps gone: folder not found"),
    ],
)
def test_prepare_wrong_input_is_one_line(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(argv)
    text = str(end.value)
    assert text.startswith(f"audiolm prepare {argv[0]}: ")
    assert message in text
    assert "\n" not in text


def test_prepare_number_that_is_not_positive_is_refused():
    with pytest.raises(SystemExit, match=r"--max_audio_seconds 0.0: expected a positive number"):
        main(["check", "data", "--max_audio_seconds", "0"])


@pytest.mark.parametrize("command", ["download", "check", "convert", "push"])
def test_prepare_help_names_the_command(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: audiolm prepare {command}" in capsys.readouterr().out


def test_prepare_help_lists_the_commands():
    assert "{download,check,convert,push}" in build_parser().format_help()
