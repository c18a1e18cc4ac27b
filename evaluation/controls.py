"""Controls: the same examples with the information removed that an honest answer needs.

- `majority`: the most common training answer. Shows what the corpus gives away.
- `no_audio`: every frame is the mean frame of the training audio.
- `noise`: Gaussian noise with each clip's length and power.
- `mismatched_audio`: the audio of another example, of similar length.
- `option_relabel`: the options under other letters. Who uses the audio picks the same text.
- `question_only`: another model, trained without audio.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from ..data.answer_parsing import find_options, parse_answer, replace_texts
from ..data.audio_files import Clip, clip_audio
from ..data.features import encode_clips
from ..data.label_fixes import refers_to_options

if TYPE_CHECKING:
    from ..modeling_audiolm import AudioLMForConditionalGeneration
    from ..processing_audiolm import AudioLMFeatureExtractor

CONTROLS = ("majority", "no_audio", "noise", "mismatched_audio", "option_relabel", "question_only")


def commonest_answers(training_rows: Iterable[Mapping]) -> dict[tuple[str, str | None], str]:
    """Returns the most common answer (letter, yes or no) of each question type and subtype.

    The subtype None stands for all of them. Ties go to the first in the alphabet.
    """
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for row in training_rows:
        kind = row["question_type"]
        answer = parse_answer(kind, row["input"], row["answer"])
        if answer:
            counts[kind, row["subtype"]][answer] += 1
            counts[kind, None][answer] += 1
    return {
        group: min(counter, key=lambda answer: (-counter[answer], answer))
        for group, counter in counts.items()
    }


def noise_of_equal_power(clip: Clip, samples: torch.Tensor) -> torch.Tensor:
    """Returns Gaussian noise with the root mean square of `samples`, shape `(samples,)`.

    The seed is a digest of the samples: the same audio always gives the same noise.
    """
    seed = int.from_bytes(hashlib.sha256(samples.numpy().tobytes()).digest()[:8], "big") % 2**63
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed))
    return noise * samples.square().mean().sqrt() / noise.square().mean().sqrt()


@torch.no_grad()
def mean_audio_features(
    model: "AudioLMForConditionalGeneration", frames: int | torch.Tensor
) -> torch.Tensor:
    """Returns a clip whose frames are all the mean training frame, shape `(frames, dim)`.

    Mappers without that mean give zeros: learned embeddings of codes, and Mellow's checkpoint.
    `frames` is the number of frames, or the clip's features or codes.
    """
    if torch.is_tensor(frames) and frames.is_floating_point():
        return model.mapper.mean_features(frames.to(model.device)).cpu()
    count = frames.shape[-1] if torch.is_tensor(frames) else frames
    return model.mapper.feature_mean.float().cpu().expand(count, -1)


def clip_features(
    model: "AudioLMForConditionalGeneration",
    extractor: "AudioLMFeatureExtractor",
    clips: list[Clip],
    alter: Callable | None = None,
) -> dict[Clip, torch.Tensor]:
    """Encodes clips, changed by `alter` first. A text-only model needs only their lengths."""
    if not model.config.no_audio:
        return dict(encode_clips(model.encoder, extractor, clips, alter=alter))
    features = {}
    for clip in clips:
        samples = extractor.load(clip_audio(clip, extractor.max_audio_seconds))
        features[clip] = mean_audio_features(model, extractor.num_frames(len(samples)))
    return features


def mismatched_clips(rows: Sequence[Mapping], lengths: Mapping[Clip, int]) -> list[list[Clip]]:
    """Returns clips of other rows for each row: none of its own, and of similar length.

    Args:
        rows: Rows with their clips under `audio`.
        lengths: Length of each clip, in any unit. A row with all of these clips gets its own.
    """
    order = sorted(lengths, key=lambda clip: lengths[clip])
    places = {clip: place for place, clip in enumerate(order)}
    mismatched = []
    for row in rows:
        others: list[Clip] = []
        for clip in row["audio"]:
            unused = [other for other in order if other not in (*row["audio"], *others)]
            # How far each is from the clip in the order of lengths. Of two, the longer one counts.
            distances = [(abs(places[other] - places[clip]), -places[other]) for other in unused]
            others.append(min(zip(distances, unused))[1] if unused else clip)
        mismatched.append(others)
    return mismatched


def shift_option_letters(row: dict) -> tuple[dict, dict[str, str]] | None:
    """Moves the text of each option under the next letter, and the right answer with its text.

    Returns the row and the old letter of each new one. None if the row has no options, or if an
    option mentions others ("both A and B").
    """
    options = find_options(row["input"])
    has_options = row["question_type"] in ("mcq", "entailment") and len(options) >= 2
    if not has_options or refers_to_options(options):
        return None
    right = parse_answer(row["question_type"], row["input"], row["answer"])
    answer = row["answer"]
    sources = [options[-1], *options[:-1]]
    old_letters = {}
    for option, source in zip(options, sources):
        old_letters[option.letter.lower()] = source.letter.lower()
        if source.letter.lower() == right:
            answer = f"{option.letter}) {source.text}"
    question = replace_texts(row["input"], options, [source.text for source in sources])
    return {**row, "input": question, "answer": answer}, old_letters
