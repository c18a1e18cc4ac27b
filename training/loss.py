"""Loss on answer tokens by example, so that sums do not depend on how examples were batched."""

import torch
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sums the loss of each example.

    Args:
        logits: Scores of the labels that are not -100, shape `(labels, vocabulary)`.
        labels: Labels, shape `(batch, sequence)`.

    Returns:
        Summed loss and number of labels, shape `(batch, 2)`.
    """
    is_label = labels != -100
    positions = is_label.nonzero(as_tuple=True)
    # Adding by index has no fixed order on a GPU. The sum of a row has.
    losses = torch.zeros(labels.shape, device=labels.device)
    losses[positions] = cross_entropy(logits.float(), labels[positions], reduction="none")
    return torch.stack([losses.sum(1), is_label.sum(1)], 1)


def token_loss(prediction: EvalPrediction) -> dict[str, float]:
    """Returns the loss per answer token over all examples, from [`token_losses`]."""
    summed_losses, label_counts = prediction.predictions.T
    return {"token_loss": float(summed_losses.sum() / max(1, label_counts.sum()))}
