"""bitmaps checkpoints: learned scales of every layout, both heads, all revisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitm_formats
from bitm_converter.checkpoint import open_checkpoint
from bitm_converter.cli import main
from bitm_converter.errors import (
    CheckpointError,
    ShapeError,
    UnknownTensorError,
    VocabularyError,
)
from bitm_converter.recipes import Conversion, choose
from bitm_formats import Activation, DType, Head, Layout, Problem
from families.bitmaps import Bitmaps, Linear, set_scales
from families.comparison import compare, convert
from families.low_bit import Sizes, nn, randomize, state_of, torch


def make(seed: int = 1, **options: Any) -> Any:
    """A model with parameters."""
    model = Bitmaps(**options).model()
    randomize(model, seed)
    set_scales(model, seed)
    return model


def save(path: Path, state: dict[str, Any], container: str = "legacy") -> Path:
    """As the project's script does: one file with the optimizer's state, nothing beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = "module." if "prefixed" in container else ""
    content = {
        "epoch": 2,
        "model_state_dict": {prefix + name: value for name, value in state.items()},
        "optimizer_state_dict": {
            "state": {0: {"step": 10, "exp_avg": torch.ones(3)}},
            "param_groups": [{"lr": 1e-5, "betas": (0.9, 0.999), "params": [0]}],
        },
        "lr_scheduler": {"base_lrs": [1e-5], "last_epoch": 10, "lr_lambdas": [None]},
        "loss": torch.tensor(0.4),
        "accuracy": 0.9,
    }
    torch.save(content, path, _use_new_zipfile_serialization="legacy" not in container)
    return path


def converted(tmp_path: Path, model: Any, **options: Any) -> Conversion:
    return convert(save(tmp_path / "in" / "ckpt.pt", state_of(model)), **options)


def agrees(model: Any, conversion: Conversion, tmp_path: Path, tolerance: float = 1e-4) -> bool:
    """Whether the file, and the evaluation in numpy, give PyTorch's logits for every sequence."""
    differences = compare(model, conversion, tmp_path / "m.bitm", tolerance, n=12)
    return differences.of_runtime == 0 and differences.of_numpy == 0


@pytest.mark.parametrize("layout", ["column", "row", "table"])
@pytest.mark.parametrize("offsets", [False, True])
def test_a_classifier_answers_as_pytorch(layout: str, offsets: bool, tmp_path: Path) -> None:
    model = make(layout=layout, offsets=offsets)
    conversion = converted(tmp_path, model)
    tensors, config = conversion.model.tensors, conversion.model.config
    expected = {"column": Layout.COLUMN, "row": Layout.ROW, "table": Layout.TENSOR}[layout]
    assert tensors["embeddings.word.weight"].scale_layout == expected
    assert tensors["embeddings.token_type.weight"].scale_layout == expected
    assert tensors["layers.0.query.weight"].scale_layout == Layout.ROW_GROUP
    assert tensors["layers.0.output.weight"].scale_layout == Layout.TENSOR
    assert (tensors["layers.0.output.weight"].offsets is None) == (not offsets)
    assert {tensors[f"{place}.weight"].dtype for place in ("pooler", "classifier")} == {DType.BIT1}
    assert (config.head, config.n_labels, config.problem) == (
        Head.CLASSIFIER,
        1,
        Problem.ONE_LOGIT,
    )
    assert conversion.model.metadata["token_type_ids"] == "zero"
    assert agrees(model, conversion, tmp_path)


def test_a_masked_lm_decodes_with_the_latent_embeddings(tmp_path: Path) -> None:
    model = make(head="cls")
    conversion = converted(tmp_path, model)
    tensors = conversion.model.tensors
    latent = model.bert.embeddings.word_embeddings.weight.detach().numpy()
    np.testing.assert_array_equal(tensors["mlm.decoder.weight"].to_float32(), latent)
    assert tensors["embeddings.word.weight"].dtype == DType.BIT1
    assert tensors["embeddings.position.weight"].dtype == DType.F32
    assert conversion.model.config.head == Head.MASKED_LM
    assert "token_type_ids" not in conversion.model.metadata
    assert agrees(model, conversion, tmp_path)


def test_values_of_half_precision_are_kept_in_it(tmp_path: Path) -> None:
    """apex trains in fp16 and saves those values as float32, other scripts as they are."""
    model = make(head="cls").half().float()
    conversions = [
        convert(save(tmp_path / f"{kind}.pt", state))
        for kind, state in (
            ("single", state_of(model)),
            ("half", {name: value.half() for name, value in state_of(model).items()}),
        )
    ]
    for conversion in conversions:
        assert conversion.model.tensors["mlm.decoder.weight"].dtype == DType.F16
        assert conversion.model.tensors["embeddings.position.weight"].dtype == DType.F16
        assert agrees(model, conversion, tmp_path)


