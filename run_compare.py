"""Trains and evaluates all arms with equal hyperparameters: `python run_compare.py --config configs/demo.yaml`.

The config names the arms, the corpus (made here, or files in `train` and `eval`), and options of run_train.py and run_eval.py.
`output_dir` gets a folder for each arm, `comparison.json`, `report.html` and `timings.json`. The same command goes on where
it was interrupted: an arm is run again only if its options, its corpus' JSON or its checkpoints changed.
"""

import argparse
import contextlib
import hashlib
import io
import json
import re
import sys
import time
from pathlib import Path

import yaml

from audiolm import run_eval, run_train
from audiolm.data import audio_roots
from audiolm.data.soundscapes import make_soundscapes
from audiolm.evaluation.comparison import choose_examples, compare_arms, comparison_table, read_predictions
from audiolm.evaluation.report import write_report

DEFAULTS = {"output_dir": "outputs/compare", "seed": 0, "note": "", "corpus": None, "train": {}, "eval": {},
            "feature_cache": False}  # fmt: skip
ARM_KEYS = {"encoder_type", "encoder_name_or_path", "no_audio"}
SET_HERE = {"config", "output_dir", "seed", "feature_cache", "model_name_or_path", "resume_from_checkpoint"} | ARM_KEYS
FILES = {"train_file", "validation_file", "test_file", "audio_dir"}


def read_config(path: str, seed: int | None = None, output_dir: str | None = None) -> dict:
    """The comparison that a YAML file describes; `seed` and `output_dir` override it.

    Raises:
        ValueError: in one line, if the file cannot be read, a key is unknown or missing, or arms differ in more than encoders.
    """
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config {path}: a mapping with arms, train and eval is wanted")
    if unknown := sorted(set(map(str, config)) - {"arms", *DEFAULTS}):
        raise ValueError(f"--config {path}: unknown keys {', '.join(unknown)}; known are arms, {', '.join(DEFAULTS)}")
    given = {"output_dir": output_dir, "seed": seed}
    config = {**DEFAULTS, **config, **{k: v for k, v in given.items() if v is not None}}
    if not isinstance(config.get("arms"), dict) or not config["arms"]:
        raise ValueError(f"--config {path}: `arms` names no arm")
    for section in ("train", "eval", *(["corpus"] if config["corpus"] else [])):
        if not isinstance(config[section], dict):
            raise ValueError(f"--config {path}: {section} is {config[section]!r}, not options and their values")
    for arm, options in config["arms"].items():
        if not isinstance(arm, str) or not re.fullmatch(r"[\w-]+", arm) or arm in ("corpus", "features"):
            raise ValueError(f"--config {path}: arm {arm!r} cannot be a folder's name; take letters, digits, _ and -")
        if not isinstance(options, dict) or "encoder_type" not in options:
            raise ValueError(f"--config {path}: arm {arm} lacks encoder_type")
        if other := sorted(set(map(str, options)) - ARM_KEYS):
            raise ValueError(
                f"--config {path}: arm {arm} sets {', '.join(other)}; arms may differ in {', '.join(sorted(ARM_KEYS))} only, "
                "or their results would not differ by the encoder alone. What all arms share stands under `train` and `eval`"
            )
    if config["corpus"] and set(config["corpus"]) != {"rows", "seed"}:
        raise ValueError(f"--config {path}: corpus takes rows and seed, not {', '.join(map(str, config['corpus']))}")
    for section in ("train", "eval"):
        if pushing := sorted(key for key in map(str, config[section]) if key == "push_to_hub" or key.startswith("hub_")):
            raise ValueError(
                f"--config {path}: {section} sets {', '.join(pushing)}; push an arm with run_train.py, not from here"
            )
        if taken := sorted(set(config[section]) & (SET_HERE | (FILES if config["corpus"] else set()))):
            where = "the corpus, the arms or the top of this file"
            raise ValueError(f"--config {path}: {section} sets {', '.join(taken)}, which {where} set")
    return config


def flags(options: dict) -> list[str]:
    """Command-line flags of a mapping; None leaves an option at its default."""
    words = []
    for name, value in options.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]
    return words


def arm_flags(config: dict, arm: str) -> tuple[list[str], list[str]]:
    """What run_train.py and run_eval.py are called with for an arm."""
    output, corpus = Path(config["output_dir"]), Path(config["output_dir"], "corpus")
    cache = {"feature_cache": output / "features"} if config["feature_cache"] else {}
    train, test = {**config["train"]}, {**config["eval"]}
    if config["corpus"]:
        train |= {"train_file": corpus / "train.json", "validation_file": corpus / "val.json", "audio_dir": corpus}
        test |= {"test_file": corpus / "test.json", "audio_dir": corpus}
    train = {**config["arms"][arm], **train, **cache, "output_dir": output / arm, "seed": config["seed"]}
    test = {**test, **cache, "model_name_or_path": output / arm, "output_dir": output / arm / "evaluation"}
    return flags(train), flags(test)


