"""Copies trained models to `demo/models`: `python -m audiolm.demo.export_models outputs/demo`.

Weights are converted to half precision. The encoders lose nothing, because the demo's encoders are
stored in half precision.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import FOLDER, MODEL_NAMES

COPIED_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
)


def main(argv: list[str] | None = None) -> None:
    """Exports the final models of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    help_text = "output_dir of `run_compare.py --config configs/demo.yaml`"
    parser.add_argument("comparison", type=Path, help=help_text)
    comparison = parser.parse_args(argv).comparison
    for model in MODEL_NAMES:
        run, folder = comparison / model, FOLDER / model
        folder.mkdir(parents=True, exist_ok=True)
        for file in COPIED_FILES:
            shutil.copyfile(run / file, folder / file)
        weights = load_file(run / "model.safetensors")
        for name, tensor in weights.items():
            if tensor.dtype == torch.float32:
                weights[name] = tensor.half()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
