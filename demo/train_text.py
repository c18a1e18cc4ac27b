"""Trains the demo's tokenizer and small Llama on soundscapes' text alone: `python -m audiolm.demo.train_text`.

The model reads a clip's caption where an AudioLM reads the clip, and learns to answer; what the mapper is left to learn
is to say in vectors what a caption says in words. The rows are of seeds that no corpus uses. Saved in half precision.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from .. import AudioLMFeatureExtractor, AudioLMProcessor
from ..data.soundscapes.corpus import draw_corpus
from ..runtime import use_all_of_the_cpu
from .train_encoders import optimiser, record, steps

SEED = 980_000_000  # apart from any seed of a corpus
SPECIAL = ["<unk>", "<s>", "<|im_end|>", "<audio>"]  # <audio> is AudioLMConfig's audio_token_id, 3
ROWS, POOL = 24, 16  # rows of a step; steps whose rows are drawn together
LLAMA = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.08,  # 0.02 is for widths of a thousand: copying a caption is then not learnt in 1,400 steps
}


def train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `size` words."""
    raw = Tokenizer(models.BPE(unk_token=SPECIAL[0]))
    raw.pre_tokenizer, raw.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<audio>"],
    )


def example(processor: AudioLMProcessor, row: dict) -> tuple[list[int], list[int]]:
    """Ids and labels of a row whose clips are told instead of heard."""
    told = [
        processor.encode_answer(row[field])[:-1] for field in ("caption1", "caption2") if row[field]
    ]
    captions, prompt = iter(told), []
    for token in processor.encode_prompt(row["input"], [1] * len(told)):
        prompt += next(captions) if token == processor.audio_token_id else [token]
    answer = processor.encode_answer(row["answer"])
    return prompt + answer, [-100] * len(prompt) + answer


def batch(examples: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    size = max(len(ids) for ids, _ in examples)
    return {
        "input_ids": torch.tensor([ids + [0] * (size - len(ids)) for ids, _ in examples]),
        "attention_mask": torch.tensor(
            [[1] * len(ids) + [0] * (size - len(ids)) for ids, _ in examples]
        ),
        "labels": torch.tensor([labels + [-100] * (size - len(ids)) for ids, labels in examples]),
    }


def row_loss(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean over rows of the mean loss of a row's answer: a yes counts as much as a caption."""
    wanted = inputs.pop("labels")[:, 1:]
    logits = model(**inputs).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
    return (losses.sum(1) / (wanted != -100).sum(1)).mean()


@torch.no_grad()
def exact_answers(model, examples) -> float:
    """Share of the answers of which every token is the likeliest one."""
    right = 0
    for start in range(0, len(examples), 64):
        inputs = batch(examples[start : start + 64])
        wanted = inputs.pop("labels")[:, 1:]
        made = model(**inputs).logits[:, :-1].argmax(2)
        right += int(((made == wanted) | (wanted == -100)).all(1).sum())
    return right / len(examples)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "text", help="default: demo/text"
    )
    parser.add_argument("--rows", type=int, default=60_000, help="training rows (default: 60000)")
    parser.add_argument(
        "--steps", type=int, default=14_000, help="steps of 24 rows (default: 14000)"
    )
    parser.add_argument(
        "--vocabulary", type=int, default=768, help="words of the tokenizer (default: 768)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    use_all_of_the_cpu()
    set_seed(args.seed)
    corpus, unseen = (
        draw_corpus(count, SEED + seed)["train"] for seed, count in enumerate((args.rows, 1000))
    )
    rows = corpus.rows
    texts = [row[field] for row in rows[:20_000] for field in ("input", "answer", "caption1")]
    tokenizer = train_tokenizer(texts, args.vocabulary)
    processor = AudioLMProcessor(AudioLMFeatureExtractor(), tokenizer)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **LLAMA))
    # every third row once more as a caption to be copied, from which the others' looking up is learnt
    copies = [
        {**row, "input": "caption first audio", "answer": f"The audio 1 is {row['caption1']}"}
        for row in rows[::3]
    ]
    # and what sounds there are three times: all other questions need it, and it is the slowest to be learnt
    events = 2 * [
        row for row, category in zip(rows, corpus.categories) if category == "sound event"
    ]
    examples = [example(processor, row) for row in rows + copies + events]
    made, schedule = optimiser(model.parameters(), 2e-3, args.steps)
    for bar, _, pool in steps(
        -(-args.steps // POOL), POOL * ROWS, len(examples), args.seed, "text"
    ):
        alike = sorted(
            (examples[i] for i in pool.tolist()), key=lambda e: len(e[0])
        )  # batches of one length, little padding
        for start in torch.randperm(POOL).tolist():
            loss = row_loss(model, batch(alike[start * ROWS : (start + 1) * ROWS]))
            made.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            made.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    figures = {
        "exact_answers": exact_answers(
            model.eval(), [example(processor, row) for row in unseen.rows]
        )
    }
    model.half().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    record(args.output, figures)


if __name__ == "__main__":
    main()
