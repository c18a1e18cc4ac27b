"""Evaluates a trained model.

python run_eval.py --model_name_or_path M --test_file test.json --audio_dir AUDIO --output_dir OUT
"""

import sys

from audiolm.__main__ import answer_early, check_checkout


def main(argv: list[str] | None = None) -> None:
    """Runs the command. `--help` explains its options."""
    answer_early("eval", sys.argv[1:] if argv is None else argv, "run_eval.py")
    from audiolm.evaluation.evaluate import main as evaluate

    evaluate(argv)


if __name__ == "__main__":
    check_checkout(__file__)
    main()
