"""What the runs of a comparison cost, before they run: `python run_compare.py --config FILE.yaml --dry_run`.

Of each arm the real run_train.py takes a few steps and the real run_eval.py answers a few rows, drawn from the comparison's own
files, in a process and a folder that are gone afterwards. What that took is reckoned up.
"""

import contextlib
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import TrainerCallback, trainer

from ..benchmark.cli import duration
from ..benchmark.measure import apart, resident
from ..checkpoints.mellow import second_clips
from ..data import FeatureCache, ReasonAQACollator, audio_roots, load_reasonaqa
from ..data.reasonaqa import question_type
from ..data.soundscapes.corpus import make_soundscapes
from ..evaluation import evaluate as run_eval
from ..training import train as run_train
from ..training.dataset import clips, rows_per_step
from .plan import Planned, plan, usual
from .runs import model_facts
from .sweep import devices

WARM_UP, STEPS = 3, 10
ROWS = 64  # of validation and of test that are answered


class Clock(TrainerCallback):
    """When each step has ended, in s."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def rows_of(file: str | None) -> list[dict]:
    return json.loads(Path(file).read_text(encoding="utf-8")) if file else []


def sample(file: str, count: int, folder: str) -> str:
    """A file of so many of a file's rows, or all of them, always the same ones."""
    rows = rows_of(file)
    rows = random.Random(0).sample(rows, min(count, len(rows)))
    made = Path(folder, f"{count}-of-{Path(file).name}")
    made.write_text(json.dumps(rows), encoding="utf-8")
    return str(made)


def measure(run: Planned, folder: str) -> dict:
    """What a few steps and rows of a run take, in s, bytes and tokens; what it prints is lost.

    Args:
        folder: for what it writes, the features of clips too.
    """
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        return _measure(run, folder)


