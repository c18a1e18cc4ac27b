"""Trains, evaluates and compares the arms of a config.

A finished run is not repeated unless what it depends on has changed. Arms that failed are left out.
"""

import contextlib
import json
import time
from argparse import Namespace
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..data import audio_roots
from ..data.reasonaqa import AudioDir
from ..data.soundscapes.corpus import make_soundscapes, write_labels
from ..evaluation import probe_command
from ..runtime import RUN_INFO_FILE, UserError, write_json
from .cluster import RayCluster
from .compare import compare
from .conclusion import caveats
from .config import ComparisonConfig, read_config
from .plan import Plan, digest_paths, plan_comparison, probe_argv
from .planned_run import Failure, PlannedRun
from .runs import Run, check_comparable, model_facts, read_run
from .sweep import Sweep


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison came to."""

    output: Path
    failures: list[Failure]
    comparison: dict = field(default_factory=dict)  # `comparison.json`; empty if every arm failed
    runs: Mapping[str, list[Run]] = field(default_factory=dict)  # of each arm, one for each seed
    audio_dir: AudioDir | None = None  # without it, the report has no audio


def compare_config(args: Namespace) -> ComparisonResult:
    """Trains, evaluates and compares what `--config` describes. See `run.build_parser`."""
    config = read_config(args.config, args.seeds, args.output_dir, args.data_dir)
    plan = plan_comparison(config, args.processes_per_run)
    cluster = None
    if args.parallel or args.ray_address:
        cluster = RayCluster(args.parallel, args.processes_per_run, args.ray_address)
    output = Path(config.output_dir)
    if config.note:
        print(config.note, flush=True)
    with explain_file_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        generate_corpus(config)
        sweep = Sweep(plan.digest_inputs(), cluster)
        sweep.do(sweep.runs)
    try:
        return compare_finished_runs(config, plan, sweep)
    except UserError as error:
        raise UserError("; ".join([str(error), *map(str, sweep.failures)])) from error


@contextlib.contextmanager
def explain_file_errors(output: Path) -> Generator[None, None, None]:
    """Turns a file's error, such as a full disk, into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or output}: {error.strerror or error}") from error


def generate_corpus(config: ComparisonConfig) -> None:
    """Generates the corpus of a config, or reads a complete one. Records the seconds."""
    if not config.corpus:
        return
    started_at = time.perf_counter()
    try:
        folder = Path(config.output_dir, "corpus")
        corpus = config.corpus
        make_soundscapes(folder, corpus["rows"], corpus["seed"], config.recordings())
    except ValueError as error:
        raise UserError(f"--config {config.path}: corpus: {error}") from error
    timings = Path(config.output_dir, "timings.json")
    if not timings.is_file():
        write_json(timings, {"corpus": round(time.perf_counter() - started_at, 1)})


def compare_finished_runs(config: ComparisonConfig, plan: Plan, sweep: Sweep) -> ComparisonResult:
    """Compares the arms of which no run failed."""
    output = Path(config.output_dir)
    finished = sweep.without_failures(sweep.runs)
    if not finished:
        return ComparisonResult(output, sweep.failures)
    runs = load_evaluations(finished)
    check_comparable(runs)
    comparison = build_comparison(config, plan, finished, runs)
    if config.probe:
        comparison["probes"] = run_probes(config)
    timings = output / "timings.json"
    corpus = json.loads(timings.read_text()) if timings.is_file() else {}
    write_json(timings, {**corpus, "arms": sweep.timings()})
    return ComparisonResult(output, sweep.failures, comparison, runs, audio_roots(plan.audio_dir))


def build_comparison(
    config: ComparisonConfig,
    plan: Plan,
    finished: list[PlannedRun],
    runs: Mapping[str, list[Run]],
) -> dict:
    """Returns `comparison.json`, without durations, so that a repeated command writes the same."""
    seeds = " ".join(map(str, config.seeds))
    comparison: dict = {
        "command": f"run_compare.py --config {config.path} --seeds {seeds}",
        "note": config.note,
        "corpus": config.corpus,
        "train": config.train,
        "eval": config.eval,
        **compare(runs),
    }
    comparison["caveats"] = caveats(comparison, config.arms)
    record = (finished[0].folder / RUN_INFO_FILE).read_text(encoding="utf-8")
    comparison["code"] = json.loads(record)["code"]
    left_out = [arm for arm in config.arms if arm not in runs]
    if left_out:
        comparison["left_out"] = left_out
    train_rows = json.loads(Path(plan.data_files[0]).read_text(encoding="utf-8-sig"))
    comparison["rows"]["train"] = len(train_rows)
    for run in finished:
        if run.seed == config.seeds[0]:
            comparison["arms"][run.arm] |= {**config.arms[run.arm], **model_facts(run.folder)}
    return comparison


def load_evaluations(runs: list[PlannedRun]) -> dict[str, list[Run]]:
    """Returns the evaluations of finished runs by arm."""
    evaluations: dict[str, list[Run]] = {}
    for run in runs:
        evaluations.setdefault(run.arm, []).append(read_run(run.folder / "evaluation"))
    return evaluations


def run_probes(config: ComparisonConfig) -> dict[str, dict]:
    """Probes the arms' encoders, unless that is done. Returns `probes.json` of each topic."""
    own_labels = (config.probe or {}).get("labels")
    if own_labels:
        labels = {topic: Path(file) for topic, file in own_labels.items()}
    else:
        labels = write_labels(Path(config.output_dir, "corpus"))
    results = {}
    for topic, argv in probe_argv(config, labels).items():
        folder = Path(config.output_dir, "probes", topic)
        record_path = folder / "probe.json"
        record = {"words": argv, "labels": digest_paths([str(labels[topic])])}
        if not record_path.is_file() or json.loads(record_path.read_text()) != record:
            print(f"Probing the encoders: {topic}…", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            log_path = folder / "probe.log"
            with open(log_path, "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
                probe_command.main(argv)
            write_json(record_path, record)
        results[topic] = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
    return results
