"""Small BERT checkpoints in the Hugging Face layout, made without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

State = dict[str, npt.NDArray[Any]]

HIDDEN, HEADS, LAYERS, INNER, WORDS, POSITIONS, TYPES = 24, 3, 2, 40, 50, 32, 2
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": WORDS,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": TYPES,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "paris", "is", "##s", "a", "city", "."]

# The slot of the file for each tensor of a layer, written out once more on purpose.
LAYER_SLOTS = {
    "attention.self.query.weight": "query.weight",
    "attention.self.query.bias": "query.bias",
    "attention.self.key.weight": "key.weight",
    "attention.self.key.bias": "key.bias",
    "attention.self.value.weight": "value.weight",
    "attention.self.value.bias": "value.bias",
    "attention.output.dense.weight": "attention_output.weight",
    "attention.output.dense.bias": "attention_output.bias",
    "attention.output.LayerNorm.weight": "attention_norm.gain",
    "attention.output.LayerNorm.bias": "attention_norm.bias",
    "intermediate.dense.weight": "intermediate.weight",
    "intermediate.dense.bias": "intermediate.bias",
    "output.dense.weight": "output.weight",
    "output.dense.bias": "output.bias",
    "output.LayerNorm.weight": "output_norm.gain",
    "output.LayerNorm.bias": "output_norm.bias",
}
SLOTS = {
    "bert.embeddings.word_embeddings.weight": "embeddings.word.weight",
    "bert.embeddings.position_embeddings.weight": "embeddings.position.weight",
    "bert.embeddings.token_type_embeddings.weight": "embeddings.token_type.weight",
    "bert.embeddings.LayerNorm.weight": "embeddings.norm.gain",
    "bert.embeddings.LayerNorm.bias": "embeddings.norm.bias",
    **{
        f"bert.encoder.layer.{n}.{name}": f"layers.{n}.{slot}"
        for n in range(LAYERS)
        for name, slot in LAYER_SLOTS.items()
    },
    "bert.pooler.dense.weight": "pooler.weight",
    "bert.pooler.dense.bias": "pooler.bias",
    "cls.predictions.transform.dense.weight": "mlm.transform.weight",
    "cls.predictions.transform.dense.bias": "mlm.transform.bias",
    "cls.predictions.transform.LayerNorm.weight": "mlm.norm.gain",
    "cls.predictions.transform.LayerNorm.bias": "mlm.norm.bias",
    "cls.predictions.bias": "mlm.decoder.bias",
    "cls.seq_relationship.weight": "next_sentence.weight",
    "cls.seq_relationship.bias": "next_sentence.bias",
}


def _vectors(stem: str, n: int, kinds: str = "weight bias") -> dict[str, tuple[int, ...]]:
    return {f"{stem}.{kind}": (n,) for kind in kinds.split()}


def _linear(stem: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.weight": (rows, columns), f"{stem}.bias": (rows,)}


def body_shapes(pooler: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a BertModel, under `bert.`."""
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (WORDS, HIDDEN),
        "bert.embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "bert.embeddings.token_type_embeddings.weight": (TYPES, HIDDEN),
        **_vectors("bert.embeddings.LayerNorm", HIDDEN),
    }
    for n in range(LAYERS):
        layer = f"bert.encoder.layer.{n}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _linear(f"{layer}.attention.{name}", HIDDEN, HIDDEN)
        shapes |= _vectors(f"{layer}.attention.output.LayerNorm", HIDDEN)
        shapes |= _linear(f"{layer}.intermediate.dense", INNER, HIDDEN)
        shapes |= _linear(f"{layer}.output.dense", HIDDEN, INNER)
        shapes |= _vectors(f"{layer}.output.LayerNorm", HIDDEN)
    if pooler:
        shapes |= _linear("bert.pooler.dense", HIDDEN, HIDDEN)
    return shapes


MLM_SHAPES = {
    **_linear("cls.predictions.transform.dense", HIDDEN, HIDDEN),
    **_vectors("cls.predictions.transform.LayerNorm", HIDDEN),
    "cls.predictions.bias": (WORDS,),
}


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Float32 values that no format but float32 keeps."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) * 0.3 + name.endswith("LayerNorm.weight")).astype(np.float32)
        for name, shape in shapes.items()
    }


def masked_lm_state(seed: int = 0) -> State:
    """A BertForMaskedLM with a tied decoder."""
    return random_state(body_shapes() | MLM_SHAPES, seed)


def one_bit(state: State) -> State:
    """The same with every matrix of the encoder's layers in two values a row, -a and +a."""
    result = dict(state)
    for name, values in state.items():
        if ".encoder.layer." in name and values.ndim == 2:
            scale = np.abs(values).mean(axis=1, keepdims=True)
            result[name] = np.where(values >= 0, scale, -scale).astype(np.float32)
    return result


def save(
    folder: Path,
    state: State,
    config: dict[str, Any] | None = CONFIG,
    vocabulary: list[str] | None = VOCABULARY,
) -> Path:
    """Writes model.safetensors, config.json and vocab.txt; returns the folder."""
    safetensors = pytest.importorskip("safetensors.numpy")
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save_file(state, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if vocabulary is not None:
        text = "".join(f"{token}\n" for token in vocabulary)
        (folder / "vocab.txt").write_text(text, encoding="utf-8")
    return folder
