"""Accuracy by question type of a trained model, by two protocols and beside the controls that would expose an artefact.

`python run_eval.py --model_name_or_path M --test_file test.json --audio_dir AUDIO --output_dir OUT` writes
`predictions.jsonl` and `metrics.json`, and prints the table; `--controls all` adds the controls. The same command writes
the same bytes, in any number of processes (`accelerate launch run_eval.py ...`), and goes on where it was interrupted.
docs/evaluation.md explains the numbers.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import DatasetDict
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from .. import __version__
from ..checkpoints.load import load_model
from ..configuration_audiolm import ARM_FIELDS
from ..data import FeatureCache, audio_roots, drop_bad_audio, load_reasonaqa
from ..data.audio_check import inspect_clips
from ..data.benchmarks import read_benchmark
from ..data.label_fixes import RowFixes
from ..data.reasonaqa import question_type
from ..data.second_clips import second_clips
from ..data.shards import MANIFEST, dataset_folder, load_shards
from ..data.subsets import first_of_each_type
from ..hub.push import push_results
from ..processing_audiolm import AudioLMProcessor
from ..runtime import run_info, use_all_of_the_cpu, write_run_info
from .answering import PROTOCOLS
from .arguments import parse_arguments
from .benchmarks import official_metrics, submission
from .predict import Answerer, answer_rows, model_digest, rows_digest
from .scores import predicted_rows, score
from .tables import table


def read_rows(args, max_audio_seconds: float):
    """All rows, those to answer, their clips' seconds, and the training rows of the control `majority`.

    Raises:
        ValueError, OSError: of reading and checking them.
    """
    if args.dataset_name:
        data = load_shards(dataset_folder(args.dataset_name), ["test"])
    elif args.benchmark:
        data = DatasetDict(
            {"test": read_benchmark(args.benchmark, args.test_file, args.audio_dir[0], "keep")}
        )
    else:
        data = load_reasonaqa({"test": args.test_file}, audio_roots(args.audio_dir))
    if args.max_samples:
        first = first_of_each_type(data["test"], args.max_samples).values()
        data["test"] = data["test"].select(
            sorted(number for numbers in first for number in numbers)
        )
    rows = drop_bad_audio(data, max_audio_seconds, args.on_bad_audio, args.output_dir)["test"]
    facts = inspect_clips([clip for row in rows for clip in row["audio"]], max_audio_seconds)
    mending = RowFixes(args.fix_cle_labels)
    training = (
        json.loads(Path(args.train_file).read_text(encoding="utf-8")) if args.train_file else None
    )
    if training and args.fix_cle_labels is not None:
        training = [mending({**row, "question_type": question_type(row)}) for row in training]
    return (
        data["test"],
        mending.rows(rows),
        {clip: of.seconds for clip, of in facts.items()},
        training,
    )


def benchmark_results(name: str, whole, rows, results: list[dict], output: Path) -> dict:
    """A benchmark's own metric of the generated texts; writes what is submitted. Rows that were left out have no answer."""
    texts = {row["id"]: result["answers"]["generate"]["text"] for row, result in zip(rows, results)}
    predictions = [texts.get(number) for number in whole["id"]]
    made = submission(name, whole, predictions)
    file = output / ("submission.csv" if isinstance(made, str) else "submission.json")
    file.write_text(
        made if isinstance(made, str) else json.dumps(made, indent=2, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    return official_metrics(name, whole, predictions)


def loaded(name: str, revision: str | None, device):
    """A model, its processor, and what says which one it is."""
    model, tokenizer = load_model(name, revision)
    if "flash" in str(model.config.text_config._attn_implementation):
        model.set_attn_implementation(
            "sdpa"
        )  # options are scored under a mask that flash attention does not take
    about = {
        name: getattr(model.config, name, None)
        for name in (*ARM_FIELDS, "mapper_type", "prompt_format", "training")
    }
    about |= heard_otherwise(model.config.encoder_config)
    state = Path(name, "trainer_state.json")
    about["step"] = (
        json.loads(state.read_text(encoding="utf-8"))["global_step"] if state.is_file() else None
    )
    about["weights_sha256"] = model_digest(model)
    return model.to(device).eval(), AudioLMProcessor.from_config(model.config, tokenizer), about


def main(argv=None):
    args = parse_arguments(argv)
    output = Path(args.output_dir)
    use_all_of_the_cpu()
    # a process that has less to answer waits for the others, however long that takes
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    try:
        output.mkdir(parents=True, exist_ok=True)
        model, processor, about = loaded(args.model_name_or_path, args.revision, state.device)
        about["prompt_format"] = processor.prompt_format = (
            args.prompt_format or model.config.prompt_format
        )
        whole, rows, seconds, training = read_rows(args, model.config.max_audio_seconds)
        changes = getattr(model.config, "data_changes", {})
        if ("fix_cle_labels" in changes) != (args.fix_cle_labels is not None):
            print(
                "run_eval.py: --fix_cle_labels is not as in training; CLE's labels mean something else",
                file=sys.stderr,
            )
        if "no_audio" in args.controls and not model.mapper.feature_mean.any():
            args.controls.remove("no_audio")
            args.not_run["no_audio"] = "the model does not hold the mean of training's features"
        clips, cache = sorted({clip for row in rows for clip in row["audio"]}), None
        if len(clips) < 2 and "mismatched_audio" in args.controls:
            args.controls.remove("mismatched_audio")
            args.not_run["mismatched_audio"] = "there is one clip"
        settings = {
            "version": __version__,
            "rows_sha256": rows_digest(rows),
            "model": about,
            "protocols": args.protocol,
            "controls": args.controls,
            **{key: getattr(args, key) for key in ("batch_size", "max_new_tokens", "precision")},
            "max_audio_seconds": model.config.max_audio_seconds,
            "features": "encoded here",
        }
        if args.feature_cache:
            Path(args.feature_cache).mkdir(parents=True, exist_ok=True)
            settings["features"] = "of a cache"  # HTSAT's are rounded there
        asked = (args.batch_size, args.max_new_tokens)
        given = [c for c in args.controls if c not in ("majority", "question_only")]
        pairs = second_clips(rows, 0) if processor.prompt_format == "mellow" else None
        answerers = {
            "": Answerer(
                model, processor, args.protocol, given, *asked, precision=args.precision, rows=pairs
            )
        }
        if "question_only" in args.controls:
            deaf, its, settings["question_only"] = loaded(
                args.question_only_model, None, state.device
            )
            if not deaf.config.no_audio:
                raise ValueError(
                    f"--question_only_model {args.question_only_model} was trained without --no_audio"
                )
            if deaf.config.prompt_format != "audiolm":
                raise ValueError(
                    f"--question_only_model {args.question_only_model} was trained on Mellow's prompts"
                )
            answerers["question_only"] = Answerer(
                deaf, its, args.protocol[:1], (), *asked, precision=args.precision
            )
    except (ValueError, OSError) as error:
        sys.exit(f"run_eval.py: {error}")
    if args.feature_cache:
        cache = answerers[""].cache = FeatureCache(
            args.feature_cache, model.encoder, processor.feature_extractor
        )
        try:
            cache.fill_together(clips)
        except (
            ValueError,
            OSError,
            SafetensorError,
        ) as error:  # no room, a full disk, a clip that is gone
            sys.exit(f"run_eval.py: {error}")
    start = time.perf_counter()
    said = answer_rows(rows, answerers, output, settings, state)
    if said is None:
        return
    taken = time.perf_counter() - start
    results = predicted_rows(rows, said, seconds, training if "majority" in args.controls else None)
    primary = PROTOCOLS[args.protocol[0]][0]
    metrics = {
        **score(results, primary, model.config.max_audio_seconds, args.java_metrics),
        "not_run": args.not_run,
        "settings": settings,
    }
    if args.fix_cle_labels is not None:
        metrics["fix_cle_labels"] = [Path(file).name for file in args.fix_cle_labels] or "swapped"
    if args.benchmark:
        metrics["official"] = {
            "benchmark": args.benchmark,
            **benchmark_results(args.benchmark, whole, rows, results, output),
        }
    with open(output / "predictions.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in results)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    facts = {"rows_sha256": settings["rows_sha256"], "model": about, "seconds": taken}
    write_run_info(output, run_info("run_eval.py", argv, **facts))
    for part in output.glob("predictions.part*.jsonl"):
        part.unlink()
    print(table(metrics))
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in answerers[""].seconds.items())
    print(f"{len(rows)} rows in {taken:.1f} s, {len(rows) / taken:.1f} rows/s ({spent})")
    if args.push_to_hub:
        test = args.test_file or Path(dataset_folder(args.dataset_name), MANIFEST)
        commit = getattr(model.config, "_commit_hash", None)
        try:
            print(
                push_results(
                    args.hub_model_id, metrics, test, args.hub_dataset_id, args.revision, commit
                )
            )
        except ConnectionError as error:
            sys.exit(f"run_eval.py: {error}; they are in {args.output_dir}")


if __name__ == "__main__":
    main()


def heard_otherwise(config: PreTrainedConfig) -> dict:
    """`band_limit` and `window_seconds` of an encoder's configuration, or of one of a pair's; None where it has none."""
    parts = [
        part
        for part in (config, getattr(config, "first", None), getattr(config, "second", None))
        if part is not None
    ]
    return {
        name: next(
            (value for part in parts if (value := getattr(part, name, None)) is not None), None
        )
        for name in ("band_limit", "window_seconds")
    }
