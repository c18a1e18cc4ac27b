"""Scores answer options and generates text for a batch of examples.

The prompt (audio and question) runs through the language model once. The answers to score follow it
as branches. A branch sees the prompt and itself, but no other branch. Generation reuses the
prompt's keys and values.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from ..data.answer_parsing import find_options
from ..data.audio_files import Clip
from ..data.features import pad_features
from ..modeling_audiolm import CACHE_NAME, LOSS_CHUNK_SIZE

if TYPE_CHECKING:
    from ..modeling_audiolm import AudioLMForConditionalGeneration
    from ..processing_audiolm import AudioLMProcessor

# The answers that each protocol gives.
PROTOCOLS = {
    "likelihood": ("likelihood", "likelihood_normalised"),
    "generate": ("generate",),
}
PROTOCOL_NAMES = {
    "likelihood": "log-likelihood",
    "likelihood_normalised": "log-likelihood per token",
    "generate": "greedy text, parsed",
}
# Groups of tokens in a scoring batch. Branches count from 1.
PADDING, PROMPT = -1, 0


def candidates(row: Mapping) -> dict[str, str]:
    """Returns the answers that a closed question allows, written as in training.

    The keys are option letters, or "yes" and "no". An open question has no candidates.
    """
    if row["question_type"] == "yes_no":
        return {"yes": "yes", "no": "no"}
    if row["question_type"] in ("mcq", "entailment"):
        return {
            option.letter.lower(): f"{option.letter}) {option.text}"
            for option in find_options(row["input"])
        }
    return {}


def most_likely_option(
    scores: Mapping[str, tuple[float, int]], normalised: bool = False
) -> str | None:
    """Returns the option with the highest log-likelihood, or None if two are equal.

    `scores` are the log-likelihood and the number of tokens of each option. With `normalised` the
    mean over tokens counts.
    """
    values = {
        option: total / count if normalised else total for option, (total, count) in scores.items()
    }
    best = max(values.values(), default=None)
    best_options = [option for option, value in values.items() if value == best]
    return best_options[0] if len(best_options) == 1 else None


@dataclass(frozen=True)
class ScoringBatch:
    """Prompts and the answers to score, one sequence per example.

    Attributes:
        input_ids: Shape `(rows, sequence)`. Prompts are padded on the left, answers on the right.
        position_ids: Shape `(rows, sequence)`. Each branch continues the positions of its prompt.
        visible: Shape `(rows, sequence, sequence)`. True where a token may attend to another.
        prompt_mask: Shape `(rows, longest prompt)`. 1 on tokens, 0 on padding.
        targets: Shape `(2, tokens)`. Row and column of each answer token.
        predictors: Shape `(2, tokens)`. Row and column of the token before it.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor
    prompt_mask: torch.Tensor
    targets: torch.Tensor
    predictors: torch.Tensor

    def to(self, device: torch.device) -> "ScoringBatch":
        """Returns the batch on a device."""
        return ScoringBatch(
            **{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()}
        )

    def attention_bias(self, dtype: torch.dtype) -> torch.Tensor:
        """Returns `visible` as an additive mask, shape `(rows, 1, sequence, sequence)`.

        Every attention implementation except flash attention accepts it.
        """
        bias = torch.zeros(self.visible.shape, dtype=dtype, device=self.visible.device)
        return bias.masked_fill(~self.visible, torch.finfo(dtype).min)[:, None]


def build_scoring_batch(
    prompts: list[list[int]], branches: list[list[list[int]]], pad: int
) -> ScoringBatch:
    """Builds a batch from the tokens of each example's prompt and of each of its answers."""
    prompt_length = max(map(len, prompts))
    answer_length = max(sum(map(len, answers)) for answers in branches)
    length = prompt_length + answer_length
    ids = torch.full((len(prompts), length), pad)
    positions = torch.zeros_like(ids)
    group = torch.full_like(ids, PADDING)
    targets, predictors = [], []
    for row, (prompt, answers) in enumerate(zip(prompts, branches)):
        start = prompt_length - len(prompt)
        ids[row, start:prompt_length] = torch.tensor(prompt)
        positions[row, start:prompt_length] = torch.arange(len(prompt))
        group[row, start:prompt_length] = PROMPT
        start = prompt_length
        for number, tokens in enumerate(answers, 1):
            end = start + len(tokens)
            ids[row, start:end] = torch.tensor(tokens)
            positions[row, start:end] = len(prompt) + torch.arange(len(tokens))
            group[row, start:end] = number
            targets += [(row, column) for column in range(start, end)]
            predictors += [(row, column) for column in (prompt_length - 1, *range(start, end - 1))]
            start = end
    return ScoringBatch(
        ids,
        positions,
        _visible_tokens(group),
        (group[:, :prompt_length] == PROMPT).long(),
        torch.tensor(targets).T,
        torch.tensor(predictors).T,
    )


