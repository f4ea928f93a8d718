"""Models on a GPU: the CPU's bits, whatever the shape, and errors that can be survived.

`make test-cuda` also runs the tests of quantizers and of every family of checkpoints there, and
`make test-cuda-emulated` on a GPU that is emulated, which leaves out what is large.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import bitm_formats
from bitm import Model, _native
from bitm.errors import BitmError, DeviceError, UnsupportedError
from bitm_formats import DType, Layout, ModelFile, Quantizer, Tensor
from conftest import run_command
from tiny_models import bit_matrix, classifier, config, masked_lm, vector

REASON = _native.why_no_gpu()
needs_gpu = pytest.mark.skipif(bool(REASON), reason=f"expected: {REASON}")
EMULATED = not REASON and "emulated" in _native.describe_device("cuda")
MODES = ["int8", "int11", "int16", "float32"]
TENSOR = "attention=tensor"
DATA = Path(__file__).parent / "data"
Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


def wide_model(rng: np.random.Generator, **changes: object) -> ModelFile:
    """A masked LM of sizes that the fast paths take, with many positions."""
    sizes: dict[str, object] = {
        "hidden_size": 512,
        "n_heads": 8,
        "head_size": 64,
        "score_scale": 0.125,
        "intermediate_size": 1024,
        "max_positions": 512,
        "vocab_size": 400,
    }
    return masked_lm(rng, config(**(sizes | changes)))


def sign_model(rng: np.random.Generator, **changes: object) -> ModelFile:
    """The same with bits before the layers' linears: signs, and {0, 1} after the activation."""
    model = wide_model(rng, **changes)
    for name in [name for name in model.tensors if name.startswith("layers.")]:
        place, _, what = name.rpartition(".")
        if what != "weight":
            continue
        after_activation = place.endswith(".output")
        model.quantizers[place] = (
            Quantizer(2, 0, 0, 1, 0.3) if after_activation else Quantizer(1, 0, -1, 1, 0.5)
        )
        model.tensors[f"{place}.shift"] = vector(rng, model.tensors[name].columns)
    return model


def clear_column(model: ModelFile, names: list[str], column: int) -> None:
    for name in names:
        values = model.tensors[name].to_float32().copy()
        values[column] = 0
        model.tensors[name] = Tensor.from_float(values, DType.F32)


def zero_model(rng: np.random.Generator) -> ModelFile:
    """The same with an input of the first layer's linears that has no sign."""
    model = sign_model(rng)
    names = ["embeddings.norm.gain", "embeddings.norm.bias"]
    clear_column(model, names + [f"layers.0.{x}.shift" for x in ("query", "key", "value")], 3)
    return model


def sign_attention_model(
    rng: np.random.Generator, zeros: bool = True, **changes: object
) -> ModelFile:
    """The same with signs in attention too, some of them of 0, and probabilities of 0 and 1."""
    model = sign_model(rng, **changes)
    for layer in range(model.config.n_layers):
        for first, operand in enumerate(("query", "key", "value")):
            place = f"layers.{layer}.{operand}"
            model.quantizers[f"layers.{layer}.attention.{operand}"] = Quantizer(1, 0, -1, 1, 0.4)
            if not zeros:
                continue
            scales = model.tensors[f"{place}.weight"].scales
            assert scales is not None
            scales[3 * first :: 50] = 0
            model.tensors[f"{place}.bias"].data[3 * first :: 50] = 0
        model.quantizers[f"layers.{layer}.attention.probabilities"] = Quantizer(2, 0, 0, 1, 0.03)
    return model


MODELS: dict[str, Callable[[np.random.Generator], ModelFile]] = {
    "tiny": lambda rng: masked_lm(rng),
    "columns": lambda rng: masked_lm(
        rng, config(head_size=16), scale_layout=Layout.COLUMN, offset_layout=Layout.ROW
    ),
    "classifier": lambda rng: classifier(rng, 3, 2),
    "wide": wide_model,
    "sign": sign_model,
    "zero": zero_model,
    "signs in attention": sign_attention_model,
    "no zeros in attention": lambda rng: sign_attention_model(rng, zeros=False),
}


