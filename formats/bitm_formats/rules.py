"""The rules for single fields, of the configuration (section 3.2) and of quantizers (3.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from bitm_formats.errors import FormatError, Status
from bitm_formats.model import Quantizer
from bitm_formats.spec import (
    ARCHITECTURE_BERT,
    Activation,
    Config,
    Head,
    Normalizer,
    Pooler,
    Problem,
    QuantizerKind,
    Scope,
    Tokenizer,
    TokenizerFlag,
)


class Rule(NamedTuple):
    """A rule for one field: whether it holds, and what it expects, in words."""

    field: str
    holds: bool
    expected: str


def is_zero(value: float) -> bool:
    """Whether a float is 0 and not -0."""
    return value == 0 and math.copysign(1, value) > 0


def is_nonnegative(value: float) -> bool:
    """Whether a float is finite and at least 0, and not -0."""
    return math.isfinite(value) and math.copysign(1, value) > 0


def is_positive(value: float) -> bool:
    """Whether a float is finite and above 0."""
    return math.isfinite(value) and value > 0


def config_rules(config: Config, n_tokens: int) -> Iterator[Rule]:
    """The rules of section 3.2 for single fields, in order of offset; reserved bits are apart."""
    has_lm = config.head in (Head.MASKED_LM, Head.MASKED_LM_NEXT_SENTENCE)
    has_labels = config.head in (Head.CLASSIFIER, Head.TOKEN_CLASSIFIER)
    has_tokenizer = config.tokenizer != Tokenizer.NONE
    yield _within(config, "architecture", ARCHITECTURE_BERT, ARCHITECTURE_BERT)
    yield _within(config, "vocab_size", 1, 1 << 24)
    yield _within(config, "hidden_size", 1, 16_384)
    yield _within(config, "n_layers", 0, 1_024)
    yield _within(config, "n_heads", 1, 1_024)
    yield _within(config, "head_size", 1, 1_024)
    yield _within(config, "intermediate_size", 1, 65_536)
    yield _within(config, "max_positions", 1, 65_536)
    yield _within(config, "n_token_types", 1, 256)
    yield _within(config, "hidden_activation", min(Activation), max(Activation))
    yield _nonnegative_if(True, config, "layer_norm_eps")
    yield _within(config, "attention_normalizer", min(Normalizer), max(Normalizer))
    yield Rule("score_scale", is_positive(config.score_scale), "finite and above 0")
    yield _within(config, "score_rank", 0, 64)
    yield _within(config, "value_term", 0, 1)
    yield _nonnegative_if(True, config, "rms_norm_eps")
    yield _within(config, "pooler", min(Pooler), max(Pooler))
    yield _nonnegative_if(config.pooler == Pooler.NORM_SKIP, config, "pooler_norm_eps")
    yield _within(config, "head", min(Head), max(Head))
    if config.head == Head.QUESTION_ANSWERING:
        yield _within(config, "n_labels", 2, 2)
    else:
        yield _within_if(has_labels, config, "n_labels", 1, 65_536)
    yield _within_if(has_labels, config, "problem", Problem.REGRESSION, Problem.ONE_LOGIT)
    yield _within_if(has_lm, config, "head_activation", min(Activation), max(Activation))
    yield _nonnegative_if(has_lm, config, "head_norm_eps")
    tokenizer = Tokenizer.WORDPIECE if n_tokens else Tokenizer.NONE
    yield _within(config, "tokenizer", tokenizer, tokenizer)
    yield _within_if(has_tokenizer, config, "tokenizer_flags", 0, sum(TokenizerFlag))
    yield _within_if(has_tokenizer, config, "max_word_chars", 1, 4_096)
    yield _within(config, "unk_id", 0 if has_tokenizer else -1, n_tokens - 1)
    for name in ("cls_id", "sep_id", "pad_id", "mask_id"):
        yield _within(config, name, -1, n_tokens - 1)


def _within(config: Config, field: str, least: int, greatest: int) -> Rule:
    value: int = getattr(config, field)
    expected = f"{int(least)}" if least == greatest else f"{int(least)} to {int(greatest)}"
    return Rule(field, least <= value <= greatest, expected)


def _within_if(used: bool, config: Config, field: str, least: int, greatest: int) -> Rule:
    """A field that is 0 where it is not used."""
    return _within(config, field, least, greatest) if used else _within(config, field, 0, 0)


def _nonnegative_if(used: bool, config: Config, field: str) -> Rule:
    """A float that is 0 where it is not used."""
    value: float = getattr(config, field)
    if used:
        return Rule(field, is_nonnegative(value), "finite and at least 0")
    return Rule(field, is_zero(value), "0")


def check_quantizer(name: str, quantizer: Quantizer) -> None:
    """Raises FormatError where the numbers of a quantizer break a rule of section 3.4."""
    if quantizer.kind not in list(QuantizerKind):
        message = f"quantizer {name}: kind {quantizer.kind} is unknown"
        raise FormatError(Status.FILE_QUANTIZER, message)
    for rule in _quantizer_rules(QuantizerKind(quantizer.kind), quantizer):
        if not rule.holds:
            message = f"quantizer {name}: {rule.field} must be {rule.expected}, found {quantizer}"
            raise FormatError(Status.FILE_QUANTIZER, message)


def _quantizer_rules(kind: QuantizerKind, quantizer: Quantizer) -> Iterator[Rule]:
    is_dynamic = kind in (QuantizerKind.DYN_SYM, QuantizerKind.DYN_ASYM)
    if is_dynamic or kind == QuantizerKind.INT_MIN:
        yield Rule("scope", quantizer.scope in (Scope.TOKEN, Scope.SEQUENCE), "1 or 2")
    else:
        yield Rule("scope", quantizer.scope == Scope.STATIC, "0")
    yield Rule("lo, hi", _codes_fit(kind, quantizer.lo, quantizer.hi), f"codes of {kind.name}")
    if kind in (QuantizerKind.SIGN, QuantizerKind.INT, QuantizerKind.INT_MIN):
        yield Rule("step", is_positive(quantizer.step), "finite and above 0")
    else:
        yield Rule("step", quantizer.step == 1, "1")
    if is_dynamic:
        yield Rule("eps", is_nonnegative(quantizer.eps), "finite and at least 0")
    else:
        yield Rule("eps", is_zero(quantizer.eps), "0")
    if quantizer.clip is not None:
        lo, hi = quantizer.clip
        ascending = math.isfinite(lo) and math.isfinite(hi) and lo <= hi
        yield Rule("clip", is_dynamic and ascending, "finite and ascending, for kinds 4 and 5 only")


def _codes_fit(kind: QuantizerKind, lo: int, hi: int) -> bool:
    if kind == QuantizerKind.SIGN:
        return (lo, hi) == (-1, 1)
    if kind == QuantizerKind.INT:
        return -32_768 <= lo < hi <= 32_767
    if kind == QuantizerKind.INT_MIN:
        return lo == 0 and 1 <= hi <= 255
    if kind == QuantizerKind.DYN_SYM:
        return hi in [2 ** (n - 1) - 1 for n in range(2, 9)] and lo == -hi - 1
    if kind == QuantizerKind.DYN_ASYM:
        return lo == 0 and hi in [2**n - 1 for n in range(1, 9)]
    return (lo, hi) == (0, 1)
