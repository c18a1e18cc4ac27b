"""Compiled layers and replayed graphs: the same numbers, compiled once, and nothing stale."""

import json

import pytest
import torch
from support.builders import arguments, small_model
from torch._dynamo.testing import CompileCounterWithBackend

from audiolm import AudioLMProcessor
from audiolm.data import ReasonAQACollator
from audiolm.training.compile import PAD_TO, cache_bf16_weights, compile_layers
from audiolm.training.train import main as train

on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU to record graphs on"
)


@pytest.fixture(autouse=True)
def forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batches(model, tokenizer, count: int = 4, rows: int = 3, pad_to: int = PAD_TO) -> list[dict]:
    """Batches about encoded clips, each longer than the one before."""
    processor = AudioLMProcessor.from_config(model.config, tokenizer)
    codes = {str(i): torch.full((8, 4 + i), i, dtype=torch.int16) for i in range(rows)}
    made = []
    for number in range(count):
        rows_ = [
            {"input": "What? " * 9 * (number + 1), "answer": f"a {i} " * 5, "audio": [str(i)]}
            for i in range(rows)
        ]
        made.append(ReasonAQACollator(processor, features=codes, pad_to_multiple_of=pad_to)(rows_))
    return made


def passes(model, made: list[dict], device: str = "cpu") -> list[list[torch.Tensor]]:
    """Loss and the mapper's gradients of each batch, under bfloat16 autocast."""
    found = []
    for batch in made:
        batch = {
            name: value.to(device) if torch.is_tensor(value) else value
            for name, value in batch.items()
        }
        with torch.autocast(device, torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.mapper.parameters())])
        model.zero_grad()
    return found


def alike(one, other, tolerance: float) -> bool:
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a, b, strict=True)]
    return all(((a - b).norm() / b.norm()).item() <= tolerance for a, b in pairs)


def pair(tokenizer, backend):
    """A plain model and a compiled one of the same weights, and their batches."""
    plain, model = small_model("mimi_full").train(), small_model("mimi_full").train()
    cache_bf16_weights(model.language_model)
    compile_layers(model.language_model, backend)
    return plain, model, batches(plain, tokenizer)


def test_rows_padded_further_have_the_same_loss(tokenizer):
    model = small_model("mimi_full").train()
    exact, wide = batches(model, tokenizer, pad_to=1), batches(model, tokenizer)
    sizes = [batch["input_ids"].shape[1] for batch in wide]
    assert all(size % PAD_TO == 0 for size in sizes) and sizes != [
        batch["input_ids"].shape[1] for batch in exact
    ]
    assert len(set(sizes)) > 2
    assert alike(passes(model, wide), passes(model, exact), 1e-2)  # bfloat16
    with torch.no_grad():
        assert all(
            torch.allclose(model(**a).loss, model(**b).loss, atol=1e-6) for a, b in zip(wide, exact)
        )


def test_layers_are_compiled_once_for_all_and_give_the_same(tokenizer):
    counter = CompileCounterWithBackend("aot_eager")
    plain, model, made = pair(tokenizer, counter)
    assert len(model.language_model.model.layers) > 1
    assert alike(passes(model, made), passes(plain, made), 1e-2)
    once = counter.frame_count
    passes(model, made + made[::-1])
    assert counter.frame_count == once <= 2  # one graph, whatever layer and length
    assert model.state_dict().keys() == plain.state_dict().keys()
    other = small_model("mimi_full", seed=1).language_model.state_dict()
    for each in (plain, model):
        each.language_model.load_state_dict(other)
    assert alike(passes(model, made), passes(plain, made), 1e-2) and counter.frame_count == once


def test_what_compiled_layers_cannot_take_is_refused(tokenizer):
    _, model, made = pair(tokenizer, "eager")
    with pytest.raises(ValueError, match="no attention_mask"):
        model(**made[0], attention_mask=torch.ones_like(made[0]["input_ids"]))
    sliding = small_model("mimi_full")
    sliding.language_model.config.sliding_window = 8
    with pytest.raises(ValueError, match="full attention"):
        compile_layers(sliding.language_model)


