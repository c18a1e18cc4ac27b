"""AudioLM: frozen audio encoder, mapper, language model; an answer from one or two clips and a question."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_audiolm import AudioLMConfig
from .encoders_audiolm import AudioEncoder, build_encoder

TEXT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
LABELS_AT_ONCE = 512  # whose logits exist together in training: 100 MB in float32


class AudioMapper(nn.Module):
    """Standardised encoder features to vectors of the language model: Linear, GELU, Linear.

    Where an encoder gives two kinds of frames, the `second` kind goes through layers of its own.

    Args:
        dims: channels of each kind of frame. codes: levels and codes of each, if the embeddings of codes are learnt.
    """

    def __init__(
        self,
        dims: tuple[int, ...],
        hidden_size: int,
        text_size: int,
        codes: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.dims = dims
        # persistent: `from_pretrained` builds on the meta device, where other buffers come back as garbage
        self.register_buffer("feature_mean", torch.zeros(sum(dims)))
        self.register_buffer("feature_std", torch.ones(sum(dims)))
        self.build(hidden_size, text_size)
        self.codes = codes
        if codes:
            self.code_embeddings = nn.Embedding(codes[0] * codes[1], dims[0])

    def build(self, hidden_size: int, text_size: int) -> None:
        """Makes the layers that learn."""
        self.linear_1 = nn.Linear(self.dims[0], hidden_size)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(hidden_size, text_size)
        self.second = nn.ModuleDict()
        if len(self.dims) > 1:
            self.second["linear_1"] = nn.Linear(self.dims[1], hidden_size)
            self.second["linear_2"] = nn.Linear(hidden_size, text_size)

    def embedded(self, codes: torch.Tensor) -> torch.Tensor:
        """Sums of learnt embeddings, (clips, frames, dim), of codes (clips, levels, frames)."""
        first = torch.arange(self.codes[0], device=codes.device)[:, None] * self.codes[1]
        return self.code_embeddings(codes.long() + first).sum(1)

    def of_first_kind(self, features: torch.Tensor) -> torch.Tensor:
        """True where frames (..., dim) are of the first kind, with a last dimension of 1; where not, its channels are zeros."""
        return features[..., : self.dims[0]].any(-1, keepdim=True)

    def mean(self, features: torch.Tensor) -> torch.Tensor:
        """What stands for frames that are not heard, as many and of the kinds of `features` (..., dim)."""
        if len(self.dims) == 1:
            return self.feature_mean.float().expand_as(features)
        first = self.of_first_kind(features)
        return self.feature_mean.float() * torch.cat(
            [
                first.expand(*first.shape[:-1], self.dims[0]),
                ~first.expand(*first.shape[:-1], self.dims[1]),
            ],
            -1,
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(..., dim) to (..., text_size)."""
        first = self.of_first_kind(features) if len(self.dims) > 1 else None
        features = (features.float() - self.feature_mean.float()) / self.feature_std.float().clamp(
            min=1e-5
        )
        features = features.to(self.linear_1.weight.dtype)
        mapped = self.linear_2(self.act(self.linear_1(features[..., : self.dims[0]])))
        if first is None:
            return mapped
        second = self.second["linear_2"](
            self.act(self.second["linear_1"](features[..., self.dims[0] :]))
        )
        return torch.where(first, mapped, second)


