"""Asks a trained model about one or two clips: `python run_ask.py clip.wav "What is heard?" --options rain "a dog"`.

The last word is the question; `-` in its place reads it from the standard input, `-` in a clip's place reads a clip. With
--csv, questions about many clips: columns `audio`, `question` and, where wanted, `audio2` and `options` ("rain|a dog"), with
paths from the file's folder; the output has these and `answer`, `choice`, `probability`, `heard_seconds`, `model` and `error`.
The same command goes on with an output that is not complete; rows that failed stay so. It ends with 0 if all was answered, 1 if
something was not, 2 if the options are wrong, and 130 if it was interrupted.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from ..demo import MODEL_NAMES


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CLIP [CLIP2] QUESTION",
        help="one or two audio files, and the question",
    )
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="OPTION",
        help="several, without letters: they make "
        "the question multiple-choice, or one of yes and no; each gets its probability",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=["mimi_full"],
        metavar="MODEL",
        help="trained AudioLMs, a folder or Hub "
        f"name each, or one that ships with the demo and knows synthetic sounds alone: {', '.join(MODEL_NAMES)} "
        "(default: mimi_full)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument(
        "--muted",
        action="store_true",
        help="what it says without listening: every frame is the mean one",
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=64, help="longest answer (default: 64)"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on the standard output"
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="a table of questions, comma-separated in UTF-8, in place of clips and question",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the table with its answers, for --csv"
    )
    parser.add_argument(
        "--batch_size", type=int, default=16, help="rows of --csv at once (default: 16)"
    )
    args = parser.parse_args(argv)
    for name in ("max_new_tokens", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: 1 or more is wanted")
    if bool(args.csv) != bool(args.output):
        parser.error("--csv and --output: one wants the other")
    if args.csv and (args.words or args.options or args.json or len(args.model) > 1):
        parser.error(
            "--csv: clips, questions and options stand in the table, and one --model answers it"
        )
    if args.csv and args.output.exists() and args.csv.exists() and args.output.samefile(args.csv):
        parser.error(f"--output {args.output}: that is the table of questions")
    if not args.csv and not 2 <= len(args.words) <= 3:
        parser.error(
            f"one or two clips and a question are wanted, before --options and --model; given: {len(args.words)}"
        )
    if args.words and Path(args.words[-1]).is_file():
        parser.error(f"{args.words[-1]} is a file; the question comes last")
    if args.words.count("-") > 1:
        parser.error("-: the standard input is read once, as a clip or as the question")
    if len(args.model) > 1 and args.revision:
        parser.error("--revision: of which --model?")
    return args


def ask_once(args) -> None:
    """Prints each model's answer to one question.

    Raises:
        ValueError, OSError: in one line.
    """
    from ..data.answer_parsing import with_options
    from .model import LoadedModel

    *clips, question = [
        (sys.stdin.buffer.read() if i < len(args.words) - 1 else sys.stdin.read())
        if word == "-"
        else word
        for i, word in enumerate(args.words)
    ]
    if not question.strip():
        raise ValueError("the question is empty")
    question = with_options(question, args.options)
    made = {
        "question": question,
        "clips": ["-" if isinstance(clip, bytes) else clip for clip in clips],
        "answers": [],
    }
    for name, model in [(name, LoadedModel(name, args.revision)) for name in args.model]:
        start = time.perf_counter()
        heard = model.listen(clips)
        listening = time.perf_counter() - start
        (answer,) = model.ask([question], [heard], args.muted, args.max_new_tokens)
        made["answers"].append(
            {
                "model": name,
                "encoder_type": model.model.config.encoder_type,
                "answer": answer.text,
                "choice": answer.choice,
                "options": {option: round(share, 6) for option, share in answer.options.items()},
                "muted": args.muted,
                "seconds": {
                    "clips": [round(of.whole, 3) for of in heard],
                    "heard": [round(of.used, 3) for of in heard],
                    "listening": round(listening, 3),
                    "answering": round(answer.seconds, 3),
                },
            }
        )
        if not args.json:
            show(name if len(args.model) > 1 else "", answer)
            note(model, heard, made["answers"][-1]["seconds"])
    if args.json:
        print(json.dumps(made, ensure_ascii=False, indent=2))


def show(name: str, answer) -> None:
    print(f"{name}: {answer.text}" if name else answer.text)
    if answer.options:
        print(
            "    "
            + ", ".join(
                f"{option.upper() if len(option) == 1 else option} {share:.1%}"
                for option, share in answer.options.items()
            )
        )


def note(model, heard: list, seconds: dict) -> None:
    """What a reader of the answer should know, on the standard error."""
    cut = "; ".join(
        f"of clip {i} the first {of.used:g} of {of.whole:.1f} s were heard"
        for i, of in enumerate(heard, 1)
        if of.whole > of.used + 0.05
    )
    made = "a model of the demo, which knows synthetic sounds alone" if model.is_demo else ""
    took = f"listened for {seconds['listening']:.1f} s, answered in {seconds['answering']:.1f} s"
    print(f"({'; '.join(filter(None, [model.name, made, cut, took]))})", file=sys.stderr)


def main(argv=None):
    args = parse(argv)
    from transformers.utils.logging import (
        disable_progress_bar,
    )  # here: who asks for help need not wait for torch

    from ..runtime import use_all_of_the_cpu

    disable_progress_bar()
    use_all_of_the_cpu()
    try:
        if not args.csv:
            ask_once(args)
            return
        from .table import ask_table

        if errors := ask_table(args):
            sys.exit(
                f"run_ask.py: rows not answered: {errors}; the column `error` of {args.output} says why, and without that "
                "file the same command asks all of them again"
            )
    except (ValueError, OSError) as error:
        sys.exit(f"run_ask.py: {error}".replace("--model_name_or_path", "--model"))
    except KeyboardInterrupt:
        print(
            "run_ask.py: stopped" + ("; the same command goes on" if args.csv else ""),
            file=sys.stderr,
        )
        sys.exit(130)


if __name__ == "__main__":
    main()
