"""Numbers that go wrong change no weight, are named with their rows, and stop a run that has too many of them."""

import json
import logging
import math
import re
import statistics

import pytest
import torch
from support.builders import Waits, arguments, weights
from transformers import TrainerState

from audiolm.training import train as run_train
from audiolm.training.callbacks import LossSpikes, SkipNonFinite
from audiolm.training.train import main as train

WORDS = [
    "--max_steps",
    "6",
    "--save_steps",
    "3",
    "--eval_strategy",
    "no",
    "--logging_steps",
    "1",
    "--learning_rate",
    "0.01",
]


@pytest.fixture
def poisoned(monkeypatch):
    """Steps whose rows are heard as NaN, counted from 1 over all batches that are made."""
    steps, made = set(), []
    inner = run_train.BucketTrainer.training_step

    def training_step(self, model, inputs, *args):
        made.append(None)
        if len(made) in steps:
            bias = model.mapper.linear_2.bias.data
            before = bias.clone()
            bias.fill_(math.nan)  # so that loss and gradients are not finite
            loss = inner(self, model, inputs, *args)
            bias.copy_(before)
            return loss
        return inner(self, model, inputs, *args)

    monkeypatch.setattr(run_train.BucketTrainer, "training_step", training_step)
    return steps


def history(folder) -> list[float]:
    return [
        entry["loss"]
        for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"]
        if "loss" in entry
    ]


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_a_step_that_is_not_finite_is_skipped_and_named(corpus, tokenizer, poisoned, caplog, optim):
    words = arguments(corpus, "mimi_semantic", tokenizer, *WORDS, "--optim", optim)
    poisoned.add(4)
    with caplog.at_level(logging.WARNING):
        train(words)
    said = [record.getMessage() for record in caplog.records if "not finite" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith(
        "step 4: loss or gradients are not finite; its update was skipped; its rows: "
    )
    assert len(re.findall(r"\d+ \([^)]+\.wav\)", said[0])) == 16
    losses = history(corpus / "out")
    assert [math.isnan(loss) for loss in losses] == [False, False, False, True, False, False]
    assert all(
        torch.isfinite(value).all()
        for value in weights(corpus / "out").values()
        if value.is_floating_point()
    )


def test_a_skipped_update_changes_nothing(corpus, tokenizer, poisoned):
    words = arguments(
        corpus,
        "mimi_semantic",
        tokenizer,
        *WORDS[2:],
        "--lr_scheduler_type",
        "constant",
        "--warmup_steps",
        "0",
    )
    train([*words, "--max_steps", "3"])
    expected = weights(corpus / "out")
    poisoned.update(range(4 + 3, 20))  # the second run's fourth step and all that follow
    train(
        [
            *words,
            "--max_steps",
            "6",
            "--max_skipped_steps",
            "3",
            "--output_dir",
            str(corpus / "more"),
        ]
    )
    found = weights(corpus / "more")
    assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_too_many_stop_the_run(corpus, tokenizer, poisoned):
    words = arguments(corpus, "mimi_semantic", tokenizer, *WORDS)
    poisoned.update({2, 4})
    with pytest.raises(
        SystemExit, match=r"of the steps 2, 4 were not finite.*max_skipped_steps 1; step 4 is saved"
    ):
        train([*words, "--max_skipped_steps", "1"])
    saved = weights(corpus / "out" / "checkpoint-4")
    assert all(torch.isfinite(value).all() for value in saved.values() if value.is_floating_point())


def test_the_fused_optimizer_asks_the_host_for_nothing():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    guard = SkipNonFinite(0)
    arguments = type("", (), {"fp16": False})()
    state = type("", (), {"global_step": 0})()
    for value in (1.0, math.inf, 1.0):
        weight.grad = torch.full((3,), value)
        before = weight.detach().clone()
        with Waits() as waits:
            guard.on_pre_optimizer_step(arguments, state, None, optimizer=optimizer)
            optimizer.step()
        assert torch.equal(weight, before) is math.isinf(value) and not waits.found
    assert int(optimizer.state[weight]["step"]) == 2


def spikes(losses: list[float], caplog) -> list[str]:
    """What is said where a run logs these losses, every ten steps."""
    caplog.clear()
    callback, state = LossSpikes(), TrainerState()
    callback.on_train_begin(None, state, None)
    for loss in losses:
        state.global_step += 10
        callback.on_log(None, state, None, logs={"loss": loss})
    return [record.message for record in caplog.records]


def test_a_loss_that_stands_out_is_logged(caplog):
    falling = [5 * 0.97**i + 0.3 * math.sin(7 * i) for i in range(60)]
    assert spikes(falling, caplog) == []
    assert spikes([*falling, 9.0, *falling[-3:]], caplog) == [
        f"steps 601 to 610: loss 9.000, after a median of {statistics.median(falling[-50:]):.3f}"
    ]
    assert spikes([1.0, 9.0, 1.0, 9.0], caplog) == []  # too few to tell
    assert spikes([2.0] * 30 + [math.nan, 2.1, 2.9], caplog) == []  # not half as much again
    assert len(spikes([2.0] * 30 + [math.nan, 3.1], caplog)) == 1


def test_a_spike_of_a_run_is_logged(corpus, tokenizer, monkeypatch, caplog):
    inner, count = run_train.BucketTrainer.training_step, []

    def training_step(self, model, inputs, *args):
        count.append(None)
        scale = 30 if len(count) == 15 else 1
        model.language_model.model.norm.weight.data.mul_(
            scale
        )  # its logits are far off for one step
        loss = inner(self, model, inputs, *args)
        model.language_model.model.norm.weight.data.div_(scale)
        return loss

    monkeypatch.setattr(run_train.BucketTrainer, "training_step", training_step)
    train(
        [
            *arguments(corpus, "mimi_semantic", tokenizer, *WORDS),
            "--max_steps",
            "16",
            "--learning_rate",
            "1e-5",
        ]
    )
    assert any(record.message.startswith("steps 15 to 15: loss") for record in caplog.records)
