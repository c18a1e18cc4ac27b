"""Checks an encoder before it is used: `audiolm check-encoder my_encoders.py:MyEncoder`.

It prints one line per check: shapes, numbers of frames, padded clips against clips alone, float32
under autocast, codes (of a codec), saving and loading in a process without this package, and speed.
It takes built-in encoder types too. Exit status: 0 if all checks pass, 1 if one fails.
"""

import argparse
import copy
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ..configuration_audiolm import list_encoder_types
from ..encoders_audiolm import AudioEncoder, build_encoder
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..runtime import explain_errors, report_user_errors, use_all_of_the_cpu
from .encoders import load_encoder

SECONDS = 10
NUM_LENGTHS = 20
TOLERANCE = 1e-3  # Largest deviation, in standard deviations of the features.
RELOAD = """
import sys, torch
from transformers import AutoModel
encoder = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).encoder
clip, features = torch.load(sys.argv[2], weights_only=True)
assert "audiolm" not in sys.modules, "the package was imported"
loaded = encoder.encode(clip)
assert torch.equal(loaded, features), f"deviation {(loaded - features).abs().max():g}"
"""


class CheckError(Exception):
    """A check of an encoder failed. The message says how."""


def _expect(condition: object, message: str) -> None:
    if not condition:
        raise CheckError(message)


def make_clip(encoder: AudioEncoder, num_samples: int) -> torch.Tensor:
    """Makes a gliding tone in noise, shape `(1, samples)`, the same each time."""
    seconds = torch.arange(num_samples) / encoder.sample_rate
    tone = torch.sin(2 * torch.pi * (200 * seconds + 150 * seconds**2))
    noise = torch.randn(num_samples, generator=torch.Generator().manual_seed(0))
    return (0.3 * tone + 0.05 * noise)[None]


def _deviation(features: torch.Tensor, expected: torch.Tensor) -> float:
    return ((features - expected).abs().max() / expected.std(correction=0).clamp(min=1e-12)).item()


def check_shapes(encoder: AudioEncoder) -> str:
    """Checks type, shape and values of the features, and `frame_rate`."""
    clip = make_clip(encoder, SECONDS * encoder.sample_rate)
    features = encoder.encode(clip)
    frames = encoder.num_frames(clip.shape[1])
    shape = (1, frames, encoder.dim)
    _expect(tuple(features.shape) == shape, f"features {tuple(features.shape)}, expected {shape}")
    _expect(features.dtype == torch.float32, f"features are {features.dtype}, expected float32")
    # A deviation that is NaN is not above 0 either.
    _expect(features.std() > 0, "features are all equal, or hold NaN or infinite values")
    expected = encoder.frame_rate * SECONDS
    is_close = not expected or abs(frames - expected) <= max(2, 0.1 * expected)
    _expect(is_close, f"{frames} frames in {SECONDS} s, but frame_rate {encoder.frame_rate:g}")
    return f"{frames} frames of {encoder.dim} channels for {SECONDS} s"


def check_frame_counts(encoder: AudioEncoder) -> str:
    """Checks `num_frames` of an encoder without weights at many lengths, from one sample on."""
    with torch.device("meta"):
        sizes = build_encoder(encoder.config)
    longest = SECONDS * encoder.sample_rate
    lengths = [round(longest ** (i / (NUM_LENGTHS - 1))) for i in range(NUM_LENGTHS)]
    for length in lengths:
        frames = encoder.encode(make_clip(encoder, length)).shape[1]
        counted = sizes.num_frames(length)
        _expect(frames == counted, f"{length} samples: {frames} frames, num_frames says {counted}")
    return f"right at {NUM_LENGTHS} lengths from 1 to {longest:,} samples"


