"""Runs a masked LM of transformers on packed rows: several texts in a row, none sees another.

The modules and weights are those of transformers; only the way through them is shorter. Layers are
compiled one at a time, so that compiling takes as long as for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .attention import Int8SelfAttention


def segments_and_positions(ids: Tensor, cls_id: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Which text of its row each token of ids [R, L] belongs to, and its position there.

    Every text begins with `cls_id`; what is behind the last text of a row is `pad_id`, segment 0.
    """
    begins = ids == cls_id
    segments = begins.cumsum(1).masked_fill(ids == pad_id, 0)
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    starts = places.masked_fill(~begins, 0).cummax(1).values
    return segments, places - starts


def context_of(block: Any, x: Tensor, mask: Tensor) -> Tensor:
    """What a layer's self-attention gives for x and mask of `layer_forward`, [R, L, H]."""
    if isinstance(block, Int8SelfAttention):
        return block(x, mask)[0]
    shape = (*x.shape[:-1], block.num_attention_heads, block.attention_head_size)
    query = block.query(x).view(shape).transpose(1, 2)
    key = block.key(x).view(shape).transpose(1, 2)
    value = block.value(x).view(shape).transpose(1, 2)
    context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return context.transpose(1, 2).flatten(2)


def layer_forward(layer: Any, x: Tensor, mask: Tensor) -> Tensor:
    """One layer of BERT: x [R, L, H], mask [R, 1, L, L], 0 where a token may look, else -inf."""
    attended = layer.attention.output.dense(context_of(layer.attention.self, x, mask))
    attended = layer.attention.output.LayerNorm(attended + x).to(x.dtype)
    inner = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(attended))
    return layer.output.LayerNorm(layer.output.dense(inner) + attended).to(x.dtype)


def head_forward(model: Any, x: Tensor) -> Tensor:
    """The logits of a masked LM for states [..., H]."""
    return model.cls(x)


class PackedBert:
    """The forward pass of a BertForMaskedLM on packed rows, in `dtype` between the layers."""

    def __init__(self, model: Any, cls_id: int, pad_id: int, dtype: torch.dtype) -> None:
        self.model, self._cls_id, self._pad_id, self._dtype = model, cls_id, pad_id, dtype
        self.layer: Callable[[Any, Tensor, Tensor], Tensor] = layer_forward
        self.head: Callable[[Any, Tensor], Tensor] = head_forward

    def compile(self) -> None:
        """Has layers and head compiled when they first run."""
        self.layer = torch.compile(layer_forward, dynamic=False)
        self.head = torch.compile(head_forward, dynamic=False)

    def interpret(self) -> None:
        """Has nothing compiled any more."""
        self.layer, self.head = layer_forward, head_forward

    def states(self, ids: Tensor) -> list[Tensor]:
        """The states behind the embeddings and behind each layer, [R, L, H], of ids [R, L]."""
        segments, positions = segments_and_positions(ids, self._cls_id, self._pad_id)
        is_same = segments[:, None, :, None] == segments[:, None, None, :]
        mask = torch.zeros(is_same.shape, dtype=self._dtype, device=ids.device)
        mask.masked_fill_(~is_same, -torch.inf)
        tables = self.model.bert.embeddings
        x = tables.word_embeddings(ids) + tables.position_embeddings(positions)
        x = tables.LayerNorm(x + tables.token_type_embeddings.weight[0]).to(self._dtype)
        states = [x]
        for layer in self.model.bert.encoder.layer:
            states.append(self.layer(layer, states[-1], mask))
        return states

    def logits(self, states: Tensor, places: Tensor) -> Tensor:
        """Logits [P, V] at places [P], counted through the rows, of states [R, L, H]."""
        return self.head(self.model, states.flatten(0, 1)[places])
