"""Readers of the encoders' checkpoints, in each format that is published; a model that was saved whole does not need them."""

import copy
import json
import re
import warnings
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from ..configuration_audiolm import (
    ENCODER_OPTION_FIELDS,
    check_band,
    default_encoder_config,
    parse_encoder_type,
)
from ..encoders_audiolm import AudioEncoder, CodecEncoder, HTSATEncoder, MimiEncoder, build_encoder

MOSHI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
# by encoder: the repository of the published weights, and the files in which they come, there or elsewhere
PUBLISHED = {
    "clap_audio_model": "microsoft/msclap",
    "mimi": "kyutai/mimi",
    "encodec": "facebook/encodec_24khz",
    "dac": "descript/dac_44khz",
}
FILES = {
    "clap_audio_model": (
        "CLAP_weights_2023.pth",
        "HTSAT_AudioSet_Saved_1.ckpt",
        "model.safetensors",
        "pytorch_model.bin",
    ),
    "mimi": ("model.safetensors", MOSHI_FILE),
}


def _load_random(encoder_type: str) -> AudioEncoder:
    warnings.warn(
        f"{encoder_type}: the encoder's weights are RANDOM; results say nothing about it",
        stacklevel=3,
    )
    encoder = build_encoder(default_encoder_config(encoder_type)).eval()
    if isinstance(encoder, (MimiEncoder, CodecEncoder)):
        randomise_codebooks(encoder)
    return encoder


@torch.no_grad()
def randomise_codebooks(encoder: MimiEncoder | CodecEncoder) -> None:
    """Draws codebooks that begin as zeros from the encoder's own outputs on gliding tones and noise, so that codes vary."""
    seconds = torch.arange(24 * encoder.sample_rate) / encoder.sample_rate
    sweep = torch.sin(2 * torch.pi * (80 * seconds + 60 * seconds**2 / 2)) * (
        0.5 + 0.5 * torch.sin(3 * seconds)
    )
    audio = torch.stack(
        [0.5 * sweep, 0.2 * torch.randn_like(sweep) * torch.sin(seconds).abs(), 0.3 * sweep.flip(0)]
    )
    if encoder.config.model_type == "encodec":
        residual = encoder.model.encoder(audio[:, None])
        for layer in encoder.model.quantizer.layers:
            points = residual.transpose(1, 2).flatten(0, 1)
            drawn = points[torch.randint(len(points), (layer.codebook.codebook_size,))]
            layer.codebook.embed.copy_(drawn + 0.5 * points.std(0) * torch.randn_like(drawn))
            residual = residual - layer.decode(layer.encode(residual))
        return
    if not isinstance(encoder, MimiEncoder):
        return  # DAC's begin at random
    latents = encoder.latents(audio).transpose(1, 2)
    rvq = encoder.model.quantizer
    for quantizer in (
        rvq.semantic_residual_vector_quantizer,
        rvq.acoustic_residual_vector_quantizer,
    ):
        residual = latents if quantizer.input_proj is None else quantizer.input_proj(latents)
        for layer in quantizer.layers:
            points, codebook = residual.transpose(1, 2).flatten(0, 1), layer.codebook
            drawn = points[torch.randint(len(points), (codebook.codebook_size,))]
            codebook.embed_sum.copy_(drawn + 0.5 * points.std(0) * torch.randn_like(drawn))
            codebook.cluster_usage.fill_(1.0)
            codebook._embed = None
            residual = residual - layer.decode(layer.encode(residual))


def _find(name_or_path: str, *candidates: str) -> str:
    """The path of a file: `name_or_path` itself, or the first of `candidates` in that folder or Hub repository."""
    if Path(name_or_path).is_file():
        return name_or_path
    for name in candidates:
        # cached_file gives None for a file that a folder or repository lacks
        if len(Path(name_or_path).parts) > 2 and not Path(name_or_path).is_dir():
            break
        if found := cached_file(name_or_path, name, _raise_exceptions_for_missing_entries=False):
            return found
    raise ValueError(
        f"{name_or_path} is no file, nor a folder or a Hub repository within reach with {' or '.join(candidates)}"
    )


