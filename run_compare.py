"""Trains, evaluates and compares several encoders: `python run_compare.py --config demo`."""

from audiolm.comparison.run import compare_encoders, parse_arguments
from audiolm.runtime import report_user_errors


@report_user_errors("run_compare.py")
def main(argv: list[str] | None = None) -> None:
    """Runs the command. `--help` explains its options."""
    compare_encoders(parse_arguments(argv))


if __name__ == "__main__":
    main()
