"""Options of `run_eval.py` and their checks."""

import argparse
from pathlib import Path

from ..configuration_audiolm import CHOICES
from ..data.benchmarks import BENCHMARKS
from .answering import PROTOCOLS
from .controls import CONTROLS


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model_name_or_path",
        required=True,
        help="a trained AudioLM: folder or Hub name; or Mellow: soham97/mellow, or its v0_s.ckpt",
    )
    parser.add_argument("--test_file", help="ReasonAQA's test.json")
    parser.add_argument(
        "--audio_dir", nargs="+", help="folder of the audio, or SOURCE=FOLDER for each source"
    )
    parser.add_argument(
        "--benchmark",
        choices=BENCHMARKS,
        help="--test_file is this one's published file: its own metric and "
        "a file to submit are made too",
    )
    parser.add_argument(
        "--dataset_name",
        help="data set of `run_prepare.py convert`, folder or Hub name, in place of both: "
        "its split `test`",
    )
    parser.add_argument(
        "--fix_cle_labels", nargs="*", help="mend the labels of the subtype CLE, as run_train.py's"
    )
    parser.add_argument(
        "--output_dir", required=True, help="where predictions.jsonl and metrics.json go"
    )
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=tuple(PROTOCOLS),
        default=list(PROTOCOLS),
        help="how closed questions are answered: by each option's log-likelihood, or in greedy text that is "
        "parsed; the first one is the protocol of metrics.json and of the controls",
    )
    parser.add_argument(
        "--controls",
        nargs="+",
        choices=("all", *CONTROLS),
        default=[],
        help="the same rows without what an honest answer needs; `all`: those that can be run",
    )
    parser.add_argument("--train_file", help="ReasonAQA's train.json, for the control `majority`")
    parser.add_argument(
        "--question_only_model",
        help="a model of run_train.py --no_audio, for the control `question_only`",
    )
    parser.add_argument(
        "--prompt_format",
        choices=CHOICES["prompt_format"],
        help="how questions are written, as for an "
        "AudioLM or Mellow's own way; default: as the model was trained",
    )
    parser.add_argument(
        "--max_samples", type=int, help="answer the first rows of each question type only"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="rows at once")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer in text")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of mapper and language model"
    )
    parser.add_argument(
        "--java_metrics",
        action="store_true",
        help="METEOR and SPICE of open questions too; wants Java, the "
        "extra `captions`, and half a minute for each question type",
    )
    parser.add_argument(
        "--feature_cache", help="folder of clips that are encoded already, as run_train.py's"
    )
    parser.add_argument(
        "--on_bad_audio", choices=("error", "skip"), default="error", help="what broken files do"
    )
    parser.add_argument(
        "--push_to_hub", action="store_true", help="add the results to the model's repository"
    )
    parser.add_argument(
        "--hub_model_id", help="that repository, if --model_name_or_path is a folder"
    )
    parser.add_argument(
        "--revision",
        help="branch, tag or commit of a model on the Hub, also where results are pushed",
    )
    parser.add_argument(
        "--hub_dataset_id",
        default="reasonaqa",
        help="the data set's name in the Hub's .eval_results",
    )
    args = parser.parse_args(argv)
    if bool(args.dataset_name) == bool(args.test_file) or bool(args.test_file) != bool(
        args.audio_dir
    ):
        parser.error("give either --test_file with --audio_dir, or --dataset_name")
    if args.benchmark and (
        args.dataset_name or len(args.audio_dir) > 1 or "generate" not in args.protocol
    ):
        parser.error(
            f"--benchmark {args.benchmark}: its --test_file, one --audio_dir and the protocol generate are wanted"
        )
    if args.revision and Path(args.model_name_or_path).exists():
        parser.error(
            f"--revision {args.revision}: {args.model_name_or_path} is a folder, not a model on the Hub"
        )
    args.hub_model_id = args.hub_model_id or args.model_name_or_path
    if args.push_to_hub and (
        Path(args.hub_model_id).exists() or len(Path(args.hub_model_id).parts) != 2
    ):
        parser.error(
            f"--push_to_hub: {args.hub_model_id} is no name on the Hub; give --hub_model_id user/model"
        )
    for option in ("max_samples", "batch_size", "max_new_tokens"):
        if (value := getattr(args, option)) is not None and value <= 0:
            parser.error(f"--{option} {value}: a number above 0 is wanted")
    args.protocol = list(dict.fromkeys(args.protocol))
    args.not_run, needed = {}, {"majority": "train_file", "question_only": "question_only_model"}
    for control, option in needed.items():
        if getattr(args, option) is None and control in args.controls:
            parser.error(f"--controls {control}: give --{option} with it")
        if getattr(args, option) is not None and not {control, "all"} & set(args.controls):
            args.controls.append(control)  # what it is given for
        elif getattr(args, option) is None and "all" in args.controls:
            args.not_run[control] = f"--{option} was not given"
    args.controls = [
        c
        for c in CONTROLS
        if ("all" in args.controls or c in args.controls) and c not in args.not_run
    ]
    if not args.java_metrics:
        args.not_run["meteor, spice, spider"] = "--java_metrics was not given"
    return args
