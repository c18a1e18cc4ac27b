"""Mellow (arXiv 2503.08540) of its published checkpoint, as an AudioLM; and the second clip that each of its questions has."""

import re
from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.utils import cached_file

from ..configuration_audiolm import AudioLMConfig
from ..modeling_audiolm import AudioLMForConditionalGeneration
from .state_dicts import HTSAT_UNUSED, load_state_strictly, read_checkpoint, rename_clap_keys

PUBLISHED, CHECKPOINT = "soham97/mellow", "v0.ckpt"
TEXT_MODEL = "HuggingFaceTB/SmolLM2-135M"  # whose tokenizer it has
# by the beginnings of its keys: the parts of an AudioLM; what is left are the encoder's
PARTS = {
    "audio_encoder.base.c2l.": "mapper.posteriors.",
    "audio_encoder.projection.linear": "mapper.linear_",
    "audio_encoder.projection.layer_norm.": "mapper.norm.",
    "caption_decoder.lm.": "language_model.",
}
TENSORS_OF_A_LAYER = 9
ENCODER = "audio_encoder.base.htsat."


def mellow_checkpoint(name: str, revision: str | None = None) -> str | None:
    """The file of Mellow's weights that is meant: a `.ckpt` file, here or as user/repository/file on the Hub, a folder with
    `v0.ckpt` in it, or the published repository; None if `name` is something else.

    Raises:
        OSError: if the Hub does not have it.
    """
    path = Path(name)
    if path.is_file() and path.suffix == ".ckpt":
        return name
    if path.is_dir():
        return str(path / CHECKPOINT) if (path / CHECKPOINT).is_file() else None
    if name == PUBLISHED:
        return cached_file(name, CHECKPOINT, revision=revision)
    if path.suffix == ".ckpt" and len(path.parts) == 3 and not path.is_absolute():
        return cached_file("/".join(path.parts[:2]), path.name, revision=revision)
    return None


def load_mellow(path: str):
    """The model in float32, in eval mode, and its tokenizer: of the folder of the checkpoint, else SmolLM2-135M's.

    Raises:
        ValueError: if the checkpoint is torn, or not Mellow's; it names the first keys that are
            missing or too many.
    """
    state = {key.removeprefix("module."): value for key, value in read_checkpoint(path).items()}
    parts: dict[str, dict[str, torch.Tensor]] = {"encoder": {}, "posteriors": {}, "rest": {}}
    for key, value in state.items():
        name = key.removeprefix(ENCODER)
        if begins := next((begins for begins in PARTS if key.startswith(begins)), None):
            parts["rest"][PARTS[begins] + key.removeprefix(begins)] = value
        elif name.startswith("tscam_conv."):
            parts["posteriors"][name.removeprefix("tscam_conv.")] = value
        elif not re.search(HTSAT_UNUSED, name):
            parts["encoder"][name] = value
    text = AudioLMConfig("mellow").text_config.to_dict()
    layers = [
        int(found[1])
        for key in state
        if (found := re.match(r"caption_decoder\.lm\.model\.layers\.(\d+)\.", key))
    ]
    count = len(layers) // TENSORS_OF_A_LAYER
    if not count or sorted(layers) != sorted(
        TENSORS_OF_A_LAYER * list(range(count))
    ):  # before a model of so many is made
        raise ValueError(
            f"{path} holds {len(layers)} tensors of language model layers, not {TENSORS_OF_A_LAYER} of each"
        )
    text |= {"num_hidden_layers": count, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AudioLMConfig(
        "mellow", text_config=text, mapper_type="mellow", prompt_format="mellow", freeze_lm=False
    )
    model = AudioLMForConditionalGeneration(config)
    load_state_strictly(model.encoder.model.audio_encoder, rename_clap_keys(parts["encoder"]), path)
    load_state_strictly(model.encoder.classifier, parts["posteriors"], path)
    for part in ("mapper", "language_model"):
        mine = {
            k.removeprefix(f"{part}."): v
            for k, v in parts["rest"].items()
            if k.startswith(f"{part}.")
        }
        if part == "mapper":  # not standardised
            mine |= {name: getattr(model.mapper, name) for name in ("feature_mean", "feature_std")}
        load_state_strictly(getattr(model, part), mine, path)
    model.tie_weights()
    model.generation_config.suppress_tokens = [config.audio_token_id]
    model.config.training = {"published": PUBLISHED}  # not by this package
    folder = Path(path).parent
    tokenizer = AutoTokenizer.from_pretrained(
        folder if (folder / "tokenizer.json").is_file() else TEXT_MODEL
    )
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return model.train(False), tokenizer
