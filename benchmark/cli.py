"""Measures a training step at real dimensions with random weights: `audiolm benchmark --naive`.

It downloads nothing. Training steps need torch, transformers and accelerate only. The clips are
generated noise. Each variant runs in a process of its own. On a GPU, the time of a part is the time
for which the GPU works on it or waits for it.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..configuration_audiolm import import_encoders, list_encoder_types
from ..runtime import format_duration, is_bfloat16_fast, report_user_errors, run_info, write_json
from . import measure
from .measure import PARTS, RUN_STEPS

PROGRAM = "audiolm benchmark"
REASONAQA_CLIPS = 54_046  # each is encoded once where features are cached
TABLE_ROWS = {
    "samples/s": "{samples_per_second:,.2f}",
    "tokens/s": "{tokens_per_second:,.0f}",
    "tokens per step": "{tokens_per_step[real]:,.0f} of {tokens_per_step[padded]:,.0f}",
    "peak memory": "{memory:.2f} GiB",
    "warm-up": "{warmup}",
    f"{RUN_STEPS:,} steps": "{run}",
    "loss, first step": "{losses[0]:.5f}",
}


def format_table(variants: dict[str, dict]) -> str:
    """Formats the results of each variant as a column."""
    columns = []
    for name, result in variants.items():
        column = {"": f"{name}, {result['precision']}"}
        for part in (*PARTS, "step"):
            low, median, high = (1000 * seconds for seconds in result["seconds"][part])
            column[f"{part}, ms"] = f"{median:,.1f} ({low:,.1f}-{high:,.1f})"
        values = {
            **result,
            "memory": (result["peak_memory_bytes"] or math.nan) / 2**30,
            "warmup": format_duration(result["warmup_seconds"]),
            "run": format_duration(result["run_seconds"]),
        }
        columns.append(column | {row: text.format_map(values) for row, text in TABLE_ROWS.items()})
    lines = []
    for label in columns[0]:
        cells = "".join(f"{column[label]:<36}" for column in columns)
        lines.append(f"{label:<18}{cells}".rstrip())
    return "\n".join(lines)


def compare_variants(ours: dict, baseline: dict, clip_seconds: float | None) -> dict:
    """Returns ratios of our step to the baseline, also with a share of filling the cache."""
    encoding = (clip_seconds or 0) * REASONAQA_CLIPS / RUN_STEPS
    seconds = ours["mean_step_seconds"]
    memory = (ours["peak_memory_bytes"], baseline["peak_memory_bytes"])
    return {
        "samples_per_second": baseline["mean_step_seconds"] / seconds,
        "samples_per_second_with_encoding": baseline["mean_step_seconds"] / (seconds + encoding),
        "peak_memory": memory[0] / memory[1] if all(memory) else None,
    }


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of `audiolm benchmark`."""
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    types = ", ".join(list_encoder_types())
    add("--encoder_type", default="htsat", metavar="TYPE", help=f"{types} (default: htsat)")
    add("--batch_size", type=int, default=16, help="examples per step (default: 16)")
    add("--steps", type=int, default=10, help="measured steps, after warm-up (default: 10)")
    add("--seconds", type=float, default=10.0, help="length of the clips (default: 10)")
    help_text = "bf16: autocast; the encoder stays fp32"
    help_text += " (default: bf16 where the device is faster with it)"
    add("--precision", choices=["fp32", "bf16"], help=help_text)
    help_text = "compile the layers of our step; on a GPU, replay them as CUDA graphs"
    add("--torch_compile", action="store_true", help=help_text)
    add("--no_feature_cache", action="store_true", help="encode the clips in each step")
    help_text = (
        "also measure a baseline in fp32 that encodes the clips in each step, pads to the longest "
        "example and computes the logits of every position"
    )
    add("--naive", action="store_true", help=help_text)
    help_text = "measure an evaluation in place of training steps, beside a plain generate loop"
    add("--evaluation", action="store_true", help=help_text)
    add("--rows", type=int, default=32, help="rows of --evaluation (default: 32)")
    help_text = "tokens of each text of --evaluation (default: 64)"
    add("--max_new_tokens", type=int, default=64, help=help_text)
    add("--one_clip", action="store_true", help="leave out examples about two clips, a fifth")
    add("--json", metavar="FILE", help="write all results to this file")
    help_text = "further fields of the model's config, such as a smaller text_config"
    add("--config_overrides", type=json.loads, default={}, metavar="JSON", help=help_text)
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = build_parser()
    options = parser.parse_args(argv)
    for name in ("batch_size", "steps", "seconds", "rows", "max_new_tokens"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name} {getattr(options, name)}: expected a positive number")
    try:
        options.encoder_type = import_encoders(options.encoder_type)
    except ValueError as error:
        parser.error(f"--{error}")
    if options.precision is None:
        options.precision = "bf16" if is_bfloat16_fast() else "fp32"
    for name in ("naive", "torch_compile", "no_feature_cache"):
        if options.evaluation and getattr(options, name):
            parser.error(f"--{name}: it measures training steps; remove --evaluation")
    if options.json and not Path(options.json).absolute().parent.is_dir():
        parser.error(f"--json {options.json}: its folder does not exist")
    return options


