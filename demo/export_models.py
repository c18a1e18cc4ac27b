"""Keeps the trained models of the demo in `demo/models`, in half precision: `python -m audiolm.demo.export_models outputs/demo`.

Their encoders are the demo's, which stand in half precision already, and so lose nothing.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import FOLDER, MODEL_NAMES

KEPT = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
)


def keep(run: Path, folder: Path) -> None:
    """Writes the model that a run of run_train.py ended with, its floating point numbers in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(run / name, folder / name)
    weights = {
        name: of.half() if of.dtype == torch.float32 else of
        for name, of in load_file(run / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "comparison", type=Path, help="output_dir of `run_compare.py --config configs/demo.yaml`"
    )
    args = parser.parse_args(argv)
    for arm in MODEL_NAMES:
        keep(args.comparison / arm, FOLDER / arm)


if __name__ == "__main__":
    main()
