"""Trains the demo's tokenizer and small Llama on text: `python -m audiolm.demo.train_text`.

The model reads a clip's caption where an AudioLM reads its audio tokens, and learns to answer. The
mapper then only has to express a caption as vectors. Both are saved in half precision.
"""

from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from .. import AudioLMFeatureExtractor, AudioLMProcessor
from ..data.answer_parsing import find_options, named_letter_and_words, parse_answer
from ..data.reasonaqa import question_type
from ..data.soundscapes.corpus import Split, draw_corpus
from ..data.soundscapes.recordings import RecordingTable
from ..runtime import use_all_of_the_cpu
from .training import Optimizer, script_parser, shuffled_batches, write_figures

SEED = 980_000_000  # differs from any seed of a corpus
# <audio> has AudioLMConfig's audio_token_id, 3.
SPECIAL_TOKENS = ["<unk>", "<s>", "<|im_end|>", "<audio>"]
FOLDER = Path(__file__).parent / "text"
TEXT_FIELDS = ("input", "answer", "caption1")
BATCH_SIZE = 24
LETTER_WEIGHT = 4  # of an answer's first token in the loss
BATCHES_PER_POOL = 16  # batches of similar length are formed among so many
LLAMA = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    # The default of 0.02 suits widths of a thousand. With it, copying a caption is not learnt.
    "initializer_range": 0.08,
}  # fmt: skip

Example = tuple[list[int], list[int]]  # token ids and labels


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<audio>"],
    )


def build_example(processor: AudioLMProcessor, row: dict) -> Example:
    """Returns a row's token ids, with captions in place of audio tokens, and its labels."""
    fields = [field for field in ("caption1", "caption2") if row[field]]
    texts = [*(row[field] for field in fields), row["answer"]]
    *captions, answer = processor.encode_answers(texts)
    (tokens,) = processor.encode_prompts([row["input"]], [[1] * len(fields)])
    prompt = []
    for token in tokens:
        prompt += captions.pop(0)[:-1] if token == processor.audio_token_id else [token]
    return prompt + answer, [-100] * len(prompt) + answer


def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
    """Pads examples to the longest one."""
    ids, labels = ([torch.tensor(part) for part in parts] for parts in zip(*examples))
    return {
        "input_ids": pad_sequence(ids, True),
        "attention_mask": pad_sequence([torch.ones_like(part) for part in ids], True),
        "labels": pad_sequence(labels, True, -100),
    }


