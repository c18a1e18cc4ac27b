"""Builds encoders with random weights, for tests and trial runs without a checkpoint."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from ..configuration_audiolm import default_encoder_config
from ..encoders_audiolm import AudioEncoder, EncodecEncoder, MimiEncoder, build_encoder


def build_random_encoder(encoder_type: str) -> AudioEncoder:
    """Builds an encoder with random weights, and warns that it has them."""
    message = f"{encoder_type}: the encoder's weights are RANDOM. Its results mean nothing"
    warnings.warn(message, stacklevel=3)
    encoder = build_encoder(default_encoder_config(encoder_type)).eval()
    randomise_codebooks(encoder)
    return encoder


@torch.no_grad()
def randomise_codebooks(encoder: AudioEncoder) -> None:
    """Draws the codebooks of Mimi and EnCodec, which begin as zeros, so that codes vary.

    They are drawn from the encoder's own outputs on gliding tones and noise. DAC's begin at random.
    Other encoders are left as they are.
    """
    if not isinstance(encoder, (EncodecEncoder, MimiEncoder)):
        return
    seconds = torch.arange(24 * encoder.sample_rate) / encoder.sample_rate
    sweep = torch.sin(2 * torch.pi * (80 * seconds + 60 * seconds**2 / 2))
    sweep = sweep * (0.5 + 0.5 * torch.sin(3 * seconds))
    noise = 0.2 * torch.randn_like(sweep) * torch.sin(seconds).abs()
    audio = torch.stack([0.5 * sweep, noise, 0.3 * sweep.flip(0)])
    if isinstance(encoder, EncodecEncoder):
        _draw_codebooks(encoder.model.quantizer.layers, encoder.model.encoder(audio[:, None]))
        return
    latents = encoder.latents(audio).transpose(1, 2)
    for name in ("semantic", "acoustic"):
        part = getattr(encoder.model.quantizer, f"{name}_residual_vector_quantizer")
        projected = latents if part.input_proj is None else part.input_proj(latents)
        _draw_codebooks(part.layers, projected)


def _draw_codebooks(layers: Iterable[Any], residual: torch.Tensor) -> None:
    for layer in layers:
        codebook = layer.codebook
        points = residual.transpose(1, 2).flatten(0, 1)
        drawn = points[torch.randint(len(points), (codebook.codebook_size,))]
        vectors = drawn + 0.5 * points.std(0) * torch.randn_like(drawn)
        if hasattr(codebook, "embed_sum"):  # Mimi's.
            codebook.embed_sum.copy_(vectors)
            codebook.cluster_usage.fill_(1.0)
            codebook._embed = None
        else:
            codebook.embed.copy_(vectors)
        residual = residual - layer.decode(layer.encode(residual))
