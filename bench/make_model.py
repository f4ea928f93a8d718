"""Writes a 1-bit model of random weights: its speed is that of a trained one of the same size.

python bench/make_model.py --size base --activations float --head mlm -o base.bitm

The layers' matrices are 1-bit with a scale a row; embeddings, which are the decoder too, and the
head's transform are fp16.  Activations: `float` leaves their arithmetic to the runtime, `sign` and
`int4` quantize them in the layers as BiT does with 1 and 4 bits, attention included.  Any text has
tokens: the vocabulary is made of single characters and invented words.
"""

from __future__ import annotations

import argparse
import math
import string
from pathlib import Path

import numpy as np

import bitm_formats
from bitm_formats import (
    Config,
    DType,
    Head,
    Layout,
    ModelFile,
    Pooler,
    Problem,
    Quantizer,
    QuantizerKind,
    Scope,
    Slot,
    SlotKind,
    Tensor,
    Tokenizer,
    TokenizerFlag,
)

# Layers, hidden size, heads: those of Google's BERT-tiny, BERT-small, BERT-base and BERT-large.
SIZES = {"tiny": (2, 128, 2), "small": (4, 512, 8), "base": (12, 768, 12), "large": (24, 1024, 16)}
ACTIVATIONS = ("float", "sign", "int4")
HEADS = ("mlm", "classifier", "none")
HEAD_SIZE = 64
# Of bert-base-uncased: words, and where the special tokens stand.
WORDS, POSITIONS = 30_522, 512
SPECIAL_TOKENS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}


def make_model(size: str, activations: str, head: str) -> ModelFile:
    """A model of one of SIZES, ACTIVATIONS and HEADS; the same arguments give the same model."""
    config = make_config(size, head)
    quantizers = make_quantizers(config, activations)
    rng = np.random.default_rng(0)
    tensors = {}
    for slot in bitm_formats.slots(config, ()):
        shifts = slot.kind == SlotKind.SHIFT and slot.place in quantizers
        if not slot.optional or slot.name.endswith(".bias") or shifts:
            tensors[slot.name] = make_tensor(rng, slot)
    name = {"model.name": f"random-{size}-{activations}"}
    return ModelFile(config, tensors, quantizers, make_vocabulary(), name)


def make_config(size: str, head: str) -> Config:
    """BERT's configuration in one of SIZES."""
    n_layers, hidden_size, n_heads = SIZES[size]
    config = Config(
        vocab_size=WORDS,
        hidden_size=hidden_size,
        n_layers=n_layers,
        n_heads=n_heads,
        head_size=HEAD_SIZE,
        intermediate_size=4 * hidden_size,
        max_positions=POSITIONS,
        score_scale=1 / math.sqrt(HEAD_SIZE),
        tokenizer=Tokenizer.WORDPIECE,
        tokenizer_flags=TokenizerFlag.LOWERCASE
        | TokenizerFlag.STRIP_ACCENTS
        | TokenizerFlag.SPLIT_CJK,
        max_word_chars=100,
        pad_id=SPECIAL_TOKENS["[PAD]"],
        unk_id=SPECIAL_TOKENS["[UNK]"],
        cls_id=SPECIAL_TOKENS["[CLS]"],
        sep_id=SPECIAL_TOKENS["[SEP]"],
        mask_id=SPECIAL_TOKENS["[MASK]"],
    )
    if head == "mlm":
        config.head = Head.MASKED_LM
        config.head_activation = config.hidden_activation
        config.head_norm_eps = config.layer_norm_eps
    elif head == "classifier":
        config.head = Head.CLASSIFIER
        config.pooler = Pooler.TANH
        config.n_labels = 2
        config.problem = Problem.ONE_LABEL
    return config


def make_quantizers(config: Config, activations: str) -> dict[str, Quantizer]:
    """The places that BiT quantizes, with steps that fit values of standard deviation 1.

    After softmax, and after GELU, codes are unsigned.
    """
    if activations == "float":
        return {}
    kind, static = QuantizerKind, Scope.STATIC
    if activations == "sign":
        signed = Quantizer(kind.SIGN, static, -1, 1, step=0.8)
        positive = Quantizer(kind.INT, static, 0, 1, step=0.5)
        probability = Quantizer(kind.INT, static, 0, 1, step=1 / 64)
    else:
        signed = Quantizer(kind.INT, static, -8, 7, step=0.33)
        positive = Quantizer(kind.INT, static, 0, 15, step=0.15)
        probability = Quantizer(kind.INT, static, 0, 15, step=1 / 128)
    quantizers = {}
    for n in range(config.n_layers):
        for name in ("query", "key", "value", "attention_output", "intermediate"):
            quantizers[f"layers.{n}.{name}"] = signed
        for name in ("query", "key", "value"):
            quantizers[f"layers.{n}.attention.{name}"] = signed
        quantizers[f"layers.{n}.attention.probabilities"] = probability
        quantizers[f"layers.{n}.output"] = positive
    return quantizers


def make_tensor(rng: np.random.Generator, slot: Slot) -> Tensor:
    """Random values that keep the standard deviation of activations near 1."""
    if slot.kind == SlotKind.MATRIX and slot.name.startswith("layers."):
        rows, columns = slot.shape
        scales = rng.uniform(0.8, 1.2, rows) / math.sqrt(columns)
        return Tensor.from_bits(rng.random(slot.shape) < 0.5, scales, Layout.ROW)
    values = rng.standard_normal(slot.shape, dtype=np.float32)
    if slot.kind == SlotKind.MATRIX:
        return Tensor.from_float(values / math.sqrt(slot.shape[1]), DType.F16)
    return Tensor.from_float(values * 0.1 + slot.name.endswith(".gain"))


def make_vocabulary() -> list[bytes]:
    """WORDS tokens: special ones in their places, characters, continuations, invented words."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*characters, *(f"##{character}" for character in characters)]
    pieces += [f"w{n}" for n in range(WORDS)]
    vocabulary: list[str] = []
    special = {place: token for token, place in SPECIAL_TOKENS.items()}
    others = iter(pieces)
    for place in range(WORDS):
        vocabulary.append(special.get(place) or next(others))
    return [token.encode() for token in vocabulary]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--activations", choices=ACTIVATIONS, default="float")
    parser.add_argument("--head", choices=HEADS, default="mlm")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .bitm file to write")
    arguments = parser.parse_args()
    model = make_model(arguments.size, arguments.activations, arguments.head)
    n_bytes = bitm_formats.write(arguments.output, model)
    print(f"{arguments.output}: {n_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
