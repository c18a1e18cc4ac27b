"""What a model answers to a batch of rows: each option's log-likelihood, the right answer's loss, greedy text.

The prompt, audio and question, runs through the language model once. Behind it stand the answers that are scored, each as a
branch that sees the prompt and itself alone; greedy text goes on from the same prompt's keys and values.
"""

from collections.abc import Mapping

import torch
from torch.nn.functional import cross_entropy

from ..data.answer_parsing import option_spans
from ..data.audio_files import Clip
from ..data.features import pad_features

PROTOCOLS = {
    "likelihood": ("likelihood", "likelihood_normalised"),
    "generate": ("generate",),
}  # and the answers each gives
PROTOCOL_NAMES = {
    "likelihood": "log-likelihood",
    "likelihood_normalised": "log-likelihood per token",
    "generate": "greedy text, parsed",
}
ANSWERS_AT_ONCE = 512  # positions whose logits over the vocabulary are held together


def candidates(row: Mapping) -> dict[str, str]:
    """The answers that a closed question allows, as training writes them, by letter or "yes" and "no"; none of others."""
    if row["question_type"] == "yes_no":
        return {"yes": "yes", "no": "no"}
    if row["question_type"] in ("mcq", "entailment"):
        return {
            option.letter.lower(): f"{option.letter}) {option.text}"
            for option in option_spans(row["input"])
        }
    return {}


def most_likely_option(
    scores: Mapping[str, tuple[float, int]], normalised: bool = False
) -> str | None:
    """The option of the greatest log-likelihood, or of the greatest mean over its tokens; None if two are equal."""
    value = {
        option: total / count if normalised else total for option, (total, count) in scores.items()
    }
    best = max(value.values(), default=None)
    named = [option for option in value if value[option] == best]
    return named[0] if len(named) == 1 else None


def build_scoring_batch(
    prompts: list[list[int]], branches: list[list[list[int]]], pad: int
) -> dict[str, torch.Tensor]:
    """One sequence a row, its prompt padded on the left, its branches behind each other and padded on the right.

    Returns:
        input_ids and position_ids, (rows, sequence), where a branch's positions go on from its prompt; `sees`, (rows,
        sequence, sequence): what each token may look at; `prompt`, (rows, longest prompt): 1 on tokens, 0 on padding; `at`,
        (2, tokens): row and place of each token of the branches; `before`, (2, tokens): of what stands before it.
    """
    size, tail = max(map(len, prompts)), max(sum(map(len, of)) for of in branches)
    ids = torch.full((len(prompts), size + tail), pad)
    positions = torch.zeros_like(ids)
    group = torch.full_like(ids, -1)  # 0: prompt, 1, 2, ...: branches, -1: padding
    at, before = [], []
    for row, (prompt, of) in enumerate(zip(prompts, branches)):
        ids[row, size - len(prompt) : size] = torch.tensor(prompt)
        positions[row, size - len(prompt) : size] = torch.arange(len(prompt))
        group[row, size - len(prompt) : size] = 0
        start = size
        for number, tokens in enumerate(of, 1):
            end = start + len(tokens)
            ids[row, start:end] = torch.tensor(tokens)
            positions[row, start:end] = len(prompt) + torch.arange(len(tokens))
            group[row, start:end] = number
            at += [(row, i) for i in range(start, end)]
            before += [(row, i) for i in (size - 1, *range(start, end - 1))]
            start = end
    causal = torch.ones(size + tail, size + tail, dtype=torch.bool).tril()
    sees = (group[:, None] == 0) | (group[:, :, None] == group[:, None])
    sees = sees & (group >= 0)[:, None] & causal | torch.eye(
        size + tail, dtype=torch.bool
    )  # padding sees itself, or it were NaN
    return {
        "input_ids": ids,
        "position_ids": positions,
        "sees": sees,
        "prompt": (group[:, :size] == 0).long(),
        "at": torch.tensor(at).T,
        "before": torch.tensor(before).T,
    }


@torch.no_grad()
def answer_batch(
    model,
    processor,
    rows: list[dict],
    features: Mapping[Clip, torch.Tensor],
    protocols: tuple[str, ...],
    max_new_tokens: int = 64,
    streamer=None,
) -> list[dict]:
    """What the model says to rows whose clips are encoded.

    Args:
        rows: with `input`, `answer`, `question_type` and `audio`, the clips. features: of `encode_clips`, by clip.
        protocols: of "likelihood" and "generate". streamer: of transformers, is given the text of a single row as it comes.

    Returns:
        Of each row: `loss`, summed over the `n_tokens` tokens of the right answer; with "likelihood" `scores`, the
        log-likelihood and number of tokens of each option with its end of text; with "generate" `text`.
    """
    clips, frames = pad_features([features[clip] for row in rows for clip in row["audio"]])
    counts = iter(frames)
    prompts = [
        processor.prompt_ids(row["input"], [next(counts) for _ in row["audio"]]) for row in rows
    ]
    asked = [candidates(row) if "likelihood" in protocols else {} for row in rows]
    answers = [
        list(dict.fromkeys([row["answer"].strip(), *options.values()]))
        for row, options in zip(rows, asked)
    ]
    branches = [[processor.answer_ids(answer) for answer in of] for of in answers]
    made = build_scoring_batch(prompts, branches, processor.tokenizer.pad_token_id)
    made = {name: tensor.to(model.device, non_blocking=True) for name, tensor in made.items()}

    audio = model.get_audio_features(input_features=clips.to(model.device), num_frames=frames)
    embedded = model.put_audio(
        model.get_input_embeddings()(made["input_ids"]), audio, made["input_ids"]
    )
    # added to attention's scores, which every implementation but flash attention takes
    mask = torch.zeros(made["sees"].shape, dtype=embedded.dtype, device=model.device)
    mask = mask.masked_fill(~made["sees"], torch.finfo(embedded.dtype).min)[:, None]
    outputs = model.language_model.model(
        inputs_embeds=embedded,
        attention_mask=mask,
        position_ids=made["position_ids"],
        use_cache="generate" in protocols,
    )
    hidden = outputs.last_hidden_state[tuple(made["before"])]
    wanted, head = made["input_ids"][tuple(made["at"])], model.get_output_embeddings()
    losses = [
        cross_entropy(head(h).float(), w, reduction="none")
        for h, w in zip(hidden.split(ANSWERS_AT_ONCE), wanted.split(ANSWERS_AT_ONCE))
    ]
    by_token = iter(
        torch.cat(losses).double().tolist()
    )  # summed here: one order, whatever the device
    losses = [[sum(next(by_token) for _ in tokens) for tokens in of] for of in branches]

    results = []
    for row, options, of, tokens, loss in zip(rows, asked, answers, branches, losses):
        scored = {answer: (-total, len(ids)) for answer, ids, total in zip(of, tokens, loss)}
        right = scored[row["answer"].strip()]
        results.append({"loss": round(-right[0], 6), "n_tokens": right[1]})
        if "likelihood" in protocols:
            results[-1]["scores"] = {
                option: (round(scored[text][0], 6), scored[text][1])
                for option, text in options.items()
            }
    if "generate" in protocols:
        size, cache = made["prompt"].shape[1], outputs.past_key_values
        cache.crop(
            size - 1 - cache.get_seq_length()
        )  # the prompt's last token runs again, for the first token of the answer
        text = model.generate(
            input_ids=made["input_ids"][:, :size],
            attention_mask=made["prompt"],
            past_key_values=cache,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            streamer=streamer,
        )
        for result, ids in zip(results, text[:, size:]):
            result["text"] = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return results
