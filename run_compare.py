"""Trains, evaluates and compares several encoders: `python run_compare.py --config demo`."""

import sys
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":
    # An installed package of another checkout would silently run that checkout's code.
    here = Path(__file__).resolve()
    package = find_spec("audiolm")
    if package is None or package.origin is None:
        sys.exit(f"{here.name}: the package is not installed: run `pip install -e {here.parent}`")
    folder = Path(package.origin).resolve().parent
    if folder != here.parent:
        sys.exit(
            f"{here.name} of {here.parent} runs with the package of {folder}: "
            f"run `pip install -e {here.parent}`, or run {folder / here.name}"
        )

from audiolm.__main__ import answer_early
from audiolm.runtime import report_user_errors


@report_user_errors("run_compare.py")
def main(argv: list[str] | None = None) -> None:
    """Runs the command. `--help` explains its options."""
    answer_early("compare", sys.argv[1:] if argv is None else argv, "run_compare.py")
    from audiolm.comparison.run import compare_encoders, parse_arguments

    compare_encoders(parse_arguments(argv))


if __name__ == "__main__":
    main()