@pytest.mark.parametrize("container", ["legacy", "zip", "legacy prefixed"])
def test_every_container_gives_the_same_tensors(container: str, tmp_path: Path) -> None:
    state = state_of(make())
    found = convert(save(tmp_path / "ckpt.pt", state, container)).model.tensors
    expected = convert(save(tmp_path / "expected.pt", state)).model.tensors
    assert list(found) == list(expected)
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.data, expected[name].data)


def test_the_revision_of_may_has_plain_embeddings_pooler_and_classifier(tmp_path: Path) -> None:
    """Binarized is what has a scale; and there, token types count."""
    model = make(revision="may")
    conversion = converted(tmp_path, model)
    tensors = conversion.model.tensors
    for place in ("embeddings.word", "embeddings.token_type", "pooler", "classifier"):
        assert tensors[f"{place}.weight"].dtype == DType.F32
    assert tensors["layers.1.value.weight"].dtype == DType.BIT1
    assert conversion.model.config.problem == Problem.ONE_LOGIT
    assert "token_type_ids" not in conversion.model.metadata
    assert agrees(model, conversion, tmp_path)


def test_a_masked_lm_of_plain_embeddings_is_tied(tmp_path: Path) -> None:
    model = make(head="cls", revision="may")
    conversion = converted(tmp_path, model)
    assert "mlm.decoder.weight" not in conversion.model.tensors
    assert agrees(model, conversion, tmp_path)


def test_zeros_are_positive(tmp_path: Path) -> None:
    """Also a padding row of zeros, and -0.0: no tensor needs a third value."""
    model = make()
    model.bert.embeddings.word_embeddings.weight.data[0] = 0.0
    model.bert.encoder.layer[0].output.dense.weight.data[3] = -0.0
    model.bert.encoder.layer[0].output.dense.bias.data[:7] = -0.0
    conversion = converted(tmp_path, model)
    words = conversion.model.tensors["embeddings.word.weight"].to_float32()
    scales = model.bert.embeddings.word_embeddings.alpha_w.detach().numpy()
    np.testing.assert_array_equal(words[0], scales)
    assert not any(tensor.dtype == DType.TERN for tensor in conversion.model.tensors.values())
    assert agrees(model, conversion, tmp_path)


def test_the_configuration_is_that_of_bert_base_unless_one_is_given(tmp_path: Path) -> None:
    config = converted(tmp_path, make()).model.config
    assert (config.n_heads, config.head_size) == (3, 64)
    assert config.layer_norm_eps == np.float32(1e-12)
    assert config.hidden_activation == Activation.GELU

    family = Bitmaps(activation="relu")
    family.eps = 1e-3
    model = family.model()
    randomize(model, 2)
    set_scales(model, 2)
    settings = {"layer_norm_eps": 1e-3, "hidden_act": "relu", "num_attention_heads": 3}
    given = tmp_path / "given.json"
    # bert-base-uncased's own, which names the head that it was trained with.
    given.write_text(json.dumps({**settings, "architectures": ["BertForMaskedLM"]}))
    conversion = converted(tmp_path, model, config=given)
    assert conversion.model.config.layer_norm_eps == np.float32(1e-3)
    assert conversion.model.config.hidden_activation == Activation.RELU
    assert agrees(model, conversion, tmp_path)


def test_heads_are_counted_by_their_scales(tmp_path: Path) -> None:
    model = make(sizes=Sizes(heads=6))
    conversion = converted(tmp_path, model)
    assert (conversion.model.config.n_heads, conversion.model.config.head_size) == (6, 16)
    assert agrees(model, conversion, tmp_path)


def test_scales_for_other_heads_are_refused(tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"num_attention_heads": 4}))
    problem = r"query\.alpha_w': expected 1 or 4 or 192 scales, found 3"
    with pytest.raises(ShapeError, match=problem):
        converted(tmp_path, make(), config=given)


def test_columns_come_first_where_a_table_is_square(tmp_path: Path) -> None:
    sizes = Sizes(hidden=96, attention=96, heads=3, words=96)
    conversion = converted(tmp_path, make(sizes=sizes))
    tensor = conversion.model.tensors["embeddings.word.weight"]
    assert tensor.scale_layout == Layout.COLUMN


