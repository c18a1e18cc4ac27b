"""Compiled layers and replayed graphs: the same numbers, compiled once, and nothing stale."""

import pytest
import torch
from support.builders import arguments, small_model
from support.options import log_history, options
from torch._dynamo.testing import CompileCounterWithBackend

from audiolm import AudioLMProcessor
from audiolm.data.collator import ReasonAQACollator
from audiolm.run_train import main as train
from audiolm.runtime import UserError
from audiolm.training.compile import PAD_TO, cache_bf16_weights, compile_layers

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a GPU")


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_batches(
    model, tokenizer, num_batches: int = 4, batch_size: int = 3, pad_to: int = PAD_TO
) -> list[dict]:
    """Batches about encoded clips, each longer than the one before."""
    processor = AudioLMProcessor.from_config(model.config, tokenizer)
    codes = {str(i): torch.full((8, 4 + i), i, dtype=torch.int16) for i in range(batch_size)}
    collator = ReasonAQACollator(processor, features=codes, pad_to_multiple_of=pad_to)
    batches = []
    for number in range(num_batches):
        question = "What? " * 9 * (number + 1)
        rows = [
            {"input": question, "answer": f"a {i} " * 5, "audio": [str(i)]}
            for i in range(batch_size)
        ]
        batches.append(collator(rows))
    return batches


def to_device(batch: dict, device: str) -> dict:
    return {
        name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()
    }


def mapper_gradients(model) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in model.mapper.parameters()]


def losses_and_gradients(model, batches: list[dict], device: str = "cpu") -> list[list]:
    """Loss and the mapper's gradients of each batch, under bfloat16 autocast."""
    results = []
    for batch in batches:
        with torch.autocast(device, torch.bfloat16):
            loss = model(**to_device(batch, device)).loss
        loss.backward()
        results.append([loss.detach(), *mapper_gradients(model)])
        model.zero_grad()
    return results


def are_alike(results: list[list], expected: list[list], tolerance: float) -> bool:
    """Whether the norm of each difference is small beside the norm of what is expected."""
    differences = [
        ((a - b).norm() / b.norm()).item()
        for result, other in zip(results, expected, strict=True)
        for a, b in zip(result, other, strict=True)
    ]
    return max(differences) <= tolerance


def plain_and_compiled(tokenizer, backend):
    """A plain model and a compiled one with the same weights, and their batches."""
    plain = small_model("mimi_full").train()
    compiled = small_model("mimi_full").train()
    cache_bf16_weights(compiled.language_model)
    compile_layers(compiled.language_model, backend)
    return plain, compiled, make_batches(plain, tokenizer)


def load_other_weights(*models) -> None:
    other = small_model("mimi_full", seed=1).language_model.state_dict()
    for model in models:
        model.language_model.load_state_dict(other)


def test_padding_to_multiples_gives_the_same_loss(tokenizer):
    model = small_model("mimi_full").train()
    exact = make_batches(model, tokenizer, pad_to=1)
    padded = make_batches(model, tokenizer)
    lengths = [batch["input_ids"].shape[1] for batch in padded]
    assert all(length % PAD_TO == 0 for length in lengths)
    assert lengths != [batch["input_ids"].shape[1] for batch in exact]
    assert len(set(lengths)) > 2
    rounding = 1e-2  # of bfloat16
    results = losses_and_gradients(model, padded)
    assert are_alike(results, losses_and_gradients(model, exact), rounding)
    with torch.no_grad():
        for a, b in zip(padded, exact, strict=True):
            assert torch.allclose(model(**a).loss, model(**b).loss, atol=1e-6)


@pytest.mark.slow
def test_compile_layers_compiles_once_with_the_same_results(tokenizer):
    counter = CompileCounterWithBackend("aot_eager")
    plain, compiled, batches = plain_and_compiled(tokenizer, counter)
    assert len(compiled.language_model.model.layers) > 1
    expected = losses_and_gradients(plain, batches)
    assert are_alike(losses_and_gradients(compiled, batches), expected, 1e-2)
    num_compiled = counter.frame_count
    assert num_compiled <= 2
    losses_and_gradients(compiled, batches + batches[::-1])
    assert counter.frame_count == num_compiled  # for all layers and lengths
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    load_other_weights(plain, compiled)
    expected = losses_and_gradients(plain, batches)
    assert are_alike(losses_and_gradients(compiled, batches), expected, 1e-2)
    assert counter.frame_count == num_compiled


