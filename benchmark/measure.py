"""Measures one thing at a time: the feature cache, training steps."""

import random
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain, pairwise
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from torch import nn

from ..data.collator import ReasonAQACollator
from ..data.features import FeatureCache
from ..modeling_audiolm import AudioLMForConditionalGeneration
from ..runtime import UserError, resident_memory, use_all_of_the_cpu
from ..training.compile import PAD_TO, cache_bf16_weights, compile_layers
from .workload import (
    baseline_loss,
    build_model,
    clip_files,
    collate_baseline,
    draw_examples,
    encode_batch,
    model_loss,
    write_clips,
)

RUN_STEPS = 20_000
SLICE_SIZE = 4  # examples; on a CPU, the whole baseline step of mimi_full takes over 24 GiB
PARTS = ("data", "encode", "forward", "backward", "optimizer")


class Workload(NamedTuple):
    """One variant of the training step, with the warm-up batches and then the measured ones.

    A batch is a list of slices, whose gradients are added up to save memory.
    """

    model: AudioLMForConditionalGeneration
    loss: Callable[[AudioLMForConditionalGeneration, dict], torch.Tensor]
    collate: Callable[[list[dict]], dict]
    batches: list[list[list[dict]]]  # of examples with their number of `tokens`
    uses_bf16: bool


class PartTimer:
    """Times the parts of steps with CUDA events, for which no step waits, or the host's clock."""

    def __init__(self):
        self.marks = []

    def mark(self, part: str) -> None:
        """Ends a part, which begins at the mark before. The first mark ends nothing."""
        if torch.cuda.is_available():
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self.marks.append((moment, part))

    def seconds(self) -> torch.Tensor:
        """Returns the time of each part, shape `(steps, parts)`. A step ends with its last part."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        steps = [[0.0] * len(PARTS)]
        for (start, _), (end, part) in pairwise(self.marks):
            is_event = isinstance(start, torch.cuda.Event)
            span = start.elapsed_time(end) / 1000 if is_event else end - start
            steps[-1][PARTS.index(part)] += span
            if part == PARTS[-1]:
                steps.append([0.0] * len(PARTS))
        return torch.tensor(steps[:-1], dtype=torch.float64)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare(options: Namespace, folder: str, cached: bool) -> float | None:
    """Writes the clips and fills their feature cache. Returns the seconds per clip for it."""
    use_all_of_the_cpu()
    model, processor = build_model(options)
    write_clips(folder, model.encoder.sample_rate, options.seconds)
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


def _split(examples: list, size: int) -> list[list]:
    return [examples[start : start + size] for start in range(0, len(examples), size)]


def build_workload(options: Namespace, is_baseline: bool, folder: str, cached: bool) -> Workload:
    """Builds a variant's model, collator and batches. Both variants see the same examples."""
    model, processor = build_model(options)
    model.to(_device()).train()
    text_config = model.config.text_config
    extractor = processor.feature_extractor
    frames = extractor.num_frames(round(options.seconds * extractor.sampling_rate))
    num_warmup = (3 if torch.cuda.is_available() else 1) * options.batch_size
    count = num_warmup + options.steps * options.batch_size
    examples = draw_examples(count, text_config.vocab_size, clip_files(folder), options.one_clip)
    prompts = processor.encode_prompts(
        [example["input"] for example in examples],
        [[frames] * len(example["audio"]) for example in examples],
    )
    answers = processor.encode_answers([example["answer"] for example in examples])
    for example, prompt, answer in zip(examples, prompts, answers):
        example["tokens"] = len(prompt) + len(answer)
    longest = max(example["tokens"] for example in examples)
    if longest > text_config.max_position_embeddings:
        raise UserError(
            f"--seconds {options.seconds:g}: an example has {longest} tokens, but the language "
            f"model takes at most {text_config.max_position_embeddings}"
        )
    if is_baseline:
        size = options.batch_size if torch.cuda.is_available() else SLICE_SIZE
        batches = [_split(batch, size) for batch in _split(examples, options.batch_size)]
        collate = partial(collate_baseline, processor=processor)
        return Workload(model, baseline_loss, collate, batches, False)
    warmup = _split(examples[:num_warmup], options.batch_size)
    # Batches of similar length, as in training.
    by_length = sorted(examples[num_warmup:], key=lambda example: example["tokens"])
    measured = _split(by_length, options.batch_size)
    random.Random(0).shuffle(measured)
    uses_bf16 = options.precision == "bf16"
    if uses_bf16 and model.config.freeze_lm:
        cache_bf16_weights(model.language_model)
    if options.torch_compile:
        compile_layers(model.language_model)
        if torch.cuda.is_available():
            # A length is seen once, recorded as a CUDA graph the second time, and measured then.
            warmup += measured * 2
    cache = FeatureCache(folder, model.encoder, extractor) if cached else None
    pad_to = PAD_TO if options.torch_compile else 1
    collate = ReasonAQACollator(processor, cache, pad_to)
    return Workload(model, model_loss, collate, [[b] for b in warmup + measured], uses_bf16)