def test_the_labels_of_one_logit_are_two(tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"id2label": {"0": "bad", "1": "good"}}))
    metadata = converted(tmp_path, make(), config=given).model.metadata
    assert (metadata["label.0"], metadata["label.1"]) == ("bad", "good")


def test_a_classifier_of_tokens_is_plain(tmp_path: Path) -> None:
    state = state_of(make())
    for name in [name for name in state if name.startswith("binary_classifier")]:
        del state[name]
    state["classifier.weight"], state["classifier.bias"] = torch.ones(5, 192), torch.ones(5)
    model = convert(save(tmp_path / "ckpt.pt", state)).model
    assert (model.config.head, model.config.n_labels) == (Head.TOKEN_CLASSIFIER, 5)


# The first revision


class AbsMean(Linear):
    """A plain linear whose scales are the mean magnitudes of its values."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__(columns, rows)
        del self.alpha_w, self.alpha_b

    def forward(self, x: Any) -> Any:
        self.alpha_w = self.weight.detach().abs().mean()[None]
        self.alpha_b = self.bias.detach().abs().mean()[None]
        return super().forward(x)


def first_revision() -> Any:
    family = Bitmaps(head="cls", revision="may")
    model = family.model()
    hidden, inner = family.sizes.hidden, family.sizes.inner
    for layer in model.bert.encoder.layer:
        for name in ("query", "key", "value"):
            setattr(layer.attention.self, name, AbsMean(hidden, hidden))
        layer.attention.output.dense = AbsMean(hidden, hidden)
        layer.intermediate.dense = AbsMean(hidden, inner)
        layer.output.dense = AbsMean(inner, hidden)
    randomize(model, 3)
    return model


def test_the_first_revision_needs_its_scheme(tmp_path: Path) -> None:
    model = first_revision()
    assert all(isinstance(layer.output.dense, AbsMean) for layer in model.bert.encoder.layer)
    assert isinstance(model.bert.pooler.dense, nn.Linear)
    path = save(tmp_path / "ckpt.pt", state_of(model))
    assert choose(open_checkpoint(path)).NAME == "hf"
    with pytest.raises(CheckpointError, match="--scheme absmean"):
        convert(path, family="bitmaps")
    conversion = convert(path, family="bitmaps", scheme="absmean")
    assert conversion.model.metadata["source.family"] == "bitmaps"
    assert conversion.model.tensors["layers.0.key.weight"].scale_layout == Layout.TENSOR
    assert agrees(model, conversion, tmp_path)


def test_the_scheme_stands_for_the_family(tmp_path: Path, capsys: Any) -> None:
    path, output = save(tmp_path / "ckpt.pt", state_of(first_revision())), tmp_path / "m.bitm"
    command = [str(path), str(output), "--no-vocab", "--scheme", "absmean"]
    assert main([*command, "--verify"]) == 0
    assert bitm_formats.read(output).metadata["source.family"] == "bitmaps"
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--family", "hf"])
    assert "--scheme absmean is of --family bitmaps, not hf" in capsys.readouterr().err


def test_the_scheme_is_not_for_learned_scales(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="learned scales"):
        converted(tmp_path, make(), scheme="absmean")


# Refusals


@pytest.mark.parametrize("name", ["gamma_b", "beta_w"])
def test_unknown_parameters_are_refused_by_name(name: str, tmp_path: Path) -> None:
    state = {**state_of(make()), f"bert.pooler.dense.{name}": torch.ones(1)}
    with pytest.raises(UnknownTensorError, match=rf"bert\.pooler\.dense\.{name}"):
        convert(save(tmp_path / "ckpt.pt", state))


@pytest.mark.parametrize(
    ("name", "n", "problem"),
    [
        ("bert.pooler.dense.alpha_w", 3, "expected 1 or 192 scales, found 3"),
        ("bert.pooler.dense.alpha_b", 3, "expected 1 or 192 scales, found 3"),
        ("bert.embeddings.word_embeddings.alpha_w", 7, "expected 1 or 192 or 331 scales, found 7"),
        ("bert.pooler.dense.gamma_w", 2, r"expected the shape of its scales \(1,\), found \(2,\)"),
    ],
)
def test_a_wrong_number_of_scales_is_refused(
    name: str, n: int, problem: str, tmp_path: Path
) -> None:
    state = {**state_of(make()), name: torch.ones(n)}
    with pytest.raises(ShapeError, match=f"'{name}': {problem}"):
        convert(save(tmp_path / "ckpt.pt", state))


def test_a_masked_lm_asks_for_its_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="--vocab"):
        converted(tmp_path, make(head="cls"), use_vocab=True)
