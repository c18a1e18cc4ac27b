"""What trains, and how fast: a learning rate for each part, LoRA adapters, their checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.builders import arguments, make_corpus, small_model, weights
from support.options import options
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments

from audiolm import AudioLMForConditionalGeneration
from audiolm.checkpoints.load import merge_adapters
from audiolm.evaluation.evaluate import main as evaluate
from audiolm.run_train import main as train
from audiolm.training.adapters import add_lora_adapters, build_optimizer
from audiolm.training.arguments import parse_arguments
from audiolm.training.compile import cache_bf16_weights

LORA = options("--freeze_lm true --lora_r 4 --eval_strategy no")
State = dict[str, torch.Tensor]


def copy_state(model) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def is_equal(state: State, other: State, part: str = "") -> bool:
    names = [name for name in state if name.startswith(part)]
    assert names
    return all(torch.equal(state[name], other[name]) for name in names)


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory, tokenizer) -> Path:
    """The folder of a run of 20 steps with adapters, with a checkpoint of its last step."""
    corpus = make_corpus(tmp_path_factory.mktemp("lora"))
    train(arguments(corpus, "mimi_semantic", tokenizer, *LORA, "--save_steps", "10"))
    return corpus


@pytest.fixture(scope="module")
def adapters(lora_run) -> State:
    return load_file(lora_run / "out" / "checkpoint-20" / "adapter_model.safetensors")


def test_lora_checkpoint_holds_adapters_and_mapper_alone(lora_run, adapters):
    parts = {part for name in adapters for part in name.split(".")}
    assert {"lora_A", "lora_B", "mapper"} <= parts
    assert not any("encoder." in name or "embed_tokens" in name for name in adapters)
    assert all((value != 0).any() for name, value in adapters.items() if "lora_B" in name)
    assert not (lora_run / "out" / "checkpoint-20" / "model.safetensors").exists()
    assert not (lora_run / "out" / "adapter_model.safetensors").exists()


def test_lora_trained_model_has_the_adapters_merged(lora_run, adapters):
    merged = weights(lora_run / "out")
    text = load_file(lora_run / "text" / "model.safetensors")
    assert not any("lora" in name for name in merged)
    embedding = "model.embed_tokens.weight"
    assert torch.equal(merged[f"language_model.{embedding}"], text[embedding])
    layer = "layers.0.self_attn.q_proj"
    adapter = f"base_model.model.language_model.model.{layer}"
    update = adapters[f"{adapter}.lora_B.weight"] @ adapters[f"{adapter}.lora_A.weight"]
    expected = text[f"model.{layer}.weight"] + 2 * update
    assert torch.allclose(merged[f"language_model.model.{layer}.weight"], expected, atol=1e-6)
    mapper = "mapper.linear_1.weight"
    assert torch.equal(merged[mapper], adapters[f"base_model.model.{mapper}"])
    assert (merged["mapper.feature_std"] != 1).any()


def test_lora_trained_model_is_evaluated(lora_run):
    argv = ["--model_name_or_path", str(lora_run / "out"), "--audio_dir", str(lora_run)]
    argv += ["--test_file", str(lora_run / "rows.json"), "--output_dir", str(lora_run / "results")]
    evaluate(argv)
    metrics = json.loads((lora_run / "results" / "metrics.json").read_text())
    assert metrics["micro"]["n"] == 16


def test_lora_card_names_rank_and_trained_parameters(lora_run, adapters):
    card = (lora_run / "out" / "README.md").read_text()
    assert "| trained part of the language model | LoRA adapters |" in card
    assert "rank 4, alpha 8" in card
    trained = sum(value.numel() for name, value in adapters.items() if "feature_" not in name)
    assert f"; trained: {trained:,} |" in card


def test_lora_run_resumes_exactly_and_refuses_other_settings(corpus, tokenizer):
    steps = options("--max_steps 6 --save_steps 3")
    argv = arguments(corpus, "mimi_semantic", tokenizer, *LORA, *steps)
    train(argv)
    resume = ["--resume_from_checkpoint", str(corpus / "out" / "checkpoint-3")]
    train([*argv, "--output_dir", str(corpus / "again"), *resume])
    assert is_equal(weights(corpus / "out"), weights(corpus / "again"))
    resume += ["--resume_with_changes", "true"]
    with pytest.raises(
        SystemExit, match=r"trained with LoRA rank 4, alpha 8 \(now rank 4, alpha 16"
    ):
        train([*argv, "--lora_alpha", "16", *resume])
    with pytest.raises(SystemExit, match=r"LoRA rank 4, alpha 8 \(now None\)"):
        train(arguments(corpus, "mimi_semantic", tokenizer, *resume))
    small_model("mimi_semantic", seed=1).encoder.model.save_pretrained(corpus / "encoder")
    with pytest.raises(SystemExit, match=r"was trained with encoder weights \w+ \(now"):
        train([*argv, *resume])


def adapted_model(model):
    """The model with adapters whose weights are random, where they begin as zeros."""
    adapted = add_lora_adapters(model, 4, 8).train()
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if ".lora_B" in name:
            parameter.data.normal_()
    return adapted


def test_add_lora_adapters_trains_adapters_and_mapper_alone():
    adapted = adapted_model(small_model("mimi_full", freeze_lm=True))
    for name, parameter in adapted.named_parameters():
        is_expected = ".lora_" in name or ".modules_to_save." in name
        assert parameter.requires_grad == is_expected, name


def test_merge_adapters_gives_the_logits_of_the_adapted_model():
    model = small_model("mimi_full", freeze_lm=True)
    before = copy_state(model)
    adapted = adapted_model(model)
    inputs = {
        "input_ids": torch.tensor([[1, 3, 3, 7, 9]]),
        "input_values": torch.randn(1, 3000),
    }
    with torch.no_grad():
        expected = adapted.eval()(**inputs).logits
        merged = merge_adapters(adapted)
        assert torch.allclose(merged(**inputs).logits, expected, atol=1e-4)
        plain = small_model("mimi_full")(**inputs).logits
        assert not torch.allclose(plain, expected, atol=1e-2)
    assert type(merged) is AudioLMForConditionalGeneration
    assert merged.state_dict().keys() == before.keys()
    assert is_equal(before, merged.state_dict(), "encoder.")


def test_merge_adapters_without_adapters_returns_the_model():
    model = small_model("mimi_full")
    assert merge_adapters(model) is model


@pytest.mark.parametrize(("rate", "lm_rate"), [("0.01", "0"), ("0", "0.01")])
def test_build_optimizer_gives_each_part_its_learning_rate(rate, lm_rate, tmp_path):
    model = small_model("mimi_semantic", freeze_lm=False).train()
    args = TrainingArguments(str(tmp_path), learning_rate=float(rate), weight_decay=0.1)
    optimizer = build_optimizer(model, args, float(lm_rate))
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (float(r), decay) for r in (rate, lm_rate) for decay in (0.1, 0.0)
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)
    before = copy_state(model)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    after = model.state_dict()
    assert is_equal(before, after, "mapper.") == (rate == "0")
    assert is_equal(before, after, "language_model.") == (lm_rate == "0")
    assert is_equal(before, after, "encoder.")


def test_train_lm_learning_rate_reaches_the_language_model(corpus, tokenizer):
    argv = arguments(corpus, "mimi_semantic", tokenizer)
    steps = options("--max_steps 2 --eval_strategy no --lm_learning_rate 1e-12 --weight_decay 0")
    train([*argv, *steps])
    before = load_file(corpus / "text" / "model.safetensors")["model.norm.weight"]
    after = weights(corpus / "out")["language_model.model.norm.weight"]
    assert (after - before).abs().max() < 1e-9
    card = (corpus / "out" / "README.md").read_text()
    assert "| learning rate of the language model | 1e-12 |" in card


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--lora_r 4 --freeze_lm false", "--lora_r trains adapters on a frozen language model"),
        ("--lm_learning_rate 1e-5", "--lm_learning_rate: the language model is frozen"),
        ("--lora_alpha 8", "--lora_alpha: add --lora_r"),
        ("--lora_r 0", "--lora_r 0: expected a positive number"),
        (
            "--model_name_or_path me/x --encoder_name_or_path random",
            "--encoder_name_or_path: the model of",
        ),
    ],
)
def test_parse_contradicting_options_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(options(argv))
    assert message in capsys.readouterr().err


class Bf16Casts(TorchDispatchMode):
    """Shapes of all that is cast to bfloat16 meanwhile."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.bfloat16:
            self.shapes.add(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


def loss_and_gradients(model, autocast: bool) -> list[torch.Tensor]:
    model.train().zero_grad()
    embeds = model.mapper(torch.linspace(-1, 1, 12 * model.encoder.dim).view(2, 6, -1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(inputs_embeds=embeds, labels=torch.arange(10, 22).view(2, 6)).loss
    loss.backward()
    return [loss, *(parameter.grad.clone() for parameter in model.mapper.parameters())]


@pytest.fixture
def cached_and_plain():
    """Two models of the same weights, one of them with a cache of bfloat16 weights."""
    cached = small_model("mimi_full")
    cache_bf16_weights(cached.language_model)
    return cached, small_model("mimi_full")


@pytest.mark.parametrize("has_other_weights", [False, True])
def test_cache_bf16_weights_gives_the_same_numbers(cached_and_plain, has_other_weights):
    cached, plain = cached_and_plain
    assert cached.state_dict().keys() == plain.state_dict().keys()
    if has_other_weights:
        loss_and_gradients(cached, True)  # with the first weights, which the cache then holds
        other = small_model("mimi_full", seed=1).language_model.state_dict()
        for model in cached_and_plain:
            model.language_model.load_state_dict(other)
    for autocast in (True, True, False):
        expected = loss_and_gradients(plain, autocast)
        results = loss_and_gradients(cached, autocast)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_cache_bf16_weights_casts_no_weight_in_a_step(cached_and_plain):
    cached, plain = cached_and_plain
    loss_and_gradients(cached, True)
    parameters = cached.language_model.parameters()
    weight_shapes = {tuple(parameter.shape) for parameter in parameters if parameter.ndim == 2}
    for model, is_cast in ((cached, False), (plain, True)):
        with Bf16Casts() as casts:
            loss_and_gradients(model, True)
        assert bool(weight_shapes & casts.shapes) is is_cast
