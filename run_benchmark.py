"""Measures the training step at real dimensions with random weights: `python run_benchmark.py --encoder_type htsat --naive`.

It needs torch, torchaudio, transformers and accelerate alone (`pip install --no-deps -e .` makes the package known) and
downloads nothing. Clips are noise in memory: decoding is not measured. Each variant runs in a process of its own. On a GPU
a part's time is what the GPU spends on it or waits for it.
"""

import argparse
import json
import math
import os
import platform
import random
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader
from transformers.hf_argparser import string_to_bool

from audiolm.benchmark_steps import POOL, build, draw_rows, encode, naive_batch, naive_loss, our_batch, our_loss, step_flops
from audiolm.configuration_audiolm import ENCODER_TYPES

CLIPS = 54_046  # of ReasonAQA, each encoded once where features are cached
ARM_STEPS = 20_000
ENCODED_AT_ONCE = 8  # clips that the cache's encoder takes
PARTS = ("data", "encode", "forward", "backward", "optimizer")
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L4": 121.0}
# our step gives no freed memory back to the system, as in training (run_train.py): glibc's M_MMAP_MAX and M_TRIM_THRESHOLD
KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def resident(kind: str) -> int | None:
    """This process's memory in bytes, `VmRSS` now or `VmHWM` at most; None where Linux does not tell."""
    try:
        found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def peak_tflops(device: str) -> float | None:
    """What a GPU of this name multiplies at most, dense in bfloat16; None if it is not known."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device)), None)


def quartiles(seconds: torch.Tensor) -> list[float]:
    return seconds.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=seconds.dtype)).tolist()


class Marks:
    """Ends of a step's parts: CUDA events, which nothing waits for while steps run, or the host's clock."""

    def __init__(self, cuda: bool):
        self.cuda, self.marks = cuda, []

    def __call__(self) -> None:
        mark = torch.cuda.Event(enable_timing=True) if self.cuda else time.perf_counter()
        if self.cuda:
            mark.record()
        self.marks.append(mark)

    def seconds(self) -> torch.Tensor:
        """(steps, parts)."""
        if self.cuda:
            torch.cuda.synchronize()
        pairs = zip(self.marks, self.marks[1:])
        spans = [a.elapsed_time(b) / 1000 if self.cuda else b - a for a, b in pairs]
        return torch.tensor(spans, dtype=torch.float64).view(-1, len(PARTS))


def fill_cache(options, file: str) -> float:
    """Encodes the pool as a feature cache keeps it, into `file`; seconds a clip."""
    model, _, clips = build(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, made, ends = model.encoder.to(device), [], []
    for start in range(0, POOL, ENCODED_AT_ONCE):
        audio = torch.stack(clips[start : start + ENCODED_AT_ONCE])
        features = getattr(encoder, "codes", encoder.encode)(audio.to(device)).cpu()
        made += list(features.to(torch.bfloat16 if features.is_floating_point() else torch.int16))
        ends.append(time.perf_counter())
    torch.save(made, file)
    return (ends[-1] - ends[0]) / (POOL - ENCODED_AT_ONCE)  # the first ones warm up


def measure(options, naive: bool, file: str | None = None) -> dict:
    """Times, rates, memory and losses of one variant, in this process.

    Args:
        file: of [`fill_cache`]; without it, clips are encoded in each step.

    Raises:
        ValueError: if the clips are too long for the language model, or hold no sample.
    """
    before = resident("VmRSS")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    name = torch.cuda.get_device_name() if cuda else f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    model, processor, clips = build(options)
    model.to(device).train()
    config, dim = model.config, model.encoder.dim
    frames = model.encoder.num_frames(len(clips[0]))
    clips = torch.load(file, weights_only=True) if file else clips
    warmup = 3 if cuda else 1
    count = (warmup + options.steps) * options.batch_size
    rows = draw_rows(count, options.seed, config.text_config.vocab_size, options.one_clip)
    said = [len(processor.answer_ids(row["answer"])) for row in rows]
    lengths = [len(processor.prompt_ids(row["input"], [frames] * len(row["audio"]))) + n for row, n in zip(rows, said)]
    if max(lengths) > (most := config.text_config.max_position_embeddings):
        raise ValueError(f"--seconds {options.seconds:g}: a row has {max(lengths)} tokens, but the language model takes {most}")
    if not naive and options.train_sampling_strategy == "group_by_length":  # those that count, each once as in the naive steps
        first = warmup * options.batch_size
        order = sorted(range(first, count), key=lambda i: lengths[i])
        batches = [order[start : start + options.batch_size] for start in range(0, len(order), options.batch_size)]
        random.Random(options.seed).shuffle(batches)
        rows = rows[:first] + [rows[i] for batch in batches for i in batch]
    batches = [rows[start : start + options.batch_size] for start in range(0, len(rows), options.batch_size)]
    if naive:
        make = partial(naive_batch, processor=processor, clips=clips)
    else:
        make = partial(our_batch, processor=processor, clips=clips, cached=file is not None)
    loader = DataLoader(batches, None, collate_fn=make, num_workers=options.dataloader_num_workers, pin_memory=cuda)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)  # the Trainer's
    bf16 = options.precision == "bf16" and not naive
    mark, losses, padded = Marks(cuda), [], []
    mark()
    for batch in loader:
        batch = {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
        padded.append(batch["input_ids"].numel())
        mark()
        encode(model, batch)
        mark()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = (naive_loss if naive else our_loss)(model, batch)
        mark()
        loss.backward()
        mark()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        mark()
    seconds = mark.seconds()[warmup:]
    peak = torch.cuda.max_memory_allocated() if cuda else before and resident("VmHWM") - before
    first = warmup * options.batch_size  # warm-up rows are not counted
    tokens = {"real": sum(lengths[first:]), "padded": sum(padded[warmup:]), "labels": sum(said[first:])}
    heard = sum(len(row["audio"]) for row in rows[first:])
    total, flops = seconds.sum().item(), step_flops(config, dim, lengths[first:], tokens["labels"], heard * frames)
    assumed = options.peak_tflops or peak_tflops(name)
    return {
        "precision": "bf16" if bf16 else "fp32",
        "seconds": {part: quartiles(spans) for part, spans in zip((*PARTS, "step"), [*seconds.T, seconds.sum(1)])},
        "mean_step_seconds": total / options.steps,
        "samples_per_second": options.steps * options.batch_size / total,
        "tokens_per_step": {kind: count / options.steps for kind, count in tokens.items()},
        "tokens_per_second": {kind: count / total for kind, count in tokens.items()},
        "clips_per_step": heard / options.steps,
        "peak_memory_bytes": peak,
        "flops_per_step": flops / options.steps,
        "tflops": flops / total / 1e12,
        "peak_tflops": assumed,
        "mfu": flops / total / 1e12 / assumed if assumed else None,
        "arm_seconds": ARM_STEPS * total / options.steps,
        "losses": torch.stack(losses).tolist(),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "environment": {
            "device": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "transformers": transformers.__version__, "python": platform.python_version(),
        },
    }  # fmt: skip


def apart(function, *arguments, **environment: str):
    """What a function returns in a new process with these variables, so that no variant's memory is another's.

    Raises:
        ValueError: also if the memory does not suffice.
    """
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # glibc reads them as the process starts
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(function, *arguments).result()
    except RuntimeError as error:
        if isinstance(error, (torch.OutOfMemoryError, BrokenProcessPool)) or "allocate memory" in str(error):
            raise ValueError("a process ran out of memory, as it seems; take a smaller --batch_size") from error
        raise
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"


def table(variants: dict[str, dict]) -> str:
    """The figures of each variant in a column of its own."""
    rows = {"": [f"{name}, {found['precision']}" for name, found in variants.items()]}
    for part in (*PARTS, "step"):
        spans = [[1000 * second for second in found["seconds"][part]] for found in variants.values()]
        rows[f"{part}, ms"] = [f"{median:,.1f} ({low:,.1f}-{high:,.1f})" for low, median, high in spans]
    for label, show in {
        "samples/s": lambda found: f"{found['samples_per_second']:,.2f}",
        "tokens/s, real": lambda found: f"{found['tokens_per_second']['real']:,.0f}",
        "tokens/s, padded": lambda found: f"{found['tokens_per_second']['padded']:,.0f}",
        "tokens a step": lambda found: "{real:,.0f} of {padded:,.0f}, {labels:,.0f} learnt".format(**found["tokens_per_step"]),
        "peak memory": lambda found: f"{(found['peak_memory_bytes'] or math.nan) / 2**30:.2f} GiB",
        "TFLOP/s": lambda found: f"{found['tflops']:.3f} ({found['flops_per_step'] / 1e12:.3f} TFLOP a step)",
        "MFU": lambda found: f"{found['mfu']:.1%} of {found['peak_tflops']:g} TFLOP/s" if found["mfu"] else "peak not known",
        f"{ARM_STEPS:,} steps": lambda found: duration(found["arm_seconds"]),
        "loss, first step": lambda found: f"{found['losses'][0]:.5f}",
    }.items():
        rows[label] = [show(found) for found in variants.values()]
    return "\n".join(f"{label:<18}" + "".join(f"{cell:<36}" for cell in cells).rstrip() for label, cells in rows.items())


def ratio(ours: dict, naive: dict, clip_seconds: float | None) -> dict[str, float | None]:
    """Ours by the naive step; with the cache, also with its filling spread over the steps of an arm."""
    filling = (clip_seconds or 0) * CLIPS / ARM_STEPS
    known = ours["peak_memory_bytes"] and naive["peak_memory_bytes"]
    return {
        "samples_per_second": naive["mean_step_seconds"] / ours["mean_step_seconds"],
        "samples_per_second_with_encoding": naive["mean_step_seconds"] / (ours["mean_step_seconds"] + filling),
        "peak_memory": ours["peak_memory_bytes"] / naive["peak_memory_bytes"] if known else None,
    }


def parse(argv=None) -> argparse.Namespace:
    def positive(kind):
        def number(text):
            if not 0 < (value := kind(text)) < math.inf:
                raise argparse.ArgumentTypeError(f"{text}: a number above 0 is wanted")
            return value

        return number

    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--encoder_type", choices=list(ENCODER_TYPES), default="htsat", help="the arm (default: htsat)")
    parser.add_argument("--batch_size", type=positive(int), default=16, help="rows a step (default: 16)")
    parser.add_argument("--steps", type=positive(int), default=10, help="steps that count, after the warm-up (default: 10)")
    parser.add_argument("--seconds", type=positive(float), default=10.0, help="length of the clips (default: 10)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast; the encoder stays fp32")
    parser.add_argument("--train_sampling_strategy", choices=["group_by_length", "random"], default="group_by_length",
                        help="of our step: rows of about one length together (the default), or as they are drawn")  # fmt: skip
    parser.add_argument("--freeze_lm", type=string_to_bool, default=True, help="train the mapper alone (default: true)")
    parser.add_argument("--no_feature_cache", action="store_true", help="encode each row's clips in each step")
    parser.add_argument("--naive", action="store_true", help="the textbook step too, in fp32: encode each row's clips, pad to "
                        "the longest, logits of every position")  # fmt: skip
    parser.add_argument(
        "--one_clip", action="store_true", help="leave out the rows about two clips, a fifth, with the longest answers"
    )
    parser.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that make batches (default: 0, none)")
    parser.add_argument("--peak_tflops", type=positive(float), help="of the device, for MFU where it is not known")
    parser.add_argument("--seed", type=int, default=0, help="of rows and weights (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--small", action="store_true", help="tiny dimensions, to see that it runs")
    options = parser.parse_args(argv)
    if options.dataloader_num_workers < 0:
        parser.error(f"--dataloader_num_workers {options.dataloader_num_workers}: 0 or more are wanted")
    if options.json and not Path(options.json).absolute().parent.is_dir():
        parser.error(f"--json {options.json}: its folder is not there")
    return options


def main(argv=None):
    options = parse(argv)
    variants, clip_seconds, name = {}, None, "cached" if not options.no_feature_cache else "encoding"
    try:
        with tempfile.TemporaryDirectory() as folder:
            cache = None if options.no_feature_cache else str(Path(folder, "cache.pt"))
            clip_seconds = apart(fill_cache, options, cache, **KEEP_FREED_MEMORY) if cache else None
            variants[f"ours, {name}"] = ours = apart(measure, options, False, cache, **KEEP_FREED_MEMORY)
        if options.naive:
            variants["naive"] = apart(measure, options, True)
    except ValueError as error:
        sys.exit(f"run_benchmark.py: {error}")
    result = {"settings": vars(options), "environment": ours.pop("environment"), "variants": variants,
              "encode_seconds_per_clip": clip_seconds}  # fmt: skip
    about = dict(result["environment"])
    print(f"{about.pop('device')}, " + ", ".join(f"{k} {v}" for k, v in about.items()))
    print(f"{options.encoder_type}, {'mapper' if options.freeze_lm else 'mapper and language model'} trained "
          f"({ours['trained_parameters']:,} parameters); {options.steps} steps of {options.batch_size} rows with "
          f"{ours['clips_per_step']:.1f} clips of {options.seconds:g} s; median (and quartiles)")  # fmt: skip
    print(table(variants))
    if cache:
        print(f"filling the cache: {1000 * clip_seconds:,.1f} ms a clip ({options.seconds / clip_seconds:,.0f} x real time); "
              f"{duration(CLIPS * clip_seconds)} for all {CLIPS:,}, once")  # fmt: skip
    if options.naive:
        variants["naive"].pop("environment")
        result["ratio"] = ratio(ours, variants["naive"], clip_seconds)
        speed, spread, memory = result["ratio"].values()
        filling = f" ({spread:.2f}x with the cache's filling spread over {ARM_STEPS:,} steps)" if cache else ""
        print(f"ours to naive: {speed:.2f}x samples/s{filling}, {memory or math.nan:.2f}x peak memory")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
