"""Rows read from shards while training goes on: who reads which, going on after an interruption, and whole runs."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import fsspec
import pytest
import torch
from support.builders import TWO_PROCESSES, arguments
from torch.utils.data import DataLoader

from audiolm import AudioLMForConditionalGeneration
from audiolm.data import ReasonAQACollator
from audiolm.data import convert as conversion
from audiolm.data.prepare import main as prepare
from audiolm.data.shards import load_shards
from audiolm.data.streaming import Shards, endless, in_order, shuffled, stream_rows
from audiolm.training import train as run_train
from audiolm.training.arguments import parse
from audiolm.training.train import main as train


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))  # of other processes
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")


@pytest.fixture
def corpus(corpus):
    """With three questions about each clip, 48 in all."""
    rows = [
        {**row, "caption1": f"{i}"}
        for row in json.loads((corpus / "rows.json").read_text())
        for i in range(3)
    ]
    for name in ("rows", "train", "val"):
        (corpus / f"{name}.json").write_text(json.dumps(rows))
    return corpus


@pytest.fixture
def embedded(corpus, monkeypatch):
    """In 16 row groups of 3, of which 4 shards have 4 each."""
    monkeypatch.setattr(conversion, "EMBEDDED_PER_GROUP", 3)
    monkeypatch.setattr(conversion, "EMBEDDED_PER_SHARD", 12)
    return converted(corpus, "embedded")


def converted(corpus, layout: str) -> str:
    with pytest.raises(SystemExit) as ended:
        prepare(["convert", str(corpus), "--output", str(corpus / layout), "--audio", layout])
    assert not ended.value.code, ended.value.code
    return str(corpus / layout)


def number(rows: list[dict]) -> list[int]:
    return [row["row"] for row in rows]


def taken(rows, processes: int, workers: int, batches: int, size: int = 2) -> list[list]:
    """The first batches of each process, shared out as accelerate and the data loader do."""
    parts = (
        [rows.shard(num_shards=processes, index=p) for p in range(processes)]
        if processes > 1
        else [rows]
    )
    return [
        list(islice(DataLoader(part, size, num_workers=workers, collate_fn=number), batches))
        for part in parts
    ]


def test_rows_of_shards(corpus, embedded):
    shards, rows = Shards(embedded, "train"), json.loads((corpus / "train.json").read_text())
    assert (shards.num_rows, len(shards.groups), shards.has("val"), shards.has("test")) == (
        48,
        16,
        True,
        False,
    )
    rows.sort(key=lambda row: row["filepath1"])
    read = list(in_order(shards, range(48)))
    assert [{k: row[k] for k in rows[0]} for row in read] == rows and number(read) == list(
        range(48)
    )
    assert all(
        row["audio"][0][:4] == b"fLaC" and row["names"] == [row["filepath1"]] for row in read
    )
    assert all(
        read[i]["audio"][0] is read[i - i % 3]["audio"][0] for i in range(48)
    )  # once in memory
    assert [row["filepath1"] for row in shards.light()] == [row["filepath1"] for row in rows]
    assert number(shards.light()) == list(range(48)) and "audio" not in shards.light().column_names
    assert [row["row"] for row in in_order(shards, [40, 7, 8])] == [7, 8, 40]
    fsspec.filesystem("memory").put(embedded, "/set", recursive=True)
    assert list(in_order(Shards("memory://set", "train"), [40])) == [read[40]]


def test_only_wanted_row_groups_are_read(embedded, monkeypatch):
    shards, read, inner = Shards(embedded, "train"), [], Shards.read
    monkeypatch.setattr(
        Shards, "read", lambda self, group: (read.append(group[2]), inner(self, group))[1]
    )
    assert number(in_order(shards, [4, 40])) == [4, 40] and read == [3, 39]
    groups = [[0, 1, 2], [4], [9, 11]]
    whole = number(islice(endless(shards, groups, 100, "s"), 18))
    assert [sorted(whole[i : i + 6]) for i in (0, 6, 12)] == [[0, 1, 2, 4, 9, 11]] * 3 and whole[
        :6
    ] != whole[6:12]
    for done in range(12):
        read.clear()
        assert number(islice(endless(shards, groups, 100, "s", done), 6)) == whole[done : done + 6]
    read.clear()
    assert (
        number(islice(endless(shards, groups, 100, "s", 11), 1)) == [whole[11]] and len(read) == 1
    )


def test_order():
    groups = [list(range(i, i + 10)) for i in range(0, 100, 10)]
    orders = {buffer: list(shuffled(groups, buffer, "0")) for buffer in (1, 15, 1000)}
    assert all(sorted(order) == list(range(100)) for order in orders.values())
    assert [
        orders[1][i : i + 10] for i in range(0, 100, 10)
    ] != groups  # in another order, each whole
    assert sorted(orders[1][i : i + 10] for i in range(0, 100, 10)) == groups
    tens = {buffer: len({n // 10 for n in order[:10]}) for buffer, order in orders.items()}
    assert tens[1] == 1 < tens[15] <= 3 < tens[1000]
    assert list(shuffled(groups, 15, "0")) == orders[15] != list(shuffled(groups, 15, "1"))


@pytest.mark.parametrize(
    "chosen", [range(48), [0, 1, 2, 3, 5, 8, 13, 14, 20, 21, 22, 23, 30, 31, 40, 47]]
)
@pytest.mark.parametrize(("processes", "workers"), [(2, 2), (2, 0), (1, 3)])
def test_every_row_once_in_a_pass(embedded, chosen, processes, workers):
    shards = Shards(embedded, "train")
    batches = taken(
        stream_rows(shards, chosen, 10, 0, processes, workers), processes, workers, 120, 1
    )
    each, first = max(1, workers), []
    for part in batches:
        for reader in range(each):
            rows = [row for batch in part[reader::each] for row in batch]
            share = len(set(rows))
            passes = [rows[i : i + share] for i in range(0, len(rows) - share, share)]
            assert (
                len(passes) > 1
                and all(set(rows) == set(one) for one in passes)
                and passes[0] != passes[1]
            )
            first += passes[0]
    assert sorted(first) == list(chosen)


def test_seeds(embedded):
    shards = Shards(embedded, "train")
    orders = [
        taken(stream_rows(shards, range(48), 100, seed, 1, 2), 1, 2, 20) for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (1, 3), (2, 0), (2, 2)])
def test_going_on(embedded, processes, workers):
    shards = Shards(embedded, "train")
    whole = taken(
        stream_rows(shards, range(48), 10, 0, processes, workers, 5), processes, workers, 24, 5
    )
    for done in (1, 2, 7, 13):  # 48 rows are 10 batches of one process
        rest = stream_rows(shards, range(48), 10, 0, processes, workers, 5, done)
        assert taken(rest, processes, workers, 8, 5) == [part[done : done + 8] for part in whole]


def test_more_readers_than_row_groups(embedded):
    with pytest.raises(
        ValueError, match="4 readers cannot share 3 row groups; lower --dataloader_num_workers"
    ):
        stream_rows(Shards(embedded, "train"), [0, 1, 5, 40], 10, 0, 2, 2)


def words(corpus, tokenizer, folder: str, *more) -> list[str]:
    given = arguments(corpus, "mimi_semantic", tokenizer)
    options = dict(zip(given[::2], given[1::2]))
    for name in ("--train_file", "--validation_file", "--audio_dir"):
        del options[name]
    options |= {"--dataset_name": folder, **dict(zip(more[::2], more[1::2]))}
    return [word for pair in options.items() for word in pair]


def log_and_weights(corpus) -> tuple[list, dict]:
    log = json.loads((corpus / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [
        {k: v for k, v in entry.items() if k == "loss" or k.endswith("token_loss")} for entry in log
    ]
    return losses, AudioLMForConditionalGeneration.from_pretrained(corpus / "out").state_dict()


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) for key, value in one.items()
    )


def test_shards_train_as_files_do(corpus, tokenizer):
    more = ["--max_steps", "3", "--eval_steps", "2", "--num_stats_clips", "7"]
    train(arguments(corpus, "mimi_semantic", tokenizer, *more))
    losses, weights = log_and_weights(corpus)
    train(words(corpus, tokenizer, converted(corpus, "referenced"), *more))
    again, found = log_and_weights(corpus)
    assert (
        losses == again and same(weights, found) and sum("loss" in entry for entry in losses) == 3
    )
    assert any("eval_mcq_token_loss" in entry for entry in losses)
    card = (corpus / "out" / "README.md").read_text()
    assert "48 rows about 16 clips" in card and str(corpus) not in card


def test_a_streamed_run_goes_on(corpus, tokenizer, embedded, capsys):
    options = words(
        corpus,
        tokenizer,
        embedded,
        "--streaming",
        "true",
        "--max_steps",
        "4",
        "--eval_strategy",
        "no",
        "--dataloader_num_workers",
        "2",
        "--save_steps",
        "1",
        "--save_total_limit",
        "9",
        "--max_eval_samples",
        "2",
        "--num_stats_clips",
        "4",
    )
    train(options)
    losses, weights = log_and_weights(corpus)
    for checkpoint in (3, 1):  # the second and fourth batch are of the other worker
        train(
            [*options, "--resume_from_checkpoint", str(corpus / "out" / f"checkpoint-{checkpoint}")]
        )
        again, found = log_and_weights(corpus)
        assert same(weights, found) and again == losses
    again = [*options, "--resume_from_checkpoint", str(corpus / "out" / "checkpoint-3")]
    for more, said in [
        (["--shuffle_buffer", "7"], "shuffle_buffer 4000"),
        (["--seed", "5"], "seed 0"),
        (["--dataloader_num_workers", "0"], "dataloader_num_workers 2"),
        (["--mix", "mcq=0.5"], "changes {}"),
    ]:
        with pytest.raises(
            SystemExit,
            match=rf"was trained on a stream with {said}; give the same, or rows come twice",
        ):
            train([*again, *more])
    (corpus / "out" / "checkpoint-3" / "training_data.json").unlink()
    with pytest.raises(SystemExit):
        train(again)
    assert "training_data.json is missing or torn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        (["--question_types", "mcq", "--max_rows_per_clip", "2"], {"mcq": 16}),
        (["--mix", "mcq=0.75", "--shuffle_options", "true"], {"mcq": 24, "yes_no": 8}),
    ],
)
def test_parts_of_a_stream(corpus, tokenizer, embedded, monkeypatch, capsys, more, kinds):
    trained = []

    class Recorder(ReasonAQACollator):
        def __call__(self, rows):
            trained.extend(
                row for row in rows if "row" in row
            )  # those of evaluation have no number
            return super().__call__(rows)

    monkeypatch.setattr(run_train, "ReasonAQACollator", Recorder)
    steps = sum(kinds.values()) // 16
    train(
        words(
            corpus,
            tokenizer,
            embedded,
            "--streaming",
            "true",
            "--max_steps",
            str(steps),
            "--eval_steps",
            "1",
            *more,
        )
    )
    trained = trained[: 16 * steps]  # accelerate takes one batch more
    assert (
        len(set(number(trained))) == 16 * steps
        and Counter(row["question_type"] for row in trained) == kinds
    )
    out = capsys.readouterr().out
    assert (
        "mcq loss" in out
        and ("yes_no loss" in out) == ("yes_no" in kinds)
        and "training loss" in out
    )
    named = {row["filepath1"] for row in trained}
    assert (
        f"{16 * steps} rows about {len(named)} clips" in (corpus / "out" / "README.md").read_text()
    )
    swapped = {row["input"] for row in trained if row["question_type"] == "mcq"}
    assert len(swapped) == (2 if "--shuffle_options" in more else 1)


def test_contradictions(corpus, tokenizer, embedded, capsys):
    for message, wrong in {
        "--streaming: give --dataset_name": ["--streaming", "true"],
        "--streaming: its clips pass by once; leave --feature_cache out": [
            "--streaming",
            "true",
            "--dataset_name",
            embedded,
            "--feature_cache",
            "x",
        ],
        "--dataset_name: it has splits of its own": [
            "--dataset_name",
            embedded,
            "--train_file",
            "x",
        ],
    }.items():
        with pytest.raises(SystemExit):
            train(wrong)
        assert message in capsys.readouterr().err.splitlines()[-1]
    for message, folder, workers in [
        (
            "its rows do not hold their audio; convert with --audio embedded",
            converted(corpus, "referenced"),
            "0",
        ),
        ("17 readers cannot share 16 row groups", embedded, "17"),
        ("no converted data set with a split 'train' is there", str(corpus), "0"),
        ("no_such/data", "no_such/data", "0"),
    ]:
        with pytest.raises(SystemExit, match=f"^run_train.py: .*{message}") as ended:
            train(
                words(
                    corpus,
                    tokenizer,
                    folder,
                    "--streaming",
                    "true",
                    "--dataloader_num_workers",
                    workers,
                )
            )
        assert "\n" not in str(ended.value)


# run_train.py, which also writes which worker each batch of each process is of, and its rows
RECORDING = """
import os, sys, torch
from torch.utils.data import get_worker_info
from audiolm.training import train as run_train
class Recorder(run_train.ReasonAQACollator):
    def __call__(self, rows):
        if "row" not in rows[0]:  # of evaluation
            return super().__call__(rows)
        return {**super().__call__(rows), "rows": torch.tensor([get_worker_info().id, *(row["row"] for row in rows)])}
