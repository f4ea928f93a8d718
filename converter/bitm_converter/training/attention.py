"""Attention as the runtime's mode `int8` computes it: products of codes of 8 bits.

The definition is at bitm_attention_i8_fn in native/src/kernels/kernels.h. In base 2, of one head
with codes q, k, v of queries, keys and values:
    s_ij = (q_i . k_j) (query_step_i score_scale log2(e)) key_step_j
    p_ij = round(255 2^(s_ij - max_j s_ij))
    context_i = value_step (sum_j p_ij v_j) / (sum_j p_ij)
Rounding passes gradients as in `rounding`: they are those of float attention at the quantized
queries, keys and values.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.bert.modeling_bert import BertSelfAttention

from .rounding import byte_codes, straight_through

# 255 * 2^r = P(r), |r| <= 1 / 2: BITM_PROBABILITY_* of native/src/kernels/canonical.h. With 2^r
# itself, which differs by up to 0.03, most sequences get another code somewhere.
_POLYNOMIAL = (14.027277, 61.7637939, 176.78714, 255.0)
_LOWEST = -10.0  # below, the code is 0


def attention_of_codes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """The context [B, H, L, D] of queries, keys and values of this shape, and the probabilities
    [B, H, L, L] before dropout, in float32 whatever autocast says.

    `visible` [B, 1, L, L] says which tokens (the last dimension) each token sees, None that it
    sees all of its row. Tokens that see each other are a sequence; those that do not see
    themselves are padding.
    """
    scale = math.log2(math.e) / math.sqrt(query.shape[-1])
    query, key, value = query.float(), key.float(), value.float()
    with torch.autocast(query.device.type, enabled=False):
        q, query_step = byte_codes(query, _greatest(query, -1))
        k, key_step = byte_codes(key, _greatest(key, -1))
        v, value_step = byte_codes(value, _greatest_of_sequences(value, visible))
        # Steps one after the other: their product would be kept for the backward pass.
        scores = (q @ k.mT) * (query_step * scale) * key_step.mT
        if visible is not None:
            scores = scores.masked_fill(~visible, torch.finfo(torch.float32).min)
        probabilities = functional.softmax(scores * math.log(2), -1)
        codes = _probability_codes(scores.detach())
        probabilities = straight_through(probabilities, codes / codes.sum(-1, keepdim=True))
        context = (functional.dropout(probabilities, dropout) @ v) * value_step
    return context, probabilities


def _greatest(x: Tensor, dimension: int) -> Tensor:
    return x.detach().abs().amax(dimension, keepdim=True)


def _greatest_of_sequences(value: Tensor, visible: Tensor | None) -> Tensor:
    """The largest magnitude of each component of value [B, H, L, D] in the sequence that a token
    belongs to, [B, H, L, D]; [B, H, 1, D] where a row is a sequence."""
    if visible is None:
        return _greatest(value, -2)
    is_token = visible.diagonal(dim1=-2, dim2=-1)[..., None]
    sizes = value.detach().abs() * is_token
    # A sequence has the number of its first token.
    sequence = visible.byte().argmax(-1)[..., None].expand_as(sizes)
    greatest = torch.zeros_like(sizes).scatter_reduce(-2, sequence, sizes, "amax")
    return greatest.gather(-2, sequence)


def _probability_codes(scores: Tensor) -> Tensor:
    """Codes of scores [..., L] in base 2: bitm_probability_code of what is below the greatest."""
    x = (scores - scores.amax(-1, keepdim=True)).clamp(min=_LOWEST)
    n = torch.round(x)
    r = x - n
    p = torch.full_like(r, _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        p = p * r + coefficient
    return torch.round(p * torch.exp2(n))


class Int8SelfAttention(BertSelfAttention):
    """What a self-attention of transformers becomes, by assignment to its class, where its three
    linears take codes of 8 bits."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Takes states [B, L, H] and the mask [B, 1, 1 or L, L] of `eager` or `sdpa`."""
        n_tokens = hidden_states.shape[1]
        shape = (*hidden_states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            linear(hidden_states).view(shape).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        visible = attention_mask
        if visible is not None:
            visible = visible if visible.dtype == torch.bool else visible >= 0
            visible = visible.expand(-1, -1, n_tokens, -1)
        dropout = self.dropout.p if self.training else 0.0
        context, probabilities = attention_of_codes(query, key, value, visible, dropout)
        return context.transpose(1, 2).flatten(2).to(query.dtype), probabilities.to(query.dtype)
