"""What trains, and how fast: the language model's own learning rate, LoRA adapters, and what is left of them on disk."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.builders import arguments, small_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments

from audiolm import AudioLMForConditionalGeneration
from audiolm.checkpoints.load import merge_adapters
from audiolm.evaluation.evaluate import main as evaluate
from audiolm.training.adapters import add_lora_adapters, build_optimizer
from audiolm.training.compile import cache_bf16_weights
from audiolm.training.train import main as train
from audiolm.training.train import parse

LORA = ["--freeze_lm", "true", "--lora_r", "4", "--eval_strategy", "no"]


def state(folder) -> dict[str, torch.Tensor]:
    return {
        k: v.clone()
        for k, v in AudioLMForConditionalGeneration.from_pretrained(folder).state_dict().items()
    }


def same(one, other, part: str) -> bool:
    names = [name for name in one if name.startswith(part)]
    assert names
    return all(torch.equal(one[name], other[name]) for name in names)


def test_adapters_train_with_the_mapper_and_merge(corpus, tokenizer):
    words = arguments(corpus, "mimi_semantic", tokenizer, *LORA, "--save_steps", "10")
    train(words)
    checkpoint = corpus / "out" / "checkpoint-20"
    kept = load_file(checkpoint / "adapter_model.safetensors")
    assert (
        not (checkpoint / "model.safetensors").exists()
        and not (corpus / "out" / "adapter_model.safetensors").exists()
    )
    assert {"lora_A", "lora_B"} <= {part for name in kept for part in name.split(".")} and any(
        "mapper" in name for name in kept
    )
    assert not any("encoder." in name or "embed_tokens" in name for name in kept)
    assert all((value != 0).any() for name, value in kept.items() if "lora_B" in name)
    # the whole model, adapters added in, and otherwise what training began with
    whole, text = state(corpus / "out"), load_file(corpus / "text" / "model.safetensors")
    assert not any("lora" in name for name in whole)
    assert torch.equal(
        whole["language_model.model.embed_tokens.weight"], text["model.embed_tokens.weight"]
    )
    layer = "layers.0.self_attn.q_proj.weight"
    product = [
        kept[f"base_model.model.language_model.model.{layer}".replace("weight", f"lora_{x}.weight")]
        for x in "BA"
    ]
    expected = text[f"model.{layer}"] + 2 * product[0] @ product[1]
    assert torch.allclose(whole[f"language_model.model.{layer}"], expected, atol=1e-6)
    assert torch.equal(
        whole["mapper.linear_1.weight"], kept["base_model.model.mapper.linear_1.weight"]
    )
    assert (whole["mapper.feature_std"] != 1).any()
    evaluate(
        [
            "--model_name_or_path",
            str(corpus / "out"),
            "--test_file",
            str(corpus / "rows.json"),
            "--audio_dir",
            str(corpus),
            "--output_dir",
            str(corpus / "results"),
        ]
    )
    assert json.loads((corpus / "results" / "metrics.json").read_text())["micro"]["n"] == 16
    card = (corpus / "out" / "README.md").read_text()
    assert "| language model trains | LoRA adapters |" in card and "rank 4, alpha 8" in card
    trained = sum(value.numel() for name, value in kept.items() if "feature_" not in name)
    assert f"of which {trained:,} were trained" in card


def test_adapters_resume_exactly(corpus, tokenizer):
    words = arguments(
        corpus, "mimi_semantic", tokenizer, *LORA, "--max_steps", "6", "--save_steps", "3"
    )
    train(words)
    whole = state(corpus / "out")
    train(
        [
            *words,
            "--output_dir",
            str(corpus / "again"),
            "--resume_from_checkpoint",
            str(corpus / "out" / "checkpoint-3"),
        ]
    )
    assert same(whole, state(corpus / "again"), "")
    checkpoint = str(corpus / "out" / "checkpoint-3")
    with pytest.raises(SystemExit, match="was trained with --lora_r 4 --lora_alpha 8"):
        train([*words, "--lora_alpha", "16", "--resume_from_checkpoint", checkpoint])
    with pytest.raises(SystemExit, match="was trained with --lora_r"):
        train(arguments(corpus, "mimi_semantic", tokenizer, "--resume_from_checkpoint", checkpoint))
    small_model("mimi_semantic", seed=1).encoder.model.save_pretrained(corpus / "encoder")
    with pytest.raises(SystemExit, match=r"was trained with another encoder or on other clips"):
        train([*words, "--resume_from_checkpoint", checkpoint])


def test_merged_says_what_the_adapters_say():
    model = small_model("mimi_full", freeze_lm=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = add_lora_adapters(model, 4, 8).train()
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == (".lora_" in name or ".modules_to_save." in name), name
        if ".lora_B" in name:
            parameter.data.normal_()
    ids, audio = torch.tensor([[1, 3, 3, 7, 9]]), torch.randn(1, 3000)
    with torch.no_grad():
        wanted = adapted.eval()(input_ids=ids, input_values=audio).logits
        whole = merge_adapters(adapted)
        assert torch.allclose(whole(input_ids=ids, input_values=audio).logits, wanted, atol=1e-4)
        assert not torch.allclose(
            small_model("mimi_full")(input_ids=ids, input_values=audio).logits, wanted, atol=1e-2
        )
    assert (
        type(whole) is AudioLMForConditionalGeneration
        and whole.state_dict().keys() == before.keys()
    )
    assert same(before, whole.state_dict(), "encoder.")
    assert merge_adapters(model) is model


@pytest.mark.parametrize(("rate", "lm_rate"), [("0.01", "0"), ("0", "0.01")])
def test_each_part_has_its_learning_rate(rate, lm_rate, tmp_path):
    model = small_model("mimi_semantic", freeze_lm=False).train()
    args = TrainingArguments(str(tmp_path), learning_rate=float(rate), weight_decay=0.1)
    optimizer = build_optimizer(model, args, float(lm_rate))
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (float(r), decay) for r in (rate, lm_rate) for decay in (0.1, 0.0)
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    after = model.state_dict()
    assert same(before, after, "mapper.") == (rate == "0") and same(
        before, after, "language_model."
    ) == (lm_rate == "0")
    assert same(before, after, "encoder.")


def test_the_language_model_s_rate_is_the_one_that_is_asked_for(corpus, tokenizer):
    words = arguments(
        corpus, "mimi_semantic", tokenizer, "--max_steps", "2", "--eval_strategy", "no"
    )
    train([*words, "--lm_learning_rate", "1e-12", "--weight_decay", "0"])
    text, whole = load_file(corpus / "text" / "model.safetensors"), state(corpus / "out")
    moved = (whole["language_model.model.norm.weight"] - text["model.norm.weight"]).abs().max()
    assert (
        moved < 1e-9
        and "| learning rate of the language model | 1e-12 |"
        in (corpus / "out" / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--lora_r", "4", "--freeze_lm", "false"],
            "--lora_r trains adapters on a frozen language model",
        ),
        (["--lm_learning_rate", "1e-5"], "--lm_learning_rate: the language model is frozen"),
        (["--lora_alpha", "8"], "--lora_alpha: give --lora_r with it"),
        (
            ["--lora_r", "4", "--lora_push", "adapter"],
            "--lora_push adapter: an adapter names the model under it",
        ),
        (
            ["--lora_r", "4", "--lora_push", "both"],
            "--lora_push 'both' is neither merged nor adapter",
        ),
        (["--lora_r", "0"], "--lora_r 0: a number above 0 is wanted"),
        (
            ["--model_name_or_path", "me/x", "--encoder_name_or_path", "random"],
            "--encoder_name_or_path: the model of",
        ),
    ],
)
def test_options_that_contradict_each_other(words, said, capsys):
    with pytest.raises(SystemExit):
        parse(words)
    assert said in capsys.readouterr().err


class Casts(TorchDispatchMode):
    """Shapes of all that is cast to bfloat16 meanwhile."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.bfloat16:
            self.shapes.add(tuple(args[0].shape))
        return function(*args, **(kwargs or {}))


def test_weights_cast_once_give_the_same_numbers():
    other = small_model("mimi_full", seed=1).language_model.state_dict()

    def step(model, autocast):
        ids = torch.arange(10, 22).view(2, 6)
        model.train().zero_grad()
        embeds = model.mapper(torch.linspace(-1, 1, 12 * model.encoder.dim).view(2, 6, -1))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(inputs_embeds=embeds, labels=ids).loss
        loss.backward()
        return loss, *(p.grad.clone() for p in model.mapper.parameters())

    model, plain = small_model("mimi_full"), small_model("mimi_full")
    cache_bf16_weights(model.language_model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for changed in (False, True):
        if changed:
            for each in (model, plain):
                each.language_model.load_state_dict(other)
        for autocast in (True, True, False):
            assert all(
                torch.equal(a, b) for a, b in zip(step(model, autocast), step(plain, autocast))
            )
    of_weights = {tuple(p.shape) for p in model.language_model.parameters() if p.ndim == 2}
    for each, casts in ((model, False), (plain, True)):
        with Casts() as found:
            step(each, True)
        assert bool(of_weights & found.shapes) is casts