def checked(parse, words: list[str], name: str):
    """`parse(words)`, an error of it as one line.

    Raises:
        ValueError: with what the parser says, without its list of every option.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse(words)
    except SystemExit as error:
        raise ValueError(f"{name}: " + said.getvalue().strip().split("\n")[-1].split("error: ", 1)[-1]) from error


def digest(paths: list[str]) -> str:
    """SHA-256 of the files under these paths; what is not on this machine (a Hub name) counts by its name."""
    found = hashlib.sha256()
    for path in map(Path, paths):
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
        found.update(repr((str(path), len(files))).encode())
        for file in files:
            with open(file, "rb") as stream:
                found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def run_arms(config: dict, records: dict[str, dict], timings: dict, start: float) -> None:
    """Trains and evaluates the arms whose record is not in their folder yet, and says how far the comparison is."""

    def recorded(arm):
        file, metrics = output / arm / "arm.json", output / arm / "evaluation" / "metrics.json"
        return file.read_text() if file.is_file() and metrics.is_file() else None

    def say(number, arm, stage):
        now, todo = time.perf_counter(), wanted[wanted.index(arm) :]
        left = "time left is known after the first arm"
        if done := [sum(stages.values()) for a, stages in timings["arms"].items() if a not in todo]:
            left = f"about {clock(max(0, sum(done) / len(done) * len(todo) - (now - arm_start)))} left"
        print(f"[{number}/{len(records)}] {arm}: {stage}… ({clock(now - start)} passed, {left})", flush=True)

    output = Path(config["output_dir"])
    wanted = [arm for arm, record in records.items() if recorded(arm) != as_json(record)]
    for number, (arm, record) in enumerate(records.items(), 1):
        if arm not in wanted:
            print(f"[{number}/{len(records)}] {arm}: is there already, with today's options; not run again", flush=True)
            continue
        (output / arm).mkdir(parents=True, exist_ok=True)
        (output / arm / "arm.json").unlink(missing_ok=True)
        arm_start, seconds = time.perf_counter(), {}
        for stage, script, words in (("train", run_train, record["train"]), ("evaluate", run_eval, record["evaluate"])):
            say(number, arm, {"train": "training", "evaluate": "evaluating"}[stage])
            stage_start = time.perf_counter()
            with open(output / arm / f"{stage}.log", "w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
                script.main(words)
            seconds[stage] = round(time.perf_counter() - stage_start, 1)
        timings["arms"][arm] = seconds
        write_json(output / "timings.json", timings)
        write_json(output / arm / "arm.json", record)


def as_json(value) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, value) -> None:
    part = path.with_name(path.name + ".part")  # whole or not at all
    part.write_text(as_json(value), encoding="utf-8")
    part.replace(path)


def plan(config: dict, path: str) -> dict[str, dict]:
    """What each arm is run with, checked before minutes are spent: `train` and `evaluate` flags, and the files they read.

    Raises:
        ValueError: in one line, if an option is unknown or wrong, or a file of the data is not there.
    """
    plans = {}
    for arm in config["arms"]:
        train, test = arm_flags(config, arm)
        model, data, _ = checked(run_train.parse, train, f"--config {path}: train")
        evaluation = checked(run_eval.parse, test, f"--config {path}: eval")
        if data.dataset_name or evaluation.dataset_name:
            raise ValueError("dataset_name: the comparison reads train_file, validation_file and test_file")
        files = [f for f in (data.train_file, data.validation_file, evaluation.test_file) if f]
        if not config["corpus"] and (missing := [f for f in files if not Path(f).is_file()]):
            raise ValueError(f"--config {path}: there is no file {missing[0]}")
        checkpoints = [p for p in (model.encoder_name_or_path, model.text_model_name_or_path) if p]
        plans[arm] = {"train": train, "evaluate": test, "files": files, "checkpoints": checkpoints,
                      "audio_dir": evaluation.audio_dir}  # fmt: skip
    return plans


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the comparison, such as configs/demo.yaml")
    parser.add_argument("--seed", type=int, help="of every arm's training; overrides the config's")
    parser.add_argument("--output_dir", help="where everything goes; overrides the config's")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        config = read_config(args.config, args.seed, args.output_dir)
        plans = plan(config, args.config)
        output = Path(config["output_dir"])
        output.mkdir(parents=True, exist_ok=True)
        print(config["note"], end="\n" if config["note"] else "", flush=True)
        timings = json.loads((output / "timings.json").read_text()) if (output / "timings.json").is_file() else {"arms": {}}
        timings["arms"] = {arm: seconds for arm, seconds in timings["arms"].items() if arm in plans}
        if config["corpus"]:
            make_soundscapes(output_dir=output / "corpus", **config["corpus"])
            timings.setdefault("corpus", round(time.perf_counter() - start, 1))  # a complete corpus is only read
            write_json(output / "timings.json", timings)
    except ValueError as error:
        sys.exit(f"run_compare.py: {error}")
    first = next(iter(plans.values()))
    corpus = digest(first["files"])
    records = {arm: {"train": of["train"], "evaluate": of["evaluate"], "corpus": corpus,
                     "checkpoints": digest(of["checkpoints"])} for arm, of in plans.items()}  # fmt: skip
    run_arms(config, records, timings, start)

    # how long it took and where it lies stay out: the same command gives the same bytes
    about = {
        "command": f"run_compare.py --config {args.config} --seed {config['seed']}",
        **{key: config[key] for key in ("note", "seed", "corpus", "train", "eval")},
    }
    predictions = read_predictions({arm: output / arm / "evaluation" for arm in plans})
    training = json.loads(Path(first["files"][0]).read_text(encoding="utf-8"))
    comparison = {**about, **compare_arms(output, config["arms"], predictions, training)}
    write_json(output / "comparison.json", comparison)
    write_report(output / "report.html", comparison, choose_examples(predictions, audio_roots(first["audio_dir"])))
    print(comparison_table(comparison))
    print(config["note"], end="\n" if config["note"] else "")
    print(f"{output / 'comparison.json'} and {output / 'report.html'} are written; {clock(time.perf_counter() - start)} in all")


if __name__ == "__main__":
    main()
