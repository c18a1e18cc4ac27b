"""Loss on answer tokens by row, so that sums over rows do not depend on how rows were batched."""

import torch
from torch.nn.functional import cross_entropy


def token_losses(logits, labels):
    """(summed loss, labels) of each row, of shape (batch, 2).

    Args:
        logits: (labels that are not -100, vocabulary). labels: (batch, sequence).
    """
    row, column = (labels != -100).nonzero(as_tuple=True)
    losses = cross_entropy(logits.float(), labels[row, column], reduction="none")
    counts = torch.zeros(len(labels), 2, device=losses.device)
    return counts.index_add(0, row, torch.stack([losses, torch.ones_like(losses)], 1))


def token_loss(prediction) -> dict[str, float]:
    """Loss per answer token of a question type."""
    return {"token_loss": float(prediction.predictions[:, 0].sum() / max(1, prediction.predictions[:, 1].sum()))}
