"""Asks a trained model: `audiolm ask clip.wav "What is that?" --options rain "a dog"`.

The last word is the question. `-` in place of the question or of a clip reads it from stdin.

`--csv FILE --output FILE` answers a table. It has the columns `audio` and `question`, and
optionally `audio2` and `options` ("rain|a dog"). Paths are relative to the table's folder. The
output has the same rows with `answer` (the chosen option in words), `probability`, `choice`,
`text`, `used_seconds`, `model` and `error`. An interrupted job resumes.

Exit status: 0 if all was answered, 1 if something was not, 2 for wrong options, 130 after Ctrl-C.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from ..demo import MODEL_NAMES

STDIN = "-"


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `audiolm ask`."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "audiolm ask", description=__doc__, allow_abbrev=False, formatter_class=formatter
    )
    add = parser.add_argument
    clips_and_question = "one or two audio files, then the question"
    add("inputs", nargs="*", metavar="CLIP [CLIP2] QUESTION", help=clips_and_question)
    add(
        "--options",
        nargs="+",
        default=[],
        metavar="OPTION",
        help="options without letters, or yes and no. Each gets a probability",
    )
    add(
        "--model",
        nargs="+",
        default=["mimi_full"],
        metavar="MODEL",
        help="trained AudioLMs: folders, Hub names or the demo's models, which know synthetic "
        f"sounds only: {', '.join(MODEL_NAMES)} (default: mimi_full)",
    )
    add("--revision", help="branch, tag or commit of a model on the Hub")
    trust_help = "run the file of an encoder in the model's folder, if it has one"
    add("--trust_remote_code", action="store_true", help=trust_help)
    add("--no_audio", action="store_true", help="ablation: answer from the mean features")
    add("--max_new_tokens", type=int, default=64, help="longest answer (default: 64)")
    add("--json", action="store_true", help="print one JSON object")
    add("--csv", type=Path, metavar="FILE", help="table of questions, comma-separated, UTF-8")
    add("--output", type=Path, metavar="FILE", help="with --csv: the table with its answers")
    add("--batch_size", type=int, default=16, help="with --csv: rows at once (default: 16)")
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses and checks the options. Errors exit with status 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    problem = _table_problem(args) if args.csv or args.output else _question_problem(args)
    for name in ("max_new_tokens", "batch_size"):
        if getattr(args, name) < 1:
            problem = f"--{name} {getattr(args, name)}: expected 1 or more"
    if len(args.model) > 1 and args.revision:
        problem = "--revision: needs exactly one --model"
    if problem:
        parser.error(problem)
    return args


def _table_problem(args: argparse.Namespace) -> str | None:
    if not (args.csv and args.output):
        return "--csv and --output: give both or neither"
    if args.inputs or args.options or args.json or len(args.model) > 1:
        return "--csv: the table holds clips, questions and options, and one --model answers it"
    if not args.output.absolute().parent.is_dir() or args.output.is_dir():
        return f"--output {args.output}: not a file in an existing folder"
    return None


def _question_problem(args: argparse.Namespace) -> str | None:
    if not 2 <= len(args.inputs) <= 3:
        return (
            "expected one or two clips and a question, before --options and --model; got "
            f"{len(args.inputs)}"
        )
    if Path(args.inputs[-1]).is_file():
        return f"{args.inputs[-1]}: is a file, but the question comes last"
    return None


def ask_once(args: argparse.Namespace) -> None:
    """Prints each model's answer to one question."""
    from ..data.answer_parsing import add_options
    from ..data.audio_files import find_file
    from .model import LoadedModel

    *names, question = args.inputs
    clips = [sys.stdin.buffer.read() if name == STDIN else find_file(name) for name in names]
    question = sys.stdin.read() if question == STDIN else question
    question = add_options(question, args.options)
    results = []
    options = (args.revision, args.trust_remote_code)
    for model in [LoadedModel(name, *options) for name in args.model]:
        results.append(_ask_model(model, question, clips, args))
        if not args.json:
            _print_answer(model, results[-1], show_name=len(args.model) > 1)
    if args.json:
        output = {"question": question, "clips": names, "answers": results}
        print(json.dumps(output, ensure_ascii=False, indent=2))


def _ask_model(model, question: str, clips: list, args: argparse.Namespace) -> dict:
    start = time.perf_counter()
    encoded = model.encode(clips)
    encoding = time.perf_counter() - start
    (answer,) = model.ask([question], [encoded], args.no_audio, args.max_new_tokens)
    return {
        "model": model.name,
        "encoder_type": model.model.config.encoder_type,
        **answer.facts,
        "options": {option: round(p, 6) for option, p in answer.probabilities.items()},
        "no_audio": args.no_audio,
        "seconds": {
            "clips": [round(clip.duration, 3) for clip in encoded],
            "used": [round(clip.used, 3) for clip in encoded],
            "encoding": round(encoding, 3),
            "answering": round(answer.seconds, 3),
        },
    }


def _print_answer(model, result: dict, show_name: bool) -> None:
    """Prints the answer to stdout and what a reader should know about it to stderr."""
    name = f"{model.name}: " if show_name else ""
    share = "" if result["choice"] is None else f" ({result['probability']:.1%})"
    print(f"{name}{result['answer']}{share}")
    if result["options"]:
        print("    " + ", ".join(f"{option} {p:.1%}" for option, p in result["options"].items()))
        print(f"    free text: {result['text']}")
    notes = [model.name]
    if model.is_demo:
        notes.append("a demo model, which knows synthetic sounds only")
    else:
        notes += model.notes
    seconds = result["seconds"]
    for number, (duration, used) in enumerate(zip(seconds["clips"], seconds["used"]), 1):
        if duration > used + 0.05:
            notes.append(f"clip {number}: only the first {used:g} of {duration:.1f} s were used")
    times = f"encoded in {seconds['encoding']:.1f} s, answered in {seconds['answering']:.1f} s"
    print(f"({'; '.join([*notes, times])})", file=sys.stderr)


def ask_csv(args: argparse.Namespace) -> None:
    """Answers a table of questions."""
    from ..runtime import UserError, explain_errors, read_table
    from .model import LoadedModel
    from .table import answer_table

    questions = read_table(args.csv, "audio", "question")
    model = LoadedModel(args.model[0], args.revision, args.trust_remote_code)
    with explain_errors(f"--output {args.output}: not writable", OSError):
        num_errors = answer_table(args, questions, model)
    if num_errors:
        raise UserError(
            f"rows not answered: {num_errors}. The column `error` of {args.output} says why. "
            "Delete that file to ask all of them again."
        )


def main(argv: list[str] | None = None) -> None:
    """Runs `audiolm ask`."""
    args = parse_arguments(argv)
    # Imported here, so that help and wrong options need not wait for torch.
    from transformers.utils.logging import disable_progress_bar

    from ..runtime import report_user_errors, use_all_of_the_cpu

    disable_progress_bar()
    use_all_of_the_cpu()
    with report_user_errors("audiolm ask"):
        (ask_csv if args.csv else ask_once)(args)
