"""What the demo's training scripts share: batches, the optimizer and the record of results."""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from ..runtime import write_json


def script_parser(description: str | None, output: Path, help_text: str) -> argparse.ArgumentParser:
    """Builds a parser with `--output` and `--seed`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=output, help=help_text)
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    return parser


def shuffled_batches(
    steps: int, batch_size: int, num_examples: int, seed: int, label: str
) -> Iterator[tuple[tqdm, torch.Tensor]]:
    """Yields a progress bar and the indices of each batch."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.zeros(0, dtype=torch.long)
    bar = tqdm(range(steps), desc=label, unit="step")
    for _ in bar:
        if len(order) < batch_size:
            order = torch.cat([order, torch.randperm(num_examples, generator=generator)])
        yield bar, order[:batch_size]
        order = order[batch_size:]


class Optimizer:
    """AdamW with a cosine schedule, and a warm-up of a twentieth of the steps."""

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, steps: int):
        self.adamw = torch.optim.AdamW(
            parameters, learning_rate, betas=(0.8, 0.99), weight_decay=0.01
        )
        self.schedule = get_cosine_schedule_with_warmup(self.adamw, steps // 20, steps)

    def step(self, loss: torch.Tensor, clipped_model: nn.Module | None = None) -> None:
        """Makes one step. The gradient of `clipped_model` is clipped to a norm of 1."""
        self.adamw.zero_grad()
        loss.backward()
        if clipped_model is not None:
            nn.utils.clip_grad_norm_(clipped_model.parameters(), 1.0)
        self.adamw.step()
        self.schedule.step()


def write_figures(folder: Path, figures: dict) -> None:
    """Writes `figures.json` beside trained weights, and prints it."""
    write_json(folder / "figures.json", figures)
    print(f"{folder}: {json.dumps(figures, indent=2)}", flush=True)
