"""What run_benchmark.py measures, one after the other: filling the cache, steps, the loader alone, generation."""

import gc
import os
import platform
import random
import re
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader

from ..data import FeatureCache, ReasonAQACollator
from ..runtime import resident_memory
from ..training.compile import PAD_TO, cache_bf16_weights, compile_layers
from .workload import (
    build,
    clip_files,
    draw_rows,
    encode,
    naive_batch,
    naive_loss,
    our_loss,
    packed,
    step_flops,
    write_clips,
)

ARM_STEPS = 20_000
LOADER_BATCHES = 200
PARTS = ("data", "encode", "forward", "backward", "optimizer")
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L4": 121.0}


def peak_tflops(device: str) -> float | None:
    """What a GPU of this name multiplies at most, dense in bfloat16; None if it is not known."""
    return next(
        (peak for name, peak in PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device)), None
    )


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


def device_of() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare(options, folder: str, cached: bool) -> float | None:
    """Writes the clips into `folder`, and their features as training keeps them; seconds that a clip of these takes."""
    model, processor = build(options)
    write_clips(folder, model.encoder.sample_rate, options.seconds, options.seed)
    if not cached:
        return None
    model.encoder.to(device_of())
    cache, clips = (
        FeatureCache(folder, model.encoder, processor.feature_extractor),
        clip_files(folder),
    )
    cache.fill(clips[: len(clips) // 3])  # the first ones warm up
    start = time.perf_counter()
    cache.fill(clips)
    return (time.perf_counter() - start) / (len(clips) - len(clips) // 3)


def collator(
    options, model, processor, folder: str, cached: bool, generate: bool = False
) -> ReasonAQACollator:
    """That of training, with the features that [`prepare`] has kept in `folder`, or decoding each clip anew."""
    cache = FeatureCache(folder, model.encoder, processor.feature_extractor) if cached else None
    return ReasonAQACollator(
        processor, generate, cache, PAD_TO if options.torch_compile and not generate else 1
    )


def measure(options, naive: bool, folder: str, cached: bool = False) -> dict:
    """Times, rates, memory and losses of the steps of one variant.

    Args:
        folder: of [`prepare`]. cached: clips come from its cache, and are not encoded in each step.

    Raises:
        ValueError: if the clips are too long for the language model.
    """
    cuda, device = torch.cuda.is_available(), device_of()
    before = torch.cuda.memory_reserved() if cuda else resident_memory("VmRSS")
    name = (
        torch.cuda.get_device_name() if cuda else f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    )
    torch._dynamo.utils.counters.clear()
    model, processor = build(options)
    config, dim, extractor = model.config, model.encoder.dim, processor.feature_extractor
    frames = extractor.num_frames(round(options.seconds * extractor.sampling_rate))
    make = (
        partial(naive_batch, processor=processor)
        if naive
        else collator(options, model, processor, folder, cached)
    )
    model.to(device).train()
    if options.precision == "bf16" and options.freeze_lm and not naive:
        cache_bf16_weights(model.language_model)
    if options.torch_compile and not naive:
        compile_layers(model.language_model)
    warmup = 3 if cuda else 1
    count = (warmup + options.steps) * options.batch_size
    rows = draw_rows(
        count, options.seed, config.text_config.vocab_size, clip_files(folder), options.one_clip
    )
    said = [len(processor.answer_ids(row["answer"])) for row in rows]
    lengths = [
        len(processor.prompt_ids(row["input"], [frames] * len(row["audio"]))) + n
        for row, n in zip(rows, said)
    ]
    if max(lengths) > (most := config.text_config.max_position_embeddings):
        raise ValueError(
            f"--seconds {options.seconds:g}: a row has {max(lengths)} tokens, but the language model takes {most}"
        )
    order, first = list(range(count)), warmup * options.batch_size  # warm-up rows are not counted
    if (
        not naive and options.train_sampling_strategy == "group_by_length"
    ):  # those that count, each once as in the naive steps
        by_length = sorted(order[first:], key=lambda i: lengths[i])
        steps = [
            by_length[start : start + options.batch_size]
            for start in range(0, len(by_length), options.batch_size)
        ]
        random.Random(options.seed).shuffle(steps)
        order[first:] = [i for step in steps for i in step]
    if options.torch_compile and cuda and not naive:
        order[:first] += (
            order[first:] * 2
        )  # each length is seen once, recorded as a graph the second time, and then counts
    starts = range(0, len(order), options.batch_size)
    batches = [[rows[i] for i in order[start : start + options.batch_size]] for start in starts]
    loader = DataLoader(
        batches, None, collate_fn=make, num_workers=options.dataloader_num_workers, pin_memory=cuda
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)  # the Trainer's
    bf16 = options.precision == "bf16" and not naive
    mark, losses, padded, began = Marks(cuda), [], [], time.perf_counter()
    mark()
    for start, batch in zip(starts, loader):
        if start == len(order) - (count - first):
            ahead = time.perf_counter() - began
        if options.packed and not naive:
            batch = packed(
                batch,
                [lengths[i] for i in order[start : start + options.batch_size]],
                config.audio_token_id,
            )
        batch = {
            k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v
            for k, v in batch.items()
        }
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
    seconds = mark.seconds()[-options.steps :]
    peak = torch.cuda.max_memory_reserved() if cuda else resident_memory("VmHWM")
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    recorded = getattr(
        model.language_model.model.forward, "graphs", {}
    )  # of each padded length, None where it came once
    tokens = {
        "real": sum(lengths[first:]),
        "padded": sum(padded[-options.steps :]),
        "labels": sum(said[first:]),
    }
    heard = sum(len(row["audio"]) for row in rows[first:])
    total, flops = (
        seconds.sum().item(),
        step_flops(config, dim, lengths[first:], tokens["labels"], heard * frames),
    )
    assumed = options.peak_tflops or peak_tflops(name)
    return {
        "precision": "bf16" if bf16 else "fp32",
        "seconds": {
            part: quartiles(spans)
            for part, spans in zip((*PARTS, "step"), [*seconds.T, seconds.sum(1)])
        },
        "mean_step_seconds": total / options.steps,
        "samples_per_second": options.steps * options.batch_size / total,
        "tokens_per_step": {kind: count / options.steps for kind, count in tokens.items()},
        "tokens_per_second": {kind: count / total for kind, count in tokens.items()},
        "clips_per_step": heard / options.steps,
        "peak_memory_bytes": None if before is None else peak - before,
        "compiled_graphs": compiled,
        "recorded_graphs": sum(graph is not None for graph in recorded.values()),
        "flops_per_step": flops / options.steps,
        "tflops": flops / total / 1e12,
        "peak_tflops": assumed,
        "mfu": flops / total / 1e12 / assumed if assumed else None,
        "arm_seconds": ARM_STEPS * total / options.steps,
        "warmup_seconds": ahead,
        "losses": torch.stack(losses).tolist(),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "environment": {
            "device": name,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def loader_rate(options, folder: str) -> float:
    """Rows a second that the loader makes from the cache, with nothing else to wait for."""
    model, processor = build(options)
    make = collator(options, model, processor, folder, cached=True)
    count = LOADER_BATCHES * options.batch_size
    rows = draw_rows(
        count,
        options.seed,
        model.config.text_config.vocab_size,
        clip_files(folder),
        options.one_clip,
    )
    batches = [
        rows[start : start + options.batch_size] for start in range(0, count, options.batch_size)
    ]
    loader, ends = (
        DataLoader(batches, None, collate_fn=make, num_workers=options.dataloader_num_workers),
        [],
    )
    for _ in loader:
        ends.append(time.perf_counter())
    first = (
        10 + 2 * options.dataloader_num_workers
    )  # what was made ahead while processes started is not counted
    return (LOADER_BATCHES - 1 - first) * options.batch_size / (ends[-1] - ends[first])


@torch.no_grad()
def generation_rates(options, folder: str, cached: bool) -> dict[str, float]:
    """Tokens a second that `batch_size` rows generate together, the reading of the prompts included, by kind of cache."""
    model, processor = build(options)
    make, device = collator(options, model, processor, folder, cached, generate=True), device_of()
    model.to(
        device, torch.bfloat16 if options.precision == "bf16" else torch.float32
    )  # the encoder stays in fp32
    rows = draw_rows(
        options.batch_size,
        options.seed,
        model.config.text_config.vocab_size,
        clip_files(folder),
        options.one_clip,
    )
    batch = {name: value.to(device) for name, value in make(rows).items()}
    encode(model, batch)  # what an evaluation does once, for all questions about a clip
    rates = {}
    for kind in ("dynamic", "static"):
        spans = []
        for _ in range(3):  # the first one warms up
            start = time.perf_counter()
            made = model.generate(
                **batch,
                min_new_tokens=options.new_tokens,
                max_new_tokens=options.new_tokens,
                do_sample=False,
                cache_implementation=kind,
            ).cpu()
            spans.append(time.perf_counter() - start)
        assert made[:, -options.new_tokens :].shape == (len(rows), options.new_tokens)
        rates[kind] = made[:, -options.new_tokens :].numel() / min(spans[1:])
    return rates


OUT_OF_MEMORY = "the memory does not suffice, as it seems; take a smaller --batch_size"


def run_isolated(function, *arguments, **environment: str):
    """What a function returns with a memory of its own: on a CPU in a new process, which has these variables; on a GPU, where
    a process would take longer to start than most of these functions, in this one, with nothing left from those before.

    Raises:
        ValueError: also if the memory does not suffice.
    """
    if torch.cuda.is_available():
        return in_this_process(function, *arguments)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # glibc reads them as the process starts
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(function, *arguments).result()
    except RuntimeError as error:
        if isinstance(error, BrokenProcessPool) or "allocate memory" in str(error):
            raise ValueError(OUT_OF_MEMORY) from error
        raise
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def in_this_process(function, *arguments):
    """What a function returns, leaving nothing of it on the GPU."""
    try:
        return function(*arguments)
    except torch.OutOfMemoryError as error:
        raise ValueError(OUT_OF_MEMORY) from error
    finally:
        torch._dynamo.reset()  # it holds what it has compiled
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