def example_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Averages the mean loss of each answer: a "yes" counts as much as a caption.

    The first token counts more. In "B) rain" it decides the rest, and is learnt last.
    """
    targets = batch.pop("labels")[:, 1:]
    logits = model(**batch).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    is_answer = targets != -100
    is_first = is_answer & (is_answer.cumsum(1) == 1)
    weights = is_answer + (LETTER_WEIGHT - 1) * is_first
    return ((losses.view_as(targets) * weights).sum(1) / weights.sum(1)).mean()


@torch.no_grad()
def exact_answers(model: nn.Module, examples: list[Example]) -> float:
    """Returns the share of answers of which each token is the most likely one."""
    num_right = 0
    for start in range(0, len(examples), 64):
        batch = collate(examples[start : start + 64])
        targets = batch.pop("labels")[:, 1:]
        predictions = model(**batch).logits[:, :-1].argmax(2)
        is_right = (predictions == targets) | (targets == -100)
        num_right += int(is_right.all(1).sum())
    return num_right / len(examples)


@torch.no_grad()
def letter_figures(
    model: LlamaForCausalLM, processor: AudioLMProcessor, rows: list[dict]
) -> dict[str, float]:
    """Returns what generated answers to multiple-choice questions name.

    Returns:
        Number of texts, and the shares that name the letter of one option and the words of another,
        the right letter, and the right words.
    """
    rows = [row for row in rows if question_type(row) == "mcq"]
    named = []  # right option, option of the letter, option of the words
    for start in range(0, len(rows), 64):
        batch = rows[start : start + 64]
        examples = [build_example(processor, row) for row in batch]
        prompts = {"input_ids": [ids[: labels.count(-100)] for ids, labels in examples]}
        inputs = processor.tokenizer.pad(prompts, padding_side="left", return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        new_tokens = tokens[:, inputs["input_ids"].shape[1] :]
        texts = processor.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        for row, text in zip(batch, texts):
            right = parse_answer("mcq", row["input"], row["answer"])
            named.append((right, *named_letter_and_words(row["input"], text)))
    return {
        "n": len(named),
        "contradictory": sum(None not in row[1:] and row[1] != row[2] for row in named)
        / len(named),
        "by_letter": sum(letter == right for right, letter, _ in named) / len(named),
        "by_words": sum(option == right for right, _, option in named) / len(named),
    }


def build_training_rows(split: Split) -> list[dict]:
    """Returns the rows of a split with the harder ones repeated."""
    # Copying the caption teaches the model to look things up in it.
    copies = [
        {**row, "input": "caption first audio", "answer": f"The audio 1 is {row['caption1']}"}
        for row in split.rows[::6]
    ]
    # Which sounds a clip has is learnt last, and all other questions need it.
    pairs = list(zip(split.rows, split.categories))
    events = [row for row, category in pairs if category == "sound event"]
    # The letter of a count or a quality is learnt later than its words.
    others = [
        row for row, category in pairs if category != "sound event" and find_options(row["input"])
    ]
    return split.rows + copies + events + 3 * others


def train(
    model: nn.Module, examples: list[Example], steps: int, seed: int, learning_rate: float
) -> None:
    """Trains the language model. `steps` are rounded up to whole pools of batches."""
    optimizer = Optimizer(model.parameters(), learning_rate, steps)
    num_pools = -(-steps // BATCHES_PER_POOL)
    pool_size = BATCHES_PER_POOL * BATCH_SIZE
    for bar, pool in shuffled_batches(num_pools, pool_size, len(examples), seed, "text"):
        by_length = sorted((examples[i] for i in pool.tolist()), key=lambda e: len(e[0]))
        for number in torch.randperm(BATCHES_PER_POOL).tolist():
            batch = collate(by_length[number * BATCH_SIZE : (number + 1) * BATCH_SIZE])
            loss = example_loss(model, batch)
            optimizer.step(loss, clipped_model=model)
            bar.set_postfix(loss=f"{loss.item():.3f}")


def esc50_table(folder: Path) -> RecordingTable:
    """Returns the table of ESC-50's recordings in a folder."""
    csv, audio_dir = str(folder / "meta" / "esc50.csv"), str(folder / "audio")
    return RecordingTable(csv, audio_dir, "category", fold="fold", group="src_file")


def main(argv: list[str] | None = None) -> None:
    """Trains and saves the tokenizer and the language model."""
    parser = script_parser(__doc__, FOLDER, "output folder")
    add = parser.add_argument
    add("--rows", type=int, default=60_000, help="training rows")
    add("--steps", type=int, default=14_000, help="steps with batch size 24")
    add("--vocabulary", type=int, default=768, help="size of the tokenizer's vocabulary")
    add("--learning_rate", type=float, default=2e-3, help="highest learning rate")
    add("--start_from", type=Path, metavar="FOLDER", help="model to train further")
    add("--esc50", type=Path, metavar="FOLDER", help="folder of ESC-50, whose classes to teach")
    args = parser.parse_args(argv)
    use_all_of_the_cpu()
    set_seed(args.seed)
    recordings = esc50_table(args.esc50) if args.esc50 else None
    split = draw_corpus(args.rows, SEED, recordings)["train"]
    unseen = draw_corpus(1000, SEED + 1, recordings)["train"]
    if args.start_from:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start_from)
        model = LlamaForCausalLM.from_pretrained(args.start_from, dtype=torch.float32)
    else:
        texts = [row[field] for row, field in product(split.rows[:20_000], TEXT_FIELDS)]
        tokenizer = train_tokenizer(texts, args.vocabulary)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **LLAMA))
    processor = AudioLMProcessor(AudioLMFeatureExtractor(), tokenizer)
    examples = [build_example(processor, row) for row in build_training_rows(split)]
    train(model.train(), examples, args.steps, args.seed, args.learning_rate)
    unseen_examples = [build_example(processor, row) for row in unseen.rows]
    figures = {
        "exact_answers": exact_answers(model.eval(), unseen_examples),
        "letters": letter_figures(model, processor, unseen.rows),
    }
    model.half().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    write_figures(args.output, figures)


if __name__ == "__main__":
    main()
