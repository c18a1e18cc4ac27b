"""The frozen audio encoders behind one interface, in torch and transformers alone."""

import math
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from torch import nn
from transformers import ClapAudioModel, DacModel, EncodecModel, MimiModel, PreTrainedConfig
from transformers.audio_utils import mel_filter_bank

# No recording has more; a file of a few kB can state far more, and then would fill any memory.
MOST_RATE = 768_000  # Hz
MOST_SAMPLES = 12_288_000  # a second in all channels: 64 at 192 kHz


@contextmanager
def full_precision(device_type: str):
    """float32 as it is written: without autocast, and without the TF32 that cuDNN uses unless told."""
    cudnn = torch.backends.cudnn
    names = (
        {"fp32_precision": "ieee"} if hasattr(cudnn, "conv") else {"allow_tf32": False}
    )  # torch < 2.9
    backends = [
        torch.backends.cuda.matmul,
        *([cudnn.conv, cudnn.rnn] if hasattr(cudnn, "conv") else [cudnn]),
    ]
    before = [(backend, name, getattr(backend, name)) for backend in backends for name in names]
    try:
        for backend, name, _ in before:
            setattr(backend, name, names[name])
        with torch.autocast(device_type=device_type, enabled=False):
            yield
    finally:
        for backend, name, value in before:
            setattr(backend, name, value)


