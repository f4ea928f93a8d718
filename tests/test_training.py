"""The training package: what it computes is what the runtime computes, and it learns."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments
from transformers.models.bert.modeling_bert import BertSelfAttention

from bitm import Model
from bitm_converter.cli import main
from bitm_converter.training import (
    BinaryLinear,
    Distillation,
    LearnedStep,
    binarize_model,
    binary_linears,
    save,
)
from bitm_converter.training.attention import Int8SelfAttention, attention_of_codes
from bitm_converter.training.loop import optimizers, train
from bitm_converter.training.modules import set_hardness
from bitm_converter.training.packed import PackedBert
from conftest import run_command

WORDS, LENGTH = 60, 12


def bert(seed: int = 0) -> Any:
    """A masked LM of random weights, large enough for its logits to differ."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=LENGTH,
        initializer_range=0.2,
        layer_norm_eps=1e-12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForMaskedLM(config).eval()


def random_ids(rows: int, seed: int = 1) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).integers(5, WORDS, (rows, LENGTH)))


def set_steps(model: Any) -> None:
    """Shifts other than 0, and steps as the first batch of a training suggests."""
    with torch.no_grad():
        for _, linear in binary_linears(model):
            if isinstance(linear.quantizer, LearnedStep):
                linear.quantizer.shift.normal_(std=0.1)
        model.train()
        model(random_ids(2))
        model.eval()


def convert(model: Any, folder: Path) -> Path:
    save(model, folder / "checkpoint")
    path = folder / "model.bitm"
    formats = ["--embeddings=fp32", "--matrices=fp32"]
    assert main([str(folder / "checkpoint"), str(path), "--no-vocab", "--quiet", *formats]) == 0
    return path