class MellowMapper(AudioMapper):
    """Mellow's projection (arXiv 2503.08540) of a clip's latent, and of its posteriors that a linear layer first makes as wide:
    a linear layer without bias, another on its GELU added to it, with dropout, and a layer norm. Features are not standardised.
    """

    def build(self, hidden_size, text_size):
        self.posteriors = nn.Linear(self.dims[1], self.dims[0])
        self.linear_1 = nn.Linear(self.dims[0], text_size, bias=False)
        self.linear_2 = nn.Linear(text_size, text_size, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.LayerNorm(text_size)

    def forward(self, features):
        first = self.of_first_kind(features)
        features = features.to(self.linear_1.weight.dtype)
        wide = torch.where(
            first, features[..., : self.dims[0]], self.posteriors(features[..., self.dims[0] :])
        )
        projected = self.linear_1(wide)
        return self.norm(projected + self.dropout(self.linear_2(nn.functional.gelu(projected))))


class AudioLMForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Language model that reads audio frames where `config.audio_token_id` stands in `input_ids`."""

    config_class = AudioLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _asked = None  # what `train` was told last
    _supports_sdpa = True
    _supports_flash_attn = True
    _keep_in_fp32_modules_strict = [
        "encoder(?!.*(relative_position_index|num_batches_tracked|positions))"
    ]
    _tied_weights_keys = {
        "language_model.lm_head.weight": "language_model.model.embed_tokens.weight"
    }

    def __init__(self, config: AudioLMConfig):
        super().__init__(config)
        self.encoder = build_encoder(config.encoder_config)
        codes = (
            (self.encoder.num_levels, self.encoder.codebook_size)
            if config.learn_code_embeddings
            else None
        )
        mapper = {"mlp": AudioMapper, "mellow": MellowMapper}[config.mapper_type]
        self.mapper = mapper(
            self.encoder.dims, config.mapper_hidden_size, config.text_config.hidden_size, codes
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()
        self.train(self.training)

    @classmethod
    def from_pretrained_parts(
        cls,
        encoder_type: str,
        encoder: AudioEncoder,
        text_model: PreTrainedModel | str = TEXT_MODEL,
        **config_fields,
    ) -> "AudioLMForConditionalGeneration":
        """Assembles a model from a pretrained encoder and language model, with a new mapper between them.

        Args:
            encoder_type: the arm.
            encoder: its encoder, such as `audiolm.load_encoder(encoder_type)`, which a pushed model does without.
            text_model: a language model, its name or folder, or a `.gguf` file.
            config_fields: further fields of [`AudioLMConfig`].
        """
        if not isinstance(text_model, PreTrainedModel):
            text_model = AutoModelForCausalLM.from_pretrained(
                **text_model_source(text_model), dtype=torch.float32
            )
        config = AudioLMConfig(encoder_type, encoder.config, text_model.config, **config_fields)
        model = cls(config)
        model.encoder, model.language_model = encoder, text_model
        model.tie_weights()
        model.generation_config.suppress_tokens = [config.audio_token_id]
        return model.train(False)

    def _init_weights(self, module):
        # the mapper alone: encoder and language model initialise themselves or are loaded
        if isinstance(module, nn.Linear) and any(module is m for m in self.mapper.modules()):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif module is getattr(self.mapper, "code_embeddings", None):
            nn.init.normal_(
                module.weight, std=self.mapper.codes[0] ** -0.5
            )  # sums of deviation 1, as standardised features

    def train(self, mode: bool = True):
        """As `nn.Module.train`, but the encoder stays frozen and in eval mode, and the language model frozen if asked."""
        asked = mode, self.config.freeze_lm
        if (
            mode
            and self._asked == asked
            and all(part.training == (part is not self.encoder) for part in self.children())
        ):
            return self  # as the Trainer asks before each step: going through all modules takes a good part of one
        super().train(mode)
        self._asked = asked
        self.encoder.eval().requires_grad_(False)
        for name, parameter in self.language_model.named_parameters():
            if ".lora_" not in name:  # adapters on a frozen model train
                parameter.requires_grad_(not self.config.freeze_lm)
        self.encoder.clear_codebook_cache()
        return self

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    @torch.compiler.disable  # a frozen encoder that hears clips of many lengths: compiling it anew for each costs minutes
    def get_audio_features(
        self,
        input_values: torch.Tensor | None = None,
        input_values_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        num_samples: list[int] | None = None,
        num_frames: list[int] | None = None,
    ) -> torch.Tensor:
        """Mapped frames of all clips, one after the other; arguments as `forward` takes them.

        Returns:
            (frames of all clips, text hidden size).
        """
        if input_features is None:
            if num_samples is None:
                full = [input_values.shape[1]] * len(input_values)
                num_samples = (
                    full if input_values_mask is None else input_values_mask.sum(1).tolist()
                )
            encode = (
                self.encoder.codes if self.config.learn_code_embeddings else self.encoder.encode
            )
            features, mask = encode(input_values, num_samples), self.encoder.frame_mask(num_samples)
        else:
            features, frames = (
                input_features,
                input_features.shape[1 if input_features.is_floating_point() else 2],
            )
            mask = (
                torch.ones(len(features), frames)
                if input_features_mask is None
                else input_features_mask
            )
            if num_frames is not None:
                mask = torch.arange(frames)[None] < torch.tensor(num_frames)[:, None]
        if not features.is_floating_point():
            features = (
                self.mapper.embedded
                if self.config.learn_code_embeddings
                else self.encoder.decode_codes
            )(features)
        if self.config.no_audio:
            features = self.mapper.mean(features)
        if self.config.audio_tokens:
            lengths = num_frames if num_frames is not None else mask.sum(1).tolist()
            return pooled(self.mapper(features), lengths, self.config.audio_tokens).flatten(0, 1)
        kept = mask.flatten().nonzero()[:, 0]
        if features.is_cuda and not kept.is_cuda:
            kept = kept.pin_memory()  # from other memory, a large copy waits for the GPU
        return self.mapper(features.flatten(0, 1)[kept.to(features.device, non_blocking=True)])

    def put_audio(
        self,
        inputs_embeds: torch.Tensor,
        audio: torch.Tensor,
        input_ids: torch.LongTensor,
        audio_index: torch.LongTensor | None = None,
    ) -> torch.Tensor:
        """`inputs_embeds`, (batch, sequence, text hidden size), with mapped frames where placeholders stand.

        Args:
            audio: of `get_audio_features`. audio_index: as `forward` takes it.

        Raises:
            ValueError: if frames and placeholders differ in number.
        """
        if audio_index is None:
            audio_index = (input_ids == self.config.audio_token_id).flatten().nonzero()[:, 0]
        if len(audio_index) != len(audio):
            raise ValueError(
                f"{len(audio_index)} audio placeholders stand in input_ids, but the audio has {len(audio)} frames"
            )
        size, audio = inputs_embeds.shape, audio.to(inputs_embeds.dtype)
        return (
            inputs_embeds.flatten(0, 1)
            .index_copy(0, audio_index.to(audio.device), audio)
            .view(size)
        )

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        input_values_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        num_samples: list[int] | None = None,
        num_frames: list[int] | None = None,
        audio_index: torch.LongTensor | None = None,
        label_index: torch.LongTensor | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """One step.

        Args:
            input_ids: (batch, sequence), with one `audio_token_id` for each audio frame.
            input_values: the clips of all rows in their order, (clips, samples), at the encoder's rate.
            input_values_mask: 1 on samples, 0 on padding, (clips, samples).
            input_features: in place of `input_values`, what the encoder made of the clips: features
                (clips, frames, dim), or Mimi's codes (clips, levels, frames). input_features_mask: (clips, frames).
            labels: (batch, sequence), -100 where nothing is learnt. In training, `logits` are None: they exist where a label
                follows, and a part at a time.
            logits_to_keep: compute this many last logits; 0 computes all.
            num_items_in_batch: labels of the whole optimizer step, by which the summed loss is divided.
            num_samples: samples of each clip, known to the host, in place of `input_values_mask`.
            num_frames: frames of each clip of `input_features`, likewise in place of `input_features_mask`.
            audio_index: where placeholders stand in `input_ids.flatten()`.
            label_index: where labels stand in `labels.flatten()`; `logits` then holds the positions before these
                alone, also in evaluation. With all of these and no `attention_mask` (rows padded on the right need
                none), a step does not wait for the GPU, but once where Mimi encodes (its attention mask asks).

        Raises:
            ValueError: if frames and placeholders differ in number.
        """
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if input_values is not None or input_features is not None:
            audio = self.get_audio_features(
                input_values,
                input_values_mask,
                input_features,
                input_features_mask,
                num_samples,
                num_frames,
            )
            inputs_embeds = self.put_audio(inputs_embeds, audio, input_ids, audio_index)
        outputs = self.language_model.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden, head, loss, logits = (
            outputs.last_hidden_state,
            self.get_output_embeddings(),
            None,
            None,
        )
        every = labels is None or (label_index is None and not self.training)
        if labels is not None:
            if label_index is None:
                label_index = (
                    nn.functional.pad(labels[:, 1:], (1, 0), value=-100)
                    .flatten()
                    .ne(-100)
                    .nonzero()[:, 0]
                )
            before, wanted = hidden.flatten(0, 1)[label_index - 1], labels.flatten()[label_index]
            if self.training:
                total = summed_loss(before, head, wanted)
            else:
                logits = head(before)
                total = nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")
            loss = total / (
                max(1, len(wanted)) if num_items_in_batch is None else num_items_in_batch
            )
        if every:
            logits = head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values
        )

    def _expand_inputs_for_generation(
        self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs
    ):
        """Repeats rows for beams and samples together with their clips, of which a row may have two."""
        names = [f"input_{kind}{mask}" for kind in ("values", "features") for mask in ("", "_mask")]
        clips = {k: model_kwargs.pop(k) for k in names if model_kwargs.get(k) is not None}
        if clips and expand_size > 1:
            placeholder = input_ids == self.config.audio_token_id
            begins = placeholder & ~placeholder.roll(1, 1)
            begins[:, 0] = placeholder[:, 0]
            order, first = [], 0
            for count in begins.sum(1).tolist():
                order += list(range(first, first + count)) * expand_size
                first += count
            clips = {k: v[torch.tensor(order, device=v.device)] for k, v in clips.items()}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        return input_ids, {**model_kwargs, **clips}


def pooled(features: torch.Tensor, lengths: list[int], tokens: int) -> torch.Tensor:
    """Vectors of clips, (clips, frames, dim), of which each has so many, averaged to `tokens` of equal share, or repeated."""
    clips = [clip[:length].T[None] for clip, length in zip(features, lengths)]
    return (
        torch.cat([nn.functional.adaptive_avg_pool1d(clip.float(), tokens) for clip in clips])
        .transpose(1, 2)
        .to(features.dtype)
    )


def summed_loss(hidden: torch.Tensor, head: nn.Module, wanted: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of `wanted`, (labels,), after `hidden`, (labels, hidden size), by logits of `LABELS_AT_ONCE` labels.

    Where there are more labels, the backward pass computes logits anew, so that they never exist together.
    """

    def part(hidden, wanted):
        return nn.functional.cross_entropy(head(hidden).float(), wanted, reduction="sum")

    if len(wanted) <= LABELS_AT_ONCE:
        return part(hidden, wanted)
    pairs = zip(hidden.split(LABELS_AT_ONCE), wanted.split(LABELS_AT_ONCE))
    return torch.stack(
        [checkpoint(part, h, w, use_reentrant=False, preserve_rng_state=False) for h, w in pairs]
    ).sum()


def text_model_source(name_or_path: str) -> dict[str, str]:
    """Arguments of `from_pretrained` for a name, a folder or a `.gguf` file (which needs the package gguf)."""
    path = Path(name_or_path)
    if path.suffix == ".gguf":
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": name_or_path}


AudioLMConfig.register_for_auto_class()
AudioLMForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")
