"""Loss on answer tokens by row, so that sums over rows do not depend on how rows were batched."""

import torch
from torch.nn.functional import cross_entropy


def token_losses(logits, labels):
    """(summed loss, labels) of each row, of shape (batch, 2).

    Args:
        logits: (labels that are not -100, vocabulary). labels: (batch, sequence).
    """
    at = (labels != -100).nonzero(as_tuple=True)
    spread = torch.zeros(
        labels.shape, device=labels.device
    )  # adding by index has no fixed order on a GPU; a row's sum has
    spread[at] = cross_entropy(logits.float(), labels[at], reduction="none")
    return torch.stack([spread.sum(1), (labels != -100).sum(1)], 1)


def token_loss(prediction) -> dict[str, float]:
    """Loss per answer token of a question type."""
    return {
        "token_loss": float(
            prediction.predictions[:, 0].sum() / max(1, prediction.predictions[:, 1].sum())
        )
    }
