"""Arms beside each other: `python run_compare.py --config configs/demo.yaml` trains, evaluates and compares them.

The config names the arms, the seeds, the corpus (made here, or files in `train` and `eval`), and options of run_train.py and
run_eval.py. `output_dir` gets a folder for each arm, `comparison.json`, `report.html` and `timings.json`. The same command goes
on where it was interrupted: an arm is run again only if its options, its corpus' JSON or its checkpoints changed.

`python run_compare.py --evaluations htsat=A mimi_full=B` compares folders of run_eval.py; an arm's name again is another seed
of it.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

from audiolm import run_eval, run_probe, run_train
from audiolm.comparison_plan import Planned, digest, plan, probe_flags, read_config
from audiolm.data import audio_roots
from audiolm.data.soundscapes import make_soundscapes, write_labels
from audiolm.evaluation.comparison import compare
from audiolm.evaluation.report import write_report
from audiolm.evaluation.runs import Run, check_comparable, model_facts, read_run, validation_loss
from audiolm.evaluation.tables import comparison_table


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def as_json(value) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, value) -> None:
    part = path.with_name(path.name + ".part")  # whole or not at all
    part.write_text(as_json(value), encoding="utf-8")
    part.replace(path)


class Stages:
    """Runs the stages of a comparison that are not done with today's options, and says how far it is.

    Args:
        runs: all that may be run. records: what each depends on, by folder.
    """

    def __init__(self, output: Path, runs: list[Planned], records: dict[Path, dict], start: float):
        self.output, self.runs, self.records, self.start = output, runs, records, start
        file = output / "timings.json"
        self.timings = json.loads(file.read_text()) if file.is_file() else {"arms": {}}
        names = [self.name(run) for run in runs]
        self.timings["arms"] = {name: seconds for name, seconds in self.timings["arms"].items() if name in names}

    def name(self, run: Planned) -> str:
        return run.folder.relative_to(self.output).as_posix()

    def keep(self) -> None:
        write_json(self.output / "timings.json", self.timings)

    def done(self, stage: str, run: Planned) -> bool:
        record, made = (
            run.folder / f"{stage}.json",
            {"train": "trainer_state.json", "evaluate": "evaluation/metrics.json"}[stage],
        )
        return record.is_file() and record.read_text() == as_json(self.records[run.folder]) and (run.folder / made).is_file()

    def left(self) -> str:
        """Time left, by what each stage has taken so far."""
        seconds = 0.0
        for stage in ("train", "evaluate"):
            took = [of[stage] for of in self.timings["arms"].values() if stage in of]
            todo = sum(not self.done(stage, run) for run in self.runs)
            if todo and not took:
                return "time left is known after the first arm"
            seconds += todo * sum(took) / max(1, len(took))
        return f"about {clock(seconds)} left"

    def run(self, stage: str, run: Planned) -> None:
        """`train` or `evaluate`, unless its record is there."""
        number = f"[{self.runs.index(run) + 1}/{len(self.runs)}]"
        if self.done(stage, run):
            print(f"{number} {self.name(run)}: {stage} is done, with today's options; not run again", flush=True)
            return
        script, words = (run_train, run.train) if stage == "train" else (run_eval, run.evaluate)
        saying = {"train": "training", "evaluate": "evaluating"}[stage]
        print(
            f"{number} {self.name(run)}: {saying}… ({clock(time.perf_counter() - self.start)} passed, {self.left()})",
            flush=True,
        )
        run.folder.mkdir(parents=True, exist_ok=True)
        for stale in ("train", "evaluate") if stage == "train" else ("evaluate",):
            (run.folder / f"{stale}.json").unlink(missing_ok=True)
        before = time.perf_counter()
        with open(run.folder / f"{stage}.log", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            script.main(words)
        self.timings["arms"].setdefault(self.name(run), {})[stage] = round(time.perf_counter() - before, 1)
        self.keep()
        write_json(run.folder / f"{stage}.json", self.records[run.folder])


def probed(config: dict, output: Path) -> dict[str, dict]:
    """Linear probes of the arms' encoders, `probes.json` by what the labels are about."""
    made = {}
    labels = write_labels(output / "corpus") if config["corpus"] else {k: Path(v) for k, v in config["probe"]["labels"].items()}
    for kind, words in probe_flags(config, labels).items():
        folder, record = output / "probes" / kind, as_json({"words": words, "labels": digest([str(labels[kind])])})
        if not (folder / "probe.json").is_file() or (folder / "probe.json").read_text() != record:
            print(f"probing what the encoders hold of: {kind}…", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "probe.log", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
                run_probe.main(words)
            (folder / "probe.json").write_text(record)
        made[kind] = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
    return made


def best_rates(runs: list[Planned]) -> dict[str, dict]:
    """Of each arm the learning rate of the lowest validation loss at the last step, mean over seeds, and the loss of each."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in runs:
        found.setdefault(run.arm, {}).setdefault(run.learning_rate, []).append(validation_loss(run.folder))
    losses = {arm: {rate: sum(of) / len(of) for rate, of in rates.items()} for arm, rates in found.items()}
    return {
        arm: {"best": min(of, key=of.get), "loss": {f"{rate:g}": of[rate] for rate in sorted(of)}} for arm, of in losses.items()
    }


def evaluated(runs: list[Planned]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.arm, []).append(read_run(run.folder / "evaluation"))
    return found


def from_config(args, start: float) -> tuple[dict, dict[str, list[Run]], object]:
    """Trains and evaluates what a config describes; the comparison, its runs, and where the audio is."""
    config = read_config(args.config, args.seeds, args.output_dir)
    runs, reads = plan(config, args.config)
    output = Path(config["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    print(config["note"], end="\n" if config["note"] else "", flush=True)
    corpus_start = time.perf_counter()
    if config["corpus"]:
        make_soundscapes(output_dir=output / "corpus", **config["corpus"])
    corpus, checkpoints = digest(reads["files"]), {arm: digest(of) for arm, of in reads["checkpoints"].items()}
    records = {run.folder: {"train": run.train, "evaluate": run.evaluate, "corpus": corpus, "checkpoints": checkpoints[run.arm]}
               for run in runs}  # fmt: skip
    stages = Stages(output, runs, records, start)
    if config["corpus"]:
        stages.timings.setdefault("corpus", round(time.perf_counter() - corpus_start, 1))  # a complete corpus is only read
        stages.keep()
    usual = runs[0].learning_rate
    equal = [run for run in runs if run.learning_rate == usual]
    for run in equal:
        stages.run("train", run)
        stages.run("evaluate", run)
    for run in runs[len(equal) :]:
        stages.run("train", run)
    found = evaluated(equal)
    check_comparable(found)
    # how long it took and where it lies stay out: the same command gives the same bytes
    comparison = {
        "command": f"run_compare.py --config {args.config} --seeds {' '.join(map(str, config['seeds']))}",
        **{key: config[key] for key in ("note", "corpus", "train", "eval")}, **compare(found),
    }  # fmt: skip
    comparison["rows"]["train"] = len(json.loads(Path(reads["files"][0]).read_text(encoding="utf-8")))
    for run in equal:
        if run.seed == config["seeds"][0]:
            comparison["arms"][run.arm] |= {**config["arms"][run.arm], **model_facts(run.folder)}
    if config["probe"]:
        comparison["probes"] = probed(config, output)
    if config["learning_rates"]:
        rates = best_rates(runs)
        chosen = [run for run in runs if run.learning_rate == rates[run.arm]["best"]]
        for run in chosen:
            stages.run("evaluate", run)
        tuned = {arm: of for arm, of in sorted(evaluated(chosen).items(), key=lambda item: list(found).index(item[0]))}
        check_comparable(tuned, may_differ=("learning rate",))
        beside = compare(tuned)
        comparison["best_learning_rates"] = {
            "rates": rates, "macro": {arm: of.get("macro") for arm, of in beside["arms"].items()},
            **{key: beside.get(key) for key in ("statistics", "conclusion")},
        }  # fmt: skip
    return comparison, found, output, audio_roots(reads["audio_dir"])


def from_folders(args) -> tuple[dict, dict[str, list[Run]], object]:
    """Compares evaluations that are there."""
    found: dict[str, list[Run]] = {}
    for word in args.evaluations:
        arm, _, folder = word.partition("=")
        if not arm or not folder:
            raise ValueError(f"--evaluations {word}: ARM=FOLDER is wanted, such as htsat=outputs/htsat/evaluation")
        found.setdefault(arm, []).append(read_run(folder))
    if len(found) < 2:
        raise ValueError("--evaluations: two arms or more are wanted")
    check_comparable(found)
    output = Path(args.output_dir or "outputs/compare")
    output.mkdir(parents=True, exist_ok=True)
    comparison = {"command": f"run_compare.py --evaluations {' '.join(args.evaluations)}", "note": "", "corpus": None,
                  "train": {}, "eval": {}, **compare(found)}  # fmt: skip
    for arm, of in found.items():
        if (of[0].folder.parent / "trainer_state.json").is_file():
            comparison["arms"][arm] |= model_facts(of[0].folder.parent)
    return comparison, found, output, audio_roots(args.audio_dir) if args.audio_dir else None


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="YAML file of the comparison, such as configs/demo.yaml")
    what.add_argument("--evaluations", nargs="+", metavar="ARM=FOLDER", help="folders that run_eval.py wrote")
    parser.add_argument("--seeds", type=int, nargs="+", help="of every arm's training; overrides the config's")
    parser.add_argument("--output_dir", help="where everything goes; overrides the config's")
    parser.add_argument("--audio_dir", nargs="+", help="with --evaluations: the audio, for the report; without it, it has none")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        comparison, found, output, audio_dir = from_config(args, start) if args.config else from_folders(args)
    except (ValueError, OSError) as error:
        sys.exit(f"run_compare.py: {error}")
    write_json(output / "comparison.json", comparison)
    write_report(output / "report.html", comparison, found, audio_dir)
    print(comparison_table(comparison))
    if comparison.get("conclusion"):
        print(comparison["conclusion"])
    print(comparison["note"], end="\n" if comparison["note"] else "")
    print(f"{output / 'comparison.json'} and {output / 'report.html'} are written; {clock(time.perf_counter() - start)} in all")


if __name__ == "__main__":
    main()
