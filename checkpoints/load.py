"""Load a trained AudioLM from a folder or the Hub."""

import copy
from pathlib import Path

import torch
from huggingface_hub import get_token
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from ..configuration_audiolm import AudioLMConfig
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..runtime import redact_token
from .mellow import load_mellow, mellow_checkpoint


def load_model(name: str, revision: str | None = None):
    """A trained AudioLM in float32 and its tokenizer, every weight of it read; no code of a repository runs. Also Mellow's
    published checkpoint.

    Raises:
        ValueError: in one line, if `name` is none, or lacks weights.
    """
    try:
        if not Path(name, "model.safetensors").is_file() and (
            checkpoint := mellow_checkpoint(name, revision)
        ):
            return load_mellow(checkpoint)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"--model_name_or_path {name}: {redact_token(error, get_token())}"
        ) from error
    if not Path(name, "config.json").is_file() and (
        Path(name).exists() or len(Path(name).parts) != 2
    ):
        raise ValueError(
            f"--model_name_or_path {name} is neither a folder with config.json nor a Hub name like user/model"
        )
    # this code reads the model, not the copy beside its weights, about which transformers would ask
    AutoConfig.register("audiolm", AudioLMConfig, exist_ok=True)
    try:
        kind = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=False
        ).model_type
        if kind != "audiolm":
            raise ValueError(f"it is a {kind!r} model, not an AudioLM")
        model, info = AudioLMForConditionalGeneration.from_pretrained(
            name,
            revision=revision,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        AttributeError,
        OSError,
        SafetensorError,
    ) as error:
        raise ValueError(
            f"--model_name_or_path {name}: {redact_token(error, get_token())}"
        ) from error
    sizes = info.get("mismatched_keys") or ()
    info["mismatched_keys"] = [
        f"{key} {tuple(found)}, not {tuple(wanted)}" for key, found, wanted in sizes
    ]
    wrong = {
        k: sorted(map(str, info[k]))
        for k in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info.get(k)
    }
    if wrong:
        listed = "; ".join(
            f"{len(keys)} {kind.replace('_', ' ')} ({', '.join(keys[:3])})"
            for kind, keys in wrong.items()
        )
        raise ValueError(f"--model_name_or_path {name}: not a whole AudioLM: {listed}")
    return model, tokenizer


def merge_adapters(model) -> AudioLMForConditionalGeneration:
    """A copy of a `PeftModel`'s model with its adapters added into the weights, like any other AudioLM; others as they are."""
    if not hasattr(model, "merge_and_unload"):
        return model
    device = model.device
    try:
        whole = copy.deepcopy(model.cpu()).merge_and_unload()  # a GPU may have no room for two
    finally:
        model.to(device)
    return whole.train(False)
