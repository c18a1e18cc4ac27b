"""Train one AudioLM: `accelerate launch run_train.py --encoder_type mimi_full`."""

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
    main()