def read_checkpoint(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by key, whatever object or wrapper holds them; no code of the file runs.

    Raises:
        ValueError: if the file is torn, or no checkpoint.
    """
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        # Lightning checkpoints name classes of packages that are not needed here: placeholders stand for them.
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals(
            [(type("Ignored", (dict,), {}), name) for name in names]
        ):
            state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state.get("model", state.get("state_dict", state)))
    except (
        SafetensorError,
        UnpicklingError,
        RuntimeError,
        EOFError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{path} is not a readable checkpoint ({why})") from error


def _config(source: str) -> PreTrainedConfig | None:
    """The configuration of a folder, a Hub repository, or beside a file, without what an arm added to it; None if a file has
    none beside it."""
    if Path(source).is_file():
        source = Path(source).parent
        if not (source / "config.json").is_file():
            return None
    config = AutoConfig.from_pretrained(source)
    for field in ENCODER_OPTION_FIELDS:
        config.__dict__.pop(field, None)
    return config


def load_state_strictly(module: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Copies `state` into `module`, of which every tensor must be met by one of the same shape."""
    wanted = {
        k: v for k, v in module.state_dict().items() if not k.endswith("relative_position_index")
    }
    missing = [k for k in wanted if k not in state]
    unexpected = [k for k in state if k not in wanted and not k.endswith("relative_position_index")]
    shapes = [
        f"{k} {tuple(state[k].shape)}, not {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in state and state[k].shape != v.shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{source} does not fit {type(module).__name__}: {len(missing)} keys missing ({', '.join(missing[:3])}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])}), "
            f"{len(shapes)} of another shape ({'; '.join(shapes[:3])})"
        )
    module.load_state_dict(
        {k: state[k] for k in wanted}, strict=False
    )  # relative_position_index is the architecture's


_HTSAT_NAMES = [
    (r"^bn0\.", "batch_norm."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
HTSAT_UNUSED = r"^(spectrogram_extractor|logmel_extractor|head)\.|attn_mask$"


def _load_htsat(encoder_type: str, name_or_path: str | None) -> HTSATEncoder:
    source, path = (
        name_or_path or PUBLISHED["clap_audio_model"],
        checkpoint_file(encoder_type, name_or_path),
    )
    fields, posteriors = {}, {}
    state = {key.removeprefix("module."): value for key, value in read_checkpoint(path).items()}
    prefix = next(
        (
            p
            for p in (
                "audio_encoder.base.htsat.",
                "sed_model.",
                "audio_model.audio_encoder.",
                "audio_encoder.",
            )
            if any(k.startswith(p) for k in state)
        ),
        "",
    )
    of_mellow = "audio_encoder.base.c2l.weight" in state
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if prefix in ("audio_encoder.base.htsat.", "sed_model."):
        if (
            prefix == "sed_model." or of_mellow
        ):  # HTS-AT's own AudioSet weights: 32 kHz, clips of 10 s
            fields = {"sampling_rate": 32000, "window_seconds": 10.0}
        posteriors = {k: v for k, v in state.items() if k.startswith("tscam_conv.")}
        state = rename_clap_keys(
            {
                k: v
                for k, v in state.items()
                if not re.search(HTSAT_UNUSED, k) and k not in posteriors
            }
        )
        config = default_encoder_config(encoder_type, fields)
    else:
        config = _config(source)
        config = getattr(config, "audio_config", config).to_dict() if config else {}
        folder = str(Path(source).parent) if Path(source).is_file() else source
        front_end = cached_file(
            folder, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False
        )
        if front_end:  # LAION's: 48 kHz, hop 480, windows of 10 s
            given = json.loads(Path(front_end).read_text())
            fields = {
                "sampling_rate": given["sampling_rate"],
                "mel_sampling_rate": given["sampling_rate"],
                "n_fft": given["fft_window_size"],
                "hop_length": given["hop_length"],
                "window_seconds": given["max_length_s"],
                "frequency_min": given["frequency_min"],
                "frequency_max": given["frequency_max"],
            }
        config = default_encoder_config(encoder_type, {**config, **fields})
    encoder = HTSATEncoder(config)
    load_state_strictly(encoder.model.audio_encoder, state, path)
    if encoder.posteriors:
        load_state_strictly(
            encoder.classifier,
            {k.removeprefix("tscam_conv."): v for k, v in posteriors.items()},
            path,
        )
    return encoder.eval()


def rename_clap_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """HTS-AT's keys as ClapAudioModel's; its joint qkv projections split in three."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in _HTSAT_NAMES:
            key = re.sub(pattern, name, key)
        if ".qkv." in key:
            for part, third in zip(("query", "key", "value"), value.chunk(3)):
                renamed[key.replace("qkv", part)] = third
        else:
            renamed[key] = value
    return renamed


_MOSHI_NAMES = [
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


def _load_mimi(encoder_type: str, name_or_path: str | None) -> AudioEncoder:
    source, path = name_or_path or PUBLISHED["mimi"], checkpoint_file(encoder_type, name_or_path)
    state = read_checkpoint(path)
    if any(k.startswith("encoder.model.") for k in state):  # moshi's own format
        encoder = build_encoder(default_encoder_config(encoder_type))
        load_state_strictly(
            encoder.model, _mimi_names(state, encoder.config.num_attention_heads), path
        )
    elif Path(source).is_file():
        encoder = build_encoder(default_encoder_config(encoder_type, _config(source)))
        load_state_strictly(
            encoder.model, {k: v for k, v in state.items() if not k.startswith("decoder")}, path
        )
    else:
        encoder = _load_transformers(encoder_type, source)
    encoder.clear_codebook_cache()
    return encoder.eval()


def _load_transformers(encoder_type: str, name_or_path: str | None) -> AudioEncoder:
    """An encoder whose `model` is a class of transformers, from a folder or repository in that format."""
    path = checkpoint_file(encoder_type, name_or_path)
    source = name_or_path or PUBLISHED[default_encoder_config(encoder_type).model_type]
    encoder = build_encoder(default_encoder_config(encoder_type, _config(source)))
    kind = type(encoder.model)
    model, info = kind.from_pretrained(
        source, config=encoder.config, dtype=torch.float32, output_loading_info=True
    )
    bad = {k: sorted(map(str, info[k])) for k in ("missing_keys", "mismatched_keys") if info[k]}
    if bad:
        raise ValueError(
            f"{path} does not fit {kind.__name__}: "
            + "; ".join(f"{k} {v[:3]}" for k, v in bad.items())
        )
    encoder.model = model
    return encoder.eval()


def _mimi_names(state: dict[str, torch.Tensor], heads: int) -> dict[str, torch.Tensor]:
    """moshi's keys as MimiModel's; q and k rows go from interleaved to half-split rotary order."""
    renamed = {}
    for key, value in state.items():
        if key.startswith(("decoder", "upsample")):
            continue
        for pattern, name in _MOSHI_NAMES:
            key = re.sub(pattern, name, key)
        if "in_projs.0." in key:
            for part, third in zip("qkv", value.chunk(3)):
                if part != "v":
                    third = third.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
                renamed[key.replace("in_projs.0", f"{part}_proj")] = third
        else:
            renamed[key] = value
    return renamed


def _load_pair(encoder_type: str, name_or_path: str | None) -> AudioEncoder:
    names = name_or_path.split("+") if name_or_path else [None, None]
    if len(names) != 2:
        raise ValueError(
            f"--encoder_name_or_path {name_or_path}: for the pair {encoder_type}, FIRST+SECOND is wanted"
        )
    parts = [load_encoder(arm, name or None) for arm, name in zip(encoder_type.split("+"), names)]
    pair = build_encoder(
        default_encoder_config(encoder_type, {"first": parts[0].config, "second": parts[1].config})
    )
    pair.first, pair.second = parts
    return pair.eval()


def _load_silence(encoder_type: str, name_or_path: str | None) -> AudioEncoder:
    if name_or_path:
        raise ValueError(f"--encoder_name_or_path {name_or_path}: {encoder_type} has no weights")
    return build_encoder(default_encoder_config(encoder_type)).eval()


# of formats beside transformers' own
LOADERS = {
    "clap_audio_model": _load_htsat,
    "mimi": _load_mimi,
    "audiolm_pair": _load_pair,
    "audiolm_silence": _load_silence,
}


def checkpoint_file(encoder_type: str, name_or_path: str | None = None) -> str:
    """The file that [`load_encoder`] reads, found in a folder or fetched from the Hub.

    Raises:
        ValueError: if there is none.
    """
    kind, of_arm = parse_encoder_type(encoder_type)
    if not name_or_path and of_arm.get(
        "posteriors"
    ):  # what was trained on captions has forgotten its classes
        raise ValueError(
            f"--encoder_name_or_path: for {encoder_type} HTS-AT's own checkpoint is wanted, "
            "HTSAT_AudioSet_Saved_1.ckpt"
        )
    if not (source := name_or_path or PUBLISHED.get(kind)):
        raise ValueError(
            f"--encoder_name_or_path: for {encoder_type} a folder or Hub name is wanted"
        )
    return _find(source, *FILES.get(kind, ("model.safetensors", "pytorch_model.bin")))


def load_encoder(encoder_type: str, name_or_path: str | None = None) -> AudioEncoder:
    """The encoder of an arm, in eval mode.

    Args:
        encoder_type: the arm. name_or_path: weights of any format that they come in, as a Hub name, folder or file; None for
            the published ones, "random" for random ones.

    Raises:
        ValueError: if the checkpoint does not fit; it names the first missing and unexpected keys.
    """
    if name_or_path == "random" and "+" not in encoder_type:
        return _load_random(encoder_type)
    if name_or_path == "random":
        name_or_path = "random+random"
    return LOADERS.get(default_encoder_config(encoder_type).model_type, _load_transformers)(
        encoder_type, name_or_path
    )


def with_overrides(
    encoder: AudioEncoder, band_limit: int | None = None, window_seconds: float | None = None
) -> AudioEncoder:
    """An encoder of the same weights that hears otherwise.

    Args:
        band_limit: a recording of so many samples a second is all that it hears. window_seconds: of HTSAT's windows.

    Raises:
        ValueError: if it has no windows, or not of this length; or no recording has that band.
    """
    config = copy.deepcopy(encoder.config)
    config.dtype = (
        None  # of the file that it was read from, in which transformers would build it again
    )
    if band_limit is not None:
        config.band_limit = band_limit
        check_band(config)
    if window_seconds is not None:
        parts = [config, getattr(config, "first", None), getattr(config, "second", None)]
        if not (windowed := [part for part in parts if hasattr(part, "window_seconds")]):
            raise ValueError("--window_seconds: HTSAT alone hears by windows")
        for part in windowed:
            part.window_seconds = window_seconds
    changed = build_encoder(config)
    changed.load_state_dict(encoder.state_dict())
    changed.clear_codebook_cache()
    return changed.eval()
