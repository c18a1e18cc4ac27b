"""Rows streamed from shards during training: who reads which, resuming, and whole runs."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import datasets
import fsspec
import pytest
import torch
from support.builders import TWO_PROCESSES, arguments
from torch.utils.data import DataLoader

from audiolm import AudioLMForConditionalGeneration
from audiolm.data import convert as convert_module
from audiolm.data.collator import ReasonAQACollator
from audiolm.data.prepare import main as prepare
from audiolm.data.shards import load_shards
from audiolm.data.streaming import (
    Shards,
    StreamReaders,
    read_rows_in_order,
    repeat_shuffled,
    shuffle_numbers,
    stream_examples,
)
from audiolm.run_train import main as train
from audiolm.training import train as train_module
from audiolm.training.arguments import parse_arguments as parse


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # For other processes.
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")


@pytest.fixture
def corpus(corpus):
    """The small corpus with three questions about each clip, 48 in all."""
    rows = []
    for row in json.loads((corpus / "rows.json").read_text()):
        rows += [{**row, "caption1": f"{i}"} for i in range(3)]
    for name in ("rows", "train", "val"):
        (corpus / f"{name}.json").write_text(json.dumps(rows))
    return corpus


@pytest.fixture
def embedded(corpus, monkeypatch):
    """A conversion with 16 row groups of 3 rows, in 4 shards."""
    monkeypatch.setattr(convert_module, "EMBEDDED_PER_GROUP", 3)
    monkeypatch.setattr(convert_module, "EMBEDDED_PER_SHARD", 12)
    return convert(corpus, "embedded")


def convert(corpus, layout: str) -> str:
    with pytest.raises(SystemExit) as ended:
        prepare(["convert", str(corpus), "--output", str(corpus / layout), "--audio", layout])
    assert not ended.value.code, ended.value.code
    return str(corpus / layout)


def row_numbers(rows: list[dict]) -> list[int]:
    return [row["row"] for row in rows]


def read_batches(rows, readers: StreamReaders, num_batches: int) -> list[list]:
    """The first batches of each process, shared as accelerate and the data loader do."""
    parts = [rows]
    if readers.processes > 1:
        parts = [
            rows.shard(num_shards=readers.processes, index=i) for i in range(readers.processes)
        ]
    options = {"num_workers": readers.workers, "collate_fn": row_numbers}
    loaders = [DataLoader(part, readers.batch_size, **options) for part in parts]
    return [list(islice(loader, num_batches)) for loader in loaders]


def test_shards_have_row_groups_and_splits(embedded):
    shards = Shards(embedded, "train")
    assert shards.num_rows == 48
    assert len(shards.groups) == 16
    assert shards.has_split("val")
    assert not shards.has_split("test")


def test_read_rows_in_order_gives_the_rows_of_the_corpus(corpus, embedded):
    expected = json.loads((corpus / "train.json").read_text())
    expected.sort(key=lambda row: row["filepath1"])
    rows = list(read_rows_in_order(Shards(embedded, "train"), range(48)))
    assert [{name: row[name] for name in expected[0]} for row in rows] == expected
    assert row_numbers(rows) == list(range(48))
    assert all(row["audio"][0][:4] == b"fLaC" for row in rows)
    assert all(row["names"] == [row["filepath1"]] for row in rows)
    # Rows about the same clip share its bytes in memory.
    assert all(rows[i]["audio"][0] is rows[i - i % 3]["audio"][0] for i in range(48))


def test_read_rows_in_order_of_some_numbers_sorts_them(embedded):
    rows = read_rows_in_order(Shards(embedded, "train"), [40, 7, 8])
    assert row_numbers(rows) == [7, 8, 40]


def test_shards_of_another_file_system_give_the_same_rows(embedded):
    fsspec.filesystem("memory").put(embedded, "/set", recursive=True)
    rows = [
        list(read_rows_in_order(Shards(where, "train"), [40]))
        for where in ("memory://set", embedded)
    ]
    assert rows[0] == rows[1]


def test_selection_columns_have_row_numbers_and_no_audio(embedded):
    shards = Shards(embedded, "train")
    selection = shards.selection_columns()
    rows = list(read_rows_in_order(shards, range(48)))
    assert selection["filepath1"] == [row["filepath1"] for row in rows]
    assert selection["row"] == list(range(48))
    assert "audio" not in selection.column_names


@pytest.fixture
def groups_read(monkeypatch):
    """First rows of the row groups that were read."""
    first_rows = []
    original = Shards.read

    def read(self, group):
        first_rows.append(group.first_row)
        return original(self, group)

    monkeypatch.setattr(Shards, "read", read)
    return first_rows


def test_read_rows_in_order_reads_only_their_row_groups(embedded, groups_read):
    rows = read_rows_in_order(Shards(embedded, "train"), [4, 40])
    assert row_numbers(rows) == [4, 40]
    assert groups_read == [3, 39]


def test_repeat_shuffled_resumed_continues_and_reads_only_what_is_left(embedded, groups_read):
    shards = Shards(embedded, "train")
    groups = [[0, 1, 2], [4], [9, 11]]
    numbers = row_numbers(islice(repeat_shuffled(shards, groups, 100, "s"), 18))
    assert [sorted(numbers[i : i + 6]) for i in (0, 6, 12)] == [[0, 1, 2, 4, 9, 11]] * 3
    assert numbers[:6] != numbers[6:12]
    for num_done in range(12):
        resumed = islice(repeat_shuffled(shards, groups, 100, "s", num_done), 6)
        assert row_numbers(resumed) == numbers[num_done : num_done + 6]
    groups_read.clear()
    resumed = islice(repeat_shuffled(shards, groups, 100, "s", 11), 1)
    assert row_numbers(resumed) == [numbers[11]]
    assert len(groups_read) == 1


def test_shuffle_numbers_mixes_more_groups_with_a_larger_buffer():
    groups = [list(range(i, i + 10)) for i in range(0, 100, 10)]
    orders = {buffer: list(shuffle_numbers(groups, buffer, "0")) for buffer in (1, 15, 1000)}
    assert all(sorted(order) == list(range(100)) for order in orders.values())
    # Without a buffer the groups stay complete, in another order.
    in_tens = [orders[1][i : i + 10] for i in range(0, 100, 10)]
    assert in_tens != groups
    assert sorted(in_tens) == groups
    num_groups = {
        buffer: len({number // 10 for number in order[:10]}) for buffer, order in orders.items()
    }
    assert num_groups[1] == 1
    assert 1 < num_groups[15] <= 3
    assert num_groups[1000] > 3


def test_shuffle_numbers_follows_its_seed():
    groups = [list(range(i, i + 10)) for i in range(0, 100, 10)]
    order = list(shuffle_numbers(groups, 15, "0"))
    assert list(shuffle_numbers(groups, 15, "0")) == order
    assert list(shuffle_numbers(groups, 15, "1")) != order


@pytest.mark.parametrize(
    "selected", [range(48), [0, 1, 2, 3, 5, 8, 13, 14, 20, 21, 22, 23, 30, 31, 40, 47]]
)
@pytest.mark.parametrize(("processes", "workers"), [(2, 2), (2, 0), (1, 3)])
def test_stream_gives_every_row_once_per_pass(embedded, selected, processes, workers):
    readers = StreamReaders(processes, workers)
    rows = stream_examples(Shards(embedded, "train"), selected, 10, 0, readers)
    per_process = max(1, workers)
    first_passes = []
    for batches in read_batches(rows, readers, 120):
        for worker in range(per_process):
            numbers = [row for batch in batches[worker::per_process] for row in batch]
            share = len(set(numbers))
            passes = [numbers[i : i + share] for i in range(0, len(numbers) - share, share)]
            assert len(passes) > 1
            assert all(set(numbers) == set(numbers_of_pass) for numbers_of_pass in passes)
            assert passes[0] != passes[1]
            first_passes += passes[0]
    assert sorted(first_passes) == list(selected)


def test_stream_follows_its_seed(embedded):
    shards = Shards(embedded, "train")
    readers = StreamReaders(workers=2, batch_size=2)
    first, again, other = (
        read_batches(stream_examples(shards, range(48), 100, seed, readers), readers, 20)
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


# The order of 48 rows in 16 groups as it was when streams were introduced.
PINNED_ORDER = [47, 30, 31, 46, 19, 32, 1, 45, 15, 0, 33, 34]


def test_stream_keeps_the_order_of_earlier_versions(embedded):
    rows = stream_examples(Shards(embedded, "train"), range(48), 10, 0)
    assert row_numbers(islice(rows, 12)) == PINNED_ORDER


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (1, 3), (2, 0), (2, 2)])
def test_resumed_stream_continues_with_the_next_batch(embedded, processes, workers):
    shards = Shards(embedded, "train")
    readers = StreamReaders(processes, workers, batch_size=5)
    rows = stream_examples(shards, range(48), 10, 0, readers)
    complete = read_batches(rows, readers, 24)
    # 48 rows are 10 batches of one process.
    for batches_done in (1, 2, 7, 13):
        resumed = StreamReaders(processes, workers, 5, batches_done)
        rows = stream_examples(shards, range(48), 10, 0, resumed)
        expected = [batches[batches_done : batches_done + 8] for batches in complete]
        assert read_batches(rows, resumed, 8) == expected


def test_stream_with_more_readers_than_row_groups_is_refused(embedded):
    message = r"4 readers cannot share 3 row groups\. Lower --dataloader_num_workers"
    with pytest.raises(ValueError, match=message):
        stream_examples(Shards(embedded, "train"), [0, 1, 5, 40], 10, 0, StreamReaders(2, 2))


def stream_options(corpus, tokenizer, folder: str, *more: str) -> list[str]:
    """Options of a run on a converted data set."""
    argv = arguments(corpus, "mimi_semantic", tokenizer)
    options = dict(zip(argv[::2], argv[1::2]))
    for name in ("--train_file", "--validation_file", "--audio_dir"):
        del options[name]
    options |= {"--dataset_name": folder, **dict(zip(more[::2], more[1::2]))}
    return list(chain.from_iterable(options.items()))


def losses_and_weights(corpus) -> tuple[list, dict]:
    log = json.loads((corpus / "out" / "trainer_state.json").read_text())["log_history"]
    losses = []
    for entry in log:
        names = [name for name in entry if name == "loss" or name.endswith("token_loss")]
        losses.append({name: entry[name] for name in names})
    return losses, AudioLMForConditionalGeneration.from_pretrained(corpus / "out").state_dict()


def assert_same_weights(weights: dict, expected: dict) -> None:
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())


def test_run_on_shards_equals_a_run_on_files(corpus, tokenizer):
    more = ["--max_steps", "3", "--eval_steps", "2", "--num_stats_clips", "7"]
    train(arguments(corpus, "mimi_semantic", tokenizer, *more))
    expected_losses, expected_weights = losses_and_weights(corpus)
    train(stream_options(corpus, tokenizer, convert(corpus, "referenced"), *more))
    losses, weights = losses_and_weights(corpus)
    assert losses == expected_losses
    assert_same_weights(weights, expected_weights)
    assert sum("loss" in entry for entry in losses) == 3
    assert any("eval_mcq_token_loss" in entry for entry in losses)
    card = (corpus / "out" / "README.md").read_text()
    assert "48 rows about 16 clips" in card
    assert str(corpus) not in card


def test_streamed_run_resumed_ends_the_same_and_refuses_other_settings(
    corpus, tokenizer, embedded, capsys
):
    more = {
        "--streaming": "true",
        "--max_steps": "4",
        "--eval_strategy": "no",
        "--dataloader_num_workers": "2",
        "--save_steps": "1",
        "--save_total_limit": "9",
        "--max_eval_samples": "2",
        "--num_stats_clips": "4",
    }
    more = list(chain.from_iterable(more.items()))
    options = stream_options(corpus, tokenizer, embedded, *more)
    train(options)
    expected_losses, expected_weights = losses_and_weights(corpus)
    # The second and fourth batch come from the other worker.
    for step in (3, 1):
        checkpoint = corpus / "out" / f"checkpoint-{step}"
        train([*options, "--resume_from_checkpoint", str(checkpoint)])
        losses, weights = losses_and_weights(corpus)
        assert_same_weights(weights, expected_weights)
        assert losses == expected_losses
    checkpoint = corpus / "out" / "checkpoint-3"
    resumed = [*options, "--resume_from_checkpoint", str(checkpoint)]
    for changes, setting in [
        (["--shuffle_buffer", "7"], "shuffle buffer 4000"),
        (["--seed", "5"], "seed 0"),
        (["--dataloader_num_workers", "0"], "workers 2 in 1 processes"),
        (["--mix", "mcq=0.5"], "mix None"),
    ]:
        with pytest.raises(SystemExit, match=rf"was trained with .*{setting} \(now"):
            train([*resumed, *changes])
    (checkpoint / "training_data.json").unlink()
    with pytest.raises(SystemExit):
        train(resumed)
    assert "training_data.json is missing or incomplete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "counts"),
    [
        (["--question_types", "mcq", "--max_rows_per_clip", "2"], {"mcq": 16}),
        (["--mix", "mcq=0.75", "--shuffle_options", "true"], {"mcq": 24, "yes_no": 8}),
    ],
)
def test_streamed_run_trains_on_the_selected_parts(
    corpus, tokenizer, embedded, monkeypatch, capsys, more, counts
):
    trained = []

    class Recorder(ReasonAQACollator):
        def __call__(self, rows):
            # Rows of the evaluation have no number.
            trained.extend(row for row in rows if "row" in row)
            return super().__call__(rows)

    monkeypatch.setattr(train_module, "ReasonAQACollator", Recorder)
    steps = sum(counts.values()) // 16
    more = ["--streaming", "true", "--max_steps", str(steps), "--eval_steps", "1", *more]
    train(stream_options(corpus, tokenizer, embedded, *more))
    # accelerate reads one batch more.
    trained = trained[: 16 * steps]
    assert len(set(row_numbers(trained))) == 16 * steps
    assert Counter(row["question_type"] for row in trained) == counts
    output = capsys.readouterr().out
    assert "mcq loss" in output
    assert ("yes_no loss" in output) == ("yes_no" in counts)
    assert "training loss" in output
    clips = {row["filepath1"] for row in trained}
    card = (corpus / "out" / "README.md").read_text()
    assert f"{16 * steps} rows about {len(clips)} clips" in card
    questions = {row["input"] for row in trained if row["question_type"] == "mcq"}
    assert len(questions) == (2 if "--shuffle_options" in more else 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--streaming", "true"], "--streaming: add --dataset_name"),
        (
            ["--streaming", "true", "--dataset_name", "x", "--feature_cache", "x"],
            "--streaming reads each clip once; remove --feature_cache",
        ),
        (
            ["--dataset_name", "x", "--train_file", "x"],
            "--dataset_name has its own splits",
        ),
        (["--dataset_name", "x", "--audio_dir", "x"], "--dataset_name has its own audio"),
    ],
)
def test_streaming_options_that_conflict_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        train(options)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_streamed_run_on_a_wrong_data_set_is_refused_in_one_line(corpus, tokenizer, embedded):
    referenced = convert(corpus, "referenced")
    for message, folder, workers in [
        (
            r"its rows do not hold their audio\. Convert with --audio embedded",
            referenced,
            "0",
        ),
        ("17 readers cannot share 16 row groups", embedded, "17"),
        ("no converted data set with a split 'train'", str(corpus), "0"),
        ("no_such/data", "no_such/data", "0"),
    ]:
        more = ["--streaming", "true", "--dataloader_num_workers", workers]
        with pytest.raises(SystemExit, match=f"^run_train.py: .*{message}") as ended:
            train(stream_options(corpus, tokenizer, folder, *more))
        assert "\n" not in str(ended.value)


# run_train.py that also writes the worker and the rows of each batch of each process.
RECORDING = """
import os, sys, torch
from torch.utils.data import get_worker_info
from audiolm import run_train
from audiolm.training import train as train_module
class Recorder(train_module.ReasonAQACollator):
    def __call__(self, rows):
        if "row" not in rows[0]:  # of evaluation
            return super().__call__(rows)
        numbers = torch.tensor([get_worker_info().id, *(row["row"] for row in rows)])
        return {**super().__call__(rows), "rows": numbers}
