"""Lyra V2, Google's SoundStream speech codec (arXiv 2107.03312), with 1, 8 or all 46 codebooks."""

import torch
from safetensors.torch import load_file
from torch import nn

from audiolm.encoders_audiolm import FramedEncoder, QuantizedEncoder

STACKED = 4  # Consecutive latents side by side in a frame.
# Output channels, kernel, stride and groups of the convolutions that lower the rate.
STAGES = [(64, 64, 16, 1), (128, 10, 5, 1), (256, 4, 2, 2), (512, 4, 2, 4)]
LATENT = (64, 3, 1, 4)


class CausalConv(nn.Conv1d):
    """Convolution that sees the past only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padding = self.dilation[0] * (self.kernel_size[0] - 1) + 1 - self.stride[0]
        return super().forward(nn.functional.pad(x, (padding, 0)))


def activate(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.leaky_relu(x, 0.3)


class LyraV2Latents(FramedEncoder):
    """Latents before quantisation, four side by side: 12.5 frames of 256 channels per second."""

    licence = "Apache-2.0"

    def __init__(self, config):
        super().__init__()
        self.config = config
        convs: list[nn.Module] = []
        inner = 1
        for channels, kernel, stride, groups in STAGES:
            convs.append(CausalConv(inner, channels, kernel, stride, groups=groups))
            for dilation in (1, 3, 9) if channels < 512 else ():  # residual units
                convs += [
                    CausalConv(channels, channels, 3, dilation=dilation, groups=channels),
                    CausalConv(channels, channels, 1),
                    CausalConv(channels, channels, 1, groups=channels // 64),
                ]
            inner = channels
        channels, kernel, stride, groups = LATENT
        convs.append(CausalConv(inner, channels, kernel, stride, groups=groups))
        self.convs = nn.ModuleList(convs)
        self.register_buffer("codebooks", torch.zeros(46, 16, channels))
        self.dim = STACKED * channels
        self.sample_rate = 16000
        self.frame_size = STACKED * 320  # samples
        self.frame_rate = self.sample_rate / self.frame_size

    def load_weights(self, name_or_path: str | None) -> None:
        if name_or_path is None:
            raise ValueError("expected the file that convert_lyra_v2.py writes")
        self.load_state_dict(load_file(name_or_path))

    def latents(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        """Returns latents, shape `(batch, latents, 64)`, 50 per second."""
        layers = iter(self.convs)
        x = next(layers)(self.fill_frames(waveform, num_samples)[:, None])
        for conv in layers:
            if conv.groups == conv.in_channels:  # A residual unit begins.
                hidden = next(layers)(conv(activate(x)))
                x = x + next(layers)(activate(hidden))
            else:
                x = conv(activate(x))
        return x.transpose(1, 2)

    def _encode(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        frames = self.latents(waveform, num_samples).unflatten(1, (-1, STACKED)).flatten(2)
        return self.mask_padding_frames(frames, num_samples)


class LyraV2(QuantizedEncoder, LyraV2Latents):
    """Codes of the residual quantiser. A frame has those of its first latent, then the next."""

    num_levels = STACKED * 46
    codebook_size = 16

    def _codes(self, waveform: torch.Tensor, num_samples: list[int]) -> torch.Tensor:
        residual = self.latents(waveform, num_samples)
        codes = []
        for codebook in self.codebooks[: self.num_levels // STACKED]:
            # The nearest entry. The length of `residual` is the same for all of them.
            distances = codebook.square().sum(1) - 2 * residual @ codebook.T
            codes.append(distances.argmin(-1))
            residual = residual - codebook[codes[-1]]
        return torch.stack(codes, -1).unflatten(1, (-1, STACKED)).flatten(2).transpose(1, 2)

    def _dequantize(self, codes: torch.Tensor) -> torch.Tensor:
        codes = codes.unflatten(1, (STACKED, -1))
        latents = 0
        for level, codebook in enumerate(self.codebooks[: codes.shape[2]]):
            latents = latents + codebook[codes[:, :, level]]
        return latents.transpose(2, 3).flatten(1, 2)


class LyraV2Levels8(LyraV2):
    """The first 8 codebooks, 1.6 kbit/s."""

    num_levels = STACKED * 8


class LyraV2Levels1(LyraV2):
    """The first codebook, 0.2 kbit/s."""

    num_levels = STACKED
