"""Measures the training step at real dimensions with random weights: `python run_benchmark.py --encoder_type htsat --naive`.

It needs torch, torchaudio, transformers and accelerate alone (`pip install --no-deps -e .` makes the package known) and
downloads nothing: clips are files of noise that it makes. On CPUs each variant runs in a process of its own. On a GPU a
part's time is what the GPU spends on it or waits for it.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

from transformers.hf_argparser import string_to_bool

from ..configuration_audiolm import list_encoder_types, parse_encoder_type
from .measure import ARM_STEPS, PARTS, generation_rates, loader_rate, measure, prepare, run_isolated

CLIPS = 54_046  # of ReasonAQA, each encoded once where features are cached
# of our processes, as of run_train.py, in pages of 2 MB: what is freed of 4 MB and more goes back to the system, or
# without the cache stays
FROM_CACHE = {"MALLOC_MMAP_THRESHOLD_": str(2**22), "THP_MEM_ALLOC_ENABLE": "1"}
ENCODING = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "THP_MEM_ALLOC_ENABLE": "1",
}


def duration(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 5400
        else f"{seconds / 60:.1f} min"
        if seconds >= 90
        else f"{seconds:.1f} s"
    )


def table(variants: dict[str, dict]) -> str:
    """The figures of each variant in a column of its own."""
    rows = {"": [f"{name}, {found['precision']}" for name, found in variants.items()]}
    for part in (*PARTS, "step"):
        spans = [
            [1000 * second for second in found["seconds"][part]] for found in variants.values()
        ]
        rows[f"{part}, ms"] = [
            f"{median:,.1f} ({low:,.1f}-{high:,.1f})" for low, median, high in spans
        ]
    for label, show in {
        "samples/s": lambda found: f"{found['samples_per_second']:,.2f}",
        "tokens/s, real": lambda found: f"{found['tokens_per_second']['real']:,.0f}",
        "tokens/s, padded": lambda found: f"{found['tokens_per_second']['padded']:,.0f}",
        "tokens a step": lambda found: "{real:,.0f} of {padded:,.0f}, {labels:,.0f} learnt".format(
            **found["tokens_per_step"]
        ),
        "peak memory": lambda found: f"{(found['peak_memory_bytes'] or math.nan) / 2**30:.2f} GiB",
        "TFLOP/s": lambda found: (
            f"{found['tflops']:.3f} ({found['flops_per_step'] / 1e12:.3f} TFLOP a step)"
        ),
        "MFU": lambda found: (
            f"{found['mfu']:.1%} of {found['peak_tflops']:g} TFLOP/s"
            if found["mfu"]
            else "peak not known"
        ),
        "before these": lambda found: f"{duration(found['warmup_seconds'])} of warm-up",
        f"{ARM_STEPS:,} steps": lambda found: duration(found["arm_seconds"]),
        "loss, first step": lambda found: f"{found['losses'][0]:.5f}",
    }.items():
        rows[label] = [show(found) for found in variants.values()]
    if any(found["compiled_graphs"] for found in variants.values()):
        said = "{compiled_graphs} compiled, {recorded_graphs} recorded"
        rows["graphs"] = [
            said.format_map(found) if found["compiled_graphs"] else ""
            for found in variants.values()
        ]
    return "\n".join(
        f"{label:<18}" + "".join(f"{cell:<36}" for cell in cells).rstrip()
        for label, cells in rows.items()
    )


def ratio(ours: dict, naive: dict, clip_seconds: float | None) -> dict[str, float | None]:
    """Ours by the naive step; with the cache, also with its filling spread over the steps of an arm."""
    filling = (clip_seconds or 0) * CLIPS / ARM_STEPS
    known = ours["peak_memory_bytes"] and naive["peak_memory_bytes"]
    return {
        "samples_per_second": naive["mean_step_seconds"] / ours["mean_step_seconds"],
        "samples_per_second_with_encoding": naive["mean_step_seconds"]
        / (ours["mean_step_seconds"] + filling),
        "peak_memory": ours["peak_memory_bytes"] / naive["peak_memory_bytes"] if known else None,
    }


def stage(what: str, function, *arguments, **environment: str):
    """What a function returns with a memory of its own; says on the standard error what is measured and how long it took."""
    print(f"{what} ...", end=" ", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        found = run_isolated(function, *arguments, **environment)
    except BaseException:
        print(file=sys.stderr)
        raise
    rate = f", {found['samples_per_second']:,.2f} samples/s" if function is measure else ""
    print(f"{duration(time.perf_counter() - start)}{rate}", file=sys.stderr)
    return found


def parse(argv=None) -> argparse.Namespace:
    def positive(kind):
        def number(text):
            if not 0 < (value := kind(text)) < math.inf:
                raise argparse.ArgumentTypeError(f"{text}: a number above 0 is wanted")
            return value

        return number

    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--encoder_type",
        default="htsat",
        metavar="ARM",
        help=f"{', '.join(list_encoder_types())} (default: htsat)",
    )
    parser.add_argument(
        "--audio_tokens",
        type=positive(int),
        help="tokens of each clip (default: one for each frame)",
    )
    parser.add_argument(
        "--batch_size", type=positive(int), default=16, help="rows a step (default: 16)"
    )
    parser.add_argument(
        "--steps",
        type=positive(int),
        default=10,
        help="steps that count, after the warm-up (default: 10)",
    )
    parser.add_argument(
        "--seconds", type=positive(float), default=10.0, help="length of the clips (default: 10)"
    )
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        default="fp32",
        help="bf16: autocast; the encoder stays fp32",
    )
    parser.add_argument(
        "--train_sampling_strategy",
        choices=["group_by_length", "random"],
        default="group_by_length",
        help="of our step: rows of about one length together (the default), or as they are drawn",
    )
    parser.add_argument(
        "--torch_compile",
        action="store_true",
        help="of our step: as run_train.py's, layers compiled and, on "
        "a GPU, replayed as CUDA graphs",
    )
    parser.add_argument(
        "--packed",
        action="store_true",
        help="of our step: its rows one behind the other as a single row, "
        "which do not see each other, in place of padding",
    )
    parser.add_argument(
        "--freeze_lm",
        type=string_to_bool,
        default=True,
        help="train the mapper alone (default: true)",
    )
    parser.add_argument(
        "--no_feature_cache", action="store_true", help="encode each row's clips in each step"
    )
    parser.add_argument(
        "--naive",
        action="store_true",
        help="the textbook step too, in fp32: encode each row's clips, pad to "
        "the longest, logits of every position",
    )
    parser.add_argument(
        "--one_clip",
        action="store_true",
        help="leave out the rows about two clips, a fifth, with the longest answers",
    )
    parser.add_argument(
        "--dataloader_num_workers",
        type=int,
        default=0,
        help="processes that make batches (default: 0, none)",
    )
    parser.add_argument(
        "--new_tokens",
        type=positive(int),
        help="also generate so many for each of `batch_size` rows together",
    )
    parser.add_argument(
        "--peak_tflops", type=positive(float), help="of the device, for MFU where it is not known"
    )
    parser.add_argument("--seed", type=int, default=0, help="of rows and weights (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--small", action="store_true", help="tiny dimensions, to see that it runs")
    options = parser.parse_args(argv)
    if options.dataloader_num_workers < 0:
        parser.error(
            f"--dataloader_num_workers {options.dataloader_num_workers}: 0 or more are wanted"
        )
    try:
        parse_encoder_type(options.encoder_type)
    except ValueError as error:
        parser.error(f"--{error}")
    if options.torch_compile and options.packed:
        parser.error("--torch_compile: packed rows need a mask, which compiled layers do without")
    if options.json and Path(options.json).is_dir():
        parser.error(f"--json {options.json}: a file is wanted, and this is a folder")
    if options.json and not Path(options.json).absolute().parent.is_dir():
        parser.error(f"--json {options.json}: its folder is not there")
    return options


def main(argv=None):
    options = parse(argv)
    variants, cached, loader, generation = {}, not options.no_feature_cache, None, {}
    memory = FROM_CACHE if cached else ENCODING
    steps = f"{options.steps} steps of {options.batch_size} rows"
    try:
        with tempfile.TemporaryDirectory() as folder:
            clip_seconds = stage(
                "clips" + cached * " and the feature cache",
                prepare,
                options,
                folder,
                cached,
                **memory,
            )
            ours = stage(f"ours, {steps}", measure, options, False, folder, cached, **memory)
            variants["ours, " + ("cached" if cached else "encoding")] = ours
            if cached:
                loader = stage("the loader alone", loader_rate, options, folder)
            if options.new_tokens:
                generation = stage(
                    "generation", generation_rates, options, folder, cached, **memory
                )
            if options.naive:
                variants["naive"] = stage(f"naive, {steps}", measure, options, True, folder)
    except ValueError as error:
        sys.exit(f"run_benchmark.py: {error}")
    result = {
        "settings": vars(options),
        "environment": ours.pop("environment"),
        "variants": variants,
        "encode_seconds_per_clip": clip_seconds,
        "loader_rows_per_second": loader,
        "generated_tokens_per_second": generation,
    }
    about = dict(result["environment"])
    print(f"{about.pop('device')}, " + ", ".join(f"{k} {v}" for k, v in about.items()))
    print(
        f"{options.encoder_type}, {'mapper' if options.freeze_lm else 'mapper and language model'} trained "
        f"({ours['trained_parameters']:,} parameters); {options.steps} steps of {options.batch_size} rows with "
        f"{ours['clips_per_step']:.1f} clips of {options.seconds:g} s; median (and quartiles)"
    )
    print(table(variants))
    if cached:
        print(
            f"filling the cache: {1000 * clip_seconds:,.1f} ms a clip ({options.seconds / clip_seconds:,.0f} x real time); "
            f"{duration(CLIPS * clip_seconds)} for all {CLIPS:,}, once"
        )
        print(f"the loader alone: {loader:,.0f} rows/s ({options.dataloader_num_workers} workers)")
    for kind, rate in generation.items():
        print(
            f"generation, {kind} cache: {rate:,.1f} tokens/s ({options.batch_size} rows, {options.new_tokens} tokens each)"
        )
    if options.naive:
        variants["naive"].pop("environment")
        result["ratio"] = ratio(ours, variants["naive"], clip_seconds)
        speed, spread, memory = result["ratio"].values()
        filling = (
            f" ({spread:.2f}x with the cache's filling spread over {ARM_STEPS:,} steps)"
            if cached
            else ""
        )
        print(
            f"ours to naive: {speed:.2f}x samples/s{filling}, {memory or math.nan:.2f}x peak memory"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
