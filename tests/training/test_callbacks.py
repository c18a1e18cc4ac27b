"""Losses that are not finite or far too high, in runs and in callbacks alone."""

import logging
import math
import re
import statistics
from types import SimpleNamespace

import pytest
import torch
from support.builders import Waits, arguments, weights
from support.options import logged_values, options
from transformers import TrainerState

from audiolm.run_train import main as train
from audiolm.training.callbacks import LossSpikes, SkipNonFinite
from audiolm.training.trainer import AudioLMTrainer

SIX_STEPS = options(
    "--max_steps 6 --save_steps 3 --eval_strategy no --logging_steps 1 --learning_rate 0.01"
)


@pytest.fixture
def nan_steps(monkeypatch):
    """Steps whose gradients are NaN, counted from 1 over all runs of a test."""
    steps = set()
    num_steps = 0
    training_step = AudioLMTrainer.training_step

    def training_step_with_nan(self, model, inputs, *args):
        nonlocal num_steps
        num_steps += 1
        if num_steps not in steps:
            return training_step(self, model, inputs, *args)
        bias = model.mapper.linear_2.bias.data
        before = bias.clone()
        bias.fill_(math.nan)
        loss = training_step(self, model, inputs, *args)
        bias.copy_(before)
        return loss

    monkeypatch.setattr(AudioLMTrainer, "training_step", training_step_with_nan)
    return steps


def is_finite(state: dict[str, torch.Tensor]) -> bool:
    return all(value.isfinite().all() for value in state.values() if value.is_floating_point())


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_torch"])
def test_skip_non_finite_step_is_skipped_and_named(corpus, tokenizer, nan_steps, caplog, optimizer):
    argv = arguments(corpus, "mimi_semantic", tokenizer, *SIX_STEPS, "--optim", optimizer)
    nan_steps.add(4)
    with caplog.at_level(logging.WARNING):
        train(argv)
    messages = [record.getMessage() for record in caplog.records]
    (message,) = [message for message in messages if "not finite" in message]
    assert message.startswith(
        "step 4: loss or gradients are not finite; its update was skipped; its rows: "
    )
    assert len(re.findall(r"\d+ \([^)]+\.wav\)", message)) == 16
    is_nan = [math.isnan(loss) for loss in logged_values(corpus / "out", "loss")]
    assert is_nan == [False, False, False, True, False, False]
    assert is_finite(weights(corpus / "out"))


def test_skip_non_finite_skipped_update_leaves_the_weights(corpus, tokenizer, nan_steps):
    constant = options("--lr_scheduler_type constant --warmup_steps 0")
    argv = arguments(corpus, "mimi_semantic", tokenizer, *SIX_STEPS[2:], *constant)
    train([*argv, *options("--max_steps 3")])
    expected = weights(corpus / "out")
    nan_steps.update(range(4 + 3, 20))  # from the second run's fourth step on
    output = str(corpus / "more")
    train([*argv, *options("--max_steps 6 --max_skipped_steps 3 --output_dir"), output])
    state = weights(corpus / "more")
    assert all(torch.equal(value, state[name]) for name, value in expected.items())


def test_skip_non_finite_too_many_steps_stop_the_run(corpus, tokenizer, nan_steps):
    argv = arguments(corpus, "mimi_semantic", tokenizer, *SIX_STEPS, "--max_skipped_steps", "1")
    nan_steps.update({2, 4})
    with pytest.raises(
        SystemExit, match=r"of the steps 2, 4 were not finite.*max_skipped_steps 1; step 4 is saved"
    ):
        train(argv)
    assert is_finite(weights(corpus / "out" / "checkpoint-4"))


def test_skip_non_finite_with_the_fused_optimizer_does_not_wait():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    callback = SkipNonFinite(0)
    args = SimpleNamespace(fp16=False)
    state = SimpleNamespace(global_step=0)
    for gradient in (1.0, math.inf, 1.0):
        weight.grad = torch.full((3,), gradient)
        before = weight.detach().clone()
        with Waits() as waits:
            callback.on_pre_optimizer_step(args, state, None, optimizer=optimizer)
            optimizer.step()
        assert torch.equal(weight, before) is math.isinf(gradient)
        assert not waits.places
    assert int(optimizer.state[weight]["step"]) == 2


def spike_warnings(losses: list[float], caplog) -> list[str]:
    """Warnings of a run that logs these losses, every ten steps."""
    caplog.clear()
    callback = LossSpikes()
    state = TrainerState()
    callback.on_train_begin(None, state, None)
    for loss in losses:
        state.global_step += 10
        callback.on_log(None, state, None, logs={"loss": loss})
    return [record.message for record in caplog.records]


FALLING = [5 * 0.97**i + 0.3 * math.sin(7 * i) for i in range(60)]


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(FALLING, id="falling"),
        pytest.param([1.0, 9.0, 1.0, 9.0], id="too few"),
        pytest.param([2.0] * 30 + [math.nan, 2.1, 2.9], id="less than half above the median"),
    ],
)
def test_loss_spikes_usual_losses_are_not_logged(losses, caplog):
    assert spike_warnings(losses, caplog) == []


def test_loss_spikes_spike_is_logged_with_its_steps(caplog):
    middle = statistics.median(FALLING[-50:])
    assert spike_warnings([*FALLING, 9.0, *FALLING[-3:]], caplog) == [
        f"steps 601 to 610: loss 9.000, after a median of {middle:.3f}"
    ]


def test_loss_spikes_spike_after_nan_is_logged(caplog):
    assert len(spike_warnings([2.0] * 30 + [math.nan, 3.1], caplog)) == 1


def test_loss_spikes_spike_of_a_run_is_logged(corpus, tokenizer, monkeypatch, caplog):
    training_step = AudioLMTrainer.training_step

    def training_step_with_spike(self, model, inputs, *args):
        scale = 30 if self.state.global_step == 14 else 1
        norm = model.language_model.model.norm.weight.data
        norm.mul_(scale)  # The logits are far off for one step.
        loss = training_step(self, model, inputs, *args)
        norm.div_(scale)
        return loss

    monkeypatch.setattr(AudioLMTrainer, "training_step", training_step_with_spike)
    more = options("--max_steps 16 --learning_rate 1e-5")
    train([*arguments(corpus, "mimi_semantic", tokenizer, *SIX_STEPS), *more])
    assert any(record.message.startswith("steps 15 to 15: loss") for record in caplog.records)
