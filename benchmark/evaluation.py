"""Measures an evaluation: rows per second of each protocol and control, and of a plain loop."""

import time
from argparse import Namespace
from itertools import chain

import torch
from tqdm import tqdm

from ..data.features import FeatureCache
from ..evaluation.answering import PROTOCOLS
from ..evaluation.predict import Answerer
from ..runtime import format_duration, use_all_of_the_cpu
from .workload import build_model, clip_files, draw_examples

TEST_ROWS = 161_800  # of ReasonAQA's test set
LETTERS = "ABCD"
# Those that change a model's input. `majority` needs no model, and `question_only` another one.
CONTROLS = ("no_audio", "noise", "mismatched_audio", "option_relabel")


def draw_rows(options: Namespace, clips: list[str], vocab_size: int) -> list[dict]:
    """Draws test rows of ReasonAQA's lengths. Those with short answers have four options."""
    rows = draw_examples(options.rows, vocab_size, clips, options.one_clip)
    answers = [row["answer"] for row in rows]
    for index, row in enumerate(rows):
        row["question_type"] = "detail"
        if row["answer"].count("w") < 10:
            texts = [answers[(index + step) % len(answers)][:12] for step in range(len(LETTERS))]
            listed = " ".join(f"{letter}) {text}" for letter, text in zip(LETTERS, texts))
            row["question_type"] = "mcq"
            row["input"] += f" {listed}"
            row["answer"] = f"A) {texts[0]}"
    return rows


def measure_evaluation(options: Namespace, folder: str) -> dict[str, float]:
    """Returns the seconds per row of the plain loop, each protocol and control.

    `encoding` has the seconds per clip, which an evaluation spends once.
    """
    use_all_of_the_cpu()
    model, processor = build_model(options)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    # A random model ends no text: every one has the longest length.
    model.generation_config.eos_token_id = None
    rows = draw_rows(options, clip_files(folder), model.config.text_config.vocab_size)
    cache = FeatureCache(folder, model.encoder, processor.feature_extractor)
    num_clips = len(set(chain.from_iterable(row["audio"] for row in rows)))
    seconds: dict[str, float] = {}

    def answer(protocol: str, controls: tuple[str, ...] = ()) -> None:
        answerer = Answerer(
            model,
            processor,
            (protocol,),
            controls,
            options.batch_size,
            options.max_new_tokens,
            options.precision,
            cache,
        )
        answerer.answer_chunk(rows, tqdm(disable=True))
        seconds.setdefault("encoding", answerer.seconds["encoding"] / num_clips)
        activity = "controls" if controls else "answering"
        seconds[controls[0] if controls else protocol] = answerer.seconds[activity] / len(rows)

    for protocol in PROTOCOLS:
        answer(protocol)
    for control in CONTROLS:
        answer("likelihood", (control,))
    plain_rows = rows[: max(1, len(rows) // 4)]
    start = time.perf_counter()
    for row in plain_rows:  # decoded, encoded and answered one after another, as others evaluate
        inputs = processor(row["input"], row["audio"]).to(model.device)
        model.generate(**inputs, max_new_tokens=options.max_new_tokens, do_sample=False)
    seconds["plain generate loop"] = (time.perf_counter() - start) / len(plain_rows)
    return seconds


def format_evaluation(seconds: dict[str, float], options: Namespace) -> str:
    """Formats the results as a table, with an estimate for ReasonAQA's test set."""
    seconds = dict(seconds)
    encoding, plain = seconds.pop("encoding"), seconds.pop("plain generate loop")
    lines = [
        f"{options.rows} rows, batch size {options.batch_size}, {options.precision}, texts of "
        f"{options.max_new_tokens} tokens",
        f"{'':<22}{'rows/s':>10}  {f'{TEST_ROWS:,} rows':>14}",
    ]
    for name, value in {"plain generate loop": plain, **seconds}.items():
        lines.append(f"{name:<22}{1 / value:>10,.2f}  {format_duration(TEST_ROWS * value):>14}")
    both = sum(seconds[protocol] for protocol in PROTOCOLS)
    total = format_duration(TEST_ROWS * sum(seconds.values()))
    lines.append(f"whole evaluation: {total}, and {format_duration(encoding)} once for each clip")
    lines.append(f"generate: {plain / seconds['generate']:.1f} x the plain loop")
    lines.append(f"both protocols: {plain / both:.1f} x the plain loop, which has one")
    return "\n".join(lines)
