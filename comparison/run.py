"""Trains, evaluates and compares arms: `python run_compare.py --config demo`.

The config is a YAML file or a preset. It names the arms, the seeds, the data, and options of
run_train.py and run_eval.py. `output_dir` gets a folder for each arm, `comparison.json`,
`report.html` and `figure.svg`.

The same command resumes an interrupted comparison. A finished arm runs again only if its options,
its data or its checkpoints changed. Failed runs are listed at the end. Arms that finished with all
seeds are compared without the others.

Runs go one after another. With the extra `cluster`, `--parallel N` does N of them at once, and
`--ray_address auto` uses all machines of a Ray cluster. See docs/ablations.md.

`python run_compare.py --evaluations htsat=A mimi_full=B` compares folders of run_eval.py. Repeat
an arm's name to add another seed.

`audiolm compare --plan_power 3 --comparison outputs/compare/comparison.json` says how many seeds
and clips find a difference of 3 points.
"""

import argparse
import os
import sys
import time

import torch

from ..runtime import UserError, format_duration
from .experiment import compare_config, compare_folders
from .power import plan_power

# The options that others need.
NEEDED_OPTIONS = {
    "comparison": ("plan_power",),
    "seeds": ("config",),
    "data_dir": ("config",),
    "parallel": ("config",),
    "ray_address": ("config",),
    "audio_dir": ("evaluations",),
    "trust_remote_code": ("evaluations",),
    "output_dir": ("config", "evaluations"),
}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `run_compare.py`."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    config_help = "YAML file of the comparison, or a preset such as demo (configs/demo.yaml)"
    source.add_argument("--config", help=config_help)
    folders_help = "folders that run_eval.py wrote"
    source.add_argument("--evaluations", nargs="+", metavar="ARM=FOLDER", help=folders_help)
    source.add_argument(
        "--plan_power",
        type=float,
        metavar="POINTS",
        help="with --comparison: print how many seeds and clips find a difference of so many "
        "points in macro accuracy with 80 %% power",
    )
    add("--comparison", help="with --plan_power: comparison.json of several seeds")
    seeds_help = "seeds with which each arm is trained; overrides the config"
    add("--seeds", type=int, nargs="+", help=seeds_help)
    add("--output_dir", help="folder of the results; overrides the config")
    data_help = "folder of ReasonAQA, as `audiolm prepare download` fills it; overrides the config"
    add("--data_dir", help=data_help)
    audio_help = "with --evaluations: folder of the audio for the report (default: no audio in it)"
    add("--audio_dir", nargs="+", help=audio_help)
    trust_help = "with --evaluations: run the file of an encoder in a model's folder"
    add("--trust_remote_code", action="store_true", help=trust_help)
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


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the checked options of `run_compare.py`."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for option in ("plan_power", "parallel", "processes_per_run"):
        value = getattr(args, option)
        if value is not None and value <= 0:
            parser.error(f"--{option} {value:g}: expected a positive number")
    for option, needed in NEEDED_OPTIONS.items():
        if getattr(args, option) and not any(getattr(args, name) for name in needed):
            parser.error(f"--{option}: use it with --{' or --'.join(needed)}")
    if args.plan_power and not args.comparison:
        parser.error("--plan_power: add --comparison")
    uses_ray = args.parallel is not None or args.ray_address is not None
    if args.processes_per_run > 1 and not uses_ray:
        parser.error(f"--processes_per_run {args.processes_per_run}: add --parallel")
    if args.config and not uses_ray and torch.cuda.device_count() > 1:
        # One process does not train on several GPUs, so it uses the first.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    return args


def compare_encoders(args: argparse.Namespace) -> None:
    """Runs `run_compare.py`: compares, writes the results, and exits with 1 if a run failed."""
    if args.plan_power:
        print(plan_power(args.plan_power, args.comparison))
        return
    started_at = time.perf_counter()
    try:
        failures = compare_config(args) if args.config else compare_folders(args)
    except OSError as error:
        raise UserError(f"{error.filename or args.output_dir}: {error.strerror}") from error
    print(f"{format_duration(time.perf_counter() - started_at)} in total")
    if failures:
        lines = [f"{len(failures)} runs failed. The same command tries them again:", *failures]
        print(*lines, sep="\n  ", file=sys.stderr)
        sys.exit(1)
