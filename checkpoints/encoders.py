"""Loads the weights of audio encoders, in each format in which they are published."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.utils import cached_file

from ..configuration_audiolm import (
    ENCODER_OPTION_FIELDS,
    check_band_limit,
    default_encoder_config,
    import_encoders,
    parse_encoder_type,
)
from ..encoders_audiolm import AudioEncoder, HTSATPosteriorEncoder, build_encoder
from ..runtime import UserError, explain_errors, redact_token
from .random_weights import build_random_encoder
from .state_dicts import (
    AUDIOSET_PREFIX,
    CLASSIFIER_PREFIX,
    HTSAT_PREFIXES,
    MSCLAP_PREFIX,
    UNREADABLE,
    load_state_strictly,
    read_checkpoint,
    rename_clap_keys,
    rename_moshi_keys,
    select_prefix,
)

# Hub repositories of the published weights, by `model_type`.
PUBLISHED = {
    "clap_audio_model": "microsoft/msclap",
    "mimi": "kyutai/mimi",
    "encodec": "facebook/encodec_24khz",
    "dac": "descript/dac_44khz",
}
TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")
MOSHI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
HTSAT_FILES = ("CLAP_weights_2023.pth", "HTSAT_AudioSet_Saved_1.ckpt", *TRANSFORMERS_FILES)
FILES = {"clap_audio_model": HTSAT_FILES, "mimi": ("model.safetensors", MOSHI_FILE)}
MELLOW_KEY = "audio_encoder.base.c2l.weight"
AUDIOSET_FRONT_END = {"sampling_rate": 32000, "window_seconds": 10.0}
# Our fields, and those of transformers' CLAP feature extractor.
FRONT_END_FIELDS = {
    "sampling_rate": "sampling_rate", "mel_sampling_rate": "sampling_rate",
    "n_fft": "fft_window_size", "hop_length": "hop_length", "window_seconds": "max_length_s",
    "frequency_min": "frequency_min", "frequency_max": "frequency_max",
}  # fmt: skip


def load_encoder(encoder_type: str, name_or_path: str | None = None) -> AudioEncoder:
    """Loads an encoder with its weights, in evaluation mode.

    Args:
        encoder_type: Type of the encoder, or `FILE.py:CLASS` for a class in a file, which runs.
        name_or_path: Hub name, folder or file of the weights, or `random`. None: the published.

    Raises:
        UserError: If the checkpoint is not found or does not fit.
    """
    encoder_type = import_encoders(encoder_type)
    entry = parse_encoder_type(encoder_type)
    if name_or_path == "random" and entry.model_type == "audiolm_pair":
        name_or_path = "random+random"
    if name_or_path == "random":
        return build_random_encoder(encoder_type)
    load = LOADERS.get(entry.model_type, _load_transformers)
    if "encoder_class" in entry.options:
        load = _load_file_encoder
    return load(encoder_type, name_or_path).eval()


def checkpoint_file(encoder_type: str, name_or_path: str | None = None) -> str:
    """Returns the path of the file that [`load_encoder`] reads, and downloads it if needed.

    Raises:
        UserError: If there is no such file.
    """
    entry = parse_encoder_type(encoder_type)
    if not name_or_path and entry.options.get("posteriors"):
        # MS-CLAP was trained on captions after AudioSet, and its classifier no longer fits.
        raise UserError(
            f"--encoder_name_or_path: {encoder_type} needs HTS-AT's own checkpoint, "
            "HTSAT_AudioSet_Saved_1.ckpt"
        )
    source = name_or_path or PUBLISHED.get(entry.model_type)
    if not source:
        raise UserError(f"--encoder_name_or_path: {encoder_type} needs a folder or a Hub name")
    path = Path(source)
    if path.is_file():
        return source
    candidates = FILES.get(entry.model_type, TRANSFORMERS_FILES)
    if path.is_dir() or len(path.parts) <= 2:
        for candidate in candidates:
            file = _find_in(source, candidate)
            if file:
                return file
    raise UserError(
        f"--encoder_name_or_path {source}: no file, and no folder or Hub repository with "
        f"{' or '.join(candidates)}"
    )


def with_overrides(
    encoder: AudioEncoder, band_limit: int | None = None, window_seconds: float | None = None
) -> AudioEncoder:
    """Rebuilds an encoder with the same weights and other options.

    Args:
        encoder: The encoder.
        band_limit: Sampling rate in Hz. Clips lose the frequencies that recordings at it lack.
        window_seconds: Length of HTSAT's windows.

    Raises:
        UserError: If the encoder has no windows or a value is out of range.
    """
    config = copy.deepcopy(encoder.config)
    config.dtype = None  # transformers would build the encoder in the dtype of its file.
    if band_limit is not None:
        config.band_limit = band_limit
    if window_seconds is not None:
        parts: list[Any] = [config, getattr(config, "first", None), getattr(config, "second", None)]
        windowed_parts = [part for part in parts if hasattr(part, "window_seconds")]
        if not windowed_parts:
            raise UserError(f"--window_seconds {window_seconds}: only HTSAT has windows")
        for part in windowed_parts:
            part.window_seconds = window_seconds
    try:
        check_band_limit(config)
        rebuilt = build_encoder(config)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    rebuilt.load_state_dict(encoder.state_dict())
    rebuilt.clear_codebook_cache()
    return rebuilt.eval()


def _load_htsat(encoder_type: str, name_or_path: str | None) -> AudioEncoder:
    path = checkpoint_file(encoder_type, name_or_path)
    state = {key.removeprefix("module."): value for key, value in read_checkpoint(path).items()}
    prefixes = [prefix for prefix in HTSAT_PREFIXES if any(key.startswith(prefix) for key in state)]
    prefix = prefixes[0] if prefixes else ""
    weights = select_prefix(state, prefix)
    classifier = select_prefix(weights, CLASSIFIER_PREFIX)
    if prefix in (MSCLAP_PREFIX, AUDIOSET_PREFIX):
        weights = rename_clap_keys(weights)
        is_audioset = prefix == AUDIOSET_PREFIX or MELLOW_KEY in state
        fields = AUDIOSET_FRONT_END if is_audioset else {}
    else:
        fields = _clap_fields(name_or_path or PUBLISHED["clap_audio_model"])
    encoder = _build(encoder_type, fields)
    load_state_strictly(encoder.model.audio_encoder, weights, path)
    if isinstance(encoder, HTSATPosteriorEncoder):
        load_state_strictly(encoder.classifier, classifier, path)
    return encoder


def _clap_fields(source: str) -> dict:
    config = _read_config(source) or {}
    config = config.get("audio_config", config)
    folder = str(Path(source).parent) if Path(source).is_file() else source
    file = _find_in(folder, "preprocessor_config.json")
    if file is None:
        return config
    front_end = json.loads(Path(file).read_text())
    return config | {ours: front_end[theirs] for ours, theirs in FRONT_END_FIELDS.items()}


def _load_mimi(encoder_type: str, name_or_path: str | None) -> AudioEncoder:
    source = name_or_path or PUBLISHED["mimi"]
    path = checkpoint_file(encoder_type, name_or_path)
    state = read_checkpoint(path)
    if any(key.startswith("encoder.model.") for key in state):
        encoder = _build(encoder_type)
        weights = rename_moshi_keys(state, encoder.config.num_attention_heads)
        load_state_strictly(encoder.model, weights, path)
    elif Path(source).is_file():
        encoder = _build(encoder_type, _read_config(source))
        weights = {key: value for key, value in state.items() if not key.startswith("decoder")}
        load_state_strictly(encoder.model, weights, path)
    else:
        encoder = _load_transformers(encoder_type, source)
    encoder.clear_codebook_cache()
    return encoder


def _load_transformers(encoder_type: str, name_or_path: str | None) -> AudioEncoder:
    path = checkpoint_file(encoder_type, name_or_path)
    source = name_or_path or PUBLISHED[parse_encoder_type(encoder_type).model_type]
    encoder = _build(encoder_type, _read_config(source))
    model_class = type(encoder.model)
    message = f"{path} does not fit {model_class.__name__}"
    with explain_errors(message, OSError, ValueError, RuntimeError, SafetensorError):
        model, info = model_class.from_pretrained(
            source, config=encoder.config, dtype=torch.float32, output_loading_info=True
        )
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:
            keys = ", ".join(sorted(map(str, info[problem]))[:3])
            raise UserError(f"{message}: {problem.replace('_', ' ')} {keys}")
    encoder.model = model
    return encoder


def _load_pair(encoder_type: str, name_or_path: str | None) -> AudioEncoder:
    types = encoder_type.split("+")
    names = name_or_path.split("+") if name_or_path else [None, None]
    if len(names) != 2:
        raise UserError(
            f"--encoder_name_or_path {name_or_path}: expected FIRST+SECOND for {encoder_type}"
        )
    first, second = [load_encoder(part, name or None) for part, name in zip(types, names)]
    pair = _build(encoder_type, {"first": first.config, "second": second.config})
    pair.first = first
    pair.second = second
    return pair


def _load_silence(encoder_type: str, name_or_path: str | None) -> AudioEncoder:
    if name_or_path:
        raise UserError(f"--encoder_name_or_path {name_or_path}: {encoder_type} has no weights")
    return _build(encoder_type)


def _load_file_encoder(encoder_type: str, name_or_path: str | None) -> AudioEncoder:
    encoder = _build(encoder_type)
    if type(encoder).load_weights is AudioEncoder.load_weights:
        return _load_transformers(encoder_type, name_or_path)
    try:
        encoder.load_weights(name_or_path)
    except (OSError, *UNREADABLE) as error:
        reason = f"{type(error).__name__}: {redact_token(error, None)}"
        source = name_or_path or "the published weights"
        raise UserError(f"--encoder_name_or_path: {encoder_type}: {source}: {reason}") from error
    return encoder


# Encoders that are not listed come in transformers' format alone.
LOADERS: dict[str, Callable[[str, str | None], AudioEncoder]] = {
    "clap_audio_model": _load_htsat,
    "mimi": _load_mimi,
    "audiolm_pair": _load_pair,
    "audiolm_silence": _load_silence,
}


def _build(encoder_type: str, fields: dict | None = None) -> AudioEncoder:
    with explain_errors(f"--encoder_type {encoder_type}", ValueError, StrictDataclassError):
        return build_encoder(default_encoder_config(encoder_type, fields))


def _find_in(folder_or_repository: str, name: str) -> str | None:
    """Returns the path of a file, downloaded if needed, or None if there is no such file."""
    with explain_errors(f"--encoder_name_or_path {folder_or_repository}", OSError):
        return cached_file(folder_or_repository, name, _raise_exceptions_for_missing_entries=False)


def _read_config(source: str) -> dict | None:
    """Reads config.json of a folder or Hub repository, or beside a file (None if it has none).

    Options that an encoder type sets are left out.
    """
    if Path(source).is_file():
        source = str(Path(source).parent)
        if not Path(source, "config.json").is_file():
            return None
    message = f"--encoder_name_or_path {source}"
    with explain_errors(message, OSError, ValueError, StrictDataclassError):
        config = AutoConfig.from_pretrained(source).to_dict()
    return {name: value for name, value in config.items() if name not in ENCODER_OPTION_FIELDS}
