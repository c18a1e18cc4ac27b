"""Measures one thing at a time: the feature cache, training steps."""

import gc
import os
import random
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain
from multiprocessing import get_context
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..data import FeatureCache, ReasonAQACollator
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..processing_audiolm import AudioLMProcessor
from ..runtime import UserError, resident_memory
from ..training.compile import PAD_TO, cache_bf16_weights, compile_layers
from .workload import (
    baseline_loss,
    build_model,
    clip_files,
    collate_baseline,
    draw_examples,
    encode_batch,
    model_loss,
    peak_tflops,
    step_flops,
    write_clips,
)

RUN_STEPS = 20_000
SLICE_SIZE = 4  # examples; on a CPU, the whole baseline step of mimi_full takes over 24 GiB
PARTS = ("data", "encode", "forward", "backward", "optimizer")
OUT_OF_MEMORY = "out of memory: take a smaller --batch_size"


class Workload(NamedTuple):
    """One variant of the training step, with the warm-up batches and then the measured ones."""

    model: AudioLMForConditionalGeneration
    loss: Callable[[AudioLMForConditionalGeneration, dict], torch.Tensor]
    collate: Callable[[list[dict]], dict]
    batches: list[list[dict]]  # of examples with their numbers of `tokens`, `labels` and `frames`
    uses_bf16: bool
    slices: int = 1  # in which a step is done, one after the other, to save memory


class PartTimer:
    """Times the parts of steps with CUDA events, for which no step waits, or the host's clock.

    Between data and optimizer, a step repeats its other parts for each of its slices.
    """

    def __init__(self, slices: int = 1):
        self.slices = slices
        self.marks = []

    def mark(self) -> None:
        """Ends a part. The first call starts the first one."""
        if torch.cuda.is_available():
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> torch.Tensor:
        """Returns the time of each part, shape `(steps, parts)`."""
        pairs = zip(self.marks, self.marks[1:])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            spans = [start.elapsed_time(end) / 1000 for start, end in pairs]
        else:
            spans = [end - start for start, end in pairs]
        num_repeated = len(PARTS) - 2
        table = torch.tensor(spans, dtype=torch.float64).view(-1, 2 + num_repeated * self.slices)
        repeated = table[:, 1:-1].unflatten(1, (self.slices, num_repeated)).sum(1)
        return torch.cat([table[:, :1], repeated, table[:, -1:]], 1)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare(options: Namespace, folder: str, cached: bool) -> float | None:
    """Writes the clips and fills their feature cache. Returns the seconds per clip for it."""
    model, processor = build_model(options)
    write_clips(folder, model.encoder.sample_rate, options.seconds, options.seed)
    if not cached:
        return None
    model.encoder.to(_device())
    cache = FeatureCache(folder, model.encoder, processor.feature_extractor)
    clips = clip_files(folder)
    num_warmup_clips = len(clips) // 3
    cache.encode(clips[:num_warmup_clips])
    start = time.perf_counter()
    cache.encode(clips)
    return (time.perf_counter() - start) / (len(clips) - num_warmup_clips)


def build_collator(
    options: Namespace,
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    cache_folder: str | None,
) -> ReasonAQACollator:
    """Builds the collator of training. Without a cache it decodes each clip."""
    cache = None
    if cache_folder is not None:
        cache = FeatureCache(cache_folder, model.encoder, processor.feature_extractor)
    pad_to = PAD_TO if options.torch_compile else 1
    return ReasonAQACollator(processor, cache, pad_to)


def _split(examples: list, batch_size: int) -> list[list]:
    return [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]