def test_compile_layers_attention_mask_is_refused(tokenizer):
    _, compiled, batches = plain_and_compiled(tokenizer, "eager")
    with pytest.raises(ValueError, match="takes no mask and no past_key_values"):
        compiled(**batches[0], attention_mask=torch.ones_like(batches[0]["input_ids"]))


def test_compile_layers_sliding_window_is_refused():
    model = small_model("mimi_full")
    model.language_model.config.sliding_window = 8
    with pytest.raises(UserError, match="full attention"):
        compile_layers(model.language_model)


def logged_losses(folder) -> list[float]:
    return [
        value
        for entry in log_history(folder)
        for name, value in entry.items()
        if name == "loss" or name.endswith("_token_loss")
    ]


@pytest.mark.parametrize(
    "more",
    [
        "--freeze_lm true --bf16 true --use_cpu true",
        pytest.param("", marks=pytest.mark.slow),
        pytest.param("--freeze_lm true --lora_r 2", marks=pytest.mark.slow),
    ],
)
def test_train_with_compiled_layers_has_the_same_losses_and_resumes(corpus, tokenizer, more):
    steps = options("--max_steps 4 --save_steps 2 --eval_steps 4")
    compiling = options("--torch_compile true --torch_compile_backend aot_eager")
    argv = [*arguments(corpus, "mimi_semantic", tokenizer, *options(more)), *steps]
    train([*argv, "--output_dir", str(corpus / "plain")])
    argv += ["--output_dir", str(corpus / "compiled")]
    train([*argv, *compiling])
    expected = logged_losses(corpus / "plain")
    losses = logged_losses(corpus / "compiled")
    assert len(expected) > 5
    assert losses == pytest.approx(expected, rel=2e-3)
    card = (corpus / "compiled" / "README.md").read_text()
    assert "| language model compiled | aot_eager |" in card
    resumed = [*argv, "--resume_from_checkpoint", str(corpus / "compiled" / "checkpoint-2")]
    with pytest.raises(SystemExit, match="language model compiled"):
        train(resumed)
    train([*resumed, *compiling])
    assert logged_losses(corpus / "compiled") == losses


@on_gpu
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_graphs_give_the_results_of_the_plain_model(tokenizer, backend):
    plain, compiled, batches = plain_and_compiled(tokenizer, backend)
    plain.cuda()
    compiled.cuda()
    expected = losses_and_gradients(plain, batches, "cuda")
    first = losses_and_gradients(compiled, batches, "cuda")
    graphs = compiled.language_model.model.forward.graphs
    assert graphs
    assert not any(graphs.values())  # Each length was seen once.
    for order in (batches, batches[::-1], batches):
        results = losses_and_gradients(compiled, order, "cuda")
        if order is not batches:
            results = results[::-1]
        assert all(graphs.values())
        assert are_alike(results, first, 1e-3)
        assert are_alike(results, expected, 1e-3 if backend == "eager" else 2e-2)
    load_other_weights(plain, compiled)
    results_of_others = losses_and_gradients(compiled, batches, "cuda")
    assert are_alike(results_of_others, losses_and_gradients(plain, batches, "cuda"), 2e-2)
    assert not are_alike(results_of_others, results, 2e-2)


@on_gpu
def test_graphs_are_not_replayed_while_a_backward_is_still_to_come(tokenizer):
    plain, compiled, batches = plain_and_compiled(tokenizer, "eager")
    batches = [to_device(batch, "cuda") for batch in batches]
    gradients = []
    for model in (plain.cuda(), compiled.cuda()):
        losses_and_gradients(model, batches + batches, "cuda")
        with torch.autocast("cuda", torch.bfloat16):
            losses = [model(**batch).loss for batch in batches]
        sum(losses).backward()
        gradients.append(mapper_gradients(model))
    assert are_alike([gradients[1]], [gradients[0]], 1e-3)


@on_gpu
def test_replayed_step_does_not_wait_for_the_gpu(tokenizer):
    _, compiled, batches = plain_and_compiled(tokenizer, "eager")
    compiled.cuda()
    batches = [to_device(batch, "cuda") for batch in batches]
    losses_and_gradients(compiled, batches + batches, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            with torch.autocast("cuda", torch.bfloat16):
                compiled(**batch).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
