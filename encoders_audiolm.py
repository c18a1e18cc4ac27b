"""The frozen audio encoders behind one interface, in torch and transformers alone.

The module is long because it holds all encoders: each further module would be pushed with every
model.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    ClapAudioConfig,
    ClapAudioModel,
    DacModel,
    EncodecModel,
    MimiConfig,
    MimiModel,
    PreTrainedConfig,
)
from transformers import initialization as init
from transformers.audio_utils import mel_filter_bank

from .configuration_audiolm import FileEncoderConfig, find_encoder_class

# No recording exceeds these. The header of a damaged file can, and would then fill the memory.
MAX_SAMPLE_RATE = 768_000  # Hz
MAX_SAMPLES_PER_SECOND = 12_288_000  # In all channels: 64 at 192 kHz.
# The resampling kernels of unusual rates take up to 230 MB and are not cached.
MAX_CACHED_KERNEL = 100_000


@contextmanager
def full_precision(device_type: str) -> Generator[None]:
    """Switches off autocast, and the TF32 that cuDNN uses by default in place of float32."""
    cudnn = torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        backends = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
        setting, value = "fp32_precision", "ieee"
    else:  # torch < 2.9
        backends = [torch.backends.cuda.matmul, cudnn]
        setting, value = "allow_tf32", False
    previous = [getattr(backend, setting) for backend in backends]
    try:
        for backend in backends:
            setattr(backend, setting, value)
        with torch.autocast(device_type=device_type, enabled=False):
            yield
    finally:
        for backend, previous_value in zip(backends, previous):
            setattr(backend, setting, previous_value)


def check_rate(name: object, rate: int, channels: int = 1) -> None:
    """Raises ValueError if no recording has such a sampling rate, in Hz, or so many channels."""
    if not (1 <= rate <= MAX_SAMPLE_RATE and 1 <= channels <= MAX_SAMPLES_PER_SECOND / rate):
        raise ValueError(
            f"{name} states {channels} channels at {rate} Hz: expected at most "
            f"{MAX_SAMPLE_RATE:,} Hz and {MAX_SAMPLES_PER_SECOND:,} samples per second"
        )


def resampled_length(num_samples: int, rate: int, new_rate: int) -> int:
    """Returns how many samples [`resample`] makes of `num_samples`."""
    common = math.gcd(rate, new_rate)
    return -(-num_samples * (new_rate // common) // (rate // common))


def resample(audio: torch.Tensor, rate: int, new_rate: int) -> torch.Tensor:
    """Resamples audio, shape `(..., samples)`, between rates in Hz as torchaudio does by default.

    This is sinc interpolation with a Hann window, 6 zero crossings and a roll-off of 0.99.

    Raises:
        ValueError: If no recording has such a rate.
    """
    if rate == new_rate:
        return audio
    check_rate("the audio", rate)
    check_rate("the encoder", new_rate)
    common = math.gcd(int(rate), int(new_rate))
    # Several periods at once make one matrix product of 64 columns or more.
    periods = -(-64 // (int(new_rate) // common))
    old_period = int(rate) // common * periods
    new_period = int(new_rate) // common * periods
    is_cached = max(old_period, new_period) < MAX_CACHED_KERNEL
    make_kernels = _resampling_kernels if is_cached else _resampling_kernels.__wrapped__
    width, kernels = make_kernels(old_period, new_period, str(audio.device))
    padded = nn.functional.pad(audio, (width, width + old_period))
    frames = padded.unfold(-1, 2 * width + old_period, old_period)
    parts = [
        frames[..., first : first + len(weights)] @ weights.to(audio) for first, weights in kernels
    ]
    num_samples = math.ceil(new_period * audio.shape[-1] / old_period)
    return torch.cat(parts, -1).flatten(-2)[..., :num_samples]


@lru_cache(32)
def _resampling_kernels(
    old_period: int, new_period: int, device: str
) -> tuple[int, list[tuple[int, torch.Tensor]]]:
    """Returns how many samples are needed around a period, and kernels of 64 new samples each.

    A kernel is the first sample that it reads, and weights, shape `(samples, 64)`. Only samples
    near a new one have a weight: from 32 to 44.1 kHz, 61 of 334.
    """
    base = min(old_period, new_period) * 0.99
    zeros = 6
    reach = zeros * old_period / base
    width = math.ceil(reach)
    kernels = []
    for phase in torch.arange(new_period, dtype=torch.float64).split(64):
        centres = phase * old_period / new_period
        first = math.ceil(centres[0].item() - reach)
        last = math.floor(centres[-1].item() + reach)
        distance = torch.arange(first, last + 1)[:, None] - centres
        t = (distance * base / old_period).clamp(-zeros, zeros)
        weights = torch.sinc(t) * torch.cos(t * math.pi / zeros / 2) ** 2 * base / old_period
        kernels.append((width + first, weights.float().to(device)))
    return width, kernels


def zero_padding(waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
    """Copies a waveform, shape `(batch, samples)`, with zeros after the end of each clip."""
    waveform = waveform.clone()
    for clip, length in zip(waveform, num_samples):
        clip[length:] = 0
    return waveform


@contextmanager
def captured_outputs(module: nn.Module) -> Generator[list]:
    """Collects the outputs of a module inside a model in a list."""
    outputs: list = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


class AudioEncoder(nn.Module):
    """An encoder of single clips, always frozen, in eval mode and in float32.

    A subclass sets the attributes, and implements `num_frames` and `_encode`.

    Attributes:
        config: Configuration that the encoder is built from. `band_limit`, if set, is a sampling
            rate in Hz: clips lose the frequencies that a recording at this rate lacks.
        model: Model of transformers. Pairs of encoders and silence have none.
        dim: Channels of a frame.
        sample_rate: Sampling rate of its input in Hz.
        frame_rate: Frames per second of a long clip.
        config_class: Class of `config` for an encoder in a file of its own, if it needs one.
        licence: Licence of the weights, for the model card.
    """

    config_class: type[PreTrainedConfig] = FileEncoderConfig
    licence: str = "unknown"
    config: PreTrainedConfig
    model: Any
    dim: int
    sample_rate: int
    frame_rate: float

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of each kind of frame, side by side. A frame is zero in those of other kinds."""
        return (self.dim,)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(chain(self.parameters(), self.buffers())).device

    def reset_buffers(self) -> None:
        """Computes the encoder's own buffers, which a checkpoint may lack."""

    def load_weights(self, name_or_path: str | None) -> None:
        """Loads the weights of an encoder in a file of its own.

        Args:
            name_or_path: Value of `--encoder_name_or_path`. None: the published weights.
        """
        raise NotImplementedError

    def num_frames(self, num_samples: int) -> int:
        """Returns how many frames `encode` makes of a clip of `num_samples` samples."""
        raise NotImplementedError

    def _encode(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, waveform: torch.Tensor, num_samples: list[int] | None = None) -> torch.Tensor:
        """Encodes a batch of clips in float32, also under autocast.

        Args:
            waveform: Mono audio in [-1, 1] at `sample_rate`, shape `(batch, samples)`.
            num_samples: Samples of each clip, if the batch is padded. Padding is not read.

        Returns:
            Features, shape `(batch, frames, dim)`. A clip has `num_frames` frames, then zeros.

        Raises:
            ValueError: If a clip is empty or the shapes do not fit.
        """
        lengths = self._clip_lengths(waveform, num_samples)
        with full_precision(waveform.device.type):
            return self._encode(self._band_limit(waveform, lengths), lengths)

    def frame_mask(self, num_samples: list[int]) -> torch.Tensor:
        """Returns True for frames and False for padding, shape `(batch, frames)`, on the CPU."""
        frames = [self.num_frames(int(n)) for n in num_samples]
        return torch.arange(max(frames))[None] < torch.tensor(frames)[:, None]

    def mask_padding_frames(self, features: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        """Sets features, shape `(batch, frames, dim)`, to zero after the end of each clip."""
        mask = self.frame_mask(num_samples)
        if features.is_cuda:
            mask = mask.pin_memory()  # A copy from other memory would wait for the GPU.
        return features * mask.to(features.device, non_blocking=True)[..., None]

    def move_conv_sizes_to_cpu(self) -> None:
        """Turns the sizes of Mimi's convolutions, which are buffers, into attributes on the CPU.

        Each read of a buffer would wait for the GPU. All processes of a distributed run must hold
        the same buffers, so call this in all of them or before the first clip.
        """
        for module in self.modules():
            for name in ("stride", "kernel_size", "padding_total"):
                size = module._buffers.pop(name, None)
                if size is not None:
                    module.__dict__[name] = size.cpu()

    def clear_codebook_cache(self) -> None:
        """Makes quantizers compute their tables anew from the weights that they hold now."""
        for module in self.modules():
            if hasattr(module, "_embed"):
                setattr(module, "_embed", None)  # noqa: B010 (an attribute that no class declares)

    def _clip_lengths(self, waveform: torch.Tensor, num_samples: list[int] | None) -> list[int]:
        shape = tuple(waveform.shape)
        if waveform.ndim != 2:
            raise ValueError(f"waveform has shape {shape}: expected (batch, samples)")
        if num_samples is None:
            num_samples = [waveform.shape[1]] * len(waveform)
        lengths = [int(n) for n in num_samples]
        is_valid = all(1 <= length <= waveform.shape[1] for length in lengths)
        if len(lengths) != len(waveform) or not is_valid:
            raise ValueError(f"num_samples {lengths} do not fit a waveform of shape {shape}")
        return lengths

    def _band_limit(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        waveform = waveform.float()
        band_limit = getattr(self.config, "band_limit", None)
        if not band_limit or band_limit >= self.sample_rate:
            return waveform
        low = resample(zero_padding(waveform, num_samples), self.sample_rate, band_limit)
        low_lengths = [resampled_length(n, self.sample_rate, band_limit) for n in num_samples]
        limited = resample(zero_padding(low, low_lengths), band_limit, self.sample_rate)
        return limited[:, : waveform.shape[1]]

    def _apply(self, fn, recurse: bool = True) -> "AudioEncoder":
        # .to(dtype), .half() and .bfloat16() move an encoder but never round it. A third of Mimi's
        # codes would change.
        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)


class HTSATEncoder(AudioEncoder):
    """HTSAT (arXiv 2202.00874) as MS-CLAP 2023, LAION-CLAP and its authors trained it.

    A window becomes a grid of cells, shape `(dim, 2 frequency, 32 time)`, which is read time-major
    as 64 frames. A clip shorter than a window is repeated to fill it. With `config.layer`, cells
    are those after that stage, averaged to this grid.

    Raises:
        ValueError: If `config` has feature fusion, or windows that the model cannot take.
    """

    mel_filters: torch.Tensor
    window: torch.Tensor

    def __init__(self, config: ClapAudioConfig):
        super().__init__()
        if config.enable_fusion:
            raise ValueError("CLAP checkpoints with feature fusion are not supported")
        self.config = config
        self.model = ClapAudioModel(config)
        self.layer = getattr(config, "layer", None)
        stage = self.layer or len(config.depths)
        self.latent_dim = config.patch_embeds_hidden_size * 2 ** (stage - 1)
        self.dim = self.latent_dim
        self.sample_rate = config.sampling_rate
        # The spectrogram is cut along time, and the slices are stacked to a square image.
        self.slices = config.spec_size // config.num_mel_bins
        stride: Any = config.patch_stride
        side = config.spec_size // stride[0] // 2 ** (len(config.depths) - 1)
        self.frequency_cells = side // self.slices
        self.time_cells = side * self.slices
        self.window_samples = round(config.window_seconds * config.sampling_rate)
        max_samples = config.spec_size * self.slices * config.hop_length
        if not config.n_fft <= self.window_samples < max_samples:
            longest = max_samples / config.sampling_rate
            raise ValueError(
                f"window_seconds {config.window_seconds:g}: HTSAT reads at most {longest:.2f} s"
            )
        self.frames_per_cell = self.frequency_cells
        self.latents_per_window = 0
        self.frame_rate = self.num_frames(self.window_samples) / config.window_seconds
        self.register_buffer("mel_filters", torch.empty(config.n_fft // 2 + 1, config.num_mel_bins))
        self.register_buffer("window", torch.empty(config.n_fft))
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Computes the mel filters and the Hann window."""
        config = self.config
        mel = mel_filter_bank(
            config.n_fft // 2 + 1,
            config.num_mel_bins,
            config.frequency_min,
            config.frequency_max,
            config.mel_sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        with torch.device("cpu"):
            init.copy_(self.mel_filters, torch.tensor(mel, dtype=torch.float32))
            init.copy_(self.window, torch.hann_window(config.n_fft))

    def windows(self, num_samples: int) -> list[tuple[int, slice]]:
        """Returns the first sample of each window of a clip, and which of its time cells are used.

        The last window of a clip with several ends with it. A cell is used if its centre lies in
        the clip and in no earlier window. The first cell of a clip is always used.
        """
        windows: list[tuple[int, slice]] = []
        covered = 0
        while covered < num_samples or not windows:
            start = max(0, min(covered, num_samples - self.window_samples))
            numbers = np.arange(self.time_cells) + 0.5
            centres = start + numbers * self.window_samples / self.time_cells
            cells = np.flatnonzero((centres >= covered) & (centres < num_samples))
            if getattr(self.config, "whole_windows", None):
                cells = np.arange(self.time_cells)
            elif not windows and not len(cells):
                cells = np.array([0])
            covered = start + self.window_samples
            if len(cells):
                windows.append((start, slice(int(cells[0]), int(cells[-1]) + 1)))
        return windows

    def num_frames(self, num_samples: int) -> int:
        """Returns how many frames `encode` makes of a clip of `num_samples` samples."""
        windows = self.windows(num_samples)
        num_cells = sum(cells.stop - cells.start for _, cells in windows)
        return self.frames_per_cell * num_cells + self.latents_per_window * len(windows)

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Returns the log-mel spectrogram in dB, shape `(batch, samples // hop + 1, mel bins)`."""
        n_fft = self.config.n_fft
        hop = self.config.hop_length
        stft = torch.stft(waveform, n_fft, hop, window=self.window, return_complex=True)
        power = stft.real.square() + stft.imag.square()
        return 10 * torch.log10((power.transpose(1, 2) @ self.mel_filters).clamp(min=1e-10))

    def encode_windows(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes clips that are one window long.

        Returns:
            The grid of cells, shape `(batch, dim, frequency, time)`, and latents, `(batch, dim)`.
        """
        mel = self.log_mel(waveform)[:, None]
        if not self.layer:
            output = self.model(input_features=mel)
            return output.last_hidden_state, output.pooler_output
        with captured_outputs(self.model.audio_encoder.layers[self.layer - 1]) as outputs:
            output = self.model(input_features=mel)
        image = outputs[0][1]  # Before downsampling.
        # Its shape is (batch, side * side, dim): time slices, one below the other.
        side = math.isqrt(image.shape[1])
        image = image.transpose(1, 2).unflatten(2, (self.slices, side // self.slices, side))
        image = image.transpose(2, 3).flatten(3)
        pool_size = side // self.slices // self.frequency_cells
        return nn.functional.avg_pool2d(image, pool_size), output.pooler_output

    def _window_frames(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the latents, shape `(windows, latents_per_window, dim)`, and frames of the cells.

        The latter have shape `(windows, time_cells, frames_per_cell, dim)`.
        """
        grid, _ = self.encode_windows(windows)
        cells = grid.permute(0, 3, 2, 1)
        return cells.new_empty(len(cells), 0, self.dim), cells

    def _encode(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        windows_by_clip = [self.windows(length) for length in num_samples]
        size = self.window_samples
        crops: list[torch.Tensor] = []
        for clip, length, windows in zip(waveform, num_samples, windows_by_clip):
            if length < size:
                clip = clip[:length].repeat(-(-size // length))
            crops += [clip[start : start + size] for start, _ in windows]
        encoded = zip(*self._window_frames(torch.stack(crops)))
        features = []
        for windows in windows_by_clip:
            parts: list[torch.Tensor] = []
            for (_, cells), (latent, grid) in zip(windows, encoded):
                parts += [latent, grid[cells].flatten(0, 1)]
            features.append(torch.cat(parts))
        return pad_sequence(features, batch_first=True)


class HTSATPosteriorEncoder(HTSATEncoder):
    """HTSAT's latent of each window, then the class posteriors of its time cells.

    These are two kinds of frames. Mellow (arXiv 2503.08540) reads them so, with each cell's
    posteriors `config.posterior_repeats` times.
    """

    def __init__(self, config: ClapAudioConfig):
        super().__init__(config)
        self.dim = self.latent_dim + config.num_classes
        size = (self.frequency_cells, 3)
        self.classifier = nn.Conv2d(self.latent_dim, config.num_classes, size, padding=(0, 1))
        self.frames_per_cell = getattr(config, "posterior_repeats", None) or 1
        self.latents_per_window = 1
        self.frame_rate = self.num_frames(self.window_samples) / config.window_seconds

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of the latent and of the posteriors."""
        return (self.latent_dim, self.config.num_classes)

    def _window_frames(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grid, latent = self.encode_windows(windows)
        posteriors = self.classifier(grid).sigmoid().expand(-1, -1, self.frames_per_cell, -1)
        cells = nn.functional.pad(posteriors.permute(0, 3, 2, 1), (self.latent_dim, 0))
        return nn.functional.pad(latent, (0, self.config.num_classes))[:, None], cells


class FramedEncoder(AudioEncoder):
    """An encoder with one frame for each `frame_size` samples, the last one filled with zeros."""

    frame_size: int

    def num_frames(self, num_samples: int) -> int:
        """Returns how many frames `encode` makes of a clip of `num_samples` samples."""
        return -(-num_samples // self.frame_size)

    def fill_frames(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        """Zero-pads clips, shape `(batch, samples)`, to the last frame of the longest one."""
        size = self.num_frames(max(num_samples)) * self.frame_size
        clips = zero_padding(waveform, num_samples)
        return nn.functional.pad(clips, (0, size - waveform.shape[1]))


class QuantizedEncoder(FramedEncoder):
    """A codec: each frame has a code of each codebook (RVQ level), decoded to the latent."""

    num_levels: int  # Codebooks that are used.
    codebook_size: int  # Codes of each.

    @torch.no_grad()
    def codes(self, waveform: torch.Tensor, num_samples: list[int] | None = None) -> torch.Tensor:
        """Returns the codes of clips, shape `(batch, codebooks, frames)`.

        Codes after a clip's last frame have no meaning. The arguments are those of `encode`.
        """
        lengths = self._clip_lengths(waveform, num_samples)
        with full_precision(waveform.device.type):
            return self._codes(self._band_limit(waveform, lengths), lengths)

    @torch.no_grad()
    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns features `(batch, frames, dim)` of codes `(batch, codebooks, frames)`."""
        with full_precision(codes.device.type):
            return self._dequantize(codes.long()).transpose(1, 2)

    def _encode(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        features = self.decode_codes(self._codes(waveform, num_samples))
        return self.mask_padding_frames(features, num_samples)

    def _codes(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        raise NotImplementedError

    def _dequantize(self, codes: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class MimiLatentEncoder(FramedEncoder):
    """Mimi (arXiv 2410.00037) before quantisation.

    Frames are its latents. With `config.transformer_layer` they are the hidden states after that
    layer, at twice the rate. Each clip is zero-padded to whole frames first, as moshi does. Mimi is
    causal, so that clips give the same frames alone and in a batch.
    """

    def __init__(self, config: MimiConfig):
        super().__init__()
        self.config = config
        self.model = MimiModel(config)
        self.layer = getattr(config, "transformer_layer", None)
        self.dim = config.hidden_size
        self.sample_rate = config.sampling_rate
        self.frame_rate = config.encodec_frame_rate if self.layer else config.frame_rate
        self.frame_size = round(self.sample_rate / self.frame_rate)

    def latents(self, waveform: torch.Tensor) -> torch.Tensor:
        """Returns latents, shape `(batch, frames, dim)`, of audio that fills its frames."""
        self.move_conv_sizes_to_cpu()
        return self.model.encoder(waveform[:, None]).latents.transpose(1, 2)

    def _encode(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        padded = self.fill_frames(waveform, num_samples)
        if self.layer is None:
            return self.mask_padding_frames(self.latents(padded), num_samples)
        layers = self.model.encoder.encoder_transformer.layers
        with captured_outputs(layers[self.layer - 1]) as outputs:
            self.latents(padded)
        return self.mask_padding_frames(outputs[0], num_samples)


class MimiEncoder(QuantizedEncoder, MimiLatentEncoder):
    """Mimi (arXiv 2410.00037): codes of its first `config.num_levels` codebooks.

    With `config.first_level` 1, the first (semantic) codebook is left out.
    """

    def __init__(self, config: MimiConfig):
        super().__init__(config)
        self.first_level = getattr(config, "first_level", None) or 0
        self.num_levels = config.num_levels - self.first_level
        self.codebook_size = config.codebook_size

    @property
    def levels(self) -> slice:
        """Which of all codebooks are used."""
        return slice(self.first_level, self.first_level + self.num_levels)

    @property
    def num_codebooks(self) -> int:
        """Codebooks of the checkpoint."""
        return self.config.num_quantizers

    @torch.no_grad()
    def all_codes(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        """Returns the codes of all codebooks, as `codes` returns those that are used."""
        with full_precision(waveform.device.type):
            waveform = self._band_limit(waveform, num_samples)
            return self._first_codes(waveform, num_samples, self.num_codebooks)

    def _codes(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        return self._first_codes(waveform, num_samples, self.levels.stop)[:, self.levels]

    def _first_codes(
        self, waveform: torch.Tensor, num_samples: list[int], num_codebooks: int
    ) -> torch.Tensor:
        latents = self.latents(self.fill_frames(waveform, num_samples)).transpose(1, 2)
        return self.model.quantizer.encode(latents, num_codebooks).transpose(0, 1)

    def _dequantize(self, codes: torch.Tensor) -> torch.Tensor:
        quantizer = self.model.quantizer
        if self.first_level:
            quantizer = quantizer.acoustic_residual_vector_quantizer
        return quantizer.decode(codes)


class CodecEncoder(QuantizedEncoder):
    """EnCodec or DAC: codes of the first `config.num_levels` codebooks.

    Each clip is encoded alone, because DAC looks ahead and EnCodec mirrors the ends of a clip.
    """

    model_class: type[nn.Module]

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.model = self.model_class(config)
        self.dim = config.hidden_size
        self.sample_rate = config.sampling_rate
        self.frame_size = config.hop_length
        self.frame_rate = self.sample_rate / self.frame_size
        self.num_levels = config.num_levels
        self.codebook_size = config.codebook_size

    def _codes(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        codes = []
        for clip, length in zip(waveform, num_samples):
            padded = self.fill_frames(clip[None, :length], [length])
            latents = self.model.encoder(padded[:, None])[..., : self.num_frames(length)]
            codes.append(self._quantize(latents)[0].T)
        return pad_sequence(codes, batch_first=True).transpose(1, 2)

    def _quantize(self, latents: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class EncodecEncoder(CodecEncoder):
    """EnCodec at 24 kHz (arXiv 2210.13438)."""

    model_class = EncodecModel

    def _quantize(self, latents: torch.Tensor) -> torch.Tensor:
        bits_per_frame = self.num_levels * self.config.codebook_nbits
        bandwidth = bits_per_frame * self.config.frame_rate / 1000  # kbit/s
        return self.model.quantizer.encode(latents, bandwidth).transpose(0, 1)

    def _dequantize(self, codes: torch.Tensor) -> torch.Tensor:
        return self.model.quantizer.decode(codes.transpose(0, 1))


class DacEncoder(CodecEncoder):
    """DAC (arXiv 2306.06546)."""

    model_class = DacModel

    def _quantize(self, latents: torch.Tensor) -> torch.Tensor:
        return self.model.quantizer(latents, self.num_levels)[1]

    def _dequantize(self, codes: torch.Tensor) -> torch.Tensor:
        return self.model.quantizer.from_codes(codes)[0]


class SilenceEncoder(AudioEncoder):
    """The no-audio baseline: every clip has the codes 0, 1, ... with learned embeddings."""

    positions: torch.Tensor

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.dim = config.hidden_size
        self.sample_rate = config.sampling_rate
        self.frame_rate = 0.0
        self.num_levels = 1
        self.codebook_size = config.num_tokens
        self.register_buffer("positions", torch.arange(config.num_tokens)[None])

    def reset_buffers(self) -> None:
        """Numbers the tokens."""
        with torch.device("cpu"):
            init.copy_(self.positions, torch.arange(self.config.num_tokens)[None])

    def num_frames(self, num_samples: int) -> int:
        """Returns the number of tokens, which is that of every clip."""
        return self.config.num_tokens

    def codes(self, waveform: torch.Tensor, num_samples: list[int] | None = None) -> torch.Tensor:
        """Returns the numbers of the tokens, shape `(batch, 1, tokens)`."""
        return self.positions.expand(len(waveform), -1, -1)

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns one-hot features that tell tokens apart, shape `(batch, tokens, dim)`."""
        return nn.functional.one_hot(codes[:, 0].long() % self.dim, self.dim).float()

    def _encode(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        return self.decode_codes(self.codes(waveform))


class PairEncoder(AudioEncoder):
    """Two encoders: the frames of the first, then those of the second, as two kinds of frames.

    Clips come at the higher one of their sampling rates and are resampled for the other encoder.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.first = build_encoder(config.first)
        self.second = build_encoder(config.second)
        self.dim = self.first.dim + self.second.dim
        self.sample_rate = max(self.first.sample_rate, self.second.sample_rate)
        self.frame_rate = self.first.frame_rate + self.second.frame_rate

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of the first and of the second encoder."""
        return self.first.dim, self.second.dim

    def num_frames(self, num_samples: int) -> int:
        """Returns how many frames both encoders make of a clip of `num_samples` samples."""
        return sum(
            part.num_frames(resampled_length(num_samples, self.sample_rate, part.sample_rate))
            for part in (self.first, self.second)
        )

    def _encode(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        waveform = zero_padding(waveform, num_samples)
        frames: list[list[torch.Tensor]] = [[] for _ in num_samples]
        channels = {self.first: (0, self.second.dim), self.second: (self.first.dim, 0)}
        for part, other_channels in channels.items():
            lengths = [resampled_length(n, self.sample_rate, part.sample_rate) for n in num_samples]
            features = part.encode(resample(waveform, self.sample_rate, part.sample_rate), lengths)
            for clip_frames, clip, length in zip(frames, features, lengths):
                used = clip[: part.num_frames(length)]
                clip_frames.append(nn.functional.pad(used, other_channels))
        return pad_sequence([torch.cat(parts) for parts in frames], batch_first=True)


# By the `model_type` of the configuration. `build_encoder` has the exceptions.
ENCODERS: dict[str, type[AudioEncoder]] = {
    "clap_audio_model": HTSATEncoder,
    "mimi": MimiEncoder,
    "encodec": EncodecEncoder,
    "dac": DacEncoder,
    "audiolm_silence": SilenceEncoder,
    "audiolm_pair": PairEncoder,
}


def build_encoder(config: PreTrainedConfig) -> AudioEncoder:
    """Builds the encoder of a configuration with randomly initialised weights."""
    name = getattr(config, "encoder_class", None)
    if name is not None:
        return find_encoder_class(name)(config)
    if isinstance(config, MimiConfig) and not config.num_levels:
        return MimiLatentEncoder(config)
    if isinstance(config, ClapAudioConfig) and getattr(config, "posteriors", None):
        return HTSATPosteriorEncoder(config)
    return ENCODERS[config.model_type](config)
