"""Compares our encoders with msclap and moshi on the same weights. Needs the extra `reference`."""

import argparse
from typing import cast

import torch

from ..encoders_audiolm import AudioEncoder, HTSATEncoder, QuantizedEncoder
from ..processing_audiolm import AudioLMFeatureExtractor
from ..runtime import UserError, explain_errors, report_user_errors
from .encoders import load_encoder
from .state_dicts import MSCLAP_PREFIX, select_prefix


class MSClapReference:
    """msclap's HTSAT: the grid before its class layer, with the cells that ours uses."""

    def __init__(self, checkpoint: str):
        from msclap.models.audio import HTSATWrapper

        self.model = HTSATWrapper(44100, 1024, 320, 64, 50, 14000, 527, 768).htsat.eval()
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
        self.model.load_state_dict(select_prefix(state, MSCLAP_PREFIX))
        self.model.tscam_conv.register_forward_pre_hook(self._save_grid)

    def _save_grid(self, _module: torch.nn.Module, args: tuple) -> None:
        self.grid = args[0]

    @torch.no_grad()
    def encode(self, waveform: torch.Tensor, ours: AudioEncoder) -> torch.Tensor:
        """Encodes a clip at 44.1 kHz, shape `(1, samples)`, to features `(1, frames, 768)`."""
        encoder = cast(HTSATEncoder, ours)
        size = encoder.window_samples
        num_samples = waveform.shape[1]
        clip = waveform[0]
        if num_samples < size:
            clip = clip.repeat(-(-size // num_samples))
        features = []
        for start, cells in encoder.windows(num_samples):
            self.model(clip[None, start : start + size])
            features.append(self.grid[0].permute(2, 1, 0)[cells].flatten(0, 1))
        return torch.cat(features)[None]


class MoshiReference:
    """moshi's Mimi: the quantised latent of the first codebooks."""

    def __init__(self, checkpoint: str, num_codebooks: int):
        from moshi.models import loaders

        self.model = loaders.get_mimi(checkpoint, num_codebooks=num_codebooks)

    @torch.no_grad()
    def encode(self, waveform: torch.Tensor, _ours: AudioEncoder) -> torch.Tensor:
        """Encodes a clip at 24 kHz, shape `(1, samples)`, to features `(1, frames, 512)`."""
        return self.model.decode_latent(self.model.encode(waveform[:, None])).transpose(1, 2)


@report_user_errors("reference")
def main(argv: list[str] | None = None) -> float:
    """Runs the command and returns the largest deviation."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--encoder_type", required=True, choices=["htsat", "mimi_semantic", "mimi_full"])
    weights = "CLAP_weights_2023.pth, or moshi's safetensors file"
    add("--encoder_name_or_path", required=True, help=weights)
    add("audio", nargs="+", help="audio files")
    args = parser.parse_args(argv)
    ours = load_encoder(args.encoder_type, args.encoder_name_or_path)
    path = args.encoder_name_or_path
    try:
        if isinstance(ours, HTSATEncoder):
            reference: MSClapReference | MoshiReference = MSClapReference(path)
        else:
            reference = MoshiReference(path, cast(QuantizedEncoder, ours).num_levels)
    except ImportError as error:
        raise UserError(f"{error}. Install the extra `reference`") from error
    extractor = AudioLMFeatureExtractor.from_encoder(ours, max_audio_seconds=10.0)
    largest = 0.0
    for file in args.audio:
        with explain_errors("", ValueError, OSError, ImportError):
            clip = extractor.load(file)[None]
        features = reference.encode(clip, ours)
        deviation = float((features - ours.encode(clip)).abs().max())
        largest = max(largest, deviation)
        print(f"{deviation:.2e}  {features.shape[1]:4d} frames  {file}")
    print(f"largest deviation: {largest:.2e}")
    return largest


if __name__ == "__main__":
    main()
