"""Trains, evaluates and compares several encoders: `python run_compare.py --config demo`."""

import sys

from audiolm.__main__ import answer_early, check_checkout
from audiolm.runtime import report_user_errors


@report_user_errors("run_compare.py")
def main(argv: list[str] | None = None) -> None:
    """Runs the command. `--help` explains its options."""
    answer_early("compare", sys.argv[1:] if argv is None else argv, "run_compare.py")
    from audiolm.comparison.run import compare_encoders, parse_arguments

    compare_encoders(parse_arguments(argv))


if __name__ == "__main__":
    check_checkout(__file__)
    main()
