"""AudioLM: a frozen audio encoder, a mapper and a language model that answers about clips.

The module holds the whole model, since each further module would be pushed with every model.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .configuration_audiolm import AudioLMConfig
from .encoders_audiolm import AudioEncoder, QuantizedEncoder, build_encoder

DEFAULT_TEXT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# transformers 5.24 renamed the cache of a language model in inputs and outputs.
HAS_NEW_CACHE_NAME = "cache" in CausalLMOutputWithPast.__dataclass_fields__
CACHE_NAME = "cache" if HAS_NEW_CACHE_NAME else "past_key_values"
# Labels whose logits exist together in training: 100 MB in float32.
LOSS_CHUNK_SIZE = 512


class AudioMapper(nn.Module):
    """Maps encoder features to vectors of the language model.

    Features are standardised, then go through Linear, GELU, Linear. Each kind of frame (see
    `AudioEncoder.dims`) is standardised and mapped by layers of its own.

    Args:
        dims: Channels of each kind of frame.
        hidden_size: Width of the hidden layer.
        text_size: Hidden size of the language model.
        codebooks: Number of codebooks and codes of each, if embeddings of codes are learned.
    """

    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    def __init__(
        self,
        dims: tuple[int, ...],
        hidden_size: int,
        text_size: int,
        codebooks: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.dims = dims
        # They are persistent: `from_pretrained` builds on the meta device, where others are lost.
        self.register_buffer("feature_mean", torch.zeros(sum(dims)))
        self.register_buffer("feature_std", torch.ones(sum(dims)))
        self._build_layers(hidden_size, text_size)
        self.codebooks = codebooks
        if codebooks is not None:
            num_codebooks, codebook_size = codebooks
            self.code_embeddings = nn.Embedding(num_codebooks * codebook_size, dims[0])

    def _build_layers(self, hidden_size: int, text_size: int) -> None:
        self.linear_1 = nn.Linear(self.dims[0], hidden_size)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(hidden_size, text_size)
        self.second = nn.ModuleDict()
        if len(self.dims) > 1:
            self.second["linear_1"] = nn.Linear(self.dims[1], hidden_size)
            self.second["linear_2"] = nn.Linear(hidden_size, text_size)

    def reset_buffers(self) -> None:
        """Sets the statistics so that features stay as they are."""
        init.zeros_(self.feature_mean)
        init.ones_(self.feature_std)

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Returns features `(clips, frames, dim)` of codes `(clips, codebooks, frames)`.

        They are sums of learned embeddings.
        """
        num_codebooks, codebook_size = cast(tuple[int, int], self.codebooks)
        offsets = torch.arange(num_codebooks, device=codes.device)[:, None] * codebook_size
        return self.code_embeddings(codes.long() + offsets).sum(1)

    def is_primary_frame(self, features: torch.Tensor) -> torch.Tensor:
        """Returns which frames are of the first kind, not zero there, shape `(..., 1)`."""
        return features[..., : self.dims[0]].any(-1, keepdim=True)

    def mean_features(self, features: torch.Tensor) -> torch.Tensor:
        """Replaces frames by the mean of their kind over the training clips, for `no_audio`."""
        mean = self.feature_mean.float()
        if len(self.dims) == 1:
            return mean.expand_as(features)
        is_primary = self.is_primary_frame(features)
        shape = is_primary.shape[:-1]
        has_channel = [
            is_primary.expand(*shape, self.dims[0]),
            ~is_primary.expand(*shape, self.dims[1]),
        ]
        return mean * torch.cat(has_channel, -1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps features, shape `(..., dim)`, to `(..., text_size)`."""
        standardised = features.float() - self.feature_mean.float()
        standardised = standardised / self.feature_std.float().clamp(min=1e-5)
        standardised = standardised.to(self.linear_1.weight.dtype)
        primary = standardised[..., : self.dims[0]]
        mapped = self.linear_2(self.act(self.linear_1(primary)))
        if len(self.dims) == 1:
            return mapped
        secondary = standardised[..., self.dims[0] :]
        mapped_second = self.second["linear_2"](self.act(self.second["linear_1"](secondary)))
        return torch.where(self.is_primary_frame(features), mapped, mapped_second)


class MellowMapper(AudioMapper):
    """Mellow's projection (arXiv 2503.08540) of a clip's latent and posteriors.

    A linear layer brings posteriors to the width of the latent. Then come a linear layer, a
    residual linear layer on its GELU with dropout, and a layer norm. Features are not standardised.
    """

    def _build_layers(self, hidden_size: int, text_size: int) -> None:
        self.posteriors = nn.Linear(self.dims[1], self.dims[0])
        self.linear_1 = nn.Linear(self.dims[0], text_size, bias=False)
        self.linear_2 = nn.Linear(text_size, text_size, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.LayerNorm(text_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps features, shape `(..., dim)`, to `(..., text_size)`."""
        is_latent = self.is_primary_frame(features)
        features = features.to(self.linear_1.weight.dtype)
        latent = features[..., : self.dims[0]]
        posteriors = self.posteriors(features[..., self.dims[0] :])
        projected = self.linear_1(torch.where(is_latent, latent, posteriors))
        return self.norm(projected + self.dropout(self.linear_2(nn.functional.gelu(projected))))


MAPPERS = {"mlp": AudioMapper, "mellow": MellowMapper}


class AudioLMForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A language model that reads audio where `config.audio_token_id` stands in `input_ids`."""

    config_class = AudioLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _keep_in_fp32_modules_strict = [
        "encoder(?!.*(relative_position_index|num_batches_tracked|positions))"
    ]
    _tied_weights_keys = {
        "language_model.lm_head.weight": "language_model.model.embed_tokens.weight"
    }
    _last_train_args: tuple[bool, bool] | None = None
    label_smoothing = 0.0  # of the loss in training

    def __init__(self, config: AudioLMConfig):
        super().__init__(config)
        self.encoder = build_encoder(config.encoder_config)
        codebooks = None
        if config.learn_code_embeddings:
            codec = cast(QuantizedEncoder, self.encoder)
            codebooks = (codec.num_levels, codec.codebook_size)
        text_size = config.text_config.hidden_size
        mapper_class = MAPPERS[config.mapper_type]
        self.mapper = mapper_class(
            self.encoder.dims, config.mapper_hidden_size, text_size, codebooks
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()
        self.train(self.training)

    @classmethod
    def from_pretrained_parts(
        cls,
        encoder_type: str,
        encoder: AudioEncoder,
        text_model: PreTrainedModel | str = DEFAULT_TEXT_MODEL,
        **config_fields: Any,
    ) -> "AudioLMForConditionalGeneration":
        """Assembles a model from a pretrained encoder and language model, with a new mapper.

        Args:
            encoder_type: Type of the encoder.
            encoder: The encoder, such as `audiolm.load_encoder(encoder_type)`.
            text_model: A language model, its name or folder, or a `.gguf` file.
            config_fields: Further fields of [`AudioLMConfig`].
        """
        if not isinstance(text_model, PreTrainedModel):
            text_model = AutoModelForCausalLM.from_pretrained(
                **text_model_source(text_model), dtype=torch.float32
            )
        config = AudioLMConfig(encoder_type, encoder.config, text_model.config, **config_fields)
        model = cls(config)
        model.encoder = encoder
        model.language_model = text_model
        model.tie_weights()
        model.generation_config.suppress_tokens = [config.audio_token_id]
        return model.train(False)

    def _init_weights(self, module: nn.Module) -> None:
        # Encoder and language model initialise themselves or are loaded, all but these buffers. A
        # checkpoint that lacks them would leave NaN there.
        if module is self.mapper or isinstance(module, AudioEncoder):
            module.reset_buffers()
        is_in_mapper = any(module is part for part in self.mapper.modules())
        if isinstance(module, nn.Linear) and is_in_mapper:
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif module is getattr(self.mapper, "code_embeddings", None):
            # Their sums then have deviation 1, as standardised features have.
            num_codebooks, _ = cast(tuple[int, int], self.mapper.codebooks)
            nn.init.normal_(module.weight, std=num_codebooks**-0.5)

    def train(self, mode: bool = True) -> "AudioLMForConditionalGeneration":
        """Sets training or evaluation mode.

        The encoder stays frozen and in evaluation mode. The language model is frozen as
        `config.freeze_lm` says.
        """
        train_args = (mode, self.config.freeze_lm)
        # The Trainer calls this before each step. Visiting all modules takes a good part of one.
        if mode and self._last_train_args == train_args and self._is_in_train_mode():
            return self
        super().train(mode)
        self._last_train_args = train_args
        self.encoder.eval().requires_grad_(False)
        for name, parameter in self.language_model.named_parameters():
            if ".lora_" not in name:  # Adapters on a frozen model are trained.
                parameter.requires_grad_(not self.config.freeze_lm)
        self.encoder.clear_codebook_cache()
        return self

    def _is_in_train_mode(self) -> bool:
        return all(part.training == (part is not self.encoder) for part in self.children())

    def get_output_embeddings(self) -> nn.Module:
        """Returns the language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def set_attn_implementation(
        self, attn_implementation: str | dict, allow_all_kernels: bool = False
    ) -> None:
        """Sets the attention of the language model, or of the parts that a dict names.

        The encoder otherwise keeps the attention that it was published with.

        Args:
            attn_implementation: Such as `sdpa`, or `{"text_config": "sdpa", "encoder_config":
                "eager"}`.
            allow_all_kernels: See `PreTrainedModel.set_attn_implementation`.
        """
        if isinstance(attn_implementation, str):
            attn_implementation = {"text_config": attn_implementation}
        parts = {"text_config": self.language_model, "encoder_config": self.encoder.model}
        for name, implementation in attn_implementation.items():
            parts[name].set_attn_implementation(implementation, allow_all_kernels)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves the model. See `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: If the encoder has a buffer that would not be saved.
        """
        for name in unsaved_buffers(self.encoder):
            raise ValueError(
                f"the encoder's buffer {name} is not persistent, so a loaded model would not have "
                "it. Register it without `persistent=False`"
            )
        super().save_pretrained(*args, **kwargs)

    # The encoder reads clips of many lengths. Compiling it anew for each would take minutes.
    @torch.compiler.disable
    @can_return_tuple
    def get_audio_features(
        self,
        input_values: torch.Tensor | None = None,
        input_values_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        num_samples: list[int] | None = None,
        num_frames: list[int] | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encodes and maps all clips. The arguments are those of `forward`.

        Returns:
            `last_hidden_state` has the features of padded clips, shape `(clips, frames, dim)`.
            `pooler_output` has audio embeddings of all clips, one after the other, shape `(audio
            tokens, text hidden size)`. A tuple of both with `return_dict=False`.

        Raises:
            ValueError: If neither `input_values` nor `input_features` is given.
        """
        if input_features is not None:
            features = input_features
            mask = _frame_mask(input_features, input_features_mask, num_frames)
        elif input_values is not None:
            features, mask = self._encode_clips(input_values, input_values_mask, num_samples)
        else:
            raise ValueError("get_audio_features: expected input_values or input_features")
        if not features.is_floating_point():
            decode = cast(QuantizedEncoder, self.encoder).decode_codes
            if self.config.learn_code_embeddings:
                decode = self.mapper.embed_codes
            features = decode(features)
        if self.config.no_audio:
            features = self.mapper.mean_features(features)
        if self.config.audio_tokens:
            lengths = num_frames if num_frames is not None else mask.sum(1).tolist()
            embeddings = pool_to_length(self.mapper(features), lengths, self.config.audio_tokens)
            return BaseModelOutputWithPooling(features, embeddings.flatten(0, 1))
        frame_index = mask.flatten().nonzero()[:, 0]
        if features.is_cuda and not frame_index.is_cuda:
            frame_index = frame_index.pin_memory()  # A copy from other memory waits for the GPU.
        frame_index = frame_index.to(features.device, non_blocking=True)
        embeddings = self.mapper(features.flatten(0, 1)[frame_index])
        return BaseModelOutputWithPooling(features, embeddings)

    def _encode_clips(
        self,
        input_values: torch.Tensor,
        input_values_mask: torch.Tensor | None,
        num_samples: list[int] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the features or codes of clips, and a mask of their frames on the CPU."""
        if num_samples is None and input_values_mask is not None:
            num_samples = input_values_mask.sum(1).tolist()
        elif num_samples is None:
            num_samples = [input_values.shape[1]] * len(input_values)
        encode = self.encoder.encode
        if self.config.learn_code_embeddings:
            encode = cast(QuantizedEncoder, self.encoder).codes
        return encode(input_values, num_samples), self.encoder.frame_mask(num_samples)

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor
    ) -> torch.Tensor:
        """Returns where audio goes, shape `(batch, sequence)`.

        Without `input_ids`, it is where embeddings equal that of `config.audio_token_id`.
        """
        token = self.config.audio_token_id
        if input_ids is not None and input_ids.numel():
            return input_ids == token
        embedding = self.get_input_embeddings()(torch.tensor(token, device=inputs_embeds.device))
        return (inputs_embeds == embedding.to(inputs_embeds.dtype)).all(-1)

    def merge_audio_embeddings(
        self,
        inputs_embeds: torch.Tensor,
        audio_embeds: torch.Tensor,
        input_ids: torch.Tensor | None,
        audio_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Replaces the embeddings of placeholders by audio embeddings.

        Args:
            inputs_embeds: Shape `(batch, sequence, text hidden size)`.
            audio_embeds: Of all clips, shape `(audio tokens, text hidden size)`.
            input_ids: Shape `(batch, sequence)`. They find the placeholders without `audio_index`.
            audio_index: Positions of the placeholders in `input_ids.flatten()`.

        Raises:
            ValueError: If there are more or fewer placeholders than audio embeddings.
        """
        if audio_index is None:
            is_placeholder = self.get_placeholder_mask(input_ids, inputs_embeds)
            audio_index = is_placeholder.flatten().nonzero()[:, 0]
        if len(audio_index) != len(audio_embeds):
            raise ValueError(
                f"the input has {len(audio_index)} audio placeholders, but the audio has "
                f"{len(audio_embeds)} frames"
            )
        audio_embeds = audio_embeds.to(inputs_embeds.dtype)
        audio_index = audio_index.to(audio_embeds.device)
        merged = inputs_embeds.flatten(0, 1).index_copy(0, audio_index, audio_embeds)
        return merged.view(inputs_embeds.shape)

    @can_return_tuple
    def forward(  # noqa: PLR0913 (the inputs of a multimodal model, and what the host knows of them)
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        input_values_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        num_samples: list[int] | None = None,
        num_frames: list[int] | None = None,
        audio_index: torch.Tensor | None = None,
        label_index: torch.Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Computes logits, and the loss if there are labels.

        The host already knows `num_samples`, `num_frames`, `audio_index` and `label_index`. With
        them, and without `attention_mask`, a step waits for the GPU only where Mimi encodes.

        Args:
            input_ids: Token ids with one `audio_token_id` for each audio frame, shape `(batch,
                sequence)`.
            attention_mask: 1 on tokens, 0 on padding. Padding on the right needs none.
            input_values: Clips of all examples in their order, at the encoder's rate, shape
                `(clips, samples)`.
            input_values_mask: 1 on samples, 0 on padding, shape `(clips, samples)`.
            input_features: Encoded clips in place of `input_values`: features, shape `(clips,
                frames, dim)`, or codes, `(clips, codebooks, frames)`.
            input_features_mask: 1 on frames, 0 on padding, shape `(clips, frames)`.
            position_ids: Positions of the tokens.
            past_key_values: Cache of the language model.
            inputs_embeds: Embeddings in place of `input_ids`. Placeholders of audio have that of
                `config.audio_token_id`.
            labels: Token ids, -100 where nothing is learned, shape `(batch, sequence)`. In
                training, `logits` is then None: logits exist only before labels, and a part at a
                time.
            logits_to_keep: How many last logits to compute, or their positions. 0 computes all.
            num_items_in_batch: Labels of the whole optimizer step, which divide the summed loss.
            num_samples: Samples of each clip, in place of `input_values_mask`.
            num_frames: Frames of each encoded clip, in place of `input_features_mask`.
            audio_index: Positions of placeholders in `input_ids.flatten()`.
            label_index: Positions of labels in `labels.flatten()`. `logits` are then those before
                labels alone, also in evaluation.
            cache: Name of `past_key_values` since transformers 5.24.
            kwargs: Passed on to the language model, such as `output_hidden_states`.

        Raises:
            ValueError: If there are more or fewer placeholders than audio frames, or if both or
                none of `input_ids` and `inputs_embeds` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if input_values is not None or input_features is not None:
            clips = (input_values, input_values_mask, input_features, input_features_mask)
            audio = self.get_audio_features(*clips, num_samples, num_frames, return_dict=True)
            inputs_embeds = self.merge_audio_embeddings(
                inputs_embeds, audio.pooler_output, input_ids, audio_index
            )
        cache = past_key_values if cache is None else cache
        if cache is not None:
            kwargs[CACHE_NAME] = cache
        outputs = self.language_model.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss = logits = None
        if labels is not None:
            loss, logits = self._loss(hidden, labels, label_index, num_items_in_batch)
        if labels is None or (label_index is None and not self.training):
            is_number = isinstance(logits_to_keep, int)
            positions = slice(-logits_to_keep, None) if is_number else logits_to_keep
            logits = self.get_output_embeddings()(hidden[:, positions])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )

    def _loss(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        label_index: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the loss per label and, in evaluation, the logits before labels."""
        if label_index is None:
            # The first token of a sequence is predicted from nothing.
            labels_to_predict = nn.functional.pad(labels[:, 1:], (1, 0), value=-100)
            label_index = labels_to_predict.flatten().ne(-100).nonzero()[:, 0]
        before_labels = hidden.flatten(0, 1)[label_index - 1]
        targets = labels.flatten()[label_index]
        logits = None
        if self.training:
            total = chunked_cross_entropy(
                before_labels, self.get_output_embeddings(), targets, self.label_smoothing
            )
        else:
            logits = self.get_output_embeddings()(before_labels)
            total = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        if num_items_in_batch is None:
            num_items_in_batch = max(1, len(targets))
        return total / num_items_in_batch, logits

    def _maybe_initialize_input_ids_for_generation(
        self, inputs: Any = None, bos_token_id: Any = None, model_kwargs: Any = None
    ) -> torch.LongTensor:
        """Takes the batch size from embeddings. transformers takes any tensor, such as clips."""
        if "inputs_embeds" in (model_kwargs or {}):
            model_kwargs = {"inputs_embeds": model_kwargs["inputs_embeds"]}
        initialize: Any = super()._maybe_initialize_input_ids_for_generation
        return initialize(inputs, bos_token_id, model_kwargs)

    def _expand_inputs_for_generation(
        self, expand_size=1, is_encoder_decoder=False, input_ids: Any = None, **model_kwargs
    ):
        """Repeats examples for beams and samples, together with their clips.

        transformers repeats each row of a tensor, but an example may have two clips.
        """
        names = ("input_values", "input_values_mask", "input_features", "input_features_mask")
        clips = {name: model_kwargs.pop(name, None) for name in names}
        clips = {name: tensor for name, tensor in clips.items() if tensor is not None}
        if clips and expand_size > 1:
            placeholders = self.get_placeholder_mask(input_ids, model_kwargs.get("inputs_embeds"))
            order = self._repeated_clip_order(placeholders, expand_size)
            for name, tensor in clips.items():
                clips[name] = tensor[torch.tensor(order, device=tensor.device)]
        expand: Any = super()._expand_inputs_for_generation
        input_ids, model_kwargs = expand(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
        return input_ids, {**model_kwargs, **clips}

    def _repeated_clip_order(self, is_placeholder: torch.Tensor, expand_size: int) -> list[int]:
        # A clip begins where a placeholder follows another token.
        begins_clip = is_placeholder & ~is_placeholder.roll(1, 1)
        begins_clip[:, 0] = is_placeholder[:, 0]
        order: list[int] = []
        first = 0
        for num_clips in begins_clip.sum(1).tolist():
            order += list(range(first, first + num_clips)) * expand_size
            first += num_clips
        return order


def _frame_mask(
    features: torch.Tensor, features_mask: torch.Tensor | None, num_frames: list[int] | None
) -> torch.Tensor:
    """Returns a mask of the frames of encoded clips: features, or codes with frames last."""
    max_frames = features.shape[1 if features.is_floating_point() else 2]
    if num_frames is not None:
        return torch.arange(max_frames)[None] < torch.tensor(num_frames)[:, None]
    if features_mask is not None:
        return features_mask
    return torch.ones(len(features), max_frames)


def unsaved_buffers(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yields the names of buffers that are not saved. Models of transformers restore their own."""
    for name in sorted(module._non_persistent_buffers_set):
        yield prefix + name
    for name, child in module.named_children():
        if not isinstance(child, PreTrainedModel):
            yield from unsaved_buffers(child, f"{prefix}{name}.")


def pool_to_length(features: torch.Tensor, lengths: list[int], num_tokens: int) -> torch.Tensor:
    """Averages or repeats the frames of padded clips, `(clips, frames, dim)`, to `num_tokens`.

    Tokens stand for equal shares of a clip's frames. `lengths` has the frames of each clip.
    """
    clips = [clip[:length].T[None] for clip, length in zip(features, lengths)]
    pooled = [nn.functional.adaptive_avg_pool1d(clip.float(), num_tokens) for clip in clips]
    return torch.cat(pooled).transpose(1, 2).to(features.dtype)


def chunked_cross_entropy(
    hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Sums the cross-entropy of labels without all logits at once.

    With more than `LOSS_CHUNK_SIZE` labels, the backward pass computes each chunk's logits again.

    Args:
        hidden: Hidden states before the labels, shape `(labels, hidden size)`.
        head: Maps them to logits.
        targets: The labels, shape `(labels,)`.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
    """

    def chunk_loss(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = head(hidden).float()
        options: Any = {"reduction": "sum", "label_smoothing": label_smoothing}
        return nn.functional.cross_entropy(logits, targets, **options)

    if len(targets) <= LOSS_CHUNK_SIZE:
        return chunk_loss(hidden, targets)
    options: Any = {"use_reentrant": False, "preserve_rng_state": False}
    chunks = zip(hidden.split(LOSS_CHUNK_SIZE), targets.split(LOSS_CHUNK_SIZE))
    losses = [checkpoint(chunk_loss, states, labels, **options) for states, labels in chunks]
    return torch.stack(losses).sum()


def text_model_source(name_or_path: str) -> dict[str, str]:
    """Returns the arguments of `from_pretrained` for a name, a folder or a `.gguf` file."""
    path = Path(name_or_path)
    if path.suffix == ".gguf":
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return {"pretrained_model_name_or_path": name_or_path}


if not __name__.startswith("transformers_modules."):
    # The installed classes read a folder, so that its code need not be trusted.
    AutoConfig.register("audiolm", AudioLMConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM):
        auto_class.register(AudioLMConfig, AudioLMForConditionalGeneration, exist_ok=True)
AudioLMConfig.register_for_auto_class()
AudioLMForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")
