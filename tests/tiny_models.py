"""Small models of random weights, made with `bitm_formats` alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bitm_formats import Config, DType, Layout, ModelFile, Tensor

Rng = np.random.Generator
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def config(**changes: object) -> Config:
    """A masked LM of awkward sizes: nothing is a multiple of 16 or 64."""
    fields: dict[str, object] = {
        "vocab_size": 101,
        "hidden_size": 48,
        "n_layers": 2,
        "n_heads": 3,
        "head_size": 17,
        "intermediate_size": 75,
        "max_positions": 40,
        "n_token_types": 2,
        "hidden_activation": 1,
        "layer_norm_eps": 1e-3,
        "attention_normalizer": 1,
        "score_scale": 1 / math.sqrt(17),
        "head": 1,
        "head_activation": 1,
        "head_norm_eps": 1e-3,
    }
    return Config(**(fields | changes))  # type: ignore[arg-type]


def vector(rng: Rng, n: int) -> Tensor:
    """Random floats [n]."""
    return Tensor.from_float(rng.normal(size=n).astype(np.float32), DType.F32)


def float_matrix(rng: Rng, rows: int, columns: int, dtype: DType = DType.F16) -> Tensor:
    """Random floats [rows, columns]."""
    return Tensor.from_float(rng.normal(size=(rows, columns)).astype(np.float32), dtype)


def bit_matrix(
    rng: Rng,
    rows: int,
    columns: int,
    scale_layout: Layout = Layout.ROW,
    offset_layout: Layout = Layout.NONE,
    groups: int = 1,
) -> Tensor:
    """Random bits [rows, columns] with random scales and offsets, some of them negative."""

    def values(layout: Layout) -> npt.NDArray[np.float32] | None:
        n = {
            Layout.NONE: 0,
            Layout.TENSOR: 1,
            Layout.ROW_GROUP: groups,
            Layout.ROW: rows,
            Layout.COLUMN: columns,
        }[layout]
        scales = rng.normal(size=n) / math.sqrt(columns)
        return scales.astype(np.float32) if n else None

    return Tensor.from_bits(
        rng.random((rows, columns)) < 0.5,
        scales=values(scale_layout),
        scale_layout=scale_layout,
        offsets=values(offset_layout),
        offset_layout=offset_layout,
    )


def encoder(rng: Rng, c: Config, **layouts: object) -> dict[str, Tensor]:
    """Embeddings and layers of 1-bit linears."""
    hidden, attention = c.hidden_size, c.n_heads * c.head_size
    tensors = {
        "embeddings.word.weight": float_matrix(rng, c.vocab_size, hidden),
        "embeddings.position.weight": float_matrix(rng, c.max_positions, hidden),
        "embeddings.token_type.weight": float_matrix(rng, c.n_token_types, hidden),
    }
    norms = ["embeddings.norm"]
    for n in range(c.n_layers):
        for name, rows, columns in (
            ("query", attention, hidden),
            ("key", attention, hidden),
            ("value", attention, hidden),
            ("attention_output", hidden, attention),
            ("intermediate", c.intermediate_size, hidden),
            ("output", hidden, c.intermediate_size),
        ):
            linear = f"layers.{n}.{name}"
            tensors[f"{linear}.weight"] = bit_matrix(rng, rows, columns, **layouts)  # type: ignore[arg-type]
            tensors[f"{linear}.bias"] = vector(rng, rows)
        norms += [f"layers.{n}.attention_norm", f"layers.{n}.output_norm"]
    for norm in norms:
        tensors |= {f"{norm}.gain": vector(rng, hidden), f"{norm}.bias": vector(rng, hidden)}
    return tensors


def masked_lm(rng: Rng, c: Config | None = None, **layouts: object) -> ModelFile:
    """A masked LM whose decoder is the word embedding table, with a small vocabulary."""
    c = c or config()
    tensors = encoder(rng, c, **layouts)
    tensors["mlm.transform.weight"] = bit_matrix(rng, c.hidden_size, c.hidden_size)
    tensors["mlm.norm.gain"] = vector(rng, c.hidden_size)
    tensors["mlm.norm.bias"] = vector(rng, c.hidden_size)
    tensors["mlm.decoder.bias"] = vector(rng, c.vocab_size)
    return _named(ModelFile(c, tensors, {}, None, {}), _words(c))


def classifier(rng: Rng, n_labels: int, problem: int) -> ModelFile:
    """A sequence classifier with a small vocabulary, whose logits are of either sign."""
    c = config(
        head=3, n_labels=n_labels, problem=problem, pooler=1, head_activation=0, head_norm_eps=0.0
    )
    tensors = encoder(rng, c)
    pooler = np.eye(c.hidden_size, dtype=np.float32) / 10
    tensors["pooler.weight"] = Tensor.from_float(pooler, DType.F32)
    tensors["classifier.weight"] = float_matrix(rng, n_labels, c.hidden_size)
    return _named(ModelFile(c, tensors, {}, None, {}), _words(c))


def _words(c: Config) -> list[str]:
    words = [f"w{i}" for i in range(c.vocab_size - len(SPECIAL_TOKENS) - 26)]
    letters = [chr(ord("a") + i) for i in range(26)]
    return SPECIAL_TOKENS + letters + words


def with_vocabulary(vocabulary: list[str], lowercase: bool, strip_accents: bool) -> ModelFile:
    """The smallest encoder around a vocabulary."""
    c = config(
        vocab_size=len(vocabulary),
        hidden_size=1,
        n_layers=0,
        head=0,
        head_activation=0,
        head_norm_eps=0.0,
    )
    model = ModelFile(c, encoder(np.random.default_rng(0), c), {}, None, {})
    return _named(model, vocabulary, lowercase, strip_accents)


def _named(
    model: ModelFile, vocabulary: list[str], lowercase: bool = True, strip_accents: bool = True
) -> ModelFile:
    c = model.config
    c.tokenizer = 1
    c.tokenizer_flags = lowercase * 1 + strip_accents * 2 + 4
    c.max_word_chars = 100
    for name, token in (
        ("unk_id", "[UNK]"),
        ("cls_id", "[CLS]"),
        ("sep_id", "[SEP]"),
        ("pad_id", "[PAD]"),
        ("mask_id", "[MASK]"),
    ):
        setattr(c, name, vocabulary.index(token) if token in vocabulary else -1)
    model.vocabulary = [token.encode() for token in vocabulary]
    return model