class Trainer(run_train.BucketTrainer):
    def training_step(self, model, inputs, *rest):
        with open(os.environ["RECORD"] + os.environ["RANK"], "a") as file:
            print(*inputs.pop("rows").tolist(), file=file)
        return super().training_step(model, inputs, *rest)
run_train.ReasonAQACollator, run_train.BucketTrainer = Recorder, Trainer
run_train.main()
"""


def test_two_processes_share_a_stream(corpus, tokenizer, embedded):
    (corpus / "recording.py").write_text(RECORDING)
    options = words(
        corpus,
        tokenizer,
        embedded,
        "--streaming",
        "true",
        "--max_steps",
        "3",
        "--eval_strategy",
        "no",
        "--dataloader_num_workers",
        "2",
        "--per_device_train_batch_size",
        "2",
        "--max_eval_samples",
        "4",
    )
    launch = [sys.executable, *TWO_PROCESSES, str(corpus / "recording.py"), *options]
    run = subprocess.run(
        launch, capture_output=True, text=True, env={**os.environ, "RECORD": str(corpus / "rows-")}
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "training loss" in run.stdout
    parts = [
        [line.split() for line in (corpus / f"rows-{process}").read_text().splitlines()]
        for process in (0, 1)
    ]
    assert [[(worker, len(rows)) for worker, *rows in part] for part in parts] == [
        [("0", 2), ("1", 2)] * 6
    ] * 2
    assert sorted(int(row) for part in parts for _, *rows in part for row in rows) == list(
        range(48)
    )


def test_a_shard_that_is_missing_is_noticed(embedded, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(embedded, copy)
    manifest = json.loads((copy / "audiolm.json").read_text())
    manifest["splits"]["train"]["rows"] += 7
    (copy / "audiolm.json").write_text(json.dumps(manifest))
    for read in (lambda: Shards(str(copy), "train"), lambda: load_shards(copy)):
        with pytest.raises(
            ValueError, match=r"the shards of train hold \d+ rows, audiolm.json says \d+"
        ):
            read()


def test_a_torn_shard_is_named(embedded):
    shard = sorted(Path(embedded).glob("rows/train-*.parquet"))[1]
    os.truncate(shard, 500)
    with pytest.raises(ValueError, match=rf"{shard.name}: not a readable shard"):
        Shards(str(embedded), "train")
    with pytest.raises(ValueError, match=rf"{embedded}: its shards cannot be read"):
        load_shards(embedded)


def test_a_stream_without_an_end_wants_a_number_of_steps(capsys):
    with pytest.raises(SystemExit):
        parse(["--dataset_name", "x", "--streaming", "true", "--max_steps", "-1"])
    assert "a stream has no end; give --max_steps with it" in capsys.readouterr().err
