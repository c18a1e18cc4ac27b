"""Trains, evaluates and compares the arms of a config, or compares finished evaluations.

A finished run is not repeated unless what it depends on has changed. Arms that failed are left out.
"""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from ..checkpoints.load import import_saved_encoders
from ..data.reasonaqa import AudioDir, audio_roots
from ..data.soundscapes.corpus import make_soundscapes, write_labels
from ..evaluation.arguments import parse_arguments as parse_eval_arguments
from ..runtime import RUN_INFO_FILE, UserError, explain_errors, write_json
from .cluster import RayCluster
from .compare import compare
from .config import ComparisonConfig, read_config
from .plan import digest_inputs, digest_paths, plan_comparison, probe_argv
from .planned_run import PlannedRun
from .report.build import write_report
from .report.figure import write_figure
from .runs import Run, check_comparable, model_facts, read_run
from .sweep import do_runs, run_in_process, without_failures
from .tables import comparison_table


def compare_config(args: Namespace) -> list[str]:
    """Trains, evaluates and compares what `--config` describes. See `run.build_parser`.

    Returns:
        What failed, a line for each run or topic of the probes.
    """
    config = read_config(
        args.config, seeds=args.seeds, output_dir=args.output_dir, data_dir=args.data_dir
    )
    planned = plan_comparison(config, args.processes_per_run)
    cluster = None
    if args.parallel or args.ray_address:
        cluster = RayCluster(args.parallel, args.processes_per_run, args.ray_address)
    if config.note:
        print(config.note, flush=True)
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    labels = generate_corpus(config)
    planned = digest_inputs(planned)
    failures = do_runs(planned, cluster)
    finished = without_failures(planned, failures)
    lines = [f"{name}: {failure}" for name, failure in failures.items()]
    if finished:
        try:
            comparison, runs = compare_finished_runs(config, finished)
        except UserError as error:
            raise UserError("; ".join([str(error), *lines])) from error
        probes, probe_failures = run_probes(config, labels)
        lines += probe_failures
        if probes:
            comparison["probes"] = probes
        audio_dir = parse_eval_arguments(finished[0].argv["evaluate"]).audio_dir
        write_results(Path(config.output_dir), comparison, runs, audio_roots(audio_dir))
    return lines


def generate_corpus(config: ComparisonConfig) -> dict[str, Path]:
    """Generates the corpus of a config, or reads a complete one.

    Returns:
        The CSV file of each topic of the probes.
    """
    own_labels = (config.probe or {}).get("labels")
    labels = {topic: Path(file) for topic, file in (own_labels or {}).items()}
    if config.corpus:
        folder = Path(config.output_dir, "corpus")
        with explain_errors(f"--config {config.path}: corpus", ValueError):
            rows, seed = config.corpus["rows"], config.corpus["seed"]
            make_soundscapes(folder, rows, seed, config.recordings())
        if config.probe and not own_labels:
            labels = write_labels(folder)
    return labels


def compare_finished_runs(
    config: ComparisonConfig, finished: list[PlannedRun]
) -> tuple[dict, dict[str, list[Run]]]:
    """Returns the content of `comparison.json`, and the evaluations of each arm."""
    runs: dict[str, list[Run]] = {}
    for run in finished:
        runs.setdefault(run.arm, []).append(read_run(run.folder / "evaluation"))
    seeds = " ".join(map(str, config.seeds))
    header = {
        "command": f"run_compare.py --config {config.path} --seeds {seeds}",
        "note": config.note,
        "corpus": config.corpus,
        "train": config.train,
        "eval": config.eval,
    }
    comparison = compare_runs(runs, header, config.arms)
    record = (finished[0].folder / RUN_INFO_FILE).read_text(encoding="utf-8")
    comparison["code"] = json.loads(record)["code"]
    left_out = [arm for arm in config.arms if arm not in runs]
    if left_out:
        comparison["left_out"] = left_out
    return comparison, runs