def _measure(run: Planned, folder: str) -> dict:
    model_args, data_args, args = run_train.parse(run.train)
    rows = sample(data_args.train_file, (WARM_UP + STEPS) * rows_per_step(args), folder)
    model, processor = run_train.build(model_args, data_args)
    cache = FeatureCache(Path(folder, "features"), model.encoder.to(args.device), processor.feature_extractor)
    heard = load_reasonaqa({"train": rows}, audio_roots(data_args.audio_dir))["train"]
    if model_args.prompt_format == "mellow":
        heard = second_clips(heard, args.seed)
    paths = clips(heard)
    first = paths[: max(1, len(paths) // 4)]
    cache.fill(first)  # the first ones warm up
    start = time.perf_counter()
    cache.fill(paths)
    found = {"cache": cache.folder.name, "clip_seconds": (time.perf_counter() - start) / max(1, len(paths) - len(first))}
    found["clip_bytes"] = sum(file.stat().st_size for file in cache.folder.iterdir()) / len(paths)
    make = ReasonAQACollator(processor, False, cache)
    found["tokens"] = sum(make([row])["input_ids"].numel() for row in heard) / len(heard)
    del model, make
    trained, clock, start = Path(folder, "model"), Clock(), time.perf_counter()
    words = ["--train_file", rows, "--output_dir", str(trained), "--max_steps", str(WARM_UP + STEPS), "--save_strategy", "no",
             "--eval_strategy", "no"]  # fmt: skip
    if data_args.validation_file:
        words += ["--validation_file", sample(data_args.validation_file, ROWS, folder), "--max_eval_samples", str(ROWS)]
    if data_args.feature_cache:
        words += ["--feature_cache", str(Path(folder, "features"))]
    trainer.DEFAULT_CALLBACKS.append(clock)  # the stock Trainer's way in, as nothing of the run is to be changed
    try:
        run_train.main([*run.train, *words])
    finally:
        trainer.DEFAULT_CALLBACKS.remove(clock)
    took = time.perf_counter() - start
    log = json.loads((trained / "trainer_state.json").read_text())["log_history"]
    validation = sum(entry[key] for entry in log for key in entry if key.startswith("eval_") and key.endswith("_runtime"))
    steps = clock.ends[-1] - clock.ends[WARM_UP - 1]
    peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else resident("VmHWM")
    found |= {"parameters": model_facts(trained)["trained_parameters"], "memory": peak, "step_seconds": steps / STEPS,
              "validation_row_seconds": validation / min(ROWS, len(rows_of(data_args.validation_file)) or 1)}  # fmt: skip
    found["train_seconds"] = took - steps * (1 + WARM_UP / STEPS) - validation  # of whatever length
    evaluation, start = run_eval.parse(run.evaluate), time.perf_counter()
    test = sample(evaluation.test_file, ROWS, folder)
    words = ["--test_file", test, "--model_name_or_path", str(trained), "--output_dir", str(trained / "evaluation")]
    if evaluation.feature_cache:
        words += ["--feature_cache", str(Path(folder, "features"))]
    run_eval.main([*run.evaluate, *words])
    took, info = time.perf_counter() - start, json.loads((trained / "evaluation" / "run_info.json").read_text())
    found["test_row_seconds"] = info["seconds"] / min(ROWS, len(rows_of(evaluation.test_file)))
    return found | {"evaluate_seconds": took - info["seconds"]}


def clips_of(rows: list[dict]) -> set[str]:
    return {row[field] for row in rows for field in ("filepath1", "filepath2") if row[field]}


def run_seconds(run: Planned, found: dict, evaluated: bool) -> float:
    """Seconds of a run, by what [`measure`] has found, without the encoding of clips for a cache."""
    _, data_args, args = run_train.parse(run.train, processes=1)
    kinds: dict[str, int] = {}
    for row in rows_of(data_args.validation_file):
        kinds[question_type(row)] = kinds.get(question_type(row), 0) + 1
    validated = sum(min(count, data_args.max_eval_samples) for count in kinds.values())
    seconds = found["train_seconds"] + run.max_steps * found["step_seconds"]
    seconds += -(-run.max_steps // args.eval_steps) * validated * found["validation_row_seconds"]
    if not data_args.feature_cache:
        seconds += data_args.num_stats_clips * found["clip_seconds"]
    if evaluated:
        evaluation = run_eval.parse(run.evaluate)
        asked = min(evaluation.max_samples or sys.maxsize, len(rows_of(evaluation.test_file)))
        seconds += found["evaluate_seconds"] + asked * found["test_row_seconds"]
    return seconds


def size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def dry_run(config: dict, path: str, parallel: int = 1) -> tuple[str, list[str]]:
    """The table of what a comparison costs, of each arm, at each learning rate and number of steps, and in all; and a line for
    each arm that could not take its few steps.

    Raises:
        ValueError: in one line, if an option is wrong.
    """
    lines, spent, encoded, measured, refused = [], 0.0, {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        config = {**config, "output_dir": folder}
        runs, reads = plan(config, path)
        start = time.perf_counter()
        if config["corpus"]:
            make_soundscapes(output_dir=Path(folder, "corpus"), **config["corpus"])
            spent += time.perf_counter() - start
        heard = clips_of([row for file in reads["files"] for row in rows_of(file)])
        rate, _ = usual(config)
        for entry in dict.fromkeys((run.arm, run.learning_rate, run.max_steps) for run in runs):
            of = [run for run in runs if (run.arm, run.learning_rate, run.max_steps) == entry]
            if (arm := entry[0]) not in measured:
                print(f"{arm}: {STEPS} steps…", flush=True)
                place = devices(1, 1)[0]
                with tempfile.TemporaryDirectory() as inside:
                    try:
                        gpu = {} if place is None else {"CUDA_VISIBLE_DEVICES": place}
                        measured[arm] = apart(measure, of[0], inside, **gpu)
                    except (SystemExit, Exception) as error:  # whatever it is, the other arms can be measured
                        measured[arm], refused[arm] = None, f"{arm}: {' '.join(str(error).split()) or type(error).__name__}"
            if arm in refused:
                continue
            found, filled = measured[arm], len(heard) if config["feature_cache"] else 0
            encoded[found["cache"]] = filled * found["clip_seconds"]
            each = run_seconds(of[0], found, entry[1] == rate)
            spent += len(of) * each
            name = arm + ("" if entry[1] == rate else f", lr {entry[1]:g}")
            cells = [f"{entry[2]:,}", f"{found['parameters']:,}", f"{found['tokens']:,.0f}", size(filled * found["clip_bytes"]),
                     size(found["memory"] or 0), f"{1000 * found['step_seconds']:,.0f}", duration(each), str(len(of)),
                     duration(len(of) * each)]  # fmt: skip
            lines.append(f"{name:<28}" + "".join(f"{cell:>14}" for cell in cells))
    titles = ("steps", "trained", "tokens a row", "cache", "peak memory", "ms a step", "a run", "seeds", "together")
    total = spent + sum(encoded.values())
    end = [f"filling the feature cache, once for each encoder: {duration(sum(encoded.values()))}",
           f"in all {duration(total)}, one after another"]  # fmt: skip
    if parallel > 1:
        end.append(f"{parallel} at once, if they do not wait for each other: {duration(total / parallel)}")
    table = "\n".join([f"{'arm':<28}" + "".join(f"{title:>14}" for title in titles), *lines, *end])
    return table, list(refused.values())
