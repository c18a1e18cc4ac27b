"""Reads the tensors of checkpoints, renames them, copies them into modules, and digests those."""

import hashlib
import re
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..runtime import UserError, redact_token

# HTSAT's keys begin with one of these in checkpoints of msclap, its authors, and transformers.
MSCLAP_PREFIX = "audio_encoder.base.htsat."
AUDIOSET_PREFIX = "sed_model."
HTSAT_PREFIXES = (MSCLAP_PREFIX, AUDIOSET_PREFIX, "audio_model.audio_encoder.", "audio_encoder.")
HTSAT_UNUSED = r"^(spectrogram_extractor|logmel_extractor|head)\.|attn_mask$"
CLASSIFIER_PREFIX = "tscam_conv."
INDEX_SUFFIX = "relative_position_index"
# Patterns in foreign keys, and what ClapAudioModel and MimiModel have in their place.
HTSAT_NAMES = [
    (r"^bn0\.", "batch_norm."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
MOSHI_NAMES = [
    (r"^encoder\.model\.(.*)\.conv\.conv\.", r"encoder.encoder_seanet.layers.\1.conv."),
    (r"^encoder_transformer\.transformer\.", "encoder.encoder_transformer."),
    (r"^downsample\.conv\.conv\.conv\.", "encoder.downsample.conv."),
    (r"out_projs\.0\.", "o_proj."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.linear1\.", ".mlp.fc1."),
    (r"\.linear2\.", ".mlp.fc2."),
    (r"layer_scale_1", "self_attn_layer_scale"),
    (r"layer_scale_2", "mlp_layer_scale"),
    (r"rvq_first\.", "semantic_residual_vector_quantizer."),
    (r"rvq_rest\.", "acoustic_residual_vector_quantizer."),
    (r"quantizer\.vq\.layers", "quantizer.layers"),
    (r"\._codebook\._initialized", ".codebook.initialized"),
    (r"\._codebook\.embedding_sum", ".codebook.embed_sum"),
    (r"\._codebook\.", ".codebook."),
]

UNREADABLE = (
    SafetensorError, UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, ValueError,
)  # fmt: skip

State = dict[str, torch.Tensor]


def read_checkpoint(path: str) -> State:
    """Reads the tensors of a checkpoint, whatever wrapper holds them. No code of the file runs.

    Raises:
        UserError: If the file is incomplete or no checkpoint.
    """
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        # Lightning checkpoints name classes of packages that are not installed here.
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        placeholders: list[Any] = [(type("Ignored", (dict,), {}), name) for name in names]
        with torch.serialization.safe_globals(placeholders):
            state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state.get("model", state.get("state_dict", state)))
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {redact_token(error, None)}"
        raise UserError(f"{path} is not a readable checkpoint ({reason})") from error


def load_state_strictly(module: nn.Module, state: State, source: str) -> None:
    """Copies the tensors of `source` into a module, all of which must fit.

    Raises:
        UserError: If keys are missing or unexpected, or shapes differ.
    """
    own_state = module.state_dict()
    # The index depends on the architecture alone, and not all formats have it.
    index = {key: value for key, value in own_state.items() if key.endswith(INDEX_SUFFIX)}
    weights = {key: value for key, value in state.items() if not key.endswith(INDEX_SUFFIX)}
    try:
        module.load_state_dict(weights | index)
    except RuntimeError as error:
        raise UserError(f"{source} does not fit: {redact_token(error, None)}") from error


def weights_digest(module: nn.Module) -> str:
    """Returns the SHA-256 of a module's weights, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def select_prefix(state: State, prefix: str) -> State:
    """Returns the tensors whose keys have a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _rename(key: str, names: list[tuple[str, str]]) -> str:
    for pattern, name in names:
        key = re.sub(pattern, name, key)
    return key


def rename_clap_keys(state: State) -> State:
    """Renames HTS-AT's keys to ClapAudioModel's, and splits its joint qkv projections."""
    renamed = {}
    for key, value in state.items():
        if re.search(HTSAT_UNUSED, key) or key.startswith(CLASSIFIER_PREFIX):
            continue
        name = _rename(key, HTSAT_NAMES)
        if ".qkv." in name:
            for part, third in zip(("query", "key", "value"), value.chunk(3)):
                renamed[name.replace("qkv", part)] = third
        else:
            renamed[name] = value
    return renamed


def rename_moshi_keys(state: State, num_heads: int) -> State:
    """Renames moshi's keys to MimiModel's, and brings query and key rows to its rotary order."""
    renamed = {}
    for key, value in state.items():
        if key.startswith(("decoder", "upsample")):
            continue
        name = _rename(key, MOSHI_NAMES)
        if "in_projs.0." not in name:
            renamed[name] = value
            continue
        for part, third in zip("qkv", value.chunk(3)):
            if part != "v":
                # Rotary pairs are interleaved in moshi, and in two halves in transformers.
                third = third.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)
            renamed[name.replace("in_projs.0", f"{part}_proj")] = third
    return renamed
