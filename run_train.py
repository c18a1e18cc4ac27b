"""Trains one AudioLM: `accelerate launch run_train.py --encoder_type mimi_full`."""

import sys

from audiolm.__main__ import answer_early, check_checkout
from audiolm.runtime import report_user_errors


@report_user_errors("run_train.py")
def main(argv: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        argv: Command line. Default: this process's.
    """
    answer_early("train", sys.argv[1:] if argv is None else argv, "run_train.py")
    from audiolm.training.arguments import parse_arguments
    from audiolm.training.train import train

    train(*parse_arguments(argv))


if __name__ == "__main__":
    check_checkout(__file__)
    main()