class Trainer(train_module.AudioLMTrainer):
    def training_step(self, model, inputs, *rest):
        with open(os.environ["RECORD"] + os.environ["RANK"], "a") as file:
            print(*inputs.pop("rows").tolist(), file=file)
        return super().training_step(model, inputs, *rest)
train_module.ReasonAQACollator, train_module.AudioLMTrainer = Recorder, Trainer
run_train.main()
"""


def test_stream_of_two_processes_gives_every_row_once(corpus, tokenizer, embedded):
    (corpus / "recording.py").write_text(RECORDING)
    more = {
        "--streaming": "true",
        "--max_steps": "3",
        "--eval_strategy": "no",
        "--dataloader_num_workers": "2",
        "--per_device_train_batch_size": "2",
        "--gradient_accumulation_steps": "4",
        "--max_eval_samples": "4",
    }
    more = list(chain.from_iterable(more.items()))
    options = stream_options(corpus, tokenizer, embedded, *more)
    run = subprocess.run(
        [sys.executable, *TWO_PROCESSES, str(corpus / "recording.py"), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "RECORD": str(corpus / "rows-")},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "training loss" in run.stdout
    rows = []
    for process in (0, 1):
        lines = (corpus / f"rows-{process}").read_text().splitlines()
        batches = [[int(word) for word in line.split()] for line in lines]
        # The two workers take turns.
        assert [(worker, len(numbers)) for worker, *numbers in batches] == [(0, 2), (1, 2)] * 6
        rows += [number for _, *numbers in batches for number in numbers]
    assert sorted(rows) == list(range(48))


@pytest.mark.parametrize("load", [lambda folder: Shards(str(folder), "train"), load_shards])
def test_data_set_with_a_missing_shard_is_refused(embedded, tmp_path, load):
    copy = tmp_path / "copy"
    shutil.copytree(embedded, copy)
    manifest = json.loads((copy / "audiolm.json").read_text())
    manifest["splits"]["train"]["rows"] += 7
    (copy / "audiolm.json").write_text(json.dumps(manifest))
    message = r"the shards of train hold \d+ rows, audiolm.json says \d+"
    with pytest.raises(ValueError, match=message):
        load(copy)


def test_data_set_with_a_truncated_shard_is_refused(embedded):
    shard = sorted(Path(embedded).glob("rows/train-*.parquet"))[1]
    os.truncate(shard, 500)
    with pytest.raises(ValueError, match=rf"{shard.name}: not a readable shard"):
        Shards(str(embedded), "train")
    with pytest.raises(ValueError, match=rf"{embedded}: its shards cannot be read"):
        load_shards(embedded)


def test_streaming_without_max_steps_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["--dataset_name", "x", "--streaming", "true", "--max_steps", "-1"])
    assert "a stream has no end; use --max_steps" in capsys.readouterr().err
