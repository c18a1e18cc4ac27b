"""The frozen audio encoders behind one interface, in torch and transformers alone."""

import math
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import ClapAudioModel, DacModel, EncodecModel, MimiModel, PreTrainedConfig
from transformers.audio_utils import mel_filter_bank


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

    def sizes_to_host(self):
        """See [`MimiEncoder.sizes_to_host`]; others keep no sizes in buffers."""

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
    clip and in no earlier window; the first cell always. With `config.layer` the cells are those behind that stage,
    averaged to this grid.
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
        self.layer = getattr(config, "layer", None)
        self.dim = config.patch_embeds_hidden_size * 2 ** ((self.layer or len(config.depths)) - 1)
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
        kept = []
        stage = self.model.audio_encoder.layers[self.layer - 1] if self.layer else None
        handle = stage.register_forward_hook(lambda module, inputs, output: kept.append(output[1])) if stage else None
        try:
            output = self.model(input_features=self.log_mel(waveform)[:, None])
        finally:
            if handle:
                handle.remove()
        grid = output.last_hidden_state
        if kept:  # an image of time slices one below the other, (batch, side * side, dim), before it is halved
            side, slices = math.isqrt(kept[0].shape[1]), self.config.spec_size // self.config.num_mel_bins
            image = kept[0].transpose(1, 2).unflatten(2, (slices, side // slices, side))
            grid = nn.functional.avg_pool2d(image.transpose(2, 3).flatten(3), side // slices // self.frequency_cells)
        return grid, output.pooler_output

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


class FramedEncoder(AudioEncoder):
    """An encoder that gives a frame for each `frame_size` samples; a clip is filled up to whole frames with zeros.

    Attributes:
        frame_size: samples.
    """

    frame_size: int

    def num_frames(self, num_samples: int) -> int:
        return -(-num_samples // self.frame_size)

    def whole_frames(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        """(batch, samples) with zeros behind each clip, up to the end of the longest one's last frame."""
        padded = waveform.new_zeros(len(waveform), self.num_frames(max(num_samples)) * self.frame_size)
        for row, clip, length in zip(padded, waveform, num_samples):
            row[:length] = clip[:length]
        return padded


class MimiLatentEncoder(FramedEncoder):
    """Mimi (arXiv 2410.00037) before it quantises: its latents, or the hidden states behind its transformer's layer
    `transformer_layer`, of which there are twice as many.

    Each clip is zero-padded to whole frames first, as moshi does; Mimi is causal, so a batch then equals its clips.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.model = MimiModel(config)
        self.layer = getattr(config, "transformer_layer", None)
        self.dim = config.hidden_size
        self.sample_rate = config.sampling_rate
        self.frame_rate = config.encodec_frame_rate if self.layer else config.frame_rate
        self.frame_size = round(self.sample_rate / self.frame_rate)

    def latents(self, waveform: torch.Tensor) -> torch.Tensor:
        """Latents before quantisation, of shape (batch, frames, dim), of whole frames of audio."""
        self.sizes_to_host()
        return self.model.encoder(waveform[:, None]).latents.transpose(1, 2)

    def hidden_states(self, waveform: torch.Tensor) -> torch.Tensor:
        """Behind layer `transformer_layer`, of shape (batch, frames, dim), of whole frames of audio."""
        self.sizes_to_host()
        kept = []
        layer = self.model.encoder.encoder_transformer.layers[self.layer - 1]
        handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            self.model.encoder(waveform[:, None])
        finally:
            handle.remove()
        return kept[0]

    def _encode(self, waveform, num_samples):
        padded = self.whole_frames(waveform, num_samples)
        features = self.hidden_states(padded) if self.layer else self.latents(padded)
        return features * self.frame_mask(num_samples).to(features.device)[..., None]

    def sizes_to_host(self):
        """Takes sizes that each convolution asks for as numbers off the GPU, where every one is a wait, and out of the buffers.

        Before the first clip is encoded, or in all processes together: those of a distributed run must hold the same buffers.
        """
        for conv in self.modules():
            for name in ("stride", "kernel_size", "padding_total"):
                if name in conv._buffers:
                    conv.__dict__[name] = conv._buffers.pop(name).cpu()

    def forget_codebook_cache(self):
        """Makes the quantizer compute its tables from the weights that it holds now."""
        for module in self.modules():
            if hasattr(module, "_embed"):
                module._embed = None


class MimiEncoder(MimiLatentEncoder):
    """Mimi (arXiv 2410.00037): codes of the first `num_levels` RVQ levels, without the semantic one if `first_level` is 1,
    decoded to the quantised latent.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.first_level = getattr(config, "first_level", None) or 0
        self.num_levels = config.num_levels - self.first_level

    def _codes(self, waveform, num_samples):
        latents = self.latents(self.whole_frames(waveform, num_samples)).transpose(1, 2)
        codes = self.model.quantizer.encode(latents, self.first_level + self.num_levels)
        return codes.transpose(0, 1)[:, self.first_level :]

    @torch.no_grad()
    def codes(self, waveform: torch.Tensor, num_samples: list[int] | None = None) -> torch.Tensor:
        """Codes of shape (batch, levels, frames); those behind a clip's last frame mean nothing."""
        with full_precision(waveform.device.type):
            return self._codes(waveform.float(), num_samples or [waveform.shape[1]] * len(waveform))

    @torch.no_grad()
    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Features (batch, frames, dim) of codes (batch, levels, frames)."""
        with full_precision(codes.device.type):
            quantizer = self.model.quantizer
            if self.first_level:
                quantizer = quantizer.acoustic_residual_vector_quantizer
            return quantizer.decode(codes.long()).transpose(1, 2)

    def _encode(self, waveform, num_samples):
        features = self.decode_codes(self._codes(waveform, num_samples))
        return features * self.frame_mask(num_samples).to(features.device)[..., None]


class CodecEncoder(FramedEncoder):
    """EnCodec at 24 kHz (arXiv 2210.13438) or DAC (arXiv 2306.06546): codes of `num_levels` RVQ levels, decoded to the latent.

    Each clip is encoded alone, filled up to whole frames: DAC looks ahead, and EnCodec mirrors the ends of a clip.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.model = {"encodec": EncodecModel, "dac": DacModel}[config.model_type](config)
        self.dim = config.hidden_size
        self.sample_rate = config.sampling_rate
        self.frame_size = config.hop_length
        self.frame_rate = self.sample_rate / self.frame_size
        self.num_levels = config.num_levels

    @torch.no_grad()
    def codes(self, waveform: torch.Tensor, num_samples: list[int] | None = None) -> torch.Tensor:
        """Codes of shape (batch, levels, frames); those behind a clip's last frame mean nothing."""
        lengths = num_samples or [waveform.shape[1]] * len(waveform)
        with full_precision(waveform.device.type):
            made = [self._codes_of(clip[None, :length].float(), length) for clip, length in zip(waveform, lengths)]
        return nn.utils.rnn.pad_sequence([codes[0].T for codes in made], batch_first=True).transpose(1, 2)

    def _codes_of(self, clip, length):
        latents = self.model.encoder(self.whole_frames(clip, [length])[:, None])[..., : self.num_frames(length)]
        if self.config.model_type == "encodec":
            bits = self.num_levels * self.config.codebook_nbits * self.config.frame_rate / 1000
            return self.model.quantizer.encode(latents, bits).transpose(0, 1)
        return self.model.quantizer(latents, self.num_levels)[1]

    @torch.no_grad()
    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Features (batch, frames, dim) of codes (batch, levels, frames)."""
        with full_precision(codes.device.type):
            if self.config.model_type == "encodec":
                return self.model.quantizer.decode(codes.long().transpose(0, 1)).transpose(1, 2)
            return self.model.quantizer.from_codes(codes.long())[0].transpose(1, 2)

    def _encode(self, waveform, num_samples):
        features = self.decode_codes(self.codes(waveform, num_samples))
        return features * self.frame_mask(num_samples).to(features.device)[..., None]


# by the configuration's `model_type`; Mimi without levels is its latent
ENCODERS: dict[str, type[AudioEncoder]] = {
    "clap_audio_model": HTSATEncoder, "mimi": MimiEncoder, "mimi latents": MimiLatentEncoder, "encodec": CodecEncoder,
    "dac": CodecEncoder,
}  # fmt: skip


def build_encoder(config: PreTrainedConfig) -> AudioEncoder:
    """The encoder of a configuration, with the weights that its initialisation gives."""
    latents = config.model_type == "mimi" and not config.num_levels
    return ENCODERS[config.model_type + latents * " latents"](config)