def _load(workload: Workload, examples: list[dict]) -> dict:
    batch = workload.collate(examples)
    for name, value in batch.items():
        if torch.is_tensor(value):
            value = value.pin_memory() if torch.cuda.is_available() else value
            batch[name] = value.to(_device(), non_blocking=True)
    return batch


def time_steps(options: Namespace, workload: Workload) -> dict[str, Any]:
    """Trains on all batches and times the parts of each measured step.

    Returns:
        `parts`, seconds of shape `(measured steps, parts)`, `padded` tokens of all measured steps,
        the `losses` of all steps, and `warmup_seconds`.
    """
    model = workload.model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)  # as the Trainer's
    timer = PartTimer()
    losses, padded = [], []
    start = time.perf_counter()
    timer.mark("")
    for step, examples in enumerate(workload.batches):
        if step == len(workload.batches) - options.steps:
            warmup_seconds = time.perf_counter() - start
        batch = [_load(workload, part) for part in examples]
        padded.append(sum(part["input_ids"].numel() for part in batch))
        num_labels = [part["labels"].ne(-100).sum() for part in batch]
        step_loss = torch.zeros((), device=_device())
        timer.mark("data")
        for part, count in zip(batch, num_labels):
            encode_batch(model, part)
            timer.mark("encode")
            with torch.autocast(_device().type, torch.bfloat16, enabled=workload.uses_bf16):
                loss = workload.loss(model, part)
                if len(batch) > 1:
                    loss = loss * count / sum(num_labels)
            timer.mark("forward")
            loss.backward()
            step_loss += loss.detach()
            timer.mark("backward")
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(step_loss)
        timer.mark("optimizer")
    return {
        "parts": timer.seconds()[-options.steps :],
        "padded": sum(padded[-options.steps :]),
        "losses": torch.stack(losses).tolist(),
        "warmup_seconds": warmup_seconds,
    }


def measure(options: Namespace, is_baseline: bool, folder: str, cached: bool = False) -> dict:
    """Measures the steps of one variant on the clips of `prepare`, and their memory.

    Returns:
        The rates of the measured steps, as the JSON file has them.
    """
    cuda = torch.cuda.is_available()
    if not is_baseline:
        use_all_of_the_cpu(encodes=not cached)
    memory_before = torch.cuda.memory_reserved() if cuda else resident_memory("VmRSS")
    workload = build_workload(options, is_baseline, folder, cached)
    facts = time_steps(options, workload)
    parts, padded = facts.pop("parts"), facts.pop("padded")
    steps = parts.sum(1)
    total = steps.sum().item()
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    spans = zip((*PARTS, "step"), [*parts.T, steps])
    measured = chain.from_iterable(workload.batches[-options.steps :])
    examples = list(chain.from_iterable(measured))
    tokens = sum(example["tokens"] for example in examples)
    peak = torch.cuda.max_memory_reserved() if cuda else resident_memory("VmHWM")
    is_measured = peak is not None and memory_before is not None
    return {
        "precision": "bf16" if workload.uses_bf16 else "fp32",
        "seconds": {part: span.quantile(quartiles).tolist() for part, span in spans},
        "mean_step_seconds": total / options.steps,
        "run_seconds": RUN_STEPS * total / options.steps,
        "samples_per_second": len(examples) / total,
        "tokens_per_second": tokens / total,
        "tokens_per_step": {"real": tokens / options.steps, "padded": padded / options.steps},
        "clips_per_step": sum(len(example["audio"]) for example in examples) / options.steps,
        "trained_parameters": workload.model.num_parameters(only_trainable=True),
        "peak_memory_bytes": peak - memory_before if is_measured else None,
        **facts,
    }


def run_isolated(function: Callable, *arguments: object) -> object:
    """Calls a function in a new process, so that it has its own memory.

    A `UserError` tells if memory does not suffice.
    """
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(function, *arguments).result()
    except RuntimeError as error:
        is_killed = isinstance(error, (BrokenProcessPool, torch.OutOfMemoryError))
        if is_killed or "allocate memory" in str(error):
            raise UserError("out of memory: take a smaller --batch_size") from error
        raise