def run_benchmark(options: argparse.Namespace, argv: list[str] | None) -> dict:
    """Measures all that the options ask for. Returns what `--json` writes."""
    cached = not options.no_feature_cache
    result = {"settings": vars(options), "environment": run_info(PROGRAM, argv), "variants": {}}

    def run(label: str, function: Callable, *arguments):
        print(f"{label} ...", file=sys.stderr, flush=True)
        return measure.run_isolated(function, options, *arguments)

    with tempfile.TemporaryDirectory() as folder:
        # An evaluation encodes the clips itself.
        clip_seconds = run("clips", measure.prepare, folder, cached and not options.evaluation)
        result["encode_seconds_per_clip"] = clip_seconds
        if options.evaluation:
            from .evaluation import measure_evaluation  # training steps need no datasets

            result["evaluation"] = run("evaluation", measure_evaluation, folder)
            return result
        ours = run("our steps", measure.measure, False, folder, cached)
        result["variants"]["ours, cached" if cached else "ours, encoding"] = ours
        if options.naive:
            baseline = run("baseline steps", measure.measure, True, folder)
            result["variants"]["baseline"] = baseline
            result["ratio"] = compare_variants(ours, baseline, clip_seconds)
    return result


def format_report(result: dict) -> str:
    """Formats the results as the command prints them."""
    settings = result["settings"]
    machine = result["environment"]["machine"]
    code = result["environment"]["code"]
    ours = next(iter(result["variants"].values()))
    lines = [
        f"{machine['device']}, {machine['threads']} threads, torch {code['torch']}, "
        f"transformers {code['transformers']}, Python {code['python']}",
        f"{settings['encoder_type']}, {ours['trained_parameters']:,} parameters trained",
        f"{settings['steps']} steps of batch size {settings['batch_size']} with "
        f"{ours['clips_per_step']:.1f} clips of {settings['seconds']:g} s; median (quartiles)",
        format_table(result["variants"]),
    ]
    clip_seconds = result["encode_seconds_per_clip"]
    if clip_seconds:
        speed = settings["seconds"] / clip_seconds
        lines.append(
            f"feature cache: {format_duration(clip_seconds)} per clip ({speed:,.0f} x real time), "
            f"{format_duration(REASONAQA_CLIPS * clip_seconds)} for all {REASONAQA_CLIPS:,}, once"
        )
    if "ratio" in result:
        ratio = result["ratio"]
        lines.append(
            f"ours to baseline: {ratio['samples_per_second']:.2f}x samples/s "
            f"({ratio['samples_per_second_with_encoding']:.2f}x with the feature cache filled "
            f"within {RUN_STEPS:,} steps), {ratio['peak_memory'] or math.nan:.2f}x peak memory"
        )
    return "\n".join(lines)


@report_user_errors(PROGRAM)
def main(argv: list[str] | None = None) -> None:
    """Runs `audiolm benchmark`."""
    options = parse(argv)
    result = run_benchmark(options, argv)
    if options.evaluation:
        from .evaluation import format_evaluation

        print(format_evaluation(result["evaluation"], options))
    else:
        print(format_report(result))
    if options.json:
        write_json(options.json, result)