@pytest.fixture(scope="module", params=MODELS)
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("cuda") / f"{request.param}.bitm"
    bitm_formats.write(path, MODELS[request.param](np.random.default_rng(5)))
    return path


def random_batch(
    rng: np.random.Generator, model: Model, shape: tuple[int, int]
) -> tuple[Ints, Ints]:
    """Ids and mask [B, S]; rows of random lengths, with a hole here and there."""
    ids = rng.integers(0, model.info["vocab_size"], shape)
    lengths = rng.integers(1, shape[1] + 1, shape[0])
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    mask[:, 1:][rng.random((shape[0], shape[1] - 1)) < 0.02] = 0
    return ids, mask


def needs_time(n_tokens: int, mode: str = "auto") -> None:
    """Skips what an emulated GPU would need minutes for."""
    if EMULATED and n_tokens * (4 if mode == "float32" else 1) > 1024:
        pytest.skip("expected: too large for an emulated GPU")


@needs_gpu
@pytest.mark.parametrize("mode", MODES)
def test_every_layer_has_the_bits_of_the_cpu(model_path: Path, mode: str) -> None:
    with (
        Model(model_path, device="cpu", activations=mode) as cpu,
        Model(model_path, device="cuda", activations=mode) as gpu,
    ):
        assert gpu.info["device"].startswith("cuda:0: ")
        ids, mask = random_batch(np.random.default_rng(1), cpu, (5, 40))
        for layer in range(cpu.info["n_layers"] + 1):
            np.testing.assert_array_equal(
                gpu.hidden_states(ids, mask, layer=layer),
                cpu.hidden_states(ids, mask, layer=layer),
                err_msg=f"layer {layer}",
            )
        np.testing.assert_array_equal(gpu.logits(ids, mask), cpu.logits(ids, mask))


@needs_gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (3, 65), (64, 17), (7, 130), (64, 512)])
def test_every_shape(tmp_path: Path, mode: str, shape: tuple[int, int]) -> None:
    needs_time(shape[0] * shape[1], mode)
    rng = np.random.default_rng(shape[0] * 1000 + shape[1])
    for make in (wide_model, sign_model):
        bitm_formats.write(tmp_path / "model.bitm", make(rng))
        with (
            Model(tmp_path / "model.bitm", device="cpu", activations=mode) as cpu,
            Model(tmp_path / "model.bitm", device="cuda", activations=mode) as gpu,
        ):
            ids, mask = random_batch(rng, cpu, shape)
            for _ in range(3):  # the first run, the one that is recorded, the one that is replayed
                found = gpu.hidden_states(ids, mask)
            np.testing.assert_array_equal(found, cpu.hidden_states(ids, mask))


@needs_gpu
@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (3, 65), (64, 17), (7, 130), (20, 512)])
@pytest.mark.parametrize("zeros", [True, False])  # False: sums are compared, exponentials looked up
def test_attention_of_signs(tmp_path: Path, shape: tuple[int, int], zeros: bool) -> None:
    needs_time(shape[0] * shape[1])
    path = tmp_path / "m.bitm"
    bitm_formats.write(path, sign_attention_model(np.random.default_rng(8), zeros))
    with Model(path, device="cpu") as cpu, Model(path, device="cuda") as gpu:
        ids, mask = random_batch(np.random.default_rng(3), cpu, shape)
        states = cpu.hidden_states(ids, mask)
        assert np.unique(states).size > 100
        for _ in range(3):  # the third run is a recorded one
            np.testing.assert_array_equal(gpu.hidden_states(ids, mask), states)


