"""Models on a GPU: the CPU's bits, whatever the shape, and errors that can be survived.

`make test-cuda` also runs the tests of quantizers and of every family of checkpoints there.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import bitm_formats
from bitm import Model, _native
from bitm.errors import BitmError, DeviceError
from bitm_formats import Layout, ModelFile, Quantizer
from conftest import run_command
from tiny_models import classifier, config, masked_lm, vector

REASON = _native.why_no_gpu()
needs_gpu = pytest.mark.skipif(bool(REASON), reason=f"expected: {REASON}")
MODES = ["int8", "int16", "float32"]
Ints = npt.NDArray[np.int64]


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


def sign_model(rng: np.random.Generator) -> ModelFile:
    """The same with bits before the layers' linears: signs, and {0, 1} after the activation."""
    model = wide_model(rng)
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


MODELS = {
    "tiny": lambda rng: masked_lm(rng),
    "columns": lambda rng: masked_lm(
        rng, config(head_size=16), scale_layout=Layout.COLUMN, offset_layout=Layout.ROW
    ),
    "classifier": lambda rng: classifier(rng, 3, 2),
    "wide": wide_model,
    "sign": sign_model,
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
    texts = ["a [MASK] b", "w3 [MASK] w9 [MASK]", "[MASK]"] * 30
    with (
        Model(tmp_path / "model.bitm", device="cpu") as cpu,
        Model(tmp_path / "model.bitm", device="cuda") as gpu,
    ):
        assert gpu.fill_mask(texts) == cpu.fill_mask(texts)
        assert gpu.fill_mask(texts, top_k=400) == cpu.fill_mask(texts, top_k=400)
        targets = [f"w{i}" for i in range(0, 90, 3)]
        assert gpu.fill_mask(texts, 7, targets) == cpu.fill_mask(texts, 7, targets)


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
