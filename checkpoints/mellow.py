"""Loads Mellow (arXiv 2503.08540) from its published checkpoint as an AudioLM."""

import re
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..configuration_audiolm import AudioLMConfig
from ..encoders_audiolm import HTSATPosteriorEncoder
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..runtime import UserError
from .state_dicts import (
    CLASSIFIER_PREFIX,
    MSCLAP_PREFIX,
    State,
    load_state_strictly,
    read_checkpoint,
    rename_clap_keys,
    select_prefix,
)

PUBLISHED_MELLOW = "soham97/mellow"
CHECKPOINT_NAME = "v0.ckpt"
TOKENIZER_SOURCE = "HuggingFaceTB/SmolLM2-135M"
LAYER_KEY = re.compile(r"model\.layers\.(\d+)\.")
# Prefixes of keys in the checkpoint, and of the same tensors in the mapper.
MAPPER_PREFIXES = {
    "audio_encoder.base.c2l.": "posteriors.",
    "audio_encoder.projection.linear": "linear_",
    "audio_encoder.projection.layer_norm.": "norm.",
}
TEXT_PREFIX = "caption_decoder.lm."


def mellow_checkpoint(name: str, revision: str | None = None) -> str | None:
    """Returns the path of Mellow's weights, or None if `name` is something else.

    Args:
        name: A `.ckpt` file, here or as user/repository/file on the Hub, a folder with `v0.ckpt`,
            or the published repository.
        revision: Branch, tag or commit on the Hub.
    """
    path = Path(name)
    if path.is_file() and path.suffix == ".ckpt":
        return name
    if path.is_dir():
        file = path / CHECKPOINT_NAME
        return str(file) if file.is_file() else None
    if name == PUBLISHED_MELLOW:
        return cached_file(name, CHECKPOINT_NAME, revision=revision)
    if path.suffix == ".ckpt" and len(path.parts) == 3 and not path.parent.is_dir():
        user, repository, file_name = path.parts
        return cached_file(f"{user}/{repository}", file_name, revision=revision)
    return None


def load_mellow(path: str) -> tuple[AudioLMForConditionalGeneration, PreTrainedTokenizerBase]:
    """Loads Mellow in float32, and the tokenizer of its folder or else SmolLM2-135M's.

    Raises:
        UserError: If the checkpoint is incomplete or not Mellow's.
    """
    state = {key.removeprefix("module."): value for key, value in read_checkpoint(path).items()}
    text_state = select_prefix(state, TEXT_PREFIX)
    layers = {match[1] for match in map(LAYER_KEY.match, text_state) if match}
    if not layers:
        raise UserError(f"{path} is not Mellow: no layers of a language model")
    text_config = AudioLMConfig("mellow").text_config.to_dict()
    text_config |= {"num_hidden_layers": len(layers)}
    text_config |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    fields: Any = {"mapper_type": "mellow", "prompt_format": "mellow", "freeze_lm": False}
    config = AudioLMConfig("mellow", text_config=text_config, **fields)
    model = AudioLMForConditionalGeneration(config)
    _copy_weights(model, state, path)
    load_state_strictly(model.language_model, text_state, path)
    model.tie_weights()
    model.generation_config.suppress_tokens = [config.audio_token_id]
    model.config.training = {"published": PUBLISHED_MELLOW}  # This package did not train it.
    folder = Path(path).parent
    has_tokenizer = (folder / "tokenizer.json").is_file()
    source = folder if has_tokenizer else TOKENIZER_SOURCE
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return model.train(False), tokenizer


def _copy_weights(model: AudioLMForConditionalGeneration, state: State, path: str) -> None:
    """Copies the weights of the encoder and the mapper."""
    mapper_state = {}
    encoder_state = {}
    for key, value in state.items():
        prefix = next(filter(key.startswith, MAPPER_PREFIXES), None)
        if prefix is not None:
            mapper_state[MAPPER_PREFIXES[prefix] + key.removeprefix(prefix)] = value
        elif not key.startswith(TEXT_PREFIX):
            encoder_state[key.removeprefix(MSCLAP_PREFIX)] = value
    # Features are not standardised.
    for name in ("feature_mean", "feature_std"):
        mapper_state[name] = getattr(model.mapper, name)
    classifier_state = select_prefix(encoder_state, CLASSIFIER_PREFIX)
    encoder = cast(HTSATPosteriorEncoder, model.encoder)
    load_state_strictly(encoder.model.audio_encoder, rename_clap_keys(encoder_state), path)
    load_state_strictly(encoder.classifier, classifier_state, path)
    load_state_strictly(model.mapper, mapper_state, path)
