"""The numbers that expose an artefact: the same rows without what an honest answer needs.

`majority`: training's commonest answer; what the corpus gives away. `no_audio`: every frame is the mean of training's.
`noise`: Gaussian noise of each clip's length and power. `mismatched_audio`: each clip exchanged for another row's. `option_relabel`:
options under other letters, where who hears picks the same text. `question_only`: another model, trained on text alone.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from ..data.answer_parsing import option_spans, parse_answer
from ..data.audio_files import Clip, clip_audio
from ..data.features import encode_clips
from ..data.label_fixes import speaks_of_others
from ..data.reasonaqa import question_type

CONTROLS = ("majority", "no_audio", "noise", "mismatched_audio", "option_relabel", "question_only")


def commonest_answers(training_rows: Iterable[Mapping], rows: list[Mapping]) -> list[str | None]:
    """The commonest right answer (letter, yes or no) of the training rows of each row's subtype, or of its question type where
    training lacks the subtype; of equally common ones the first in the alphabet, None without any."""
    counts: dict[tuple, Counter] = {}
    for row in training_rows:
        kind = question_type(row)
        if answer := parse_answer(kind, row["input"], row["answer"]):
            for group in ((kind, row["subtype"]), (kind, None)):
                counts.setdefault(group, Counter())[answer] += 1
    commonest = {group: min(found, key=lambda a: (-found[a], a)) for group, found in counts.items()}
    return [
        commonest.get((r["question_type"], r["subtype"]), commonest.get((r["question_type"], None)))
        for r in rows
    ]


def noise_of_equal_power(clip: Clip, samples: torch.Tensor) -> torch.Tensor:
    """Gaussian noise, (samples,), of the root mean square of `samples`; always the same for the same samples."""
    seed = int.from_bytes(hashlib.sha256(samples.numpy().tobytes()).digest()[:8], "big") % 2**63
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed))
    return noise * samples.square().mean().sqrt() / noise.square().mean().sqrt()


@torch.no_grad()
def mean_audio_features(model, frames: int | torch.Tensor) -> torch.Tensor:
    """A clip of the mean feature of the training's clips, (frames, dim), as a model with `no_audio` hears it. Of no use where
    the mapper does not hold that mean, which is zero then: learnt embeddings of codes, and Mellow's checkpoint.

    Args:
        frames: how many, or the clip's own features or codes.
    """
    if torch.is_tensor(frames) and frames.is_floating_point():
        return model.mapper.mean(frames.to(model.device)).cpu()
    count = frames.shape[-1] if torch.is_tensor(frames) else frames
    return model.mapper.feature_mean.float().cpu().expand(count, -1)


def clip_features(model, extractor, clips: list[Clip], alter=None) -> dict[Clip, torch.Tensor]:
    """What a model's encoder makes of clips; one with `no_audio`, which hears none, needs their lengths alone.

    Args:
        alter: what is done to each clip's samples first, as [`encode_clips`] takes it.
    """
    if not model.config.no_audio:
        return dict(encode_clips(model.encoder, extractor, clips, alter=alter))
    seconds = extractor.max_audio_seconds
    lengths = {clip: len(extractor.load(clip_audio(clip, seconds))) for clip in clips}
    return {
        clip: mean_audio_features(model, extractor.num_frames(length))
        for clip, length in lengths.items()
    }


def shift_option_letters(row: dict) -> tuple[dict, dict[str, str]] | None:
    """The row with each option's text under the next letter, and the old letter of each new one; the right answer follows.

    None where no options stand, or one speaks of others ("both A and B").
    """
    options = option_spans(row["input"])
    if (
        row["question_type"] not in ("mcq", "entailment")
        or len(options) < 2
        or speaks_of_others(options)
    ):
        return None
    moved = [options[-1], *options[:-1]]
    question, at, answer = [], 0, row["answer"]
    right = parse_answer(row["question_type"], row["input"], row["answer"])
    for option, taken in zip(options, moved):
        question += [row["input"][at : option.start], taken.text]
        at = option.end
        if taken.letter.lower() == right:
            answer = f"{option.letter}) {taken.text}"
    old = {option.letter.lower(): taken.letter.lower() for option, taken in zip(options, moved)}
    return {**row, "input": "".join(question) + row["input"][at:], "answer": answer}, old
