"""BitNet checkpoints of transformers: latent and packed, with norms, and what is no BitNet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitm_converter.checkpoint import open_checkpoint
from bitm_converter.errors import (
    CheckpointError,
    ConfigError,
    MissingError,
    ShapeError,
    UnknownTensorError,
)
from bitm_converter.recipes import choose
from bitm_formats import DType, Head, Layout
from families.bitnet import FORMS, BitNet, stored_state
from families.comparison import compare, convert
from families.low_bit import randomize, save, torch

OUTPUT = "bert.encoder.layer.1.output.dense"


def make(seed: int = 1, **options: Any) -> Any:
    """A model with parameters."""
    model = BitNet(**options).model()
    randomize(model, seed)
    return model


def settings_of(model: Any, **changes: Any) -> dict[str, Any]:
    """Its configuration, with changes of what it says of BitNet."""
    settings = model.family.settings
    return {**settings, "quantization_config": {**settings["quantization_config"], **changes}}


def saved(folder: Path, model: Any, **changes: Any) -> Path:
    return save(folder, stored_state(model), settings_of(model, **changes))


@pytest.mark.parametrize("eps", [0.0, 1e-2])
@pytest.mark.parametrize("form", FORMS)
def test_the_file_answers_as_pytorch(form: str, eps: float, tmp_path: Path) -> None:
    model = make(form=form, rms_norm_eps=eps)
    conversion = convert(saved(tmp_path / "in", model))
    tensors, config = conversion.model.tensors, conversion.model.config
    for name in ("layers.0.query", "layers.1.output", "layers.1.intermediate", "pooler"):
        assert tensors[f"{name}.weight"].dtype == DType.TERN
        assert tensors[f"{name}.weight"].scale_layout == Layout.TENSOR
        assert (f"{name}.rms.gain" in tensors) == (eps > 0)
    assert tensors["classifier.weight"].dtype == DType.F32
    assert "classifier" not in conversion.model.quantizers
    assert config.layer_norm_eps == np.float32(1e-3)
    assert config.rms_norm_eps == np.float32(eps)
    assert conversion.model.metadata["label.1"] == "label 1"
    differences = compare(model, conversion, tmp_path / "m.bitm", 5e-3)
    assert differences.of_runtime <= 0.1
    assert differences.of_numpy <= 0.1


def test_packed_and_latent_are_the_same_model(tmp_path: Path) -> None:
    """Their scales are 1 / (1 / m) and m, so the last bit may differ."""
    latent = convert(saved(tmp_path / "latent", make())).model.tensors
    packed = convert(saved(tmp_path / "packed", make(form="packed"))).model.tensors
    for name, tensor in latent.items():
        np.testing.assert_array_equal(tensor.data, packed[name].data)
        if tensor.scales is not None:
            scales = packed[name].scales
            assert scales is not None
            np.testing.assert_allclose(tensor.scales, scales, rtol=2e-7)


@pytest.mark.parametrize("form", FORMS)
def test_a_masked_lm_answers_as_pytorch(form: str, tmp_path: Path) -> None:
    model = make(form=form, head="cls")
    conversion = convert(saved(tmp_path / "in", model))
    assert conversion.model.config.head == Head.MASKED_LM
    assert conversion.model.tensors["mlm.transform.weight"].dtype == DType.TERN
    assert "mlm.decoder.weight" not in conversion.model.tensors
    assert compare(model, conversion, tmp_path / "m.bitm", 5e-3).of_runtime <= 0.1


def test_ternary_weights_may_be_stored_as_floats(tmp_path: Path) -> None:
    """An offline model that was saved after transformers had unpacked it."""
    model = make(form="packed, scaled bias")
    state = stored_state(model)
    codes, _ = model.bert.encoder.layer[1].output.dense.ternary()
    folder = save(tmp_path / "in", {**state, f"{OUTPUT}.weight": codes}, settings_of(model))
    found = convert(folder).model.tensors["layers.1.output.weight"]
    expected = convert(saved(tmp_path / "packed", model)).model.tensors["layers.1.output.weight"]
    np.testing.assert_array_equal(found.to_float32(), expected.to_float32())

    folder = save(tmp_path / "in", {**state, f"{OUTPUT}.weight": 2 * codes}, settings_of(model))
    with pytest.raises(CheckpointError, match=rf"'{OUTPUT}\.weight': expected weights of -1, 0"):
        convert(folder)


def test_brain_floats_are_read_as_they_are(tmp_path: Path) -> None:
    """Arithmetic is that of float32 on the stored values."""
    model = make().bfloat16()
    folder = saved(tmp_path / "in", model)
    conversion = convert(folder)
    # A bfloat16 has fewer bits than a half, but numbers this small need more range.
    assert compare(model.float(), conversion, tmp_path / "m.bitm", 5e-3).of_runtime <= 0.1


# Which linears are BitNet's


def test_packed_weights_show_themselves(tmp_path: Path) -> None:
    model = make(form="packed", converted_head=True)
    conversion = convert(saved(tmp_path / "in", model))
    assert conversion.model.tensors["classifier.weight"].dtype == DType.TERN
    assert compare(model, conversion, tmp_path / "m.bitm", 5e-3).of_runtime <= 0.1


@pytest.mark.parametrize(
    ("kept", "is_ternary"),
    [
        (None, {"classifier": False, "pooler": True, "layers.0.output": True}),
        ([], {"classifier": True, "pooler": True, "layers.0.output": True}),
        (["classifier"], {"classifier": False, "pooler": True, "layers.0.output": True}),
        (["bert.pooler"], {"classifier": True, "pooler": False, "layers.0.output": True}),
        (
            [r"bert.encoder.layer.0", r".*layer\.\d+\.output\.dense"],
            {"layers.0.query": False, "layers.1.query": True, "layers.1.output": False},
        ),
        (
            ["bert.encoder.layer.0.attention.self.quer"],
            {"layers.0.query": True, "layers.0.output": True},
        ),
    ],
)
def test_latent_weights_follow_the_configuration(
    kept: list[str] | None, is_ternary: dict[str, bool], tmp_path: Path
) -> None:
    folder = saved(tmp_path, make(), modules_to_not_convert=kept)
    conversion = convert(folder)
    for place, expected in is_ternary.items():
        found = conversion.model.tensors[f"{place}.weight"].dtype
        assert found == (DType.TERN if expected else DType.F32), place
        assert (place in conversion.model.quantizers) == expected
    is_told = any("modules_to_not_convert" in note for note in conversion.notes)
    assert is_told == (kept is None)


# Detection and refusals


def test_the_family_is_found(tmp_path: Path) -> None:
    for form in FORMS:
        assert choose(open_checkpoint(saved(tmp_path / form, make(form=form)))).NAME == "bitnet"
    model = make(form="packed")
    settings = settings_of(model)
    del settings["quantization_config"]
    folder = save(tmp_path / "bare", stored_state(model), settings)
    assert choose(open_checkpoint(folder)).NAME == "bitnet"
    with pytest.raises(ConfigError, match="'quantization_config': expected the object"):
        convert(folder)
    given = tmp_path / "given.json"
    given.write_text(json.dumps(settings_of(model)))
    assert convert(folder, config=given).model.tensors["pooler.weight"].dtype == DType.TERN


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"quant_method": "gptq"}, "'quant_method': expected 'bitnet', found 'gptq'"),
        ({"linear_class": "bitblas"}, "'linear_class': expected one of .* found 'bitblas'"),
        ({"quantization_mode": "both"}, "'quantization_mode': expected one of .* found 'both'"),
        ({"modules_to_not_convert": "x"}, "'modules_to_not_convert': expected a list of names"),
        ({"modules_to_not_convert": ["("]}, r"'modules_to_not_convert': '\(' is no pattern"),
    ],
)
def test_other_methods_are_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        convert(saved(tmp_path, make(), **changes), family="bitnet")


def test_parameters_of_other_bit_linears_are_refused(tmp_path: Path) -> None:
    model = make()
    state = {**stored_state(model), f"{OUTPUT}.norm.weight": torch.ones(203)}
    with pytest.raises(UnknownTensorError, match=rf"{OUTPUT}\.norm\.weight"):
        convert(save(tmp_path, state, settings_of(model)))


def test_norms_must_be_there_exactly_where_they_are_stated(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"query\.rms_norm\.weight"):
        convert(saved(tmp_path / "without", make(), use_rms_norm=True))
    with pytest.raises(UnknownTensorError, match=r"rms_norm\.weight"):
        convert(saved(tmp_path / "with", make(rms_norm_eps=1e-6), use_rms_norm=False))


def test_what_is_not_packed_as_it_should_be(tmp_path: Path) -> None:
    model = make(form="packed")
    state, settings = stored_state(model), settings_of(model)

    def attempt(changes: dict[str, Any], without: str = "") -> None:
        changed = {**state, **changes}
        changed.pop(without, None)
        convert(save(tmp_path, changed, settings))

    with pytest.raises(MissingError, match=rf"{OUTPUT}\.weight_scale"):
        attempt({}, without=f"{OUTPUT}.weight_scale")
    with pytest.raises(ShapeError, match="expected one scale"):
        attempt({f"{OUTPUT}.weight_scale": torch.ones(96)})
    with pytest.raises(CheckpointError, match="expected 1 / m, found 0"):
        attempt({f"{OUTPUT}.weight_scale": torch.zeros(1)})
    with pytest.raises(ShapeError, match="expected 24 rows of packed weights"):
        attempt({f"{OUTPUT}.weight": torch.zeros(23, 203, dtype=torch.uint8)})
    with pytest.raises(CheckpointError, match="expected weights of -1, 0 and 1 alone"):
        attempt({f"{OUTPUT}.weight": torch.full((24, 203), 255, dtype=torch.uint8)})
