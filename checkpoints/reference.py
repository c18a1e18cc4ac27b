"""The encoders' references, msclap and moshi, behind our interface; needs the extra `reference`.

`python -m audiolm.checkpoints.reference --encoder_type mimi_full --encoder_name_or_path FILE
clip.wav ...` extracts features with the reference and with ours from the same weights, and prints
the largest deviation on each file.
"""

import argparse
import sys
from pathlib import Path

import torch

from ..encoders_audiolm import HTSATEncoder
from ..processing_audiolm import AudioLMFeatureExtractor
from .encoders import load_encoder


class MSClapReference:
    """msclap's HTSAT: the grid before its class layer, cells kept as [`HTSATEncoder`] keeps them."""

    def __init__(self, checkpoint: str):
        from msclap.models.audio import HTSATWrapper

        self.model = HTSATWrapper(44100, 1024, 320, 64, 50, 14000, 527, 768).htsat.eval()
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
        prefix = "audio_encoder.base.htsat."
        self.model.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
        self.model.tscam_conv.register_forward_pre_hook(self._keep)

    def _keep(self, _module, args):
        self.grid = args[0]

    @torch.no_grad()
    def encode(self, waveform: torch.Tensor, ours: HTSATEncoder) -> torch.Tensor:
        """(1, samples) at 44.1 kHz to (1, frames, 768)."""
        size, kept = ours.window_samples, []
        clip = (
            waveform[0].repeat(-(-size // waveform.shape[1]))
            if waveform.shape[1] < size
            else waveform[0]
        )
        for start, first, end in ours.windows(waveform.shape[1]):
            self.model(clip[None, start : start + size])
            kept.append(self.grid[0].permute(2, 1, 0)[first:end].flatten(0, 1))
        return torch.cat(kept)[None]


class MoshiReference:
    """moshi's Mimi: the quantised latent of the first levels."""

    def __init__(self, checkpoint: str, levels: int):
        from moshi.models import loaders

        self.model = loaders.get_mimi(checkpoint, num_codebooks=levels)

    @torch.no_grad()
    def encode(self, waveform: torch.Tensor, _ours=None) -> torch.Tensor:
        """(1, samples) at 24 kHz to (1, frames, 512)."""
        return self.model.decode_latent(self.model.encode(waveform[:, None])).transpose(1, 2)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--encoder_type",
        required=True,
        choices=["htsat", "mimi_semantic", "mimi_full"],
        help="the arm",
    )
    parser.add_argument(
        "--encoder_name_or_path",
        required=True,
        help="CLAP_weights_2023.pth, or moshi's safetensors file",
    )
    parser.add_argument(
        "--max_audio_seconds", type=float, default=10.0, help="seconds used of each file"
    )
    parser.add_argument(
        "--output_dir", help="save the reference's features there, one .pt for each file"
    )
    parser.add_argument("audio", nargs="+", help="audio files")
    args = parser.parse_args(argv)
    try:
        ours = load_encoder(args.encoder_type, args.encoder_name_or_path)
        path = args.encoder_name_or_path
        reference = (
            MSClapReference(path)
            if isinstance(ours, HTSATEncoder)
            else MoshiReference(path, ours.num_levels)
        )
        extractor = AudioLMFeatureExtractor(ours.sample_rate, args.max_audio_seconds)
        worst = 0.0
        for file in args.audio:
            clip = extractor.load(file)[None]
            features = reference.encode(clip, ours)
            deviation = float((features - ours.encode(clip)).abs().max())
            worst = max(worst, deviation)
            print(f"{deviation:.2e}  {features.shape[1]:4d} frames  {file}")
            if args.output_dir:
                Path(args.output_dir).mkdir(parents=True, exist_ok=True)
                torch.save(features[0], Path(args.output_dir, Path(file).stem + ".pt"))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"reference: {error}")
    print(f"largest deviation: {worst:.2e}")
    return worst


if __name__ == "__main__":
    main()