def logits_of(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(ids).logits.numpy()


def assert_most_agree(found: Any, expected: Any, most_off: int = 6) -> None:
    """Of 24 sequences: a value on the edge of a step may fall to either side, which with `int8`
    one sequence in twelve has."""
    assert len(found) == len(expected) == 24
    off = [np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-3 for a, b in zip(found, expected)]
    assert sum(off) <= most_off


@pytest.mark.parametrize(
    ("activations", "mode"),
    [("float", "float32"), ("int8", "int8"), ("int4", "auto"), ("int2", "auto"), ("sign", "auto")],
)
@pytest.mark.parametrize("scales", ["learned", "mean"])
def test_the_file_computes_what_training_does(
    activations: Any, mode: str, scales: Any, tmp_path: Path
) -> None:
    model = binarize_model(bert(), activations=activations, scales=scales)
    set_steps(model)
    ids = random_ids(24)
    if mode == "auto":
        mode = "float32"  # of what is not quantized
    with Model(convert(model, tmp_path), activations=mode) as file:
        assert file.info["one_bit_matrices"] == 12
        found, expected = file.logits(ids.numpy()), logits_of(model, ids)
    assert_most_agree(found, expected, 6 if mode == "int8" else 4)
    assert expected.std() > 0.1


def test_transformers_reads_what_was_saved(tmp_path: Path) -> None:
    model = binarize_model(bert(), activations="float")
    save(model, tmp_path)
    again = BertForMaskedLM.from_pretrained(tmp_path).eval()
    ids = random_ids(3)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_components() -> None:
    model = binarize_model(bert(), components=["layers-except-ffn"])
    names = [name.rpartition("layer.")[2] for name, _ in binary_linears(model)]
    assert len(names) == 8
    assert all("attention" in name for name in names)


def test_weights_that_are_binary_stay_and_get_another_quantizer() -> None:
    model = binarize_model(bert(), activations="int8")
    before = [linear.weight for _, linear in binary_linears(model)]
    binarize_model(model, activations="sign")
    after = [linear for _, linear in binary_linears(model)]
    assert all(linear.weight is weight for linear, weight in zip(after, before))
    assert all(isinstance(linear.quantizer, LearnedStep) for linear in after)


def test_attention_multiplies_codes_where_query_key_and_value_are_codes() -> None:
    def kinds(model: Any) -> set[type]:
        return {type(layer.attention.self) for layer in model.bert.encoder.layer}

    model, ids = bert(), random_ids(2)
    binarize_model(model, activations="int8", components=["layers-except-attention"])
    assert kinds(model) == {BertSelfAttention}
    binarize_model(model, activations="int8", components=["layers-except-ffn"])
    assert kinds(model) == {Int8SelfAttention}
    binarize_model(model, activations="float")
    assert kinds(model) == {BertSelfAttention}
    again = binarize_model(bert(), activations="float")
    assert np.array_equal(logits_of(model, ids), logits_of(again, ids))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_a_sequence_is_among_does_not_matter(attention: str) -> None:
    model = binarize_model(bert(), activations="int8")
    model.set_attn_implementation(attention)
    ids, lengths = random_ids(24), [12, 3, 7, 9, 5, 1] * 4
    mask = torch.arange(LENGTH) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        padded = model(ids, attention_mask=mask.long()).logits
        alone = [model(row[None, :n]).logits[0] for row, n in zip(ids, lengths)]
    assert_most_agree([row[:n] for row, n in zip(padded, lengths)], alone)


def test_packed_rows_are_their_texts() -> None:
    model = binarize_model(bert(), activations="int8")
    cls, pad, lengths = 1, 0, [5, 4]
    rows = random_ids(12)
    rows[:, [0, 5]] = cls
    rows[:, sum(lengths) :] = pad
    with torch.no_grad():
        packed = PackedBert(model, cls, pad, torch.float32).states(rows)[-1]
        texts = [part for row in rows for part in row[: sum(lengths)].split(lengths)]
        alone = [model.bert(text[None]).last_hidden_state[0] for text in texts]
    found = [part for row in packed for part in row[: sum(lengths)].split(lengths)]
    assert_most_agree(found, alone)


def test_gradients_of_attention_are_those_of_floats() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 10, 8, requires_grad=True) for _ in range(3)]
    visible = torch.ones(2, 1, 10, 10, dtype=torch.bool)
    visible[1, :, :, 6:] = False
    query, key, value = parts
    context, _ = attention_of_codes(query, key, value, visible, 0.0)
    goal = torch.randn_like(context)
    (context * goal).sum().backward()
    # Values share a step by component, and none with padding.
    sizes = [part.detach().abs() for part in parts]
    sizes[2][1, :, 6:] = 0
    steps = [size.amax(d, keepdim=True) / 127 for size, d in zip(sizes, (-1, -1, -2))]
    floats = [
        (torch.round(part.detach() / step) * step).requires_grad_()
        for part, step in zip(parts, steps)
    ]
    expected = torch.nn.functional.scaled_dot_product_attention(*floats, attn_mask=visible)
    (expected * goal).sum().backward()
    assert (context - expected).abs().max() < 0.02
    for name, part, of_floats, tolerance in zip("qkv", parts, floats, (1e-5, 1e-5, 0.02)):
        assert part.grad is not None
        assert of_floats.grad is not None
        assert (part.grad - of_floats.grad).abs().max() < tolerance, name


