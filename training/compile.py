"""Compiled layers, and CUDA graphs that replay a frozen language model: what `--torch_compile` does.

A training step of this size is thousands of small kernels, and starting them takes longer than they run. Compiling fuses
them, one layer for all (the whole model takes minutes); a graph starts all that is left at once.
"""

import weakref

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutputWithPast

PAD_TO = 32  # rows are padded to multiples of so many tokens: a graph has one length
CAUSAL = "causal_sdpa"  # an attention without a function of its own for masks gets none, and nothing looks for packed rows


def compile_layers(
    language_model: nn.Module, backend: str = "inductor", mode: str | None = None
) -> None:
    """Compiles the layers of a language model in place, for rows that begin at the left and need no mask; on a GPU, if its
    weights are frozen, also replays CUDA graphs of them in training.

    Raises:
        ValueError: if its layers are not all of one kind with full causal attention.
    """
    config, body = language_model.config, language_model.model
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if (
        not hasattr(body, "layers")
        or kinds != {"full_attention"}
        or getattr(config, "sliding_window", None)
    ):
        raise ValueError(
            f"--torch_compile: the layers of a {config.model_type} are not all of one kind with full attention"
        )
    AttentionInterface.register(CAUSAL, sdpa_attention_forward)
    language_model.set_attn_implementation(CAUSAL)
    for layer in body.layers:
        layer.compile(dynamic=True, backend=backend, mode=mode)
    body.forward = _Unmasked(body, language_model)


class _Unmasked:
    """The forward of a language model's body without mask and cache; a graph's replay where there can be one."""

    def __init__(self, body: nn.Module, language_model: nn.Module):
        self.plain, self.language_model = body.forward, language_model
        self.casts = [
            module for module in language_model.modules() if isinstance(module, CastLinear)
        ]
        self.graphs: dict[tuple, _Graph] = {}
        self.pool = self.stream = None
        self.pending = None  # the replayed pass whose backward is still to come

    def __call__(
        self,
        inputs_embeds=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        **kwargs,
    ):
        if attention_mask is not None or past_key_values is not None:
            raise ValueError(
                "a compiled language model takes rows without attention_mask and past_key_values"
            )
        for cast in self.casts:
            cast.refresh()
        if position_ids is None and self.can_replay(inputs_embeds):
            return BaseModelOutputWithPast(last_hidden_state=self.replay(inputs_embeds))
        inputs_embeds = (
            inputs_embeds.clone()
        )  # of its own: one that shares another's memory compiles the first layer apart
        return self.plain(
            inputs_embeds=inputs_embeds, position_ids=position_ids, use_cache=False, **kwargs
        )

    def can_replay(self, inputs: torch.Tensor) -> bool:
        """Only where a backward pass follows, and none is open, since all graphs share one memory."""
        pass_ = self.pending and self.pending()
        waiting = pass_ is not None and not pass_.done
        return (
            inputs.is_cuda
            and inputs.requires_grad
            and torch.is_grad_enabled()
            and not waiting
            and inputs.shape[1] % PAD_TO == 0
            and not any(p.requires_grad for p in self.language_model.parameters())
        )

    def replay(self, inputs: torch.Tensor) -> torch.Tensor:
        key = (
            *inputs.shape,
            inputs.dtype,
            torch.is_autocast_enabled("cuda"),
            torch.get_autocast_dtype("cuda"),
        )
        if key not in self.graphs:  # the first of its shape, and perhaps the only one
            self.graphs[key] = None
            return self.hidden(inputs.clone())
        if self.graphs[key] is None:
            self.stream = (
                self.stream or torch.cuda.Stream()
            )  # memory is shared among graphs of one stream alone
            self.graphs[key] = _Graph(self.hidden, inputs, self.stream, self.pool)
            self.pool = self.graphs[key].pool
        outputs = _Replay.apply(inputs, self.graphs[key])
        self.pending = weakref.ref(outputs.grad_fn)
        return outputs

    def hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.plain(inputs_embeds=inputs, use_cache=False).last_hidden_state


class _Graph:
    """A function's forward and backward pass for inputs of one shape, recorded with nothing else on the GPU in between."""

    def __init__(self, function, inputs: torch.Tensor, stream: torch.cuda.Stream, pool=None):
        torch.cuda.empty_cache()  # of what plain passes left, which the other stream cannot take
        self.inputs = inputs.detach().clone().requires_grad_()
        stream.wait_stream(torch.cuda.current_stream())
        cast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with (
            torch.cuda.stream(stream),
            torch.autocast("cuda", cast[1], enabled=cast[0], cache_enabled=False),
            torch.enable_grad(),
        ):
            for _ in range(2):  # compiles, and makes what libraries make once
                made = function(self.inputs)
                torch.autograd.grad(made, self.inputs, torch.zeros_like(made))
            del made
            torch.cuda.current_stream().synchronize()
            self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            # a loader's thread pins memory meanwhile, which only the mode `thread_local` allows
            with torch.cuda.graph(self.forward, pool, stream, capture_error_mode="thread_local"):
                made = function(self.inputs)
            self.pool = self.forward.pool()
            self.gradient = torch.zeros_like(made)
            with torch.cuda.graph(
                self.backward, self.pool, stream, capture_error_mode="thread_local"
            ):
                (self.input_gradient,) = torch.autograd.grad(made, self.inputs, self.gradient)
        self.outputs = made.detach()
        torch.cuda.current_stream().wait_stream(stream)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, graph):
        ctx.graph, ctx.done = graph, False
        graph.inputs.data.copy_(inputs)
        graph.forward.replay()
        return graph.outputs.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        graph = ctx.graph
        graph.gradient.copy_(gradient)
        graph.backward.replay()
        ctx.done = True
        return graph.input_gradient.detach(), None


def cache_bf16_weights(language_model: nn.Module) -> None:
    """Keeps what bfloat16 autocast makes of a frozen language model's weights, which it would cast anew in each step.

    The same numbers come out. The weights stay as they are, for whatever runs without autocast and for checkpoints.
    """
    for module in language_model.modules():
        if type(module) is nn.Linear and not any(
            parameter.requires_grad for parameter in module.parameters()
        ):
            module.__class__ = CastLinear


class CastLinear(nn.Linear):
    """A linear layer whose weight seldom changes."""

    kept = of = (
        None  # the weight in bfloat16, and what it was made of; no buffer, which DDP would send around
    )

    def refresh(self) -> None:
        """Brings the kept weight up to date; a compiled layer leaves that to whoever calls it."""
        if self.of != (
            now := (self.weight.data_ptr(), self.weight._version)
        ):  # another one was loaded
            if self.kept is None or self.kept.device != self.weight.device:
                self.kept = torch.empty_like(self.weight, dtype=torch.bfloat16, requires_grad=False)
                torch._dynamo.mark_static(
                    self.kept
                )  # as a parameter is, for whatever compiles the layer
            self.kept.copy_(self.weight.detach())  # in place, where CUDA graphs look for it
            self.of = now

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if (
            torch.is_autocast_enabled(x.device.type)
            and torch.get_autocast_dtype(x.device.type) == torch.bfloat16
        ):
            if not torch.compiler.is_compiling():
                self.refresh()
            weight = self.kept
        return nn.functional.linear(x, weight, self.bias)