def check_padding(encoder: AudioEncoder) -> str:
    """Checks that a clip has the same features alone and in a batch, whatever is in its padding."""
    longest = 3 * encoder.sample_rate
    lengths = [longest, longest // 2 + 13, longest // 7, 1]
    batch = torch.rand(len(lengths), longest, generator=torch.Generator().manual_seed(1))
    for row, length in zip(batch, lengths):
        row[:length] = make_clip(encoder, length)[0]
    worst = 0.0
    for row, features, length in zip(batch, encoder.encode(batch, lengths), lengths):
        alone = encoder.encode(row[None, :length])[0]
        frames, padding = features[: len(alone)], features[len(alone) :]
        worst = max(worst, _deviation(frames, alone))
        name = f"{length} samples"
        _expect(worst < TOLERANCE, f"{name}: other features in a padded batch ({worst:g})")
        _expect(not padding.any(), f"{name}: no zeros after the last frame")
    return f"the same features, deviation {worst:.1g}"


def check_precision(encoder: AudioEncoder) -> str:
    """Checks that neither autocast nor a move to bfloat16 rounds the features."""
    clip = make_clip(encoder, encoder.sample_rate)
    expected = encoder.encode(clip)
    with torch.autocast("cpu", torch.bfloat16):
        _expect(torch.equal(encoder.encode(clip), expected), "other features under autocast")
    moved = copy.deepcopy(encoder).to(torch.bfloat16)
    _expect(torch.equal(moved.encode(clip), expected), "other features after .to(torch.bfloat16)")
    return "the same features under autocast and after .to(torch.bfloat16)"


def check_codes(encoder: Any) -> str:
    """Checks that codes, if there are any, decode to the features."""
    if not hasattr(encoder, "codes"):
        return "none, the feature cache saves features"
    clip = make_clip(encoder, 3 * encoder.sample_rate)
    codes = encoder.codes(clip)
    shape = (1, encoder.num_levels, encoder.num_frames(clip.shape[1]))
    _expect(tuple(codes.shape) == shape, f"codes {tuple(codes.shape)}, expected {shape}")
    is_valid = codes.min() >= 0 and codes.max() < encoder.codebook_size
    _expect(is_valid, f"codes from {codes.min()} to {codes.max()}, of {encoder.codebook_size}")
    decoded = encoder.decode_codes(codes)
    _expect(torch.equal(decoded, encoder.encode(clip)), "codes do not decode to the features")
    return f"{shape[1]} codebooks decode to the features"


def check_reload(encoder: AudioEncoder, encoder_type: str) -> str:
    """Checks that a saved model gives the same features where neither package nor file is."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text_config = LlamaConfig(vocab_size=16, num_attention_heads=2, **size)
    model = AudioLMForConditionalGeneration.from_pretrained_parts(
        encoder_type, encoder, LlamaForCausalLM(text_config)
    )
    clip = make_clip(encoder, encoder.sample_rate)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as elsewhere:
        model.save_pretrained(folder)
        torch.save((clip, encoder.encode(clip)), Path(folder, "features.pt"))
        command = [sys.executable, "-c", RELOAD, folder, f"{folder}/features.pt"]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        variables = {**os.environ, **threads, "HF_HOME": elsewhere, "HF_HUB_OFFLINE": "1"}
        run = subprocess.run(
            command, env=variables, cwd=elsewhere, capture_output=True, text=True, check=False
        )
        files = ", ".join(sorted(path.name for path in Path(folder).glob("*.py")))
    lines = run.stderr.strip().splitlines()
    _expect(run.returncode == 0, f"a fresh process: {lines[-1] if lines else run.returncode}")
    return f"a fresh process loads it with {files}"


def measure_speed(encoder: AudioEncoder) -> str:
    """Measures the speed of one clip at a time."""
    clip = make_clip(encoder, SECONDS * encoder.sample_rate)
    encoder.encode(clip)
    started_at = time.perf_counter()
    num_clips = 0
    while time.perf_counter() - started_at < 1 or num_clips < 2:
        encoder.encode(clip)
        num_clips += 1
    speed = num_clips * SECONDS / (time.perf_counter() - started_at)
    return f"{speed:.3g} times real time on {torch.get_num_threads()} CPU threads"


def check_encoder(encoder_type: str, name_or_path: str | None = None) -> int:
    """Prints one line per check of an encoder.

    Args:
        encoder_type: Encoder type, or `FILE.py:CLASS`.
        name_or_path: Weights, as in [`load_encoder`].

    Returns:
        The number of checks that failed.
    """
    encoder = load_encoder(encoder_type, name_or_path)
    checks: dict[str, Callable[[AudioEncoder], str]] = {
        "shapes": check_shapes,
        "frame counts": check_frame_counts,
        "padding": check_padding,
        "float32": check_precision,
        "codes": check_codes,
        "save and reload": partial(check_reload, encoder_type=encoder_type),
        "speed": measure_speed,
    }
    failures = 0
    for name, check in checks.items():
        try:
            result, detail = "ok", check(encoder)
        except Exception as error:  # The encoder's own code can fail in any way.
            failures += 1
            is_own = isinstance(error, CheckError)
            result, detail = "FAILED", f"{'' if is_own else type(error).__name__ + ': '}{error}"
        print(f"{result:<6}  {name:<15}  {detail}", flush=True)
    return failures


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `audiolm check-encoder`."""
    parser = argparse.ArgumentParser("audiolm check-encoder", description=__doc__)
    add = parser.add_argument
    add("encoder_type", metavar="ENCODER", help=f"one of {', '.join(list_encoder_types())}")
    weights = "weights, as in run_train.py; `random` checks the code alone"
    add("--encoder_name_or_path", metavar="NAME", help=weights)
    return parser


@report_user_errors("audiolm check-encoder")
def main(argv: list[str] | None = None) -> None:
    """Runs `audiolm check-encoder`."""
    args = build_parser().parse_args(argv)
    use_all_of_the_cpu()
    with explain_errors():
        failures = check_encoder(args.encoder_type, args.encoder_name_or_path)
    sys.exit(1 if failures else 0)
