"""Batches of one length: the same rows in each step for every arm, any number of processes and a resumed run."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support.builders import TWO_PROCESSES, arguments

from audiolm import AudioLMForConditionalGeneration
from audiolm.data.length_sampler import STEPS_PER_DRAW, LengthBucketSampler, row_lengths


def lengths(count: int, seed: int = 0) -> list[float]:
    return (
        torch.randn(count, generator=torch.Generator().manual_seed(seed)).mul(0.6).exp() * 100
    ).tolist()


def padded(order: list[int], sizes: list[float], rows: int) -> float:
    """Tokens with padding, by tokens without."""
    steps = [[sizes[i] for i in order[at : at + rows]] for at in range(0, len(order), rows)]
    return sum(max(step) * len(step) for step in steps) / sum(sizes)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 5003])
def test_each_row_once_an_epoch(count):
    sampler = LengthBucketSampler(lengths(count), 16, seed=3)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sorted(epochs[-1]) == list(range(count)) and len(sampler) == count
    assert count < 17 or epochs[0] != epochs[1] != epochs[2]
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]
    other = LengthBucketSampler(lengths(count), 16, seed=4)
    assert (other.digest() == sampler.digest()) == (count < 17)  # one step holds them all
    if count == 5003:  # rows that meet in a step meet others in the next epoch
        steps = [{frozenset(epoch[at : at + 16]) for at in range(0, count, 16)} for epoch in epochs]
        assert not steps[0] & steps[1]


def test_steps_are_of_one_length_and_in_no_order():
    sizes = lengths(16 * STEPS_PER_DRAW * 8)
    order = list(LengthBucketSampler(sizes, 16, seed=0))
    drawn = torch.randperm(len(sizes)).tolist()
    assert padded(order, sizes, 16) < 1.15 < 2 < padded(drawn, sizes, 16)
    means = torch.tensor(
        [sum(sizes[i] for i in order[at : at + 16]) for at in range(0, len(order), 16)]
    )
    place = torch.arange(len(means), dtype=torch.float)
    assert (
        torch.corrcoef(torch.stack([means.argsort().argsort().float(), place]))[0, 1].abs() < 0.2
    )  # long ones come at any time


def test_lengths_count_used_seconds_and_text():
    rows = {"audio": [["a"], ["a", "b"]], "input": ["x" * 8, ""], "answer": ["y" * 4, "y"]}
    assert row_lengths(rows, {"a": 3.0, "b": 90.0}, 10.0) == [33.0, 130.25]


# run_train.py, which writes the rows of each batch: by process, in the order in which they are trained on
SEEN = """
import os, sys
from audiolm.training import train as run_train
inner = run_train.ReasonAQACollator.__call__
def call(self, rows):
    if "answer" in rows[0] and not self.generate:
        with open(os.environ["SEEN"] + os.environ.get("RANK", ""), "a") as file:
            file.write(" ".join(row["filepath1"] for row in rows) + "\\n")
    return inner(self, rows)
run_train.ReasonAQACollator.__call__ = call
run_train.main(sys.argv[1:])
"""


def seen(corpus, name: str, options: list[str], launch: tuple = ()) -> list[list[str]]:
    (corpus / "seen.py").write_text(SEEN)
    words = [sys.executable, *launch, str(corpus / "seen.py"), *options]
    run = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "SEEN": str(corpus / name)}
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [
        [line.split() for line in file.read_text().splitlines()]
        for file in sorted(corpus.glob(f"{name}*"))
    ]


@pytest.mark.slow
def test_every_arm_sees_the_same_batches_also_resumed_in_two_processes(corpus, tokenizer):
    rows = json.loads((corpus / "rows.json").read_text())
    more = [
        {**row, "input": row["input"] + " Listen." * i} for i in range(3) for row in rows
    ]  # 48 rows: 3 steps an epoch
    (corpus / "rows.json").write_text(json.dumps(more))
    short = [
        "--max_steps",
        "7",
        "--save_steps",
        "4",
        "--eval_strategy",
        "no",
        "--learning_rate",
        "0.001",
    ]
    expected = seen(corpus, "one", arguments(corpus, "mimi_semantic", tokenizer, *short))[0][:7]
    assert len({tuple(batch) for batch in expected}) == 7
    first = AudioLMForConditionalGeneration.from_pretrained(corpus / "out")
    resumed = [
        *arguments(corpus, "mimi_semantic", tokenizer, *short),
        "--resume_from_checkpoint",
        str(corpus / "out" / "checkpoint-4"),
    ]
    assert (
        seen(corpus, "again", resumed)[0][:3] == expected[4:7]
    )  # in the midst of the second epoch
    again = AudioLMForConditionalGeneration.from_pretrained(corpus / "out").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.state_dict().items())
    htsat = arguments(corpus, "htsat", tokenizer, *short)
    two = seen(corpus, "two", htsat, tuple(TWO_PROCESSES))
    assert [a + b for a, b in zip(*two)][:7] == expected
    halves = [*htsat, "--resume_from_checkpoint", str(corpus / "out" / "checkpoint-4")]
    assert [a + b for a, b in zip(*seen(corpus, "halves", halves, tuple(TWO_PROCESSES)))][
        :3
    ] == expected[4:7]
    orders = [
        first.config.training["batches"],
        AudioLMForConditionalGeneration.from_pretrained(corpus / "out").config.training["batches"],
    ]
    assert orders[0] == orders[1] and "order" in orders[0]
