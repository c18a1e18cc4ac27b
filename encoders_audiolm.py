"""The frozen audio encoders behind one interface, in torch and transformers alone, and the readers of their checkpoints."""

import json
import re
import warnings
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, ClapAudioModel, MimiModel, PreTrainedConfig
from transformers.audio_utils import mel_filter_bank
from transformers.utils import cached_file

from .configuration_audiolm import default_encoder_config


@contextmanager
def full_precision(device_type: str):
    """float32 as it is written: without autocast, and without the TF32 that cuDNN's convolutions use unless told."""
    names = {"fp32_precision": "ieee"} if hasattr(torch.backends.cudnn, "conv") else {"allow_tf32": False}  # torch < 2.9
    backends = [torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", torch.backends.cudnn)]
    before = [(backend, name, getattr(backend, name)) for backend in backends for name in names]
    try:
        for backend, name, _ in before:
            setattr(backend, name, names[name])
        with torch.autocast(device_type=device_type, enabled=False):
            yield
    finally:
        for backend, name, value in before:
            setattr(backend, name, value)


class AudioEncoder(nn.Module):
    """One clip in, a sequence of feature vectors out; always frozen, in eval mode and in float32.

    Attributes:
        dim: channels of a feature vector. sample_rate: Hz. frame_rate: feature vectors per second of a long clip.
    """

    dim: int
    sample_rate: int
    frame_rate: float

    def num_frames(self, num_samples: int) -> int:
        """Feature vectors of a clip of `num_samples` samples at `sample_rate`."""
        raise NotImplementedError

    def _encode(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        raise NotImplementedError

    def _apply(self, fn, recurse=True):
        # .to(dtype), .half() and .bfloat16() move an encoder and never round it: a third of Mimi's codes would flip
        def keep_dtype(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    @torch.no_grad()
    def encode(self, waveform: torch.Tensor, num_samples: list[int] | None = None) -> torch.Tensor:
        """Features of a batch of clips, in float32 whatever autocast is on.

        Args:
            waveform: mono audio in [-1, 1] at `sample_rate`, of shape (batch, samples).
            num_samples: samples of each clip, where clips of different lengths are padded to one; what lies behind
                them is not read.

        Returns:
            Features of shape (batch, frames, dim); row i holds `num_frames(num_samples[i])` frames, zeros behind them.

        Raises:
            ValueError: if a clip is empty, or `waveform` is not of that shape.
        """
        if waveform.ndim != 2:
            raise ValueError(f"waveform has shape {tuple(waveform.shape)}, but (batch, samples) is wanted")
        lengths = [waveform.shape[1]] * len(waveform) if num_samples is None else [int(n) for n in num_samples]
        if len(lengths) != len(waveform) or min(lengths, default=1) < 1 or max(lengths, default=1) > waveform.shape[1]:
            raise ValueError(f"num_samples {lengths} do not fit a waveform of shape {tuple(waveform.shape)}")
        with full_precision(waveform.device.type):
            return self._encode(waveform.float(), lengths)

    def frame_mask(self, num_samples: list[int]) -> torch.Tensor:
        """True where `encode` gives a frame of a clip, False behind its end; of shape (batch, frames), on the CPU."""
        frames = [self.num_frames(int(n)) for n in num_samples]
        return torch.arange(max(frames))[None] < torch.tensor(frames)[:, None]

    @classmethod
    def from_checkpoint(cls, encoder_type: str, name_or_path: str | None = None) -> "AudioEncoder":
        """The encoder of an arm with weights of any format that `name_or_path` comes in; `random` for random ones.

        Raises:
            ValueError: if the checkpoint does not fit; it names the first missing and unexpected keys.
        """
        return _load_random(encoder_type) if name_or_path == "random" else _LOADERS[cls](encoder_type, name_or_path)


def htsat_windows(num_samples: int, window_samples: int, time_cells: int) -> list[tuple[int, int, int]]:
    """(first sample, first kept time cell, end of the kept time cells) of each window of a clip."""
    found, covered = [], 0
    while covered < num_samples or not found:
        start = max(0, min(covered, num_samples - window_samples))
        centres = start + (np.arange(time_cells) + 0.5) * window_samples / time_cells
        kept = np.flatnonzero((centres >= covered) & (centres < num_samples))
        if not found and not len(kept):
            kept = np.array([0])
        covered = start + window_samples
        if len(kept):
            found.append((start, int(kept[0]), int(kept[-1]) + 1))
    return found


class HTSATEncoder(AudioEncoder):
    """HTS-AT (arXiv 2202.00874) as MS-CLAP 2023, LAION-CLAP and its authors trained it: windows of a mel image.

    A window gives a grid of (dim, 2 frequency, 32 time) cells, read time-major as 64 frames. A clip shorter than a
    window is tiled to one, the last window of a longer one ends with it. Kept are the cells whose centre lies in the
    clip and in no earlier window; the first cell always.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        if config.enable_fusion:
            raise ValueError("CLAP checkpoints with feature fusion are not supported; use an unfused one")
        self.config = config
        self.model = ClapAudioModel(config)
        with torch.device("cpu"):
            mel = mel_filter_bank(
                config.n_fft // 2 + 1, config.num_mel_bins, config.frequency_min, config.frequency_max,
                config.mel_sampling_rate, norm="slaney", mel_scale="slaney",
            )  # fmt: skip
            self.register_buffer("mel_filters", torch.tensor(mel, dtype=torch.float32))
            self.register_buffer("window", torch.hann_window(config.n_fft))
        self.dim = config.patch_embeds_hidden_size * 2 ** (len(config.depths) - 1)
        self.sample_rate = config.sampling_rate
        self.window_samples = round(config.window_seconds * config.sampling_rate)
        side = config.spec_size // config.patch_stride[0] // 2 ** (len(config.depths) - 1)
        ratio = config.spec_size // config.num_mel_bins
        self.frequency_cells, self.time_cells = side // ratio, side * ratio
        self.frame_rate = self.frequency_cells * self.time_cells / config.window_seconds

    def windows(self, num_samples: int) -> list[tuple[int, int, int]]:
        """(first sample, first kept time cell, end of the kept time cells) of each window of a clip."""
        return htsat_windows(num_samples, self.window_samples, self.time_cells)

    def num_frames(self, num_samples: int) -> int:
        return self.frequency_cells * sum(end - first for _, first, end in self.windows(num_samples))

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Log-mel spectrogram in dB, of shape (batch, samples // hop + 1, mel bins)."""
        stft = torch.stft(
            waveform, self.config.n_fft, self.config.hop_length, window=self.window, pad_mode="reflect", return_complex=True
        )
        power = stft.real.square() + stft.imag.square()
        return 10 * torch.log10((power.transpose(1, 2) @ self.mel_filters).clamp(min=1e-10))

    def encode_windows(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Grid (batch, dim, frequency, time) and latent (batch, dim) of clips that are one window long."""
        output = self.model(input_features=self.log_mel(waveform)[:, None])
        return output.last_hidden_state, output.pooler_output

    def _encode(self, waveform, num_samples):
        crops, places = [], []
        for clip, length in zip(waveform, num_samples):
            tiled = clip[:length].repeat(-(-self.window_samples // length)) if length < self.window_samples else clip
            places.append(self.windows(length))
            crops += [tiled[start : start + self.window_samples] for start, _, _ in places[-1]]
        grid, _ = self.encode_windows(torch.stack(crops))
        tokens = grid.permute(0, 3, 2, 1)  # (window, time, frequency, dim)
        rows, window = [], 0
        for windows in places:
            kept = [tokens[window + i, first:end].flatten(0, 1) for i, (_, first, end) in enumerate(windows)]
            rows.append(torch.cat(kept))
            window += len(windows)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)


class MimiEncoder(AudioEncoder):
    """Mimi (arXiv 2410.00037): codes of the first `num_levels` RVQ levels, decoded to the quantised latent.

    Each clip is zero-padded to whole frames first, as moshi does; Mimi is causal, so a batch then equals its clips.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.model = MimiModel(config)
        self.dim = config.hidden_size
        self.sample_rate = config.sampling_rate
        self.frame_rate = config.frame_rate
        self.frame_size = round(self.sample_rate / self.frame_rate)
        self.num_levels = config.num_levels

    def num_frames(self, num_samples: int) -> int:
        return -(-num_samples // self.frame_size)

    def latents(self, waveform: torch.Tensor) -> torch.Tensor:
        """Latents before quantisation, of shape (batch, frames, dim), of whole frames of audio."""
        for conv in self.modules():  # sizes that each convolution asks for as numbers: on a GPU every one is a wait
            for name in ("stride", "kernel_size", "padding_total"):
                if name in conv._buffers:
                    conv.__dict__[name] = conv._buffers.pop(name).cpu()
        return self.model.encoder(waveform[:, None]).latents.transpose(1, 2)

    def _codes(self, waveform, num_samples):
        frames = self.num_frames(max(num_samples))
        padded = waveform.new_zeros(len(waveform), frames * self.frame_size)
        for row, clip, length in zip(padded, waveform, num_samples):
            row[:length] = clip[:length]
        return self.model.quantizer.encode(self.latents(padded).transpose(1, 2), self.num_levels).transpose(0, 1)

    @torch.no_grad()
    def codes(self, waveform: torch.Tensor, num_samples: list[int] | None = None) -> torch.Tensor:
        """Codes of shape (batch, levels, frames); those behind a clip's last frame mean nothing."""
        with full_precision(waveform.device.type):
            return self._codes(waveform.float(), num_samples or [waveform.shape[1]] * len(waveform))

    @torch.no_grad()
    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Features (batch, frames, dim) of codes (batch, levels, frames)."""
        with full_precision(codes.device.type):
            return self.model.quantizer.decode(codes.long()).transpose(1, 2)

    def _encode(self, waveform, num_samples):
        features = self.decode_codes(self._codes(waveform, num_samples))
        return features * self.frame_mask(num_samples).to(features.device)[..., None]

    def forget_codebook_cache(self):
        """Makes the quantizer compute its tables from the weights that it holds now."""
        for module in self.modules():
            if hasattr(module, "_embed"):
                module._embed = None


def build_encoder(config: PreTrainedConfig) -> AudioEncoder:
    """The encoder of a configuration, with the weights that its initialisation gives."""
    return (MimiEncoder if config.model_type == "mimi" else HTSATEncoder)(config)


def _load_random(encoder_type: str) -> AudioEncoder:
    warnings.warn(f"{encoder_type}: the encoder's weights are RANDOM; results say nothing about it", stacklevel=3)
    encoder = build_encoder(default_encoder_config(encoder_type)).eval()
    if isinstance(encoder, MimiEncoder):
        randomise_codebooks(encoder)
    return encoder


@torch.no_grad()
def randomise_codebooks(encoder: MimiEncoder) -> None:
    """Draws the used codebooks from the encoder's own outputs on gliding tones and noise, so that codes vary."""
    seconds = torch.arange(24 * encoder.sample_rate) / encoder.sample_rate
    sweep = torch.sin(2 * torch.pi * (80 * seconds + 60 * seconds**2 / 2)) * (0.5 + 0.5 * torch.sin(3 * seconds))
    audio = torch.stack([0.5 * sweep, 0.2 * torch.randn_like(sweep) * torch.sin(seconds).abs(), 0.3 * sweep.flip(0)])
    latents = encoder.latents(audio).transpose(1, 2)
    rvq = encoder.model.quantizer
    for quantizer in (rvq.semantic_residual_vector_quantizer, rvq.acoustic_residual_vector_quantizer):
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
    raise ValueError(f"{name_or_path} is no file, nor a folder or a Hub repository within reach with {' or '.join(candidates)}")


def _read(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by key, whatever object or wrapper holds them; no code of the file runs.

    Raises:
        ValueError: if the file is torn, or no checkpoint.
    """
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        # Lightning checkpoints name classes of packages that are not needed here: placeholders stand for them.
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(type("Ignored", (dict,), {}), name) for name in names]):
            state = torch.load(path, map_location="cpu", weights_only=True)
        return dict(state.get("model", state.get("state_dict", state)))
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{path} is not a readable checkpoint ({why})") from error


def _config(source: str) -> PreTrainedConfig | None:
    """The configuration of a folder, a Hub repository, or beside a file; None if a file has none beside it."""
    if not Path(source).is_file():
        return AutoConfig.from_pretrained(source)
    folder = Path(source).parent
    return AutoConfig.from_pretrained(folder) if (folder / "config.json").is_file() else None


def _fill(module: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Copies `state` into `module`, of which every tensor must be met by one of the same shape."""
    wanted = {k: v for k, v in module.state_dict().items() if not k.endswith("relative_position_index")}
    missing = [k for k in wanted if k not in state]
    unexpected = [k for k in state if k not in wanted and not k.endswith("relative_position_index")]
    shapes = [f"{k} {tuple(state[k].shape)}, not {tuple(v.shape)}" for k, v in wanted.items()
              if k in state and state[k].shape != v.shape]  # fmt: skip
    if missing or unexpected or shapes:
        raise ValueError(
            f"{source} does not fit {type(module).__name__}: {len(missing)} keys missing ({', '.join(missing[:3])}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])}), "
            f"{len(shapes)} of another shape ({'; '.join(shapes[:3])})"
        )
    module.load_state_dict(state, strict=False)


_HTSAT_NAMES = [
    (r"^bn0\.", "batch_norm."), (r"\.norm1\.", ".layernorm_before."), (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."), (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."), (r"\.mlp\.fc2\.", ".output.dense."),
]  # fmt: skip
_HTSAT_UNUSED = r"^(spectrogram_extractor|logmel_extractor|tscam_conv|head)\.|attn_mask$"


def _load_htsat(encoder_type: str, name_or_path: str | None) -> HTSATEncoder:
    source = name_or_path or "microsoft/msclap"
    path = _find(source, "CLAP_weights_2023.pth", "HTSAT_AudioSet_Saved_1.ckpt", "model.safetensors", "pytorch_model.bin")
    state, fields = _read(path), {}
    prefix = next((p for p in ("audio_encoder.base.htsat.", "sed_model.", "audio_model.audio_encoder.", "audio_encoder.")
                   if any(k.startswith(p) for k in state)), "")  # fmt: skip
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if prefix in ("audio_encoder.base.htsat.", "sed_model."):
        if prefix == "sed_model.":  # HTS-AT's own AudioSet weights: 32 kHz, clips of 10 s
            fields = {"sampling_rate": 32000, "window_seconds": 10.0}
        state = _clap_names({k: v for k, v in state.items() if not re.search(_HTSAT_UNUSED, k)})
        config = default_encoder_config(encoder_type, fields)
    else:
        config = _config(source)
        config = getattr(config, "audio_config", config).to_dict() if config else {}
        folder = str(Path(source).parent) if Path(source).is_file() else source
        front_end = cached_file(folder, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        if front_end:  # LAION's: 48 kHz, hop 480, windows of 10 s
            given = json.loads(Path(front_end).read_text())
            fields = {"sampling_rate": given["sampling_rate"], "mel_sampling_rate": given["sampling_rate"],
                      "n_fft": given["fft_window_size"], "hop_length": given["hop_length"],
                      "window_seconds": given["max_length_s"],
                      "frequency_min": given["frequency_min"], "frequency_max": given["frequency_max"]}  # fmt: skip
        config = default_encoder_config(encoder_type, {**config, **fields})
    encoder = HTSATEncoder(config)
    _fill(encoder.model.audio_encoder, state, path)
    return encoder.eval()


def _clap_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
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
    (r"out_projs\.0\.", "o_proj."), (r"\.norm1\.", ".input_layernorm."), (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.linear1\.", ".mlp.fc1."), (r"\.linear2\.", ".mlp.fc2."),
    (r"layer_scale_1", "self_attn_layer_scale"), (r"layer_scale_2", "mlp_layer_scale"),
    (r"rvq_first\.", "semantic_residual_vector_quantizer."), (r"rvq_rest\.", "acoustic_residual_vector_quantizer."),
    (r"quantizer\.vq\.layers", "quantizer.layers"), (r"\._codebook\._initialized", ".codebook.initialized"),
    (r"\._codebook\.embedding_sum", ".codebook.embed_sum"), (r"\._codebook\.", ".codebook."),
]  # fmt: skip
MOSHI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"


def _load_mimi(encoder_type: str, name_or_path: str | None) -> MimiEncoder:
    source = name_or_path or "kyutai/mimi"
    path = _find(source, "model.safetensors", MOSHI_FILE)
    state = _read(path)
    if any(k.startswith("encoder.model.") for k in state):  # moshi's own format
        encoder = MimiEncoder(default_encoder_config(encoder_type))
        _fill(encoder.model, _mimi_names(state, encoder.config.num_attention_heads), path)
    elif Path(source).is_file():
        encoder = MimiEncoder(default_encoder_config(encoder_type, _config(source)))
        _fill(encoder.model, {k: v for k, v in state.items() if not k.startswith("decoder")}, path)
    else:
        encoder = MimiEncoder(default_encoder_config(encoder_type, _config(source)))
        model, info = MimiModel.from_pretrained(source, config=encoder.config, dtype=torch.float32, output_loading_info=True)
        bad = {k: sorted(map(str, info[k])) for k in ("missing_keys", "mismatched_keys") if info[k]}
        if bad:
            raise ValueError(f"{path} does not fit MimiModel: " + "; ".join(f"{k} {v[:3]}" for k, v in bad.items()))
        encoder.model = model
    encoder.forget_codebook_cache()
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


_LOADERS = {HTSATEncoder: _load_htsat, MimiEncoder: _load_mimi}


def load_encoder(encoder_type: str, name_or_path: str | None = None) -> AudioEncoder:
    """The encoder of an arm, see [`AudioEncoder.from_checkpoint`]; its published weights by default."""
    kind = default_encoder_config(encoder_type).model_type
    return (MimiEncoder if kind == "mimi" else HTSATEncoder).from_checkpoint(encoder_type, name_or_path)
