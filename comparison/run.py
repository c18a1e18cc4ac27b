"""Trains, evaluates and compares arms: `python run_compare.py --config demo`.

The config is a YAML file or a preset. It names the arms, the seeds, the data, and options of
run_train.py and run_eval.py. `output_dir` gets a folder for each arm, `comparison.json`,
`report.html`, `figure.svg` and `timings.json`.

The same command resumes an interrupted comparison. A finished arm runs again only if its options,
its data or its checkpoints changed. Failed runs are listed at the end. Arms that finished with all
seeds are compared without the others.

Runs go one after another. With the extra `cluster`, `--parallel N` does N of them at once, and
`--ray_address auto` uses all machines of a Ray cluster. See docs/train.md.

`python run_compare.py --evaluations htsat=A mimi_full=B` compares folders of run_eval.py. Repeat
an arm's name to add another seed.

`audiolm compare --plan_power 3 --comparison outputs/compare/comparison.json` says how many seeds
and clips find a difference of 3 points.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from ..data import audio_roots
from ..runtime import UserError, format_duration, write_json
from .compare import compare
from .experiment import ComparisonResult, compare_config, explain_file_errors
from .power import plan_power
from .report.build import write_report
from .report.figure import write_figure
from .runs import Run, check_comparable, model_facts, read_run
from .tables import comparison_table


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `run_compare.py`."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--config", help="YAML file of the comparison, or a preset such as demo (configs/demo.yaml)"
    )
    source.add_argument(
        "--evaluations", nargs="+", metavar="ARM=FOLDER", help="folders that run_eval.py wrote"
    )
    source.add_argument(
        "--plan_power",
        type=float,
        metavar="POINTS",
        help="print how many seeds and clips find a difference of so many points in macro accuracy "
        "with 80 %% power; add --comparison, or --scatter, --clip_error and --clips",
    )
    _add_noise_options(parser)
    seeds_help = "seeds with which each arm is trained; overrides the config"
    add("--seeds", type=int, nargs="+", help=seeds_help)
    add("--output_dir", help="folder of the results; overrides the config")
    data_help = "folder of ReasonAQA, as `audiolm prepare download` fills it; overrides the config"
    add("--data_dir", help=data_help)
    audio_help = "with --evaluations: folder of the audio for the report (default: no audio in it)"
    add("--audio_dir", nargs="+", help=audio_help)
    add(
        "--parallel",
        type=int,
        metavar="N",
        help="do N runs at once on this machine (on each machine with --ray_address), each in its "
        "own processes and on its own GPUs (default: one after another in this process)",
    )
    add(
        "--processes_per_run",
        type=int,
        default=1,
        metavar="P",
        help="with --parallel or --ray_address: processes of each run, started with "
        "`accelerate launch --num_processes P` (default: 1)",
    )
    add(
        "--ray_address",
        metavar="ADDRESS",
        help="do the runs on a Ray cluster, such as auto for that of this machine "
        "(default with --parallel: start Ray on this machine)",
    )
    return parser


def _add_noise_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--comparison", help="with --plan_power: a comparison.json that shows both errors")
    scatter_help = "with --plan_power: standard deviation between seeds, in points"
    add("--scatter", type=float, metavar="POINTS", help=scatter_help)
    add(
        "--clip_error",
        type=float,
        metavar="POINTS",
        help="with --plan_power: standard error of a difference over --clips clips, in points",
    )
    add("--clips", type=int, help="with --plan_power: number of clips with that error")


def _check_noise_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    numbers = (args.scatter, args.clip_error, args.clips)
    if args.plan_power is None:
        if args.comparison or numbers != (None, None, None):
            parser.error(
                "--comparison, --scatter, --clip_error, --clips: use them with --plan_power"
            )
        return
    has_numbers = all(number is not None for number in numbers)
    if bool(args.comparison) == has_numbers:
        parser.error("--plan_power: add --comparison, or --scatter, --clip_error and --clips")
    values = {"plan_power": args.plan_power}
    if has_numbers:
        values |= {"scatter": args.scatter, "clip_error": args.clip_error, "clips": args.clips}
    for option, value in values.items():
        if value <= 0:
            parser.error(f"--{option} {value:g}: expected a positive number")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the checked options of `run_compare.py`."""
    parser = build_parser()
    args = parser.parse_args(argv)
    _check_noise_options(parser, args)
    uses_ray = args.parallel is not None or args.ray_address is not None
    if args.evaluations and (uses_ray or args.processes_per_run != 1):
        parser.error("--parallel, --processes_per_run and --ray_address: use them with --config")
    for option in ("parallel", "processes_per_run"):
        value = getattr(args, option)
        if value is not None and value < 1:
            parser.error(f"--{option} {value}: expected a positive number")
    if args.processes_per_run > 1 and not uses_ray:
        parser.error(f"--processes_per_run {args.processes_per_run}: add --parallel")
    if args.config and not uses_ray and torch.cuda.device_count() > 1:
        # One process does not train on several GPUs, so it uses the first.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    return args


def compare_encoders(args: argparse.Namespace) -> None:
    """Runs `run_compare.py`: compares, writes the results, and exits with 1 if a run failed."""
    if args.plan_power is not None:
        print(plan_power(args))
        return
    started_at = time.perf_counter()
    result = compare_config(args) if args.config else compare_folders(args)
    if result.comparison:
        write_results(result)
        print(f"{format_duration(time.perf_counter() - started_at)} in total")
    if result.failures:
        lines = [f"{len(result.failures)} runs failed. The same command tries them again:"]
        lines += [f"  {failure}" for failure in result.failures]
        print(*lines, sep="\n", file=sys.stderr)
        sys.exit(1)


def write_results(result: ComparisonResult) -> None:
    """Writes `comparison.json`, the figure and the report, and prints the table."""
    comparison, output = result.comparison, result.output
    files = [output / "comparison.json", output / "report.html"]
    write_json(files[0], comparison)
    if write_figure(output / "figure.svg", comparison):
        files.append(output / "figure.svg")
    write_report(files[1], comparison, result.runs, result.audio_dir)
    caveats = " ".join(comparison.get("caveats", []))
    texts = (comparison_table(comparison), comparison.get("conclusion"), caveats)
    texts += (comparison["note"],)
    for text in filter(None, texts):
        print(text)
    print(f"Saved to {output}. Next: open {files[1]}, or ask a model: ", end="")
    print(
        'audiolm ask CLIP "QUESTION" --model '
        + str(next(iter(result.runs.values()))[0].folder.parent)
    )


def compare_folders(args: argparse.Namespace) -> ComparisonResult:
    """Compares the evaluations of `--evaluations`."""
    runs = read_evaluations(args.evaluations)
    check_comparable(runs)
    output = Path(args.output_dir or "outputs/compare")
    with explain_file_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    published = [arm for arm, seeds in runs.items() if seeds[0].is_published]
    note = ""
    if published:
        note = (
            f"{', '.join(published)}: trained by its authors with other settings. It differs in "
            "more than its encoder. It is one checkpoint, so nothing is said about another "
            "training of it."
        )
    comparison: dict = {
        "command": f"run_compare.py --evaluations {' '.join(args.evaluations)}",
        "note": note,
        "corpus": None,
        "train": {},
        "eval": {},
        **compare(runs),
    }
    for arm, seeds in runs.items():
        model_folder = seeds[0].folder.parent
        if (model_folder / "trainer_state.json").is_file():
            comparison["arms"][arm] |= model_facts(model_folder)
    audio_dir = audio_roots(args.audio_dir) if args.audio_dir else None
    return ComparisonResult(output, [], comparison, runs, audio_dir)


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