@pytest.mark.parametrize(
    "more",
    [
        ("--freeze_lm", "true", "--bf16", "true", "--use_cpu", "true"),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("--freeze_lm", "true", "--lora_r", "2"), marks=pytest.mark.slow),
    ],
)
def test_training_with_compiled_layers(corpus, tokenizer, more):
    """The same losses as without; resumed, and with the setting in its record."""
    words = [
        *arguments(corpus, "mimi_semantic", tokenizer, *more),
        "--max_steps",
        "4",
        "--save_steps",
        "2",
        "--eval_steps",
        "4",
    ]
    losses = []
    for name in ("plain", "compiled"):
        compiled = (
            ["--torch_compile", "true", "--torch_compile_backend", "aot_eager"]
            if name == "compiled"
            else []
        )
        train([*words, "--output_dir", str(corpus / name), *compiled])
        log = json.loads((corpus / name / "trainer_state.json").read_text())["log_history"]
        losses.append(
            [
                value
                for entry in log
                for key, value in entry.items()
                if key == "loss" or key.endswith("_token_loss")
            ]
        )
    assert losses[1] == pytest.approx(losses[0], rel=2e-3) and len(losses[0]) > 5
    assert (
        "| language model compiled | aot_eager |" in (corpus / "compiled" / "README.md").read_text()
    )
    again = [
        "--resume_from_checkpoint",
        str(corpus / "compiled" / "checkpoint-2"),
        "--output_dir",
        str(corpus / "compiled"),
    ]
    with pytest.raises(SystemExit, match="language model compiled"):
        train([*words, *again])
    train([*words, *again, "--torch_compile", "true", "--torch_compile_backend", "aot_eager"])
    log = json.loads((corpus / "compiled" / "trainer_state.json").read_text())["log_history"]
    assert [
        value
        for entry in log
        for key, value in entry.items()
        if key == "loss" or key.endswith("_token_loss")
    ] == losses[1]


@on_gpu
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_graphs_give_what_they_were_recorded_of(tokenizer, backend):
    plain, model, made = pair(tokenizer, backend)
    plain.cuda(), model.cuda()
    wanted, first = passes(plain, made, "cuda"), passes(model, made, "cuda")
    graphs = model.language_model.model.forward.graphs
    assert graphs and not any(graphs.values())  # seen once, not recorded
    for order in (made, made[::-1], made):
        found = passes(model, order, "cuda")
        found = found[::-1] if order is not made else found
        assert all(graphs.values())
        assert alike(found, first, 1e-3) and alike(found, wanted, 2e-2)
        assert backend != "eager" or alike(found, wanted, 1e-3)
    other = small_model("mimi_full", seed=1).language_model.state_dict()
    for each in (plain, model):
        each.language_model.load_state_dict(other)
    moved = passes(model, made, "cuda")
    assert alike(moved, passes(plain, made, "cuda"), 2e-2) and not alike(moved, found, 2e-2)


@on_gpu
def test_a_pass_whose_backward_is_still_to_come_is_not_overwritten(tokenizer):
    plain, model, made = pair(tokenizer, "eager")
    made = [
        {name: v.cuda() if torch.is_tensor(v) else v for name, v in batch.items()} for batch in made
    ]
    found = []
    for each in (plain.cuda(), model.cuda()):
        passes(each, made + made, "cuda")
        with torch.autocast("cuda", torch.bfloat16):
            losses = [each(**batch).loss for batch in made]  # all open at once
        sum(losses).backward()
        found.append([p.grad.clone() for p in each.mapper.parameters()])
    assert alike([found[1]], [found[0]], 1e-3)


@on_gpu
def test_a_replayed_step_does_not_wait_for_the_gpu(tokenizer):
    _, model, made = pair(tokenizer, "eager")
    model.cuda()
    made = [
        {name: v.cuda() if torch.is_tensor(v) else v for name, v in batch.items()} for batch in made
    ]
    passes(model, made + made, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in made:
            with torch.autocast("cuda", torch.bfloat16):
                model(**batch).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