def zeros_between(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    """Inputs of linears after norms that have no sign."""
    norms = [f"{layer}.{norm}" for norm in ("attention_norm", "output_norm")]
    names = [f"{norm}.{what}" for norm in norms for what in ("gain", "bias")]
    linears = ("query", "key", "value", "intermediate")
    clear_column(model, names + [f"{layer}.{linear}.shift" for linear in linears], 3)


def rising_codes(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    """Codes after GELU that rise with the sum, where others also fall."""
    scales = model.tensors[f"{layer}.intermediate.weight"].scales
    assert scales is not None
    scales[:] = np.abs(scales)
    shift = -np.abs(model.tensors[f"{layer}.output.shift"].to_float32())
    model.tensors[f"{layer}.output.shift"] = Tensor.from_float(shift, DType.F32)


def signs_after_gelu(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    model.quantizers[f"{layer}.output"] = Quantizer(1, 0, -1, 1, 0.4)


def zeros_after_gelu(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    """A sum of 0 gives a sign of 0."""
    signs_after_gelu(model, layer, rng)
    clear_column(model, [f"{layer}.intermediate.bias", f"{layer}.output.shift"], 5)


def ternary_weights(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    weight = model.tensors[f"{layer}.intermediate.weight"]
    codes = rng.integers(-1, 2, weight.shape).astype(np.int8)
    model.tensors[f"{layer}.intermediate.weight"] = Tensor.from_codes(
        codes, scales=weight.scales, scale_layout=Layout.ROW
    )


def two_planes(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    for linear in ("query", "key", "value", "attention_output", "intermediate"):
        model.quantizers[f"{layer}.{linear}"] = Quantizer(2, 0, -2, 1, 0.5)


def three_planes(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    """Few levels, but codes of more than two planes."""
    for linear in ("query", "key", "value", "attention_output", "intermediate"):
        model.quantizers[f"{layer}.{linear}"] = Quantizer(2, 0, -1, 2, 0.5)
    model.quantizers[f"{layer}.output"] = Quantizer(2, 0, 3, 4, 0.1)


FEW_LEVELS = [
    zeros_between,
    rising_codes,
    signs_after_gelu,
    zeros_after_gelu,
    ternary_weights,
    two_planes,
    three_planes,
]


@needs_gpu
@pytest.mark.parametrize("change", FEW_LEVELS)
@pytest.mark.parametrize("hidden_size", [128, 256, 512, 768, 1280])
def test_codes_of_few_levels(tmp_path: Path, change: Any, hidden_size: int) -> None:
    rng = np.random.default_rng(hidden_size)
    model = sign_model(rng, hidden_size=hidden_size, n_heads=hidden_size // 64)
    for n in range(model.config.n_layers):
        change(model, f"layers.{n}", rng)
    path = tmp_path / "m.bitm"
    bitm_formats.write(path, model)
    with Model(path, device="cpu") as cpu, Model(path, device="cuda") as gpu:
        for batch in (1, 3, 16):  # half a block of tokens; clusters; neither
            ids = rng.integers(0, 400, (batch, 64))
            states = cpu.hidden_states(ids)
            assert np.unique(states).size > 100
            np.testing.assert_array_equal(gpu.hidden_states(ids), states)


def no_change(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    pass


def codes_of_one_bit(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    """-1 and 0 after GELU, 0 and 1 in the context."""
    model.quantizers[f"{layer}.output"] = Quantizer(2, 0, -1, 0, 0.3)
    model.quantizers[f"{layer}.attention_output"] = Quantizer(2, 0, 0, 1, 0.3)


def zeros_in_the_context(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    del model.tensors[f"{layer}.attention_output.shift"]


def zeros_after_one_norm(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    """Before intermediate in one layer, before key in the next."""
    norm, linear = ("attention_norm", "intermediate") if layer[-1] == "0" else ("output_norm", "")
    names = [f"{layer}.{norm}.gain", f"{layer}.{norm}.bias"]
    names += [f"{layer}.{linear}.shift"] if linear else ["layers.2.key.shift"]
    clear_column(model, names, 40)


def planes_in_the_last_layer(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    two_planes(model, "layers.2", rng)


def ternary_weights_in_the_middle(model: ModelFile, layer: str, rng: np.random.Generator) -> None:
    if layer == "layers.1":
        ternary_weights(model, layer, rng)


LAYERS = [no_change, codes_of_one_bit, zeros_in_the_context, zeros_after_one_norm, *FEW_LEVELS]
LAYERS += [planes_in_the_last_layer, ternary_weights_in_the_middle]
OTHER_SIZES = [(512, zeros_between), (1024, no_change), (1024, zeros_after_one_norm)]


@needs_gpu
@pytest.mark.parametrize(
    ("hidden_size", "change"), [*[(768, change) for change in LAYERS], *OTHER_SIZES]
)
@pytest.mark.parametrize("make", [sign_model, sign_attention_model])
def test_layers_of_signs(tmp_path: Path, hidden_size: int, change: Any, make: Any) -> None:
    """Layers with as much in between as BERT's, which one kernel computes but for attention."""
    rng = np.random.default_rng(hidden_size)
    zeros = {"zeros": False} if make is sign_attention_model else {}
    sizes = {"hidden_size": hidden_size, "n_heads": hidden_size // 64, "n_layers": 3}
    model = make(rng, intermediate_size=4 * hidden_size, **sizes, **zeros)
    for n in range(2):
        change(model, f"layers.{n}", rng)
    path = tmp_path / "m.bitm"
    bitm_formats.write(path, model)
    with Model(path, device="cpu") as cpu, Model(path, device="cuda") as gpu:
        for batch in (2, 8) if EMULATED else (2, 8, 70):  # clusters; blocks of 32 and 64 tokens
            ids = rng.integers(0, 400, (batch, 64))
            states = cpu.hidden_states(ids)
            assert np.unique(states).size > 100
            for _ in range(3):  # the third run is a recorded one
                np.testing.assert_array_equal(gpu.hidden_states(ids), states)


LENGTHS = {  # of sequences, 64 tokens in all and again
    "whole": [64],
    "in blocks": [40, 24, 1, 63, 16, 16, 16, 7, 9, 30, 34, 64, 5, 59],
    "not in blocks": [40, 64, 24],
}


@needs_gpu
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("change", [no_change, codes_of_one_bit, zeros_after_one_norm])
@pytest.mark.parametrize("hidden_size", [512, 768, 1024])
def test_layers_of_signs_with_attention(
    tmp_path: Path, hidden_size: int, change: Any, lengths: str
) -> None:
    """Where blocks of 64 tokens have whole sequences, kernels have more of a layer: all of it, or
    with few tokens query, key, value and attention."""
    rng = np.random.default_rng(len(lengths))
    sizes = {"hidden_size": hidden_size, "n_heads": hidden_size // 64, "n_layers": 3}
    model = sign_attention_model(rng, False, intermediate_size=4 * hidden_size, **sizes)
    for n in range(2):
        change(model, f"layers.{n}", rng)
    path = tmp_path / "m.bitm"
    bitm_formats.write(path, model)
    of_rows = LENGTHS[lengths] * 80
    with Model(path, device="cpu") as cpu, Model(path, device="cuda") as gpu:
        for n_tokens in (192, 768 if EMULATED else 5120):
            n = int(np.searchsorted(np.cumsum(of_rows), n_tokens)) + 1
            mask = (np.arange(64) < np.array(of_rows[:n])[:, None]).astype(np.int64)
            ids = rng.integers(0, 400, mask.shape)
            states = cpu.hidden_states(ids, mask)
            for _ in range(3):  # the third run is a recorded one
                np.testing.assert_array_equal(gpu.hidden_states(ids, mask), states)


@needs_gpu
def test_more_layers_of_signs_than_one_kernel_takes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sizes = {"n_layers": 14, "intermediate_size": 2048}
    path = tmp_path / "m.bitm"
    bitm_formats.write(path, sign_attention_model(rng, False, **sizes))
    with Model(path, device="cpu") as cpu, Model(path, device="cuda") as gpu:
        ids = rng.integers(0, 400, (12 if EMULATED else 200, 64))
        states = cpu.hidden_states(ids)
        for _ in range(3):
            np.testing.assert_array_equal(gpu.hidden_states(ids), states)


@needs_gpu
@pytest.mark.parametrize("head_size", [1, 17, 40, 64, 128, 200])
def test_attention_of_bytes(tmp_path: Path, head_size: int) -> None:
    rng = np.random.default_rng(head_size)
    model = wide_model(rng, n_layers=1, n_heads=3, head_size=head_size, max_positions=1200)
    bitm_formats.write(tmp_path / "model.bitm", model)
    shapes = [(1, 1), (100, 5), (1, 64), (30, 64), (2, 100), (1, 128), (9, 128), (3, 129)]
    shapes += [(2, 513), (1, 1150)]
    shapes += [(int(rng.integers(1, 6)), int(rng.integers(1, 700))) for _ in range(10)]
    if EMULATED:
        shapes = [(batch, length) for batch, length in shapes if batch * length < 400]
    with (
        Model(tmp_path / "model.bitm", device="cpu", activations="int8") as cpu,
        Model(tmp_path / "model.bitm", device="cuda", activations="int8") as gpu,
        Model(tmp_path / "model.bitm", device="cuda", activations="int8", kernels=TENSOR) as tensor,
    ):
        for shape in shapes:
            ids, mask = random_batch(rng, cpu, shape)
            wanted = cpu.hidden_states(ids, mask)
            for device in (gpu, tensor):
                found = device.hidden_states(ids, mask)
                np.testing.assert_array_equal(found, wanted, err_msg=str(shape))


@needs_gpu
@pytest.mark.parametrize("n_heads", [12, 16])
@pytest.mark.parametrize("batch", [1, 12, 100])  # blocks of 8, 32 and 64 tokens
def test_larger_hidden_sizes(tmp_path: Path, n_heads: int, batch: int) -> None:
    needs_time(batch * 64)
    rng = np.random.default_rng(batch)
    for make in (wide_model, sign_model):
        model = make(rng, hidden_size=64 * n_heads, n_heads=n_heads)
        bitm_formats.write(tmp_path / "model.bitm", model)
        with (
            Model(tmp_path / "model.bitm", device="cpu", activations="int8") as cpu,
            Model(tmp_path / "model.bitm", device="cuda", activations="int8") as gpu,
        ):
            ids = rng.integers(0, cpu.info["vocab_size"], (batch, 64))
            wanted = cpu.hidden_states(ids)
            for _ in range(3):
                np.testing.assert_array_equal(gpu.hidden_states(ids), wanted)


@needs_gpu
def test_every_output_is_written(tmp_path: Path) -> None:
    bitm_formats.write(tmp_path / "model.bitm", wide_model(np.random.default_rng(0)))
    library = _native.Library(str(tmp_path / "model.bitm"), device="cuda")
    session = _native.Session(library, 4, 64, 1, "int8")
    ids = np.random.default_rng(1).integers(0, 400, (4, 64)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    for kind, width in ((_native.OUTPUT_HIDDEN_STATES, 512), (_native.OUTPUT_LOGITS, 400)):
        output = np.full((4, 64, width), np.nan, np.float32)
        session.run(ids, mask, None, None, output, kind=kind)
        assert np.isfinite(output).all()
        assert not output[1, 7:].any()
    session.free()
    library.close()


@needs_gpu
def test_best_tokens_are_those_of_the_cpu(tmp_path: Path) -> None:
    bitm_formats.write(tmp_path / "model.bitm", wide_model(np.random.default_rng(0)))
    texts = ["a [MASK] b", "w3 [MASK] w9 [MASK]", "[MASK]"] * (2 if EMULATED else 30)
    with (
        Model(tmp_path / "model.bitm", device="cpu") as cpu,
        Model(tmp_path / "model.bitm", device="cuda") as gpu,
    ):
        assert gpu.fill_mask(texts) == cpu.fill_mask(texts)
        assert gpu.fill_mask(texts, top_k=400) == cpu.fill_mask(texts, top_k=400)
        targets = [f"w{i}" for i in range(0, 90, 3)]
        assert gpu.fill_mask(texts, 7, targets) == cpu.fill_mask(texts, 7, targets)


# ---- attention=tensor, which has a bound instead of the CPU's bits ----


def context_model(rng: np.random.Generator, scales: tuple[float, float, float]) -> ModelFile:
    """One layer whose results are x + context - their mean: norms that do not divide, as eps is as
    large as gain, attention_output of ones, and an output of zeros.
    """
    model = wide_model(rng, n_layers=1, layer_norm_eps=2.0**40)
    for name, scale in zip(("query", "key", "value"), scales, strict=True):
        weight = bit_matrix(rng, 512, 512)
        assert weight.scales is not None
        model.tensors[f"layers.0.{name}.weight"] = weight
        weight.scales[:] = scale / 40
        bias = rng.normal(size=512, scale=scale / 10).astype("f4")
        model.tensors[f"layers.0.{name}.bias"] = Tensor.from_float(bias, DType.F32)
    zeros = Tensor.from_float(np.zeros(512, "f4"), DType.F32)
    model.tensors["layers.0.attention_output.weight"] = Tensor.from_float(
        np.eye(512, dtype="f4"), DType.F32
    )
    model.tensors["layers.0.output.weight"] = Tensor.from_float(
        np.zeros((512, 1024), "f4"), DType.F32
    )
    for name in ("attention_output", "output"):
        model.tensors[f"layers.0.{name}.bias"] = zeros
    for norm in ("embeddings.norm", "layers.0.attention_norm", "layers.0.output_norm"):
        model.tensors[f"{norm}.bias"] = zeros
        model.tensors[f"{norm}.gain"] = Tensor.from_float(np.full(512, 2.0**20, "f4"), DType.F32)
    return model


def exact_results(model: ModelFile, x: Doubles) -> tuple[Doubles, Doubles]:
    """The results of context_model for one sequence, and the bound of attention_tensor.cuh for each
    of them, given the inputs [length, 512] of the layer."""

    def heads(name: str) -> Doubles:
        weight = model.tensors[f"layers.0.{name}.weight"].to_float32().astype(float)
        bias = model.tensors[f"layers.0.{name}.bias"].to_float32().astype(float)
        outputs: Doubles = x @ weight.T + bias
        by_head: Doubles = outputs.reshape(len(x), 8, 64).swapaxes(0, 1)
        return by_head

    query, key, value = (heads(name) for name in ("query", "key", "value"))
    scores = query @ key.swapaxes(1, 2) / 8
    sizes = (np.abs(query) @ np.abs(key).swapaxes(1, 2) / 8).max(2, keepdims=True)
    weights = np.exp(scores - scores.max(2, keepdims=True))
    context = weights / weights.sum(2, keepdims=True) @ value
    bound = 2.0**-14 * (1 + sizes) * np.abs(value).max((1, 2), keepdims=True)
    y = x + context.swapaxes(0, 1).reshape(len(x), 512)
    bounds = np.broadcast_to(bound, context.shape).swapaxes(0, 1).reshape(len(x), 512)
    return y - y.mean(1, keepdims=True), bounds + bounds.mean(1, keepdims=True)


@needs_gpu
@pytest.mark.parametrize("mode", ["int16", "float32"])
@pytest.mark.parametrize("length", [1, 40, 64, 100, 512])
@pytest.mark.parametrize("scales", [(1, 1, 1), (1e5, 1e-5, 256), (1e-4, 1e5, 0.06)])
def test_tensor_attention_is_within_its_bound(
    tmp_path: Path, mode: str, length: int, scales: tuple[float, float, float]
) -> None:
    needs_time(length, mode)
    rng = np.random.default_rng(length)
    model = context_model(rng, scales)
    bitm_formats.write(tmp_path / "model.bitm", model)
    ids = rng.integers(0, 400, (1, length))
    with (
        Model(tmp_path / "model.bitm", device="cuda", activations=mode) as exact,
        Model(tmp_path / "model.bitm", device="cuda", activations=mode, kernels=TENSOR) as fast,
    ):
        x = fast.hidden_states(ids, layer=0)[0].astype(float)
        wanted = exact.hidden_states(ids)[0].astype(float)
        found = fast.hidden_states(ids)[0].astype(float)
    results, bound = exact_results(model, x)
    rounding = 2.0**-21 * np.abs(results).max(1, keepdims=True)
    if mode == "float32":
        assert (np.abs(found - results) <= bound + rounding).all()
    # Tensor cores cut less than the bound allows for.
    assert (np.abs(found - wanted) <= bound * 2.0**-8 + rounding).all()


@needs_gpu
@pytest.mark.parametrize("mode", MODES)
def test_tensor_attention_of_a_sequence_is_the_same_in_every_batch(
    tmp_path: Path, mode: str
) -> None:
    rng = np.random.default_rng(3)
    lengths = np.array([200, 1, 17, 64, 65, 128, 40, 130, 63, 9, 64, 33, 100][EMULATED * 6 :])
    needs_time(int(lengths.sum()), mode)
    for make in (wide_model, sign_model, zero_model):
        bitm_formats.write(tmp_path / "model.bitm", make(rng))
        with Model(
            tmp_path / "model.bitm", device="cuda", activations=mode, kernels=TENSOR
        ) as model:
            ids = rng.integers(0, 400, (len(lengths), 220))
            mask = (np.arange(220) < lengths[:, None]).astype(np.int64)
            together = model.hidden_states(ids, mask)
            for _ in range(3):  # the first run, the one that is recorded, the one that is replayed
                np.testing.assert_array_equal(model.hidden_states(ids, mask), together)
            for longest in (200, 128, 64):  # one kernel for each
                rows = rng.permutation(np.flatnonzero(lengths <= longest))
                some = model.hidden_states(ids[rows, :longest], mask[rows, :longest])
                np.testing.assert_array_equal(some, together[rows, :longest])
            for row, length in enumerate(lengths):
                alone = model.hidden_states(ids[row : row + 1, :length])
                np.testing.assert_array_equal(alone[0], together[row, :length])


@needs_gpu
def test_tensor_attention_before_signs_changes_few_of_them(tmp_path: Path) -> None:
    """A sign of the context is another only where the context is within the bound of 0."""
    rng = np.random.default_rng(4)
    bitm_formats.write(tmp_path / "model.bitm", sign_model(rng))
    with (
        Model(tmp_path / "model.bitm", device="cuda") as exact,
        Model(tmp_path / "model.bitm", device="cuda", kernels=TENSOR) as fast,
    ):
        assert fast.info["device"] == exact.info["device"] + "; attention=tensor"
        for shape in ((10, 64), (2, 300)) if EMULATED else ((100, 64), (10, 300)):
            ids, mask = random_batch(rng, exact, shape)
            wanted, found = (m.hidden_states(ids, mask, layer=1) for m in (exact, fast))
            same = (wanted == found).all(-1)[mask == 1].mean()
            logits = [m.logits(ids, mask)[mask == 1] for m in (exact, fast)]
            correlation = np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1]
            assert same > 0.99
            assert correlation > 0.99


def best_tokens(answers: Any) -> list[int]:
    """The best of each mask, of which texts have one or several."""
    if isinstance(answers[0], dict):
        return [answers[0]["token"]]
    return [token for answer in answers for token in best_tokens(answer)]


@needs_gpu
def test_tensor_attention_answers_as_the_cpu() -> None:
    if EMULATED:
        pytest.skip("expected: an emulated GPU does not add as tensor cores do")
    lines = (DATA / "everyday_sentences.tsv").read_text(encoding="utf-8").splitlines()
    texts = [line.partition("\t")[0] for line in lines]
    texts += [" ".join(texts[i : i + 9]) for i in range(12)]  # more than 64 tokens
    with (
        Model.demo(device="cpu") as exact,
        Model.demo(device="cuda", kernels=TENSOR) as fast,
    ):
        wanted, found = (np.array(best_tokens(m.fill_mask(texts))) for m in (exact, fast))
        assert len(wanted) > 100
        assert (wanted == found).mean() > 0.98


@needs_gpu
def test_tensor_attention_of_other_heads_has_the_bits_of_the_cpu(tiny_model: Path) -> None:
    with (
        Model(tiny_model, device="cpu") as cpu,
        Model(tiny_model, device="cuda", kernels=TENSOR) as gpu,
    ):
        ids, mask = random_batch(np.random.default_rng(1), cpu, (5, 40))
        np.testing.assert_array_equal(gpu.logits(ids, mask), cpu.logits(ids, mask))


def test_tensor_attention_needs_a_gpu(tiny_model: Path) -> None:
    for device in ("cpu", "auto") if REASON else ("cpu",):
        with pytest.raises(
            UnsupportedError, match="kernels: attention=tensor needs a GPU"
        ) as caught:
            Model(tiny_model, device=device, kernels=TENSOR)
        assert caught.value.name == "UNSUPPORTED"


def output_of(*words: object) -> str:
    """What the command line of Python prints."""
    done = run_command(sys.executable, "-m", "bitm.cli", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_gpu
def test_the_command_line_runs_models_there(tmp_path: Path) -> None:
    path = tmp_path / "model.bitm"
    bitm_formats.write(path, wide_model(np.random.default_rng(0)))
    for words in (["verify", path], ["fill-mask", path, "w3 [MASK] w9"]):
        on_cpu = output_of(*words, "--device=cpu")
        assert output_of(*words, "--device=cuda") == output_of(*words) == on_cpu
    info = json.loads(output_of("info", path, "--device=cuda:0", "--json"))
    assert info["kernels"] == {}
    assert re.search("; bits by .*, bytes by ", info["device"])
    for listing in (("kernels",), ("kernels", path)):
        assert output_of(*listing, "--device=cuda") == f"device           {info['device']}\n"
        assert output_of(*listing).startswith("op ")
    assert f"device       {info['device']}\n" in output_of("bench", path, "--repeat=1")


@needs_gpu
def test_a_device_that_is_not_there(tiny_model: Path) -> None:
    with pytest.raises(DeviceError, match="there is no cuda:99"):
        Model(tiny_model, device="cuda:99")


@needs_gpu
def test_memory_that_is_not_there_can_be_survived(tmp_path: Path) -> None:
    bitm_formats.write(tmp_path / "model.bitm", wide_model(np.random.default_rng(0)))
    library = _native.Library(str(tmp_path / "model.bitm"), device="cuda")
    sessions: list[_native.Session] = []

    def take_all() -> None:
        while len(sessions) < 10_000:
            sessions.append(_native.Session(library, 2**31, 512, 1, "int8"))

    with pytest.raises(BitmError, match="memory") as caught:
        take_all()
    assert caught.value.name == "NO_MEMORY"
    ids = np.ones((3, 40), np.int32)
    output = np.full((3, 40, 512), np.nan, np.float32)
    sessions[0].run(ids, None, None, None, output, kind=_native.OUTPUT_HIDDEN_STATES)
    assert np.isfinite(output).all()
    for session in sessions:
        session.free()
    library.close()


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:1234", "cuda1", ""])
def test_devices_that_have_no_such_name(tiny_model: Path, device: str) -> None:
    with pytest.raises(BitmError, match="expected auto, cpu, cuda or cuda:N"):
        Model(tiny_model, device=device)


def test_without_a_gpu_the_reason_is_given(tiny_model: Path) -> None:
    if not REASON:
        pytest.skip("expected: there is a GPU")
    with pytest.raises(DeviceError, match="no GPU can be used: ") as caught:
        Model(tiny_model, device="cuda")
    assert caught.value.name == "DEVICE"
    assert "\n" not in str(caught.value)
    with Model(tiny_model, device="auto") as model:
        assert model.info["device"] == "cpu"
