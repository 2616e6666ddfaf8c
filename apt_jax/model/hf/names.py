"""One table of tensor names: ours on the left, the Hugging Face decoder layout on the right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# `{}` is the layer. A name that ends in `kernel` is stored [in, out] by us and [out, in] there.
HF_NAMES = {
    "embed.table": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "head.kernel": "lm_head.weight",
    "layers.attn_norm.scale": "model.layers.{}.input_layernorm.weight",
    "layers.attn.q.kernel": "model.layers.{}.self_attn.q_proj.weight",
    "layers.attn.q.bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers.attn.q_norm.scale": "model.layers.{}.self_attn.q_norm.weight",
    "layers.attn.k.kernel": "model.layers.{}.self_attn.k_proj.weight",
    "layers.attn.k.bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers.attn.k_norm.scale": "model.layers.{}.self_attn.k_norm.weight",
    "layers.attn.v.kernel": "model.layers.{}.self_attn.v_proj.weight",
    "layers.attn.v.bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers.attn.o.kernel": "model.layers.{}.self_attn.o_proj.weight",
    "layers.attn.o.bias": "model.layers.{}.self_attn.o_proj.bias",
    "layers.mlp_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers.mlp.gate.kernel": "model.layers.{}.mlp.gate_proj.weight",
    "layers.mlp.up.kernel": "model.layers.{}.mlp.up_proj.weight",
    "layers.mlp.down.kernel": "model.layers.{}.mlp.down_proj.weight",
}

# Buffers that older checkpoints store; they follow from config.json.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint and where it lives in our params.

    Attributes:
      name: in the checkpoint.
      param: dotted path of our param.
      layer: index into the param's leading layer axis; None: the param is not stacked.
      shape: in the checkpoint.
      transposed: the last two axes are swapped with respect to ours.
    """

    name: str
    param: str
    layer: int | None
    shape: tuple[int, ...]
    transposed: bool


def tensor_specs(param: str, shape: tuple[int, ...]) -> Iterable[TensorSpec]:
    """The tensors that make up one param of the given (stacked) shape. KeyError: it has no counterpart."""
    pattern = HF_NAMES[param]
    stacked = "{}" in pattern
    transposed = param.endswith(".kernel")
    inner = shape[1:] if stacked else shape
    if transposed:
        inner = inner[::-1]
    for layer in range(shape[0]) if stacked else [None]:
        yield TensorSpec(pattern.format(layer), param, layer, inner, transposed)
