"""Builds the model to train with its processor, and prepares the model for the Trainer."""

import os
import shutil
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..checkpoints.encoders import load_encoder, with_overrides
from ..checkpoints.load import load_model
from ..modeling_audiolm import (
    DEFAULT_TEXT_MODEL,
    AudioLMForConditionalGeneration,
    text_model_source,
)
from ..processing_audiolm import AudioLMProcessor
from ..runtime import UserError, explain_errors
from .adapters import add_lora_adapters
from .arguments import (
    MIN_COMPILED_STEPS,
    AudioLMTrainingArguments,
    DataArguments,
    ModelArguments,
)
from .compile import PAD_TO, cache_bf16_weights, can_compile, compile_layers

# Options that are fields of the model's configuration.
MODEL_CONFIG_FIELDS = ("audio_tokens", "learn_code_embeddings", "mapper_hidden_size")
MODEL_CONFIG_FIELDS += ("mapper_type", "prompt_format")


def build_model(
    model_args: ModelArguments, data_args: DataArguments
) -> tuple[AudioLMForConditionalGeneration, AudioLMProcessor]:
    """Builds the model to train and its processor, from its parts or from a trained AudioLM."""
    fields = {
        "freeze_lm": model_args.freeze_lm,
        "no_audio": model_args.no_audio,
        "max_audio_seconds": data_args.max_audio_seconds,
        **{name: getattr(model_args, name) for name in MODEL_CONFIG_FIELDS},
    }
    if model_args.mapper_hidden_size is None:
        del fields["mapper_hidden_size"]  # the configuration has its own default
    build = _load_trained if model_args.model_name_or_path else _build_from_parts
    # Checkpoints fail in many ways. The message names the option and the file.
    with explain_errors("", ValueError, OSError, ImportError, SafetensorError):
        model, tokenizer = build(model_args, fields)
        return model, AudioLMProcessor.from_config(model.config, tokenizer)


def _build_from_parts(
    model_args: ModelArguments, fields: dict[str, Any]
) -> tuple[AudioLMForConditionalGeneration, PreTrainedTokenizerBase]:
    encoder = load_encoder(model_args.encoder_type, model_args.encoder_name_or_path)
    if model_args.band_limit or model_args.window_seconds:
        encoder = with_overrides(encoder, model_args.band_limit, model_args.window_seconds)
    text_model = model_args.text_model_name_or_path or DEFAULT_TEXT_MODEL
    model = AudioLMForConditionalGeneration.from_pretrained_parts(
        model_args.encoder_type, encoder, text_model, **fields
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(**text_model_source(text_model))
    return model, tokenizer


def _load_trained(
    model_args: ModelArguments, fields: dict[str, Any]
) -> tuple[AudioLMForConditionalGeneration, PreTrainedTokenizerBase]:
    name = model_args.model_name_or_path
    model, tokenizer = load_model(name)
    if model.config.encoder_type != model_args.encoder_type:
        raise UserError(
            f"--model_name_or_path {name} has the encoder {model.config.encoder_type}, "
            f"but --encoder_type is {model_args.encoder_type}"
        )
    for field, value in fields.items():
        trained_value = getattr(model.config, field)
        if field != "freeze_lm" and trained_value != value:
            raise UserError(
                f"--model_name_or_path {name} was trained with --{field} "
                f"{str(trained_value).lower()}: use the same value"
            )
    model.config.freeze_lm = model_args.freeze_lm
    model.train(False)  # freezes the parts that the new configuration freezes
    return model, tokenizer


def choose_compilation(
    model: AudioLMForConditionalGeneration,
    model_args: ModelArguments,
    args: AudioLMTrainingArguments,
) -> None:
    """Turns `--torch_compile` on, if it was not given, where it was measured to pay off.

    That is a GPU with a frozen language model and a C compiler, which Triton calls.
    """
    if args.torch_compile is not None:
        return
    args.torch_compile = (
        args.device.type == "cuda"
        and model_args.freeze_lm
        and not model_args.lora_r
        and args.max_steps >= MIN_COMPILED_STEPS
        and can_compile(model.language_model)
        and any(map(shutil.which, ("cc", "gcc", "clang")))
    )
    if args.torch_compile:
        args.torch_compile_backend = "inductor"
        args.tf32 = False


def prepare_model(
    model: AudioLMForConditionalGeneration,
    model_args: ModelArguments,
    args: AudioLMTrainingArguments,
) -> tuple[nn.Module, int]:
    """Adds LoRA adapters, caches bfloat16 weights and compiles layers, as the options ask for.

    Returns:
        The model, or the `PeftModel` around it. The number of tokens to whose multiples batches
        are padded.
    """
    prepared = model
    # The stock Trainer's smoother takes logits for all tokens, and does not shift the labels.
    model.label_smoothing, args.label_smoothing_factor = args.label_smoothing_factor, 0.0
    if model_args.lora_r:
        prepared = add_lora_adapters(model, model_args.lora_r, model_args.lora_alpha)
    elif args.bf16 and model_args.freeze_lm:
        cache_bf16_weights(model.language_model)
    if not args.torch_compile:
        return prepared, 1
    backend = args.torch_compile_backend or "inductor"
    compile_layers(prepared.language_model, backend, args.torch_compile_mode)
    # The Trainer would compile the model again for every length.
    args.torch_compile = False
    args.torch_compile_backend = args.torch_compile_mode = None
    for name in ("BACKEND", "MODE"):
        os.environ.pop(f"ACCELERATE_DYNAMO_{name}", None)
    return prepared, PAD_TO
