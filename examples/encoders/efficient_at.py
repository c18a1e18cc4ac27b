"""EfficientAT mn04 (arXiv 2211.04772), a MobileNetV3 that was trained on AudioSet's 527 tags."""

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import initialization as init
from transformers.audio_utils import mel_filter_bank

from audiolm.encoders_audiolm import AudioEncoder

WEIGHTS = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/mn04_as_mAP_432.pt"
# Kernel, inner and outer channels at width 1, squeeze-and-excitation, hard swish, stride.
BLOCKS = [
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
]


def round_channels(channels: float) -> int:
    """Rounds to a multiple of 8 that is at least 90 % as large."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and activation."""

    def __init__(self, size: tuple[int, int], act: nn.Module, kernel=1, stride=1, groups=1):
        options = {"groups": groups, "bias": False, "padding": kernel // 2}
        conv = nn.Conv2d(*size, kernel, stride, **options)
        super().__init__(conv, nn.BatchNorm2d(size[1], eps=0.001), act)


class SqueezeExcitation(nn.Module):
    """Scales channels by what all cells of the clip hold together."""

    def __init__(self, channels: int):
        super().__init__()
        fc1 = nn.Linear(channels, round_channels(channels // 4))
        fc2 = nn.Linear(fc1.out_features, channels)
        self.conc_se_layers = nn.ModuleList([nn.ModuleDict({"fc1": fc1, "fc2": fc2})])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.conc_se_layers[0]
        scale = layer["fc2"](layer["fc1"](x.mean((2, 3))).relu()).sigmoid()
        return x * scale[:, :, None, None]


class Block(nn.Module):
    """Inverted residual block of MobileNetV3."""

    def __init__(self, channels: int, row: tuple, width: float):
        super().__init__()
        kernel, inner, outer, has_squeeze, has_swish, stride = row
        inner, outer = round_channels(inner * width), round_channels(outer * width)
        act = nn.Hardswish() if has_swish else nn.ReLU()
        layers: list[nn.Module] = []
        if inner != channels:
            layers.append(ConvNorm((channels, inner), act))
        layers.append(ConvNorm((inner, inner), act, kernel, stride, inner))
        if has_squeeze:
            layers.append(SqueezeExcitation(inner))
        layers.append(ConvNorm((inner, outer), nn.Identity()))
        self.block = nn.Sequential(*layers)
        self.is_residual = stride == 1 and channels == outer
        self.channels = outer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x) + x if self.is_residual else self.block(x)


class EfficientAT(AudioEncoder):
    """The last feature map, read time-major: 4 frequency cells of 384 channels for each 320 ms."""

    width = 0.4
    licence = "MIT"

    def __init__(self, config):
        super().__init__()
        self.config = config
        channels = round_channels(16 * self.width)
        layers: list[nn.Module] = [ConvNorm((1, channels), nn.Hardswish(), 3, 2)]
        for row in BLOCKS:
            layers.append(Block(channels, row, self.width))
            channels = layers[-1].channels
        self.dim = 6 * channels
        layers.append(ConvNorm((channels, self.dim), nn.Hardswish()))
        self.features = nn.Sequential(*layers)
        self.sample_rate = 32000
        self.frame_rate = 12.5
        self.register_buffer("mel_filters", torch.empty(513, 128))
        self.register_buffer("window", torch.empty(800))
        self.reset_buffers()

    def reset_buffers(self) -> None:
        filters = mel_filter_bank(
            513, 128, 0, 15000, 32000, mel_scale="kaldi", triangularize_in_mel_space=True
        )
        with torch.device("cpu"):
            init.copy_(self.mel_filters, torch.tensor(filters, dtype=torch.float32))
            init.copy_(self.window, torch.hann_window(800, periodic=False))

    def load_weights(self, name_or_path: str | None) -> None:
        load = torch.load if name_or_path else torch.hub.load_state_dict_from_url
        state = load(name_or_path or WEIGHTS, map_location="cpu", weights_only=True)
        # The classifier is left out.
        features = {k: v for k, v in state.items() if k.startswith("features.")}
        self.features.load_state_dict({k.removeprefix("features."): features[k] for k in features})

    def num_frames(self, num_samples: int) -> int:
        mel_frames = (max(num_samples, 10240) - 1) // 320 + 1
        return 4 * -(-mel_frames // 32)

    def _encode(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        clips = []
        # Squeeze-and-excitation sees the whole clip, so each clip is encoded alone.
        for clip, length in zip(waveform, num_samples):
            clip = nn.functional.pad(clip[:length], (0, max(0, 10240 - length)))
            clip = clip[1:] - 0.97 * clip[:-1]
            stft = torch.stft(clip, 1024, 320, 800, self.window, return_complex=True)
            mel = (stft.abs().square().T @ self.mel_filters + 1e-5).log()
            cells = self.features((mel.T[None, None] + 4.5) / 5)
            clips.append(cells[0].permute(2, 1, 0).flatten(0, 1))
        return pad_sequence(clips, batch_first=True)