def resampled_length(num_samples: int, rate: int, new_rate: int) -> int:
    """Samples that [`resample`] makes of so many."""
    common = math.gcd(rate, new_rate)
    return -(-num_samples * (new_rate // common) // (rate // common))


def resample(audio: torch.Tensor, rate: int, new_rate: int) -> torch.Tensor:
    """Band-limited sinc interpolation with a Hann window, 6 zero crossings and roll-off 0.99: torchaudio's defaults.

    Args:
        audio: (..., samples) at `rate` Hz.

    Raises:
        ValueError: if it is no rate that a recording has.
    """
    if rate == new_rate:
        return audio
    check_rate("the audio", rate)
    check_rate("the encoder", new_rate)
    common = math.gcd(int(rate), int(new_rate))
    old, new = int(rate) // common, int(new_rate) // common
    many = -(-64 // new)  # frames that make one matrix of them
    old, new = many * old, many * new
    # the weights of an odd rate take up to 230 MB, and are not kept
    make = _resampling_kernels if max(old, new) < 100_000 else _resampling_kernels.__wrapped__
    width, kernels = make(old, new, str(audio.device))
    frames = nn.functional.pad(audio, (width, width + old)).unfold(-1, 2 * width + old, old)
    result = torch.cat(
        [frames[..., first : first + len(kernel)] @ kernel.to(audio) for first, kernel in kernels],
        -1,
    )
    return result.flatten(-2)[..., : math.ceil(new * audio.shape[-1] / old)]


@lru_cache(32)
def _resampling_kernels(
    old: int, new: int, device: str
) -> tuple[int, list[tuple[int, torch.Tensor]]]:
    """Samples that a frame of `old` ones needs before and behind it; and, for 64 of its `new` ones at a time, the first sample
    that weighs in them and the weights (samples, 64): from 32 to 44.1 kHz, 61 of a frame's 334 samples."""
    base, zeros = min(old, new) * 0.99, 6
    reach = zeros * old / base
    width, kernels = math.ceil(reach), []
    for phase in torch.arange(new, dtype=torch.float64).split(64):
        centres = phase * old / new
        first, last = math.ceil(centres[0].item() - reach), math.floor(centres[-1].item() + reach)
        t = ((torch.arange(first, last + 1)[:, None] - centres) * base / old).clamp(-zeros, zeros)
        weights = torch.sinc(t) * torch.cos(t * math.pi / zeros / 2) ** 2 * base / old
        kernels.append((width + first, weights.float().to(device)))
    return width, kernels


def ended(waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
    """A copy of (batch, samples) with zeros behind each clip's end."""
    waveform = waveform.clone()
    for row, length in zip(waveform, num_samples):
        row[length:] = 0
    return waveform


def check_rate(name, rate: int, channels: int = 1) -> None:
    """ValueError if there are no samples a second, or more than a recording has."""
    if not (1 <= rate <= MOST_RATE and 1 <= channels <= MOST_SAMPLES / rate):
        said = f"at most {MOST_RATE:,} Hz and {MOST_SAMPLES:,} samples a second are read"
        raise ValueError(f"{name} states {channels} channels at {rate} Hz; {said}")


class AudioEncoder(nn.Module):
    """One clip in, a sequence of feature vectors out; always frozen, in eval mode and in float32.

    Attributes:
        dim: channels of a feature vector. sample_rate: Hz. frame_rate: feature vectors per second of a long clip.
        config: what it is built of; with `band_limit`, clips lose what a recording of so many samples a second lacks.
    """

    dim: int
    sample_rate: int
    frame_rate: float
    config: PreTrainedConfig

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each kind of frame, of which most have one; a frame has zeros in the channels of the other kind."""
        return (self.dim,)

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device

    def frame_counts(self) -> dict:
        """Arguments of [`count_frames`] by which it counts the encoder's frames."""
        raise NotImplementedError

    def num_frames(self, num_samples: int) -> int:
        """Feature vectors of a clip of `num_samples` samples at `sample_rate`."""
        return count_frames(num_samples, **self.frame_counts())

    def _encode(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        raise NotImplementedError

    def heard(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        """(batch, samples) in float32, limited to the band of `config.band_limit`."""
        waveform, limit = waveform.float(), getattr(self.config, "band_limit", None)
        if not limit or limit >= self.sample_rate:
            return waveform
        low = resample(ended(waveform, num_samples), self.sample_rate, limit)
        low = ended(low, [resampled_length(n, self.sample_rate, limit) for n in num_samples])
        return resample(low, limit, self.sample_rate)[:, : waveform.shape[1]]

    def move_conv_sizes_to_cpu(self):
        """Takes sizes that each convolution asks for as numbers off the GPU, where every one is a wait, and out of the buffers.

        Before the first clip is encoded, or in all processes together: those of a distributed run must hold the same buffers.
        """
        for conv in self.modules():
            for name in ("stride", "kernel_size", "padding_total"):
                if name in conv._buffers:
                    conv.__dict__[name] = conv._buffers.pop(name).cpu()

    def clear_codebook_cache(self):
        """Makes a quantizer compute its tables from the weights that it holds now."""
        for module in self.modules():
            if hasattr(module, "_embed"):
                module._embed = None

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
            raise ValueError(
                f"waveform has shape {tuple(waveform.shape)}, but (batch, samples) is wanted"
            )
        lengths = (
            [waveform.shape[1]] * len(waveform)
            if num_samples is None
            else [int(n) for n in num_samples]
        )
        if (
            len(lengths) != len(waveform)
            or min(lengths, default=1) < 1
            or max(lengths, default=1) > waveform.shape[1]
        ):
            raise ValueError(
                f"num_samples {lengths} do not fit a waveform of shape {tuple(waveform.shape)}"
            )
        with full_precision(waveform.device.type):
            return self._encode(self.heard(waveform, lengths), lengths)

    def silenced(self, features: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        """Features, (batch, frames, dim), with zeros behind each clip's end."""
        mask = self.frame_mask(num_samples)
        mask = (
            mask.pin_memory() if features.is_cuda else mask
        )  # from other memory, the copy waits for the GPU
        return features * mask.to(features.device, non_blocking=True)[..., None]

    def frame_mask(self, num_samples: list[int]) -> torch.Tensor:
        """True where `encode` gives a frame of a clip, False behind its end; of shape (batch, frames), on the CPU."""
        frames = [self.num_frames(int(n)) for n in num_samples]
        return torch.arange(max(frames))[None] < torch.tensor(frames)[:, None]


def count_frames(
    num_samples: int,
    frame_size: int | None = None,
    window_samples: int | None = None,
    time_cells: int | None = None,
    frequency_cells: int | None = None,
    window_latents: int = 0,
    whole_windows: bool = False,
    tokens: int | None = None,
    parts: list[dict] | None = None,
    sampling_rate: int | None = None,
) -> int:
    """Frames of a clip of `num_samples` samples, by whichever of these an encoder counts them.

    Args:
        frame_size: samples of a frame. window_samples, time_cells, whole_windows: of [`htsat_windows`], with `frequency_cells`
            frames for each of the time cells that are kept, and `window_latents` for each window. tokens: of every clip.
        parts: of each encoder of a pair, these arguments; its `sampling_rate` is that to which a clip is resampled from
            `sampling_rate`.
    """
    if parts:
        lengths = [
            resampled_length(num_samples, sampling_rate, part["sampling_rate"]) for part in parts
        ]
        return sum(count_frames(length, **part) for length, part in zip(lengths, parts))
    if tokens is not None:
        return tokens
    if window_samples is None:
        return -(-num_samples // frame_size)
    windows = htsat_windows(num_samples, window_samples, time_cells, whole_windows)
    return sum(frequency_cells * (end - first) + window_latents for _, first, end in windows)


def htsat_windows(
    num_samples: int, window_samples: int, time_cells: int, whole_windows: bool = False
) -> list[tuple[int, int, int]]:
    """(first sample, first kept time cell, end of the kept time cells) of each window of a clip; with `whole_windows`, all
    cells of each are kept."""
    found, covered = [], 0
    while covered < num_samples or not found:
        start = max(0, min(covered, num_samples - window_samples))
        centres = start + (np.arange(time_cells) + 0.5) * window_samples / time_cells
        kept = np.flatnonzero((centres >= covered) & (centres < num_samples))
        if not found and not len(kept):
            kept = np.array([0])
        covered = start + window_samples
        if whole_windows:
            found.append((start, 0, time_cells))
        elif len(kept):
            found.append((start, int(kept[0]), int(kept[-1]) + 1))
    return found


class HTSATEncoder(AudioEncoder):
    """HTS-AT (arXiv 2202.00874) as MS-CLAP 2023, LAION-CLAP and its authors trained it: windows of a mel image.

    A window gives a grid of (dim, 2 frequency, 32 time) cells, read time-major as 64 frames. A clip shorter than a
    window is tiled to one, the last window of a longer one ends with it. Kept are the cells whose centre lies in the
    clip and in no earlier window; the first cell always. With `config.layer` the cells are those behind that stage,
    averaged to this grid. With `config.posteriors` a window gives, as in Mellow (arXiv 2503.08540), its latent and then the
    class posteriors of each time cell, `config.posterior_repeats` times: two kinds of frames.

    Raises:
        ValueError: if `config` is of CLAP with feature fusion, or its windows are longer than the image that the model takes.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        if config.enable_fusion:
            raise ValueError(
                "CLAP checkpoints with feature fusion are not supported; use an unfused one"
            )
        self.config = config
        self.model = ClapAudioModel(config)
        with torch.device("cpu"):
            mel = mel_filter_bank(
                config.n_fft // 2 + 1,
                config.num_mel_bins,
                config.frequency_min,
                config.frequency_max,
                config.mel_sampling_rate,
                norm="slaney",
                mel_scale="slaney",
            )
            self.register_buffer("mel_filters", torch.tensor(mel, dtype=torch.float32))
            self.register_buffer("window", torch.hann_window(config.n_fft))
        self.layer = getattr(config, "layer", None)
        self.dim = config.patch_embeds_hidden_size * 2 ** ((self.layer or len(config.depths)) - 1)
        self.sample_rate = config.sampling_rate
        self.window_samples = round(config.window_seconds * config.sampling_rate)
        side = config.spec_size // config.patch_stride[0] // 2 ** (len(config.depths) - 1)
        ratio = config.spec_size // config.num_mel_bins
        self.frequency_cells, self.time_cells = side // ratio, side * ratio
        most = config.spec_size * ratio  # columns of the spectrogram
        if (
            not config.n_fft <= self.window_samples
            or self.window_samples // config.hop_length >= most
        ):
            longest = most * config.hop_length / config.sampling_rate
            raise ValueError(
                f"window_seconds is {config.window_seconds:g}, but HTSAT hears up to {longest:.2f} s at once"
            )
        self.latent_dim, self.posteriors = self.dim, bool(getattr(config, "posteriors", None))
        self.repeats = (
            (getattr(config, "posterior_repeats", None) or 1)
            if self.posteriors
            else self.frequency_cells
        )
        self.whole_windows = bool(getattr(config, "whole_windows", None))
        if self.posteriors:
            self.dim += config.num_classes
            self.classifier = nn.Conv2d(
                self.latent_dim, config.num_classes, (self.frequency_cells, 3), padding=(0, 1)
            )
        self.frame_rate = (self.repeats * self.time_cells + self.posteriors) / config.window_seconds

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.latent_dim, self.config.num_classes) if self.posteriors else (self.dim,)

    def frame_counts(self) -> dict:
        return {
            "window_samples": self.window_samples,
            "time_cells": self.time_cells,
            "frequency_cells": self.repeats,
            "window_latents": int(self.posteriors),
            "whole_windows": self.whole_windows,
        }

    def windows(self, num_samples: int) -> list[tuple[int, int, int]]:
        """(first sample, first kept time cell, end of the kept time cells) of each window of a clip."""
        return htsat_windows(num_samples, self.window_samples, self.time_cells, self.whole_windows)

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Log-mel spectrogram in dB, of shape (batch, samples // hop + 1, mel bins)."""
        stft = torch.stft(
            waveform,
            self.config.n_fft,
            self.config.hop_length,
            window=self.window,
            pad_mode="reflect",
            return_complex=True,
        )
        power = stft.real.square() + stft.imag.square()
        return 10 * torch.log10((power.transpose(1, 2) @ self.mel_filters).clamp(min=1e-10))

    def encode_windows(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Grid (batch, dim, frequency, time) and latent (batch, dim) of clips that are one window long."""
        kept = []
        stage = self.model.audio_encoder.layers[self.layer - 1] if self.layer else None
        handle = (
            stage.register_forward_hook(lambda module, inputs, output: kept.append(output[1]))
            if stage
            else None
        )
        try:
            output = self.model(input_features=self.log_mel(waveform)[:, None])
        finally:
            if handle:
                handle.remove()
        grid = output.last_hidden_state
        if kept:  # an image of time slices one below the other, (batch, side * side, dim), before it is halved
            side, slices = (
                math.isqrt(kept[0].shape[1]),
                self.config.spec_size // self.config.num_mel_bins,
            )
            image = kept[0].transpose(1, 2).unflatten(2, (slices, side // slices, side))
            grid = nn.functional.avg_pool2d(
                image.transpose(2, 3).flatten(3), side // slices // self.frequency_cells
            )
        return grid, output.pooler_output

    def _encode(self, waveform, num_samples):
        crops, places = [], []
        for clip, length in zip(waveform, num_samples):
            tiled = (
                clip[:length].repeat(-(-self.window_samples // length))
                if length < self.window_samples
                else clip
            )
            places.append(self.windows(length))
            crops += [tiled[start : start + self.window_samples] for start, _, _ in places[-1]]
        grid, latent = self.encode_windows(torch.stack(crops))
        if self.posteriors:  # one row of frequency, repeated
            grid = self.classifier(grid).sigmoid().expand(-1, -1, self.repeats, -1)
        tokens = grid.permute(0, 3, 2, 1)  # (window, time, frequency, dim)
        if self.posteriors:
            tokens, latent = (
                nn.functional.pad(tokens, (self.latent_dim, 0)),
                nn.functional.pad(latent, (0, self.dims[1])),
            )
        rows, window = [], 0
        for windows in places:
            kept = []
            for i, (_, first, end) in enumerate(windows, window):
                kept += [latent[i, None]] * self.posteriors + [tokens[i, first:end].flatten(0, 1)]
            rows.append(torch.cat(kept))
            window += len(windows)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)


class FramedEncoder(AudioEncoder):
    """An encoder that gives a frame for each `frame_size` samples; a clip is filled up to whole frames with zeros.

    Attributes:
        frame_size: samples.
    """

    frame_size: int

    def frame_counts(self) -> dict:
        return {"frame_size": self.frame_size}

    def whole_frames(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        """(batch, samples) with zeros behind each clip, up to the end of the longest one's last frame."""
        padded = waveform.new_zeros(
            len(waveform), self.num_frames(max(num_samples)) * self.frame_size
        )
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
        self.move_conv_sizes_to_cpu()
        return self.model.encoder(waveform[:, None]).latents.transpose(1, 2)

    def hidden_states(self, waveform: torch.Tensor) -> torch.Tensor:
        """Behind layer `transformer_layer`, of shape (batch, frames, dim), of whole frames of audio."""
        self.move_conv_sizes_to_cpu()
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
        return self.silenced(features, num_samples)


class MimiEncoder(MimiLatentEncoder):
    """Mimi (arXiv 2410.00037): codes of the first `num_levels` RVQ levels, without the semantic one if `first_level` is 1,
    decoded to the quantised latent.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.first_level = getattr(config, "first_level", None) or 0
        self.num_levels, self.codebook_size = (
            config.num_levels - self.first_level,
            config.codebook_size,
        )

    def _codes(self, waveform, num_samples):
        latents = self.latents(self.whole_frames(waveform, num_samples)).transpose(1, 2)
        codes = self.model.quantizer.encode(latents, self.first_level + self.num_levels)
        return codes.transpose(0, 1)[:, self.first_level :]

    @torch.no_grad()
    def codes(self, waveform: torch.Tensor, num_samples: list[int] | None = None) -> torch.Tensor:
        """Codes of shape (batch, levels, frames); those behind a clip's last frame mean nothing."""
        lengths = num_samples or [waveform.shape[1]] * len(waveform)
        with full_precision(waveform.device.type):
            return self._codes(self.heard(waveform, lengths), lengths)

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
        return self.silenced(features, num_samples)


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
        self.num_levels, self.codebook_size = config.num_levels, config.codebook_size

    @torch.no_grad()
    def codes(self, waveform: torch.Tensor, num_samples: list[int] | None = None) -> torch.Tensor:
        """Codes of shape (batch, levels, frames); those behind a clip's last frame mean nothing."""
        lengths = num_samples or [waveform.shape[1]] * len(waveform)
        with full_precision(waveform.device.type):
            return self._codes(self.heard(waveform, lengths), lengths)

    def _codes(self, waveform, lengths):
        made = [
            self._codes_of(clip[None, :length], length) for clip, length in zip(waveform, lengths)
        ]
        return nn.utils.rnn.pad_sequence(
            [codes[0].T for codes in made], batch_first=True
        ).transpose(1, 2)

    def _codes_of(self, clip, length):
        latents = self.model.encoder(self.whole_frames(clip, [length])[:, None])[
            ..., : self.num_frames(length)
        ]
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
        features = self.decode_codes(self._codes(waveform, num_samples))
        return self.silenced(features, num_samples)


class SilenceEncoder(AudioEncoder):
    """Hears nothing: every clip, whatever its length, has the codes 0, 1, ... of its tokens, whose embeddings are learnt."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config, self.dim, self.sample_rate = config, config.hidden_size, config.sampling_rate
        self.num_levels, self.codebook_size, self.frame_rate = 1, config.num_tokens, 0.0
        self.register_buffer("positions", torch.arange(config.num_tokens)[None])

    def frame_counts(self) -> dict:
        return {"tokens": self.codebook_size}

    def codes(self, waveform: torch.Tensor, num_samples: list[int] | None = None) -> torch.Tensor:
        """(batch, 1, tokens)."""
        return self.positions.expand(len(waveform), -1, -1)

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Features (batch, tokens, dim) that tell tokens apart, for who does not learn embeddings: one channel of each is 1."""
        return nn.functional.one_hot(codes[:, 0].long() % self.dim, self.dim).float()

    def _encode(self, waveform, num_samples):
        return self.decode_codes(self.codes(waveform))


class PairEncoder(AudioEncoder):
    """Two encoders: the frames of the first and then those of the second, each with zeros in the other's channels.

    Clips come at the higher of their rates; the other one hears them resampled.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.first, self.second = build_encoder(config.first), build_encoder(config.second)
        self.dim = self.first.dim + self.second.dim
        self.sample_rate = max(self.first.sample_rate, self.second.sample_rate)
        self.frame_rate = self.first.frame_rate + self.second.frame_rate

    @property
    def dims(self) -> tuple[int, ...]:
        return self.first.dim, self.second.dim

    def frame_counts(self) -> dict:
        parts = [
            {**part.frame_counts(), "sampling_rate": part.sample_rate}
            for part in (self.first, self.second)
        ]
        return {"parts": parts, "sampling_rate": self.sample_rate}

    def _encode(self, waveform, num_samples):
        made, before = [[] for _ in num_samples], 0
        waveform = ended(waveform, num_samples)
        for part in (self.first, self.second):
            clips = resample(waveform, self.sample_rate, part.sample_rate)
            lengths = [resampled_length(n, self.sample_rate, part.sample_rate) for n in num_samples]
            features = nn.functional.pad(
                part.encode(clips, lengths), (before, self.dim - before - part.dim)
            )
            for row, clip, length in zip(made, features, lengths):
                row.append(clip[: part.num_frames(length)])
            before += part.dim
        return nn.utils.rnn.pad_sequence([torch.cat(row) for row in made], batch_first=True)


# by the configuration's `model_type`; Mimi without levels is its latent
ENCODERS: dict[str, type[AudioEncoder]] = {
    "clap_audio_model": HTSATEncoder,
    "mimi": MimiEncoder,
    "mimi latents": MimiLatentEncoder,
    "encodec": CodecEncoder,
    "dac": CodecEncoder,
    "audiolm_silence": SilenceEncoder,
    "audiolm_pair": PairEncoder,
}


def build_encoder(config: PreTrainedConfig) -> AudioEncoder:
    """The encoder of a configuration, with the weights that its initialisation gives."""
    latents = config.model_type == "mimi" and not config.num_levels
    return ENCODERS[config.model_type + latents * " latents"](config)
