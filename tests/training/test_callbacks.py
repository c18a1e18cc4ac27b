"""Losses that are not finite, in runs and in callbacks alone."""

import logging
import math
import re
from types import SimpleNamespace

import pytest
import torch
from support.builders import Waits, arguments, weights
from support.options import logged_values, options

from audiolm.run_train import main as train
from audiolm.training.callbacks import SkipNonFinite
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
    callback = SkipNonFinite(0, str)
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