def build_workload(options: Namespace, is_baseline: bool, folder: str, cached: bool) -> Workload:
    """Builds a variant's model, collator and batches. Both variants see the same examples."""
    model, processor = build_model(options)
    model.to(_device()).train()
    text_config = model.config.text_config
    extractor = processor.feature_extractor
    frames_per_clip = extractor.num_frames(round(options.seconds * extractor.sampling_rate))
    num_warmup = (3 if torch.cuda.is_available() else 1) * options.batch_size
    count = num_warmup + options.steps * options.batch_size
    clips = clip_files(folder)
    examples = draw_examples(count, options.seed, text_config.vocab_size, clips, options.one_clip)
    for example in examples:
        frames = [frames_per_clip] * len(example["audio"])
        example["frames"] = sum(frames)
        example["labels"] = len(processor.encode_answer(example["answer"]))
        prompt_ids = processor.encode_prompt(example["input"], frames)
        example["tokens"] = len(prompt_ids) + example["labels"]
    longest = max(example["tokens"] for example in examples)
    if longest > text_config.max_position_embeddings:
        raise UserError(
            f"--seconds {options.seconds:g}: an example has {longest} tokens, but the language "
            f"model takes at most {text_config.max_position_embeddings}"
        )
    warmup = _split(examples[:num_warmup], options.batch_size)
    measured = examples[num_warmup:]
    if is_baseline:
        batches = warmup + _split(measured, options.batch_size)
        collate = partial(collate_baseline, processor=processor)
        slices = 1 if torch.cuda.is_available() else -(-options.batch_size // SLICE_SIZE)
        return Workload(model, baseline_loss, collate, batches, False, slices)
    # Batches of similar length, as in training.
    measured = _split(sorted(measured, key=lambda example: example["tokens"]), options.batch_size)
    random.Random(options.seed).shuffle(measured)
    uses_bf16 = options.precision == "bf16"
    if uses_bf16 and options.freeze_lm:
        cache_bf16_weights(model.language_model)
    if options.torch_compile:
        compile_layers(model.language_model)
        if torch.cuda.is_available():
            # A length is seen once, recorded as a CUDA graph the second time, and measured then.
            warmup += measured * 2
    collate = build_collator(options, model, processor, folder if cached else None)
    return Workload(model, model_loss, collate, warmup + measured, uses_bf16)


def _collate_slices(workload: Workload, examples: list[dict]) -> list[dict]:
    size = SLICE_SIZE if workload.slices > 1 else len(examples)
    return [workload.collate(part) for part in _split(examples, size)]


def time_steps(options: Namespace, workload: Workload) -> tuple[torch.Tensor, list[int], dict]:
    """Trains on all batches and times the parts of each step.

    Returns:
        Seconds of each part, shape `(measured steps, parts)`, padded tokens of each step, and facts
        that the JSON file has.
    """
    torch._dynamo.utils.counters.clear()
    model = workload.model
    device = _device()
    loader = DataLoader(
        workload.batches,
        None,
        collate_fn=partial(_collate_slices, workload),
        num_workers=options.dataloader_num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)  # as the Trainer's
    timer = PartTimer(workload.slices)
    losses, padded_tokens = [], []
    start = time.perf_counter()
    timer.mark()
    for step, batch in enumerate(loader):
        if step == len(workload.batches) - options.steps:
            warmup_seconds = time.perf_counter() - start
        for part in batch:
            for name, value in part.items():
                if torch.is_tensor(value):
                    part[name] = value.to(device, non_blocking=True)
        padded_tokens.append(sum(part["input_ids"].numel() for part in batch))
        num_labels = [part["labels"].ne(-100).sum() for part in batch]
        step_loss = torch.zeros((), device=device)
        timer.mark()
        for part, count in zip(batch, num_labels):
            encode_batch(model, part)
            timer.mark()
            with torch.autocast(device.type, torch.bfloat16, enabled=workload.uses_bf16):
                loss = workload.loss(model, part)
                if workload.slices > 1:
                    loss = loss * count / sum(num_labels)
            timer.mark()
            loss.backward()
            step_loss += loss.detach()
            timer.mark()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(step_loss)
        timer.mark()
    facts = {
        "warmup_seconds": warmup_seconds,
        "losses": torch.stack(losses).tolist(),
        "compiled_graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }
    return timer.seconds()[-options.steps :], padded_tokens, facts


def summarise(
    options: Namespace, workload: Workload, seconds: torch.Tensor, padded_tokens: list[int]
) -> dict[str, object]:
    """Returns the rates of the measured steps, as the JSON file has them."""
    model = workload.model
    examples = list(chain.from_iterable(workload.batches[-options.steps :]))
    lengths, labels, frames = (
        [example[name] for example in examples] for name in ("tokens", "labels", "frames")
    )
    clips = sum(len(example["audio"]) for example in examples)
    padded = sum(padded_tokens[-options.steps :])
    tokens = {"real": sum(lengths), "padded": padded, "labels": sum(labels)}
    flops = step_flops(model.config, model.encoder.dim, lengths, sum(labels), sum(frames))
    step_seconds = seconds.sum(1)
    total = step_seconds.sum().item()
    tflops = flops / total / 1e12
    device_name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    peak = options.peak_tflops or peak_tflops(device_name)
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    parts = zip((*PARTS, "step"), [*seconds.T, step_seconds])
    return {
        "precision": "bf16" if workload.uses_bf16 else "fp32",
        "seconds": {part: spans.quantile(quartiles).tolist() for part, spans in parts},
        "mean_step_seconds": total / options.steps,
        "samples_per_second": len(examples) / total,
        "tokens_per_step": {kind: count / options.steps for kind, count in tokens.items()},
        "tokens_per_second": {kind: count / total for kind, count in tokens.items()},
        "clips_per_step": clips / options.steps,
        "flops_per_step": flops / options.steps,
        "tflops": tflops,
        "peak_tflops": peak,
        "mfu": tflops / peak if peak else None,
        "run_seconds": RUN_STEPS * total / options.steps,
        "trained_parameters": model.num_parameters(only_trainable=True),
    }


def measure(options: Namespace, is_baseline: bool, folder: str, cached: bool = False) -> dict:
    """Measures the steps of one variant on the clips of `prepare`, and their memory."""
    cuda = torch.cuda.is_available()
    memory_before = torch.cuda.memory_reserved() if cuda else resident_memory("VmRSS")
    workload = build_workload(options, is_baseline, folder, cached)
    seconds, padded_tokens, facts = time_steps(options, workload)
    summary = summarise(options, workload, seconds, padded_tokens) | facts
    peak = torch.cuda.max_memory_reserved() if cuda else resident_memory("VmHWM")
    is_measured = peak is not None and memory_before is not None
    return {**summary, "peak_memory_bytes": peak - memory_before if is_measured else None}


def run_isolated(function: Callable, *arguments: object, environment: dict[str, str]) -> object:
    """Calls a function with memory of its own: on a CPU in a new process with this environment.

    On a GPU a process would take longer to start than most functions here, so the GPU's memory is
    freed instead. A `UserError` tells if memory does not suffice.
    """
    if torch.cuda.is_available():
        return in_this_process(function, *arguments)
    before = dict(os.environ)
    os.environ.update(environment)  # glibc reads it when the process starts
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(function, *arguments).result()
    except RuntimeError as error:
        if isinstance(error, BrokenProcessPool) or "allocate memory" in str(error):
            raise UserError(OUT_OF_MEMORY) from error
        raise
    finally:
        os.environ.clear()
        os.environ.update(before)


def in_this_process(function: Callable, *arguments: object) -> object:
    """Calls a function and frees what it leaves on the GPU."""
    try:
        return function(*arguments)
    except torch.OutOfMemoryError as error:
        raise UserError(OUT_OF_MEMORY) from error
    finally:
        torch._dynamo.reset()  # drops what it compiled
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
