"""Arms beside each other: `python run_compare.py --config configs/demo.yaml` trains, evaluates and compares them.

The config names the arms, the seeds, the corpus (made here, or files in `train` and `eval`), and options of run_train.py and
run_eval.py. `output_dir` gets a folder for each arm, `comparison.json`, `report.html`, `figure.svg` and `timings.json`. The
same command goes on where it was interrupted: an arm is run again only if its options, its corpus' JSON or its checkpoints
changed. A run that fails is named in the end, and arms that have all their seeds are compared without it.

`--parallel N` runs N of them at once, `--share I/N` a part of them on each of N machines with one folder; the command without
it then finds them done.

`python run_compare.py --evaluations htsat=A mimi_full=B` compares folders of run_eval.py; an arm's name again is another seed
of it.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

import torch
from filelock import FileLock

from ..data import audio_roots
from ..data.soundscapes.corpus import make_soundscapes, write_labels
from ..evaluation import probe_command as run_probe
from .compare import compare, macros
from .plan import Planned, digest, plan, probe_flags, read_config, usual
from .report.build import write_report
from .report.figure import write_figure
from .runs import Run, check_comparable, model_facts, read_run, validation_loss
from .sweep import Sweep, as_json, clock, part_of, write_json
from .tables import comparison_table


def probed(config: dict, output: Path) -> dict[str, dict]:
    """Linear probes of the arms' encoders, `probes.json` by what the labels are about."""
    made = {}
    labels = (
        write_labels(output / "corpus")
        if config["corpus"]
        else {k: Path(v) for k, v in config["probe"]["labels"].items()}
    )
    for kind, words in probe_flags(config, labels).items():
        folder, record = (
            output / "probes" / kind,
            as_json({"words": words, "labels": digest([str(labels[kind])])}),
        )
        if not (folder / "probe.json").is_file() or (folder / "probe.json").read_text() != record:
            print(f"probing what the encoders hold of: {kind}…", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            with (
                open(folder / "probe.log", "w", encoding="utf-8") as log,
                contextlib.redirect_stdout(log),
            ):
                run_probe.main(words)
            (folder / "probe.json").write_text(record)
        made[kind] = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
    return made


def best_rates(runs: list[Planned]) -> dict[str, dict]:
    """Of each arm the learning rate of the lowest validation loss at the last step, mean over seeds, and the loss of each."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        found.setdefault(run.arm, {}).setdefault(run.learning_rate, []).append(
            validation_loss(run.folder)
        )
    losses = {
        arm: {rate: sum(of) / len(of) for rate, of in rates.items()} for arm, rates in found.items()
    }
    return {
        arm: {"best": min(of, key=of.get), "loss": {f"{rate:g}": of[rate] for rate in sorted(of)}}
        for arm, of in losses.items()
    }


def evaluated(runs: list[Planned]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.arm, []).append(read_run(run.folder / "evaluation"))
    return found


def of_budgets(runs: list[Planned]) -> dict[str, dict]:
    """What arms answer after each number of steps: macro accuracy, and how far it is above the best control."""
    found = {}
    for steps in sorted({run.max_steps for run in runs}):
        of = evaluated([run for run in runs if run.max_steps == steps])
        check_comparable(of)
        found[str(steps)] = macros(of)
    return found


def of_rates(runs: list[Planned], sweep: Sweep) -> dict:
    """Each arm at its best learning rate, evaluated if it is not yet, and the statistics of their differences."""
    rates = best_rates(runs)
    chosen = [run for run in runs if run.learning_rate == rates[run.arm]["best"]]
    sweep.do([(run, ("evaluate",)) for run in chosen])
    tuned = evaluated(sorted(sweep.whole(chosen), key=lambda run: list(rates).index(run.arm)))
    if not tuned:
        raise ValueError("no arm was evaluated at its best learning rate")
    check_comparable(tuned, may_differ=("learning rate",))
    beside = compare(tuned)
    return {
        "rates": rates,
        "macro": {arm: of.get("macro") for arm, of in beside["arms"].items()},
        **{key: beside.get(key) for key in ("statistics", "conclusion")},
    }


def from_config(args, start: float):
    """Trains and evaluates what a config describes.

    Returns:
        The comparison, its runs, where it goes and where the audio is, and what failed. The comparison is None of a share of
        the runs, or if all arms failed.
    """
    config = read_config(args.config, args.seeds, args.output_dir)
    runs, reads = plan(config, args.config, args.processes_per_run)
    output = Path(config["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    print(config["note"], end="\n" if config["note"] else "", flush=True)
    corpus_start = time.perf_counter()
    if config["corpus"]:
        with FileLock(output / "corpus.lock"):  # another share may be about to
            make_soundscapes(output_dir=output / "corpus", **config["corpus"])
    corpus, checkpoints = (
        digest(reads["files"]),
        {arm: digest(of) for arm, of in reads["checkpoints"].items()},
    )
    records = {
        run.folder: {
            "train": run.train,
            "evaluate": run.evaluate,
            "corpus": corpus,
            "checkpoints": checkpoints[run.arm],
        }
        for run in runs
    }
    sweep = Sweep(output, runs, records, start, args.parallel, args.processes_per_run, args.share)
    timings = output / "timings.json"
    known = json.loads(timings.read_text()) if timings.is_file() else {}
    if config["corpus"] and args.share == (1, 1):
        known = {
            "corpus": round(time.perf_counter() - corpus_start, 1),
            **known,
        }  # a complete corpus is only read
        write_json(timings, {**known, "arms": sweep.timings()})
    rate, _ = usual(config)
    sweep.do(
        [(run, ("train", "evaluate") if run.learning_rate == rate else ("train",)) for run in runs]
    )
    if args.share != (1, 1):
        return None, {}, output, None, sweep.failures
    try:
        return compared(config, args, sweep, reads, known)
    except ValueError as error:
        raise ValueError("; ".join([str(error), *map(str, sweep.failures)])) from error


def compared(config: dict, args, sweep: Sweep, reads: dict, timings: dict):
    """What [`from_config`] returns, of the runs of a sweep that came to an end."""
    output, whole, (rate, steps) = sweep.output, sweep.whole(sweep.runs), usual(config)
    equal = [run for run in whole if (run.learning_rate, run.max_steps) == (rate, steps)]
    if not equal:
        return None, {}, output, None, sweep.failures
    found = evaluated(equal)
    check_comparable(found)
    # how long it took and where it lies stay out: the same command gives the same bytes
    comparison = {
        "command": f"run_compare.py --config {args.config} --seeds {' '.join(map(str, config['seeds']))}",
        **{key: config[key] for key in ("note", "corpus", "train", "eval")},
        **compare(found),
    }
    if left_out := [arm for arm in config["arms"] if arm not in found]:
        comparison["left_out"] = left_out
    comparison["rows"]["train"] = len(
        json.loads(Path(reads["files"][0]).read_text(encoding="utf-8"))
    )
    for run in equal:
        if run.seed == config["seeds"][0]:
            comparison["arms"][run.arm] |= {**config["arms"][run.arm], **model_facts(run.folder)}
    if config["budgets"]:
        comparison["budgets"] = of_budgets([run for run in whole if run.learning_rate == rate])
    if config["probe"]:
        comparison["probes"] = probed(config, output)
    if config["learning_rates"]:
        comparison["best_learning_rates"] = of_rates(
            [run for run in whole if run.max_steps == steps], sweep
        )
    write_json(output / "timings.json", {**timings, "arms": sweep.timings()})
    return comparison, found, output, audio_roots(reads["audio_dir"]), sweep.failures


def from_folders(args):
    """Compares evaluations that are there; returns what [`from_config`] does."""
    found: dict[str, list[Run]] = {}
    for word in args.evaluations:
        arm, _, folder = word.partition("=")
        if not arm or not folder:
            raise ValueError(
                f"--evaluations {word}: ARM=FOLDER is wanted, such as htsat=outputs/htsat/evaluation"
            )
        found.setdefault(arm, []).append(read_run(folder))
    if len(found) < 2:
        raise ValueError("--evaluations: two arms or more are wanted")
    most = max(map(len, found.values()))
    found = {
        arm: of * most if of[0].published and len(of) == 1 else of for arm, of in found.items()
    }  # it has no seeds
    check_comparable(found)
    elsewhere = ", ".join(arm for arm, of in found.items() if of[0].published)
    output = Path(args.output_dir or "outputs/compare")
    output.mkdir(parents=True, exist_ok=True)
    note = (
        f"{elsewhere}: trained by its authors, on other settings; it differs in more than its encoder."
        if elsewhere
        else ""
    )
    comparison = {
        "command": f"run_compare.py --evaluations {' '.join(args.evaluations)}",
        "note": note,
        "corpus": None,
        "train": {},
        "eval": {},
        **compare(found),
    }
    for arm, of in found.items():
        if (of[0].folder.parent / "trainer_state.json").is_file():
            comparison["arms"][arm] |= model_facts(of[0].folder.parent)
    return comparison, found, output, audio_roots(args.audio_dir) if args.audio_dir else None, []


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="YAML file of the comparison, such as configs/demo.yaml")
    what.add_argument(
        "--evaluations", nargs="+", metavar="ARM=FOLDER", help="folders that run_eval.py wrote"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="of every arm's training; overrides the config's"
    )
    parser.add_argument("--output_dir", help="where everything goes; overrides the config's")
    parser.add_argument(
        "--audio_dir",
        nargs="+",
        help="with --evaluations: the audio, for the report; without it, it has none",
    )
    parser.add_argument(
        "--parallel",
        type=int,
        metavar="N",
        help="N runs at once, each in processes and on GPUs of its own "
        "(default: one after another in this process)",
    )
    parser.add_argument(
        "--processes_per_run",
        type=int,
        default=1,
        metavar="P",
        help="with --parallel: processes of a run, as "
        "`accelerate launch --num_processes P` starts them (default: 1)",
    )
    parser.add_argument(
        "--share",
        default="1/1",
        metavar="I/N",
        help="run the I-th of N parts of the runs alone, and compare "
        "nothing; for machines that share output_dir",
    )
    args = parser.parse_args(argv)
    if args.evaluations and (args.parallel, args.processes_per_run, args.share) != (None, 1, "1/1"):
        parser.error("--parallel, --processes_per_run and --share: with --config alone")
    for option in ("parallel", "processes_per_run"):
        if (value := getattr(args, option)) is not None and value < 1:
            parser.error(f"--{option} {value}: 1 or more are wanted")
    if args.processes_per_run > 1 and not args.parallel:
        parser.error(
            f"--processes_per_run {args.processes_per_run}: give --parallel with it, how many runs at once"
        )
    if args.config and not args.parallel and torch.cuda.device_count() > 1:
        args.parallel = 1  # a process with one of the GPUs: one process does not train on several
    start = time.perf_counter()
    try:
        args.share = part_of(args.share)
        comparison, found, output, audio_dir, failures = (
            from_config(args, start) if args.config else from_folders(args)
        )
    except (ValueError, OSError) as error:
        sys.exit(f"run_compare.py: {error}")
    if comparison:
        write_json(output / "comparison.json", comparison)
        figure = write_figure(output / "figure.svg", comparison)
        write_report(output / "report.html", comparison, found, audio_dir)
        print(comparison_table(comparison))
        if comparison.get("conclusion"):
            print(comparison["conclusion"])
        print(comparison["note"], end="\n" if comparison["note"] else "")
        files = ", ".join(
            str(output / name)
            for name in ("comparison.json", "report.html", *["figure.svg"] * figure)
        )
        print(f"{files} are written; {clock(time.perf_counter() - start)} in all")
    elif not failures:
        number, count = args.share
        print(
            f"part {number} of {count} is done in {clock(time.perf_counter() - start)}; when all are, the same command "
            "without --share compares them"
        )
    if failures:
        print(
            f"{len(failures)} runs failed; the same command tries them again:",
            *failures,
            sep="\n  ",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
