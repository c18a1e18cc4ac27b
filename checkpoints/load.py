"""Loads a trained AudioLM from a folder or the Hub."""

import copy
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import get_token
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..configuration_audiolm import encoder_type_name, import_encoder_source
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..runtime import UserError, redact_token
from .mellow import load_mellow, mellow_checkpoint

# What transformers raises for folders and repositories that it cannot read.
LOADING_ERRORS = (
    ValueError, TypeError, KeyError, RuntimeError, AttributeError, OSError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip


def load_model(
    name: str, revision: str | None = None
) -> tuple[AudioLMForConditionalGeneration, PreTrainedTokenizerBase]:
    """Loads a trained AudioLM in float32 and its tokenizer. No code of a repository runs.

    Args:
        name: Folder or Hub name of an AudioLM, or of Mellow's published checkpoint.
        revision: Branch, tag or commit on the Hub.

    Raises:
        UserError: If `name` is not found, is no AudioLM, lacks weights, or is here and not on the
            Hub, where revisions are.
    """
    if revision and Path(name).exists():
        raise UserError(f"--revision: {name} is not on the Hub")
    try:
        has_weights = Path(name, "model.safetensors").is_file()
        mellow_file = None if has_weights else mellow_checkpoint(name, revision)
        if mellow_file is not None:
            return load_mellow(mellow_file)
    except (ValueError, OSError) as error:
        raise _user_error(name, error) from error
    path = Path(name)
    # The Hub is not asked for a missing folder: a connection that is refused takes a minute.
    is_hub_name = len(path.parts) == 2 and not path.exists() and not path.parent.is_dir()
    if not is_hub_name and not (path / "config.json").is_file():
        raise UserError(
            f"--model_name_or_path {name} is neither a folder with config.json nor a Hub name "
            "like user/model"
        )
    try:
        model, info, tokenizer = _read_model(name, revision)
    except LOADING_ERRORS as error:
        raise _user_error(name, error) from error
    shapes = [f"{key} {tuple(a)}, not {tuple(b)}" for key, a, b in info["mismatched_keys"]]
    messages = []
    for problem, keys in {**info, "mismatched_keys": shapes}.items():
        if keys and problem.endswith("_keys"):
            first = ", ".join(sorted(map(str, keys))[:3])
            messages.append(f"{len(keys)} {problem.replace('_', ' ')} ({first})")
    if messages:
        raise UserError(f"--model_name_or_path {name}: incomplete AudioLM: {'; '.join(messages)}")
    return model, tokenizer


def import_saved_encoders(names: list[str], revision: str | None = None) -> None:
    """Imports encoders from files in the folders of trained models. Their code runs.

    Args:
        names: Folders or Hub names. Models with built-in encoders have no such files.
        revision: Branch, tag or commit on the Hub.

    Raises:
        UserError: If a model or its file is not found, or if the file is not valid.
    """
    for name in names:
        try:
            fields, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
            for part in str(fields.get("encoder_type")).split("+"):
                file, colon, _ = encoder_type_name(part).partition(":")
                if colon:
                    import_encoder_source(str(cached_file(name, file, revision=revision)))
        except (ValueError, OSError) as error:
            raise _user_error(name, error) from error


def _read_model(
    name: str, revision: str | None
) -> tuple[AudioLMForConditionalGeneration, dict, Any]:
    # The installed classes read the model. The copy beside its weights would need the user's trust.
    options = {"revision": revision, "trust_remote_code": False}
    model_type = AutoConfig.from_pretrained(name, **options).model_type
    if model_type != "audiolm":
        raise ValueError(f"it is a {model_type!r} model, not an AudioLM")
    load: Any = AudioLMForConditionalGeneration.from_pretrained
    reporting = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    loaded = load(name, revision=revision, dtype=torch.float32, **reporting)
    return *loaded, AutoTokenizer.from_pretrained(name, **options)


def _user_error(name: str, error: Exception) -> UserError:
    return UserError(f"--model_name_or_path {name}: {redact_token(error, get_token())}")


def merge_adapters(model: torch.nn.Module) -> AudioLMForConditionalGeneration:
    """Merges LoRA adapters into a copy of the model. One without adapters is returned itself."""
    if not hasattr(model, "merge_and_unload"):
        return cast(AudioLMForConditionalGeneration, model)
    adapted: Any = model
    device = adapted.device
    try:
        merged = copy.deepcopy(adapted.cpu()).merge_and_unload()  # A GPU may lack room for both.
    finally:
        adapted.to(device)
    return merged.train(False)
