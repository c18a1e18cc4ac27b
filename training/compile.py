"""Compiled layers and CUDA graphs of the language model: what `--torch_compile` does.

A training step of this size is thousands of small kernels, and launching them takes longer than
running them. Compiling fuses them. A CUDA graph launches the rest at once.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..modeling_audiolm import CACHE_NAME
from ..runtime import UserError

PAD_TO = 32  # Batches are padded to multiples of so many tokens, as a graph has a fixed length.
# An attention implementation without a mask function of its own gets no mask, and transformers does
# not search for packed examples, which would wait for the GPU.
CAUSAL = "causal_sdpa"


def can_compile(language_model: PreTrainedModel) -> bool:
    """Whether all layers have full attention, as [`compile_layers`] needs."""
    config = language_model.config
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    has_layers = hasattr(language_model.model, "layers")
    has_window = bool(getattr(config, "sliding_window", None))
    return has_layers and layer_types == {"full_attention"} and not has_window


def compile_layers(
    language_model: PreTrainedModel, backend: str = "inductor", mode: str | None = None
) -> None:
    """Compiles the layers of a language model in place, for inputs without a mask.

    In training on a GPU with frozen weights, the forward also replays CUDA graphs of them. The
    inputs must begin at the left. `backend` and `mode` are those of `torch.compile`.

    Raises:
        UserError: If not all layers have full causal attention.
    """
    body: Any = language_model.model
    if not can_compile(language_model):
        name = language_model.config.model_type
        raise UserError(f"--torch_compile: not all layers of the {name} model have full attention.")
    AttentionInterface.register(CAUSAL, sdpa_attention_forward)
    language_model.set_attn_implementation(CAUSAL)
    # All layers share one compiled function for any length: 15 s, where the model as a whole takes
    # minutes. accelerate's `compile_regions` renames the weights in a checkpoint.
    # `mode="reduce-overhead"` would record a graph for each layer. Here a graph holds all layers.
    for layer in body.layers:
        layer.compile(dynamic=True, backend=backend, mode=mode)
    body.forward = _MasklessForward(body, language_model)


class _MasklessForward:
    """The forward of a language model's body without mask and cache, which replays graphs."""

    def __init__(self, body: nn.Module, language_model: nn.Module):
        self.body_forward = body.forward
        self.language_model = language_model
        self.cast_layers = [
            module for module in language_model.modules() if isinstance(module, CastLinear)
        ]
        # By input shape and autocast. None for a shape that was seen once.
        self.graphs: dict[tuple, _RecordedPass | None] = {}
        self.pool: Any = None
        self.stream: torch.cuda.Stream | None = None
        # The last replayed pass. While its backward is still to come, it owns the graphs' memory.
        self.last_replay: weakref.ref | None = None

    def __call__(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        if attention_mask is not None or kwargs.get(CACHE_NAME) is not None:
            raise ValueError(f"a compiled language model takes no mask and no {CACHE_NAME}")
        for layer in self.cast_layers:
            layer.refresh()
        if position_ids is None and self.can_replay(inputs_embeds):
            return BaseModelOutputWithPast(last_hidden_state=self.replay(inputs_embeds))
        return self.body_forward(
            # A view of another tensor would compile the first layer a second time.
            inputs_embeds=inputs_embeds.clone(),
            position_ids=position_ids,
            use_cache=False,
            **kwargs,
        )

    def can_replay(self, inputs: torch.Tensor) -> bool:
        """Whether a backward pass follows, and no other pass uses the memory of the graphs."""
        last_replay = None if self.last_replay is None else self.last_replay()
        is_memory_in_use = last_replay is not None and not last_replay.is_done
        return (
            inputs.is_cuda
            and inputs.requires_grad
            and torch.is_grad_enabled()
            and not is_memory_in_use
            and inputs.shape[1] % PAD_TO == 0
            and not any(p.requires_grad for p in self.language_model.parameters())
        )

    def replay(self, inputs: torch.Tensor) -> torch.Tensor:
        autocast = (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        key = (*inputs.shape, inputs.dtype, *autocast)
        if key not in self.graphs:  # Recording pays from the second time on.
            self.graphs[key] = None
            return self.hidden_states(inputs.clone())
        recorded = self.graphs[key]
        if recorded is None:
            # Graphs share memory only if they were recorded on the same stream.
            self.stream = self.stream or torch.cuda.Stream()
            recorded = _RecordedPass(self.hidden_states, inputs, self.stream, self.pool)
            self.graphs[key] = recorded
            self.pool = recorded.pool
        outputs = _ReplayFunction.apply(inputs, recorded)
        self.last_replay = weakref.ref(outputs.grad_fn)
        return outputs

    def hidden_states(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body_forward(inputs_embeds=inputs, use_cache=False).last_hidden_state


class _RecordedPass:
    """CUDA graphs of a function's forward and backward pass, for inputs of one shape.

    `pool` is the memory of earlier graphs of the same stream.
    """

    def __init__(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        inputs: torch.Tensor,
        stream: torch.cuda.Stream,
        pool: Any = None,
    ):
        torch.cuda.empty_cache()  # The other stream cannot reuse what earlier passes left.
        self.inputs = inputs.detach().clone().requires_grad_()
        stream.wait_stream(torch.cuda.current_stream())
        is_autocast = torch.is_autocast_enabled("cuda")
        dtype = torch.get_autocast_dtype("cuda")
        with (
            torch.cuda.stream(stream),
            torch.autocast("cuda", dtype, enabled=is_autocast, cache_enabled=False),
            torch.enable_grad(),
        ):
            # Compilation and the set-up of libraries may not happen while recording.
            for _ in range(2):
                outputs = function(self.inputs)
                torch.autograd.grad(outputs, self.inputs, torch.zeros_like(outputs))
            stream.synchronize()
            self._record(function, stream, pool)
        torch.cuda.current_stream().wait_stream(stream)

    def _record(self, function, stream: torch.cuda.Stream, pool: Any) -> None:
        # A loader's thread pins memory meanwhile, which only the mode `thread_local` allows.
        options: dict[str, Any] = {"stream": stream, "capture_error_mode": "thread_local"}
        self.forward = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, pool, **options):
            outputs = function(self.inputs)
        self.pool = self.forward.pool()
        self.gradient = torch.zeros_like(outputs)
        self.backward = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.backward, self.pool, **options):
            (self.input_gradient,) = torch.autograd.grad(outputs, self.inputs, self.gradient)
        self.outputs = outputs.detach()


class _ReplayFunction(torch.autograd.Function):
    """Replays a `_RecordedPass`: the forward graph in forward, the backward graph in backward."""

    @staticmethod
    def forward(ctx, inputs: torch.Tensor, recorded: _RecordedPass) -> torch.Tensor:
        ctx.recorded = recorded
        ctx.is_done = False
        recorded.inputs.data.copy_(inputs)
        recorded.forward.replay()
        return recorded.outputs.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        recorded = ctx.recorded
        recorded.gradient.copy_(gradient)
        recorded.backward.replay()
        ctx.is_done = True
        return recorded.input_gradient.detach(), None


def cache_bf16_weights(language_model: nn.Module) -> None:
    """Caches the bfloat16 copies of frozen weights, which autocast would cast anew in each step.

    The results are the same. The weights themselves stay as they are, for code without autocast and
    for checkpoints.
    """
    for module in language_model.modules():
        is_frozen = not any(parameter.requires_grad for parameter in module.parameters())
        if type(module) is nn.Linear and is_frozen:
            # Changes the forward alone. Parameters, hooks and the place in the model stay.
            module.__class__ = CastLinear


class CastLinear(nn.Linear):
    """A linear layer with a cached bfloat16 copy of its weight. See `cache_bf16_weights`."""

    # Class attributes, as `__init__` does not run. Not a buffer, which DDP would broadcast.
    bf16_weight: Any = None  # a tensor after `refresh`
    cached_version: tuple[int, int] | None = None

    def refresh(self) -> None:
        """Updates the copy if another weight was loaded. Callers of a compiled layer do it."""
        version = (self.weight.data_ptr(), self.weight._version)
        if self.cached_version == version:
            return
        if self.bf16_weight is None or self.bf16_weight.device != self.weight.device:
            self.bf16_weight = torch.empty_like(self.weight.detach(), dtype=torch.bfloat16)
            # The compiled layer takes its shape as constant, as it does for parameters.
            torch._dynamo.mark_static(self.bf16_weight)
        self.bf16_weight.copy_(self.weight.detach())  # In place: CUDA graphs hold its address.
        self.cached_version = version

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Applies the layer, under bfloat16 autocast with the cached weight."""
        device = input.device.type
        weight = self.weight
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if dtype == torch.bfloat16:
            if not torch.compiler.is_compiling():
                self.refresh()
            weight = self.bf16_weight
        return nn.functional.linear(input, weight, self.bias)
