"""Batches of similar length: the same examples for every encoder, resumed and in more processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support.builders import TWO_PROCESSES, arguments

from audiolm import AudioLMForConditionalGeneration
from audiolm.data.length_sampler import (
    MAX_BATCHES_PER_WINDOW,
    LengthGroupedSampler,
    estimate_lengths,
)


def random_lengths(count: int, seed: int = 0) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator).mul(0.6).exp() * 100).tolist()


def batches_of(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def padding_factor(order: list[int], lengths: list[float], batch_size: int) -> float:
    """Returns tokens with padding, divided by tokens without."""
    batches = [[lengths[i] for i in batch] for batch in batches_of(order, batch_size)]
    return sum(max(batch) * len(batch) for batch in batches) / sum(lengths)


COUNTS = [1, 15, 16, 17, 5003]


@pytest.fixture
def sampler(request):
    return LengthGroupedSampler(random_lengths(request.param), 16, seed=3)


def epoch_of(sampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("sampler", COUNTS, indirect=True)
@pytest.mark.parametrize("epoch", range(3))
def test_sampler_yields_each_example_once_an_epoch(sampler, epoch):
    assert sorted(epoch_of(sampler, epoch)) == list(range(len(sampler)))


@pytest.mark.parametrize("sampler", [17, 5003], indirect=True)
def test_sampler_epochs_differ(sampler):
    assert epoch_of(sampler, 0) != epoch_of(sampler, 1)
    assert epoch_of(sampler, 1) != epoch_of(sampler, 2)


@pytest.mark.parametrize("sampler", COUNTS, indirect=True)
def test_sampler_repeated_epoch_is_the_same(sampler):
    order = epoch_of(sampler, 1)
    epoch_of(sampler, 2)
    assert epoch_of(sampler, 1) == order


@pytest.mark.parametrize("sampler", COUNTS, indirect=True)
def test_sampler_digest_depends_on_the_seed(sampler):
    other = LengthGroupedSampler(random_lengths(len(sampler)), 16, seed=4)
    has_one_batch = len(sampler) < 17
    assert (other.digest() == sampler.digest()) == has_one_batch


@pytest.mark.parametrize("sampler", [5003], indirect=True)
def test_sampler_batches_of_two_epochs_differ(sampler):
    first = {frozenset(batch) for batch in batches_of(epoch_of(sampler, 0), 16)}
    second = {frozenset(batch) for batch in batches_of(epoch_of(sampler, 1), 16)}
    assert not first & second


@pytest.mark.parametrize("sampler", [17, 5003], indirect=True)
def test_sampler_batch_indices_are_the_batches_of_all_epochs(sampler):
    batches = batches_of(epoch_of(sampler, 0), 16) + batches_of(epoch_of(sampler, 1), 16)
    assert [sampler.batch_indices(step + 1) for step in range(len(batches))] == batches


# SHA-256 of the first epoch with seed 3 and batch size 16. The order must stay the same, so that
# runs can be resumed and compared.
@pytest.mark.parametrize(
    ("sampler", "digest"),
    [
        (1, "af5570f5a1810b7a"),
        (15, "2f90763e53c44aa6"),
        (16, "e75be90cf3ce1280"),
        (17, "ba772506e8bd2300"),
        (5003, "ca5a0e50217b9f69"),
    ],
    indirect=["sampler"],
)
def test_sampler_order_is_what_it_was(sampler, digest):
    assert sampler.digest()[:16] == digest


def test_sampler_batches_have_little_padding():
    lengths = random_lengths(16 * MAX_BATCHES_PER_WINDOW * 8)
    order = list(LengthGroupedSampler(lengths, 16, seed=0))
    assert padding_factor(order, lengths, 16) < 1.15
    assert padding_factor(torch.randperm(len(lengths)).tolist(), lengths, 16) > 2


def test_sampler_long_batches_come_at_any_time():
    lengths = random_lengths(16 * MAX_BATCHES_PER_WINDOW * 8)
    order = list(LengthGroupedSampler(lengths, 16, seed=0))
    sums = torch.tensor([sum(lengths[i] for i in batch) for batch in batches_of(order, 16)])
    ranks = sums.argsort().argsort().float()
    places = torch.arange(len(sums), dtype=torch.float)
    assert torch.corrcoef(torch.stack([ranks, places]))[0, 1].abs() < 0.2


def test_estimate_lengths_counts_used_seconds_and_text():
    examples = [(["a"], "x" * 8, "y" * 4), (["a", "b"], "", "y")]
    assert estimate_lengths(examples, {"a": 3.0, "b": 90.0}, 10.0) == [33.0, 130.25]


# Training that writes the rows of each batch, by process, in the order of training.
RECORDER = """
import os, sys
from audiolm import run_train
from audiolm.data.collator import ReasonAQACollator
inner = ReasonAQACollator.__call__
def call(self, rows):
    if "answer" in rows[0] and not self.generate:
        with open(os.environ["SEEN"] + os.environ.get("RANK", ""), "a") as file:
            file.write(" ".join(row["filepath1"] for row in rows) + "\\n")
    return inner(self, rows)
ReasonAQACollator.__call__ = call
run_train.main(sys.argv[1:])
"""


def record_batches(
    corpus, name: str, options: list[str], launch: tuple = ()
) -> list[list[list[str]]]:
    """Trains and returns the clips of each batch, by process."""
    (corpus / "recorder.py").write_text(RECORDER)
    command = [sys.executable, *launch, str(corpus / "recorder.py"), *options]
    environment = {**os.environ, "SEEN": str(corpus / name)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    files = sorted(corpus.glob(f"{name}*"))
    return [[line.split() for line in file.read_text().splitlines()] for file in files]


def join_processes(batches: list[list[list[str]]]) -> list[list[str]]:
    first, second = batches
    return [a + b for a, b in zip(first, second)]


@pytest.mark.slow
def test_training_sees_the_same_batches_in_every_run(corpus, tokenizer):
    # 48 rows are 3 steps an epoch.
    rows = json.loads((corpus / "rows.json").read_text())
    longer = [{**row, "input": row["input"] + " Listen." * i} for i in range(3) for row in rows]
    (corpus / "rows.json").write_text(json.dumps(longer))
    options = ["--max_steps", "7", "--save_steps", "4", "--eval_strategy", "no"]
    options += ["--learning_rate", "0.001"]
    checkpoint = ["--resume_from_checkpoint", str(corpus / "out" / "checkpoint-4")]

    mimi = arguments(corpus, "mimi_semantic", tokenizer, *options)
    expected = record_batches(corpus, "one", mimi)[0][:7]
    assert len({tuple(batch) for batch in expected}) == 7
    first = AudioLMForConditionalGeneration.from_pretrained(corpus / "out")

    # Step 4 is inside the second epoch.
    mimi = arguments(corpus, "mimi_semantic", tokenizer, *options)
    assert record_batches(corpus, "again", [*mimi, *checkpoint])[0][:3] == expected[4:7]
    resumed = AudioLMForConditionalGeneration.from_pretrained(corpus / "out").state_dict()
    weights = first.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())

    htsat = arguments(corpus, "htsat", tokenizer, *options)
    two = record_batches(corpus, "two", htsat, tuple(TWO_PROCESSES))
    assert join_processes(two)[:7] == expected
    halves = record_batches(corpus, "halves", [*htsat, *checkpoint], tuple(TWO_PROCESSES))
    assert join_processes(halves)[:3] == expected[4:7]

    last = AudioLMForConditionalGeneration.from_pretrained(corpus / "out")
    assert "order" in last.config.training["batches"]
    assert last.config.training["batches"] == first.config.training["batches"]
