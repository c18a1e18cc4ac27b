"""A small model of each arm, with the real modules at small sizes and a tokenizer made here."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared" / "data" / "mini_reasonaqa"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the recordings of mini_reasonaqa are not beside the checkout")
ARMS = ["htsat", "mimi_semantic", "mimi_full"]
SMALL_HTSAT = {"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2],
               "window_seconds": 1.0}  # fmt: skip
SMALL_MIMI = {"hidden_size": 32, "num_filters": 4, "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": 2,
              "num_key_value_heads": 2, "head_dim": 16, "codebook_dim": 16, "codebook_size": 64, "upsample_groups": 32,
              "vector_quantization_hidden_dimension": 16, "num_quantizers": 8}  # fmt: skip
TEXT = {"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_position_embeddings": 2048}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<bos>", "<|im_end|>", "<audio>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({t: i for i, t in enumerate(special + alphabet)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<bos>",
                                   additional_special_tokens=["<audio>"])  # fmt: skip


def small_model(arm: str, seed: int = 0, **fields):
    from audiolm import AudioLMConfig, AudioLMForConditionalGeneration
    from audiolm.encoder_checkpoints import randomise_codebooks
    from audiolm.encoders_audiolm import MimiEncoder

    torch.manual_seed(seed)
    config = AudioLMConfig(arm, SMALL_HTSAT if arm == "htsat" else SMALL_MIMI, TEXT, mapper_hidden_size=32, **fields)
    model = AudioLMForConditionalGeneration(config).eval()
    if isinstance(model.encoder, MimiEncoder):
        randomise_codebooks(model.encoder)
    return model


@pytest.fixture(scope="session", params=ARMS)
def parts(request, tokenizer):
    """(arm, model, processor)."""
    from audiolm import AudioLMProcessor

    model = small_model(request.param)
    return request.param, model, AudioLMProcessor.from_config(model.config, tokenizer)


def clip(seconds: float, rate: int = 24000, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * 300 * (seed + 1) * t) + 0.05 * random.standard_normal(len(t))).astype("float32")
