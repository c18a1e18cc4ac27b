"""Evaluates a trained model.

python run_eval.py --model_name_or_path M --test_file test.json --audio_dir AUDIO --output_dir OUT
"""

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


def main(argv: list[str] | None = None) -> None:
    """Runs the command. `--help` explains its options."""
    answer_early("eval", sys.argv[1:] if argv is None else argv, "run_eval.py")
    from audiolm.evaluation.evaluate import main as evaluate

    evaluate(argv)


if __name__ == "__main__":
    main()