def _visible_tokens(group: torch.Tensor) -> torch.Tensor:
    length = group.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    in_prompt = (group == PROMPT)[:, None]
    in_same_branch = group[:, :, None] == group[:, None]
    is_token = (group != PADDING)[:, None]
    # Padding attends to itself. A row without any visible token would be NaN.
    return (in_prompt | in_same_branch) & is_token & causal | torch.eye(length, dtype=torch.bool)


@dataclass(frozen=True)
class _Answers:
    # The right answer comes first, then the options, if any.

    options: dict[str, str] | None
    texts: list[str]
    tokens: list[list[int]]

    def result(self, losses: Iterator[float]) -> dict:
        """Takes the next token losses, and returns the fields of [`answer_batch`]."""
        scores = {
            text: (-sum(next(losses) for _ in tokens), len(tokens))
            for text, tokens in zip(self.texts, self.tokens)
        }
        log_likelihood, num_tokens = scores[self.texts[0]]
        result: dict = {"loss": round(-log_likelihood, 6), "n_tokens": num_tokens}
        if self.options is not None:
            by_option = {option: scores[text] for option, text in self.options.items()}
            result["scores"] = {
                option: (round(total, 6), count) for option, (total, count) in by_option.items()
            }
        return result


def _answers_to_score(row: Mapping, processor: "AudioLMProcessor", with_options: bool) -> _Answers:
    options = candidates(row) if with_options else None
    texts = list(dict.fromkeys([row["answer"].strip(), *(options or {}).values()]))
    return _Answers(options, texts, processor.encode_answers(texts))


@torch.no_grad()
def answer_batch(
    model: "AudioLMForConditionalGeneration",
    processor: "AudioLMProcessor",
    rows: list[dict],
    features: Mapping[Clip, torch.Tensor],
    protocols: tuple[str, ...],
    max_new_tokens: int = 64,
) -> list[dict]:
    """Scores and generates the answers to questions about encoded clips.

    Args:
        model: Answers them.
        processor: Writes the prompts.
        rows: Rows with `input`, `answer`, `question_type` and `audio` (the clips).
        features: The features of each clip, as `encode_clips` yields them.
        protocols: "likelihood", "generate" or both.
        max_new_tokens: Longest generated answer.

    Returns:
        One dict per row. `loss` is summed over the `n_tokens` tokens of the right answer. With
        "likelihood" there are `scores`: log-likelihood and number of tokens of each option,
        including its end-of-text token. With "generate" there is `text`.
    """
    clips = list(chain.from_iterable(row["audio"] for row in rows))
    inputs, num_frames = pad_features([features[clip] for clip in clips])
    frame_counts = iter(num_frames)
    counts = [list(islice(frame_counts, len(row["audio"]))) for row in rows]
    prompts = processor.encode_prompts([row["input"] for row in rows], counts)
    answers = [_answers_to_score(row, processor, "likelihood" in protocols) for row in rows]
    branches = [answer.tokens for answer in answers]
    batch = build_scoring_batch(prompts, branches, processor.tokenizer.pad_token_id)
    batch = batch.to(model.device)

    audio = model.get_audio_features(input_features=inputs.to(model.device), num_frames=num_frames)
    embeddings = model.get_input_embeddings()(batch.input_ids)
    embeddings = model.merge_audio_embeddings(embeddings, audio.pooler_output, batch.input_ids)
    outputs = model.language_model.model(
        inputs_embeds=embeddings,
        attention_mask=batch.attention_bias(embeddings.dtype),
        position_ids=batch.position_ids,
        use_cache="generate" in protocols,
    )
    # Summed on the host: one order of additions on every device.
    losses = iter(_token_losses(model, batch, outputs.last_hidden_state))
    results = [answer.result(losses) for answer in answers]
    if "generate" in protocols:
        texts = _generate(model, batch, getattr(outputs, CACHE_NAME), max_new_tokens)
        for result, tokens in zip(results, texts):
            result["text"] = processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return results


def _token_losses(
    model: "AudioLMForConditionalGeneration", batch: ScoringBatch, hidden: torch.Tensor
) -> list[float]:
    head = model.get_output_embeddings()
    states = hidden[tuple(batch.predictors)].split(LOSS_CHUNK_SIZE)
    targets = batch.input_ids[tuple(batch.targets)].split(LOSS_CHUNK_SIZE)
    losses = [
        cross_entropy(head(state).float(), target, reduction="none")
        for state, target in zip(states, targets)
    ]
    return torch.cat(losses).double().tolist()


def _generate(
    model: "AudioLMForConditionalGeneration", batch: ScoringBatch, cache, max_new_tokens: int
) -> torch.Tensor:
    """Generates greedily. Returns the new tokens, shape `(rows, tokens)`."""
    prompt_length = batch.prompt_mask.shape[1]
    # The prompt's last token runs again: it predicts the first token of the answer.
    cache.crop(prompt_length - 1 - cache.get_seq_length())
    sequences = model.generate(
        input_ids=batch.input_ids[:, :prompt_length],
        attention_mask=batch.prompt_mask,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        **{CACHE_NAME: cache},
    )
    return sequences[:, prompt_length:]
