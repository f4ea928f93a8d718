"""Writes the seeds of the fuzz targets: tests/fuzz/corpus/{models,texts,pickles}.

Models are as small as they can be while every kind of linear, quantizer, attention and head occurs,
for fuzzers are faster on small files. Inputs that fuzzing has found are added by hand; this script
leaves them alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("formats", "converter", "tests")]

from bitm_formats import (  # noqa: E402
    DType,
    Head,
    Layout,
    ModelFile,
    Normalizer,
    Pooler,
    Problem,
    Quantizer,
    QuantizerKind,
    Scope,
    Tensor,
    write,
)
from malformed import full_model  # noqa: E402
from test_checkpoint import WRITERS  # noqa: E402
from tiny_models import config, encoder, float_matrix, masked_lm  # noqa: E402

SMALL = {
    "vocab_size": 32,
    "hidden_size": 8,
    "n_layers": 1,
    "n_heads": 2,
    "head_size": 3,
    "intermediate_size": 5,
    "max_positions": 9,
}
TEXTS = {
    "words": b"the cat [MASK] on ##s the mat.",
    "accents": "Ünïcode naïve É e\u0301 ß \u1e9e İ".encode(),
    "cjk": "東京 中文abc 한국어 \U00020000".encode(),
    "controls": b"a\x00b\x01 \xc2\xa0 \xe2\x80\xa8\xef\xbf\xbd\t\r\n",
    "long_word": b"a" * 300,
    "invalid": b"ok \xff\xfe \xc3 \xed\xa0\x80 \xf4\x90\x80\x80",
}


def quantized(rng: np.random.Generator) -> ModelFile:
    """Every kind of quantizer, on linears and in attention."""
    model = masked_lm(rng, config(**SMALL, attention_normalizer=Normalizer.NONE))
    model.quantizers |= {
        "layers.0.query": Quantizer(QuantizerKind.SIGN, Scope.STATIC, -1, 1, 0.5),
        "layers.0.key": Quantizer(QuantizerKind.DYN_SYM, Scope.TOKEN, -8, 7, eps=1e-5),
        "layers.0.value": Quantizer(QuantizerKind.DYN_ASYM, Scope.SEQUENCE, 0, 15, eps=1e-8),
        "layers.0.attention_output": Quantizer(QuantizerKind.INT, Scope.STATIC, -2, 1, 0.125),
        "layers.0.intermediate": Quantizer(QuantizerKind.INT_MIN, Scope.TOKEN, 0, 3, 0.25),
        "layers.0.output": Quantizer(QuantizerKind.INT, Scope.STATIC, 0, 1, 0.5),
        "layers.0.attention.query": Quantizer(QuantizerKind.SIGN, Scope.STATIC, -1, 1, 0.5),
        "layers.0.attention.key": Quantizer(QuantizerKind.SIGN, Scope.STATIC, -1, 1, 0.5),
        "layers.0.attention.probabilities": Quantizer(QuantizerKind.BOOL, Scope.STATIC, 0, 1),
        "layers.0.attention.value": Quantizer(QuantizerKind.DYN_SYM, Scope.TOKEN, -8, 7, eps=1e-5),
    }
    return model


def other_weights(rng: np.random.Generator) -> ModelFile:
    """Ternary, int8, float16 and float32 matrices, and embeddings of bits."""
    model = masked_lm(rng, config(**SMALL), scale_layout=Layout.TENSOR)
    hidden = SMALL["hidden_size"]
    values = rng.normal(size=(hidden, hidden)).astype(np.float32)
    for name, dtype in (("attention_output", DType.F16), ("output", DType.F32)):
        shape = model.tensors[f"layers.0.{name}.weight"].shape
        floats = rng.normal(size=shape).astype(np.float32)
        model.tensors[f"layers.0.{name}.weight"] = Tensor.from_float(floats, dtype)
    model.tensors["mlm.transform.weight"] = Tensor.from_float(values, DType.F16)
    return model


def with_head(rng: np.random.Generator, head: Head) -> ModelFile:
    """An encoder with a head of two labels for each token or sequence."""
    c = config(**SMALL, head=head, n_labels=2, head_activation=0, head_norm_eps=0.0)
    if head != Head.QUESTION_ANSWERING:
        c.problem = Problem.ONE_LABEL
    tensors = encoder(rng, c)
    if head == Head.CLASSIFIER:
        c.pooler = Pooler.TANH
        tensors["pooler.weight"] = float_matrix(rng, c.hidden_size, c.hidden_size)
    tensors["classifier.weight"] = float_matrix(rng, c.n_labels, c.hidden_size)
    return ModelFile(c, tensors, {}, None, {})


def models() -> Iterator[tuple[str, ModelFile]]:
    """Names and seeds."""
    rng = np.random.default_rng(0)
    yield "masked_lm", masked_lm(rng, config(**SMALL))
    columns = {"scale_layout": Layout.COLUMN, "offset_layout": Layout.ROW}
    yield "columns", masked_lm(rng, config(**SMALL), **columns)
    yield "quantized", quantized(rng)
    yield "other_weights", other_weights(rng)
    yield "classifier", with_head(rng, Head.CLASSIFIER)
    yield "token_classifier", with_head(rng, Head.TOKEN_CLASSIFIER)
    yield "question_answering", with_head(rng, Head.QUESTION_ANSWERING)
    yield "everything", full_model()


def main() -> None:
    """Writes all seeds."""
    corpus = Path(__file__).parent / "corpus"
    for folder in ("models", "texts", "pickles"):
        (corpus / folder).mkdir(parents=True, exist_ok=True)
    for name, model in models():
        write(corpus / "models" / f"{name}.bitm", model)
    for name, text in TEXTS.items():
        (corpus / "texts" / name).write_bytes(text)
    for container, write_checkpoint in WRITERS.items():
        write_checkpoint(corpus / "pickles" / container)


if __name__ == "__main__":
    main()