def compare_runs(
    runs: Mapping[str, list[Run]], header: dict, options_by_arm: Mapping[str, dict]
) -> dict:
    """Returns `comparison.json` of comparable runs, with facts of the models where they are."""
    check_comparable(runs)
    comparison = compare(runs, header, options_by_arm)
    for arm, results in comparison["arms"].items():
        results |= options_by_arm.get(arm, {})
        model_folder = runs[arm][0].folder.parent
        if (model_folder / "trainer_state.json").is_file():
            results |= model_facts(model_folder)
    return comparison


def run_probes(
    config: ComparisonConfig, labels: Mapping[str, Path]
) -> tuple[dict[str, dict], list[str]]:
    """Probes the arms' encoders, unless that is done.

    Returns:
        `probes.json` of each topic, and what failed. A topic that failed is left out.
    """
    results = {}
    failures = []
    for topic, file in labels.items():
        argv = probe_argv(config, topic, file)
        folder = Path(config.output_dir, "probes", topic)
        record_path = folder / "probe.json"
        record = {"argv": argv, "labels": digest_paths([str(file)])}
        if not record_path.is_file() or json.loads(record_path.read_text()) != record:
            print(f"Probing the encoders: {topic}…", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            log = folder / "probe.log"
            message = run_in_process("audiolm.evaluation.probe_command", argv, log)
            if message is not None:
                failures.append(f"probes of {topic}: {message} ({log})")
                continue
            write_json(record_path, record)
        results[topic] = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
    return results, failures


def compare_folders(args: Namespace) -> list[str]:
    """Compares the evaluations of `--evaluations`. Nothing is trained, so that nothing fails."""
    runs = read_evaluations(args.evaluations)
    if args.trust_remote_code:
        models = [seeds[0].folder.parent for seeds in runs.values()]
        import_saved_encoders([str(model) for model in models if (model / "config.json").is_file()])
    published = [arm for arm, seeds in runs.items() if seeds[0].is_published]
    note = ""
    if published:
        note = (
            f"{', '.join(published)}: trained by its authors with other settings. It differs in "
            "more than its encoder. It is one checkpoint, so nothing is said about another "
            "training of it."
        )
    command = f"run_compare.py --evaluations {' '.join(args.evaluations)}"
    comparison = compare_runs(runs, {"command": command, "note": note}, {})
    audio_dir = audio_roots(args.audio_dir) if args.audio_dir else None
    write_results(Path(args.output_dir or "outputs/compare"), comparison, runs, audio_dir)
    return []


def read_evaluations(evaluations: list[str]) -> dict[str, list[Run]]:
    """Returns the evaluations that `ARM=FOLDER` options name, by arm."""
    runs: dict[str, list[Run]] = {}
    for option in evaluations:
        arm, _, folder = option.partition("=")
        if not arm or not folder:
            raise UserError(
                f"--evaluations {option}: expected ARM=FOLDER, such as "
                "htsat=outputs/htsat/evaluation"
            )
        runs.setdefault(arm, []).append(read_run(folder))
    if len(runs) < 2:
        raise UserError("--evaluations: expected at least two arms")
    return runs


def write_results(
    output: Path, comparison: dict, runs: Mapping[str, list[Run]], audio_dir: AudioDir | None
) -> None:
    """Writes `comparison.json`, the figure and the report, and prints the table."""
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "comparison.json", comparison)
    write_figure(output / "figure.svg", comparison)
    report = output / "report.html"
    write_report(report, comparison, runs, audio_dir)
    texts = (
        comparison_table(comparison),
        comparison.get("conclusion"),
        " ".join(comparison.get("caveats", [])),
        comparison["note"],
    )
    print(*filter(None, texts), sep="\n")
    model = next(iter(runs.values()))[0].folder.parent
    question = f'audiolm ask CLIP "QUESTION" --model {model}'
    print(f"Saved to {output}. Next: open {report}, or ask a model: {question}")