def test_attention_has_its_dropout_and_no_autocast() -> None:
    query, key, value = torch.randn(3, 2, 3, 10, 8)
    expected, _ = attention_of_codes(query, key, value, None, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention_of_codes(query, key, value, None, 0.0)[0], expected)
    block = binarize_model(bert(), activations="int8").bert.encoder.layer[0].attention.self
    block.dropout.p = 1.0
    x = torch.randn(1, 4, 64)
    assert block(x)[0].abs().sum() > 0
    assert block.train()(x)[0].abs().sum() == 0


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"weights": "w2"}, "expected 'w1', found 'w2'"),
        ({"activations": "int5"}, "found 'int5'"),
        ({"components": ["embeddings"]}, "found 'embeddings'"),
    ],
)
def test_wrong_choices(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        binarize_model(bert(), **choice)
    with pytest.raises(ValueError, match="expected a BERT"):
        binarize_model(torch.nn.Linear(2, 2))


def test_gradients_pass_signs_and_steps() -> None:
    linear = torch.nn.Linear(8, 3)
    binary = BinaryLinear(linear, LearnedStep(8, 1, signed=True))
    binary(torch.randn(4, 8)).square().sum().backward()
    for name, parameter in binary.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_plain_loop_learns() -> None:
    teacher, model = bert(), binarize_model(bert(), activations="int8")
    model.train()
    ids = random_ids(8)
    distillation = Distillation()
    with torch.no_grad():
        goal = teacher(ids, output_hidden_states=True)

    def loss_of(progress: float) -> Any:
        output = model(ids, output_hidden_states=True)
        return distillation(
            output.logits, goal.logits, ids, output.hidden_states[1:], goal.hidden_states[1:]
        )

    first = loss_of(0.0).item()
    n_steps = train(loss_of, optimizers(model, 1e-2, 1e-2), 6.0, lambda *_: None)
    assert n_steps >= 2
    assert loss_of(1.0).item() < first


def test_the_trainer_runs(tmp_path: Path) -> None:
    model = binarize_model(bert(), activations="sign")
    before = {name: linear.weight.clone() for name, linear in binary_linears(model)}
    rows = [{"input_ids": row, "labels": row} for row in random_ids(4)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True
    )
    Trainer(model, arguments, train_dataset=rows).train()
    assert all(
        not torch.equal(linear.weight, before[name]) for name, linear in binary_linears(model)
    )
    save(model, tmp_path / "saved")
    stated = json.loads((tmp_path / "saved/config.json").read_text())["quantization_config"]
    assert stated == {"quant_method": "bitm", "activation_bits": 1}


def test_bits_that_training_does_not_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = binarize_model(bert(), activations="sign")
    save(model, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["quantization_config"]["activation_bits"] = 3
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert main([str(tmp_path), str(tmp_path / "m.bitm"), "--no-vocab"]) == 1
    assert "expected 1, 2 or 4, found 3" in capsys.readouterr().err


def test_soft_steps_and_margins_are_of_training_alone() -> None:
    quantizer = LearnedStep(1, 1, signed=True, margin=0.5)
    set_hardness(quantizer, 0.25)
    x = torch.tensor([[-3.0], [-1.4], [-0.5], [0.2], [1.0], [1.6]], requires_grad=True)
    quantizer._is_set = True
    expected = torch.tensor([-1.375, -1.3, -0.625, 0.4, 1.0, 1.375])
    torch.testing.assert_close(quantizer(x)[:, 0], expected)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].tolist() == [0, 1, 1, 1, 1, 0]
    assert quantizer.eval()(x)[:, 0].tolist() == [-1, -1, -1, 1, 1, 1]


PROCESS = """
import sys
import torch
from bitm_converter.training import processes
from bitm_converter.training.loop import optimizers, train

number, count = processes.begin("cpu")
torch.manual_seed(number)
model = torch.nn.Linear(8, 8)
processes.copy_from_first(model)
x = torch.randn(16, 8)
n_steps = train(
    lambda progress: (model(x) - 1).square().mean() * (1 + number),
    optimizers(model, 1e-2, 1e-2),
    0.5 + number,
    lambda *_: None,
)
torch.save((number, count, n_steps, model.state_dict()), f"{sys.argv[1]}/{number}.pt")
processes.end()
"""


def test_processes_stay_together(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROCESS)
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    words = ["--standalone", "--nproc-per-node=2", program, tmp_path]
    done = run_command(sys.executable, "-m", "torch.distributed.run", *words, env=environment)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{n}.pt") for n in range(2))
    assert (first[0], second[0]) == (0, 1)
    assert first[1] == second[1] == 2
    assert first[2] == second[2] > 1
    for name, tensor in first[3].items():
        assert torch.equal(tensor, second[3][name])
