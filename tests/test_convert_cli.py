"""bitm-convert: what it writes, what it says, and that it never leaves half a file."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitm_formats
from bert_checkpoints import CONFIG, LAYERS, VOCABULARY, masked_lm_state, one_bit, save
from bitm_converter import cli, reference
from bitm_formats import Activation
from test_converter import PUBLISHED, package_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A masked LM whose encoder is in two values a row."""
    return save(tmp_path / "checkpoint", one_bit(masked_lm_state()))


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


Capture = pytest.CaptureFixture[str]


# What it writes


def test_a_folder_becomes_a_sound_file(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "model.bitm"
    assert run(folder, output) == 0
    model = bitm_formats.read(output, verify=True)
    assert model.vocabulary == [token.encode() for token in VOCABULARY]
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "layers.0-1.query.weight" in captured.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "model.bitm"]


def test_two_runs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "one.bitm", tmp_path / "two.bitm"]
    for output in outputs:
        assert run(folder, output, "--quiet") == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_options_reach_the_file(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "vocab.txt"):
        (folder / name).rename(tmp_path / name)
    output = tmp_path / "model.bitm"
    arguments = [folder / "model.safetensors", output, "--cased", "--quiet"]
    arguments += ["--config", tmp_path / "config.json", "--vocab", tmp_path / "vocab.txt"]
    arguments += ["--embeddings", "fp32", "--matrices", "fp16", "--family", "hf"]
    assert run(*arguments) == 0
    model = bitm_formats.read(output)
    assert model.config.tokenizer_flags == bitm_formats.TokenizerFlag.SPLIT_CJK
    assert model.tensors["embeddings.word.weight"].dtype == bitm_formats.DType.F32
    assert model.tensors["mlm.transform.weight"].dtype == bitm_formats.DType.F16
    assert run(folder, output, "--no-vocab", "--config", tmp_path / "config.json", "--quiet") == 0
    assert bitm_formats.read(output).vocabulary is None


def test_it_needs_neither_torch_nor_transformers(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from bitm_converter.cli import main; "
        f"assert main([{str(folder)!r}, {str(tmp_path / 'm.bitm')!r}, '--quiet']) == 0; "
        "assert not {'torch', 'transformers', 'safetensors', 'bitm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# What it says


def test_the_table(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(folder, tmp_path / "model.bitm") == 0
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split()[0]: line for line in lines if line}
    assert lines[0].split("  ")[0] == "tensor"
    assert "2 of 24 x 24" in cells["layers.0-1.query.weight"]
    assert "-a, +a per row" in cells["layers.0-1.query.weight"]
    assert "1-bit, row scales" in cells["layers.0-1.query.weight"]
    # 2 layers of 24 rows: 96 bytes a row of floats; a word of bits and a scale.
    assert cells["layers.0-1.query.weight"].split()[-2:] == ["4,608", "576"]
    assert "fp16, rounded" in cells["embeddings.word.weight"]
    assert "tied" in cells["mlm.decoder.weight"]
    totals = next(line for line in lines if line.startswith("encoder matrices"))
    assert "8,448 weights, 12 of 12 matrices 1-bit" in totals
    size = (tmp_path / "model.bitm").stat().st_size
    assert f"{size / 1e6:.2f} MB" in next(line for line in lines if line.startswith("file"))


def test_layers_that_differ_have_lines_of_their_own(tmp_path: Path, capsys: Capture) -> None:
    state = one_bit(masked_lm_state())
    state["bert.encoder.layer.1.output.dense.weight"][0, 0] = 7
    assert run(save(tmp_path, state), tmp_path / "model.bitm") == 0
    out = capsys.readouterr().out
    assert "layers.0.output.weight" in out
    assert "layers.1.output.weight" in out
    assert "11 of 12 matrices 1-bit" in out


def test_every_tensor_is_listed_on_request(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(folder, tmp_path / "model.bitm", "--verbose") == 0
    out = capsys.readouterr().out
    for name in bitm_formats.read(tmp_path / "model.bitm").tensors:
        assert f"{name} " in out


def test_json_says_everything(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "model.bitm"
    assert run(folder, output, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["family"], report["head"]) == ("hf", "masked_lm")
    assert report["config"]["hidden_size"] == CONFIG["hidden_size"]
    assert report["totals"]["file_bytes"] == output.stat().st_size
    rows = {row["slot"]: row for row in report["tensors"]}
    assert rows["layers.1.key.weight"]["is_one_bit"] is True
    assert rows["layers.1.key.weight"]["source"].endswith("layer.1.attention.self.key.weight")
    total = sum(row["bytes_after"] for row in rows.values())
    parts = ("encoder", "embeddings", "other")
    assert total == sum(report["totals"][part]["bytes_after"] for part in parts)
    assert report["totals"]["encoder_matrices"]["n_one_bit"] == 6 * LAYERS


def test_quiet_is_quiet(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(folder, tmp_path / "model.bitm", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_help_has_an_example(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        run("--help")
    assert exit_.value.code == 0
    assert "bitm-convert ckpt.pt bert.bitm --config config.json --vocab vocab.txt" in (
        capsys.readouterr().out
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_on_a_terminal_and_wiped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(folder, tmp_path / "model.bitm") == 0
    assert "####] writing" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    quiet = Terminal()
    monkeypatch.setattr(sys, "stderr", quiet)
    assert run(folder, tmp_path / "model.bitm", "--quiet") == 0
    assert quiet.getvalue() == ""


# Usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["checkpoint"],
        ["a", "b", "c"],
        ["a", "b", "--family", "unheard-of"],
        ["a", "b", "--embeddings", "int4"],
        ["a", "b", "--vocab", "v.txt", "--no-vocab"],
        ["a", "b", "--cased", "--uncased"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2
    assert "usage: bitm-convert" in capsys.readouterr().err


# Failures: one line, status 1, nothing written, and an older file untouched


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code from a checkpoint runs",)


def write_text(folder: Path) -> None:
    (folder / "model.safetensors").write_text("not a checkpoint\n" * 9)


def write_truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def write_evil_pickle(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"weights": Evil()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def remove_checkpoint(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remove_everything(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def remove_vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").unlink()


def change_heads(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": 48}))


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"hidden_size": ')


def overflow_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "layer_norm_eps": 1e39}))


def add_tensor(folder: Path) -> None:
    save(folder, {**one_bit(masked_lm_state()), "cls.chain.weight": np.zeros((2, 24), np.float32)})


@pytest.mark.parametrize(
    ("damage", "message", "status"),
    [
        (write_text, "is not a PyTorch or safetensors checkpoint but a text file", "checkpoint"),
        (write_truncated, "expected a file of", "checkpoint"),
        (write_evil_pickle, "the pickle uses __builtin__.print", "unsafe_pickle"),
        (remove_checkpoint, "no checkpoint here", "missing"),
        (remove_everything, "cannot be read", "checkpoint"),
        (remove_vocabulary, "--vocab FILE names it, --no-vocab does without", "vocabulary"),
        (change_heads, "word_embeddings.weight': expected shape (50, 48)", "shape"),
        (break_config, "config.json: not valid JSON", "checkpoint"),
        (overflow_config, "layer_norm_eps", "FILE_CONFIG"),
        (add_tensor, "tensor 'cls.chain.weight': is no part of this model", "unknown_tensor"),
    ],
)
def test_failures_are_one_line_and_leave_the_old_file(
    damage: Any, message: str, status: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "model.bitm"
    output.write_bytes(b"an older file")
    damage(folder)
    assert run(folder, output) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("bitm-convert: error: ")
    assert message in captured.err
    assert captured.err.endswith(f"[{status}]\n")
    assert output.read_bytes() == b"an older file"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("option", ["--config", "--vocab"])
def test_a_named_file_that_is_not_there(
    option: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert run(folder, tmp_path / "model.bitm", option, tmp_path / "nowhere.json") == 1
    assert capsys.readouterr().err.endswith("nowhere.json: No such file or directory [io]\n")


def test_outputs_that_cannot_be_meant(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    for output, message in (
        (tmp_path, "expected a file to write, found a folder"),
        (tmp_path / "nowhere" / "model.bitm", "does not exist"),
        (folder / "model.safetensors", "is the checkpoint itself"),
    ):
        assert run(folder, output) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.endswith("[output]\n")
    assert run(folder, tmp_path / "model.bitm") == 0


@pytest.mark.parametrize("options", [[], ["--verify"]])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "No space left on device [io]"),
        (MemoryError(), "not enough memory [memory]"),
        (KeyboardInterrupt(), "interrupted, nothing was written [interrupted]"),
    ],
)
def test_a_write_that_fails_leaves_the_old_file(
    error: BaseException,
    message: str,
    options: list[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr("os.fsync", fail)
    output = tmp_path / "model.bitm"
    output.write_bytes(b"an older file")
    assert run(folder, output, *options) == 1
    assert message in capsys.readouterr().err
    assert output.read_bytes() == b"an older file"
    assert not list(tmp_path.glob(".*"))


KILLED_BEFORE = """
import os, signal, sys
from bitm_converter import cli

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

os.{function} = die
cli.main(sys.argv[1:])
"""
LIMITED = """
import resource, sys
from bitm_converter import cli

resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_killed_conversion_leaves_the_old_file(
    function: str, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model.bitm"
    output.write_bytes(b"an older file")
    code = KILLED_BEFORE.format(function=function)
    done = subprocess.run([sys.executable, "-c", code, folder, output], check=False)
    assert done.returncode == -9
    assert output.read_bytes() == b"an older file"
    # What was being written has another name, and does not hinder the next conversion.
    assert run(folder, output) == 0
    bitm_formats.read(output, verify=True)


@pytest.mark.parametrize("limit", [0, 1, 4096, 20_000])
def test_a_full_disk_leaves_the_old_file(limit: int, folder: Path, tmp_path: Path) -> None:
    """The system refuses to write on in the middle of the file."""
    output = tmp_path / "model.bitm"
    output.write_bytes(b"an older file")
    done = subprocess.run(
        [sys.executable, "-B", "-c", LIMITED.format(limit=limit), folder, output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "File too large [io]" in done.stderr
    assert output.read_bytes() == b"an older file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "model.bitm"]


# Verification


def test_verify_compares_with_the_checkpoint(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("bitm")
    output = tmp_path / "model.bitm"
    assert run(folder, output, "--verify", "--json") == 0
    verification = json.loads(capsys.readouterr().out)["verification"]
    assert verification["passed"] is True
    outputs = [difference["output"] for difference in verification["differences"]]
    assert outputs == [
        "embeddings",
        "hidden states of layer 1",
        "hidden states of layer 2",
        "logits",
    ]
    plain = tmp_path / "plain.bitm"
    assert run(folder, plain, "--quiet") == 0
    assert output.read_bytes() == plain.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_verify_names_the_worst_layer(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("bitm")
    assert run(folder, tmp_path / "model.bitm", "--verify") == 0
    lines = capsys.readouterr().out.splitlines()
    verdict, worst, logits = lines[-3:]
    assert verdict.startswith("verify: ok: worst difference from the checkpoint on ")
    assert worst.startswith(("  embeddings: ", "  hidden states of layer "))
    assert logits.startswith("  logits: ")
    assert run(folder, tmp_path / "model.bitm", "--verify", "--verbose") == 0
    assert len(capsys.readouterr().out.split("verify: ok")[1].splitlines()) == 1 + 3 + 1


def test_a_file_that_differs_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("bitm")

    def slightly_wrong(x: reference.Array) -> reference.Array:
        return x * 0.99

    monkeypatch.setitem(reference._ACTIVATIONS, Activation.GELU, slightly_wrong)
    output = tmp_path / "model.bitm"
    output.write_bytes(b"an older file")
    assert run(folder, output, "--verify") == 1
    error = capsys.readouterr().err
    assert "not written, as it is not what the checkpoint is" in error
    assert error.endswith("[verification]\n")
    assert output.read_bytes() == b"an older file"
    assert not list(tmp_path.glob(".*"))


def test_verify_needs_the_runtime(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "bitm", None)
    assert run(folder, tmp_path / "model.bitm", "--verify") == 1
    assert "needs the bitm runtime" in capsys.readouterr().err
    assert not (tmp_path / "model.bitm").exists()


def test_the_small_1_bit_model_is_verified(
    small_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("bitm")
    assert run(small_checkpoint, tmp_path / "model.bitm", "--verify", "--json") == 0
    differences = json.loads(capsys.readouterr().out)["verification"]["differences"]
    assert max(difference["worst"] for difference in differences) < 1e-4


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_float_models_are_verified(name: str, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("bitm")
    path = package_folder(name.split()[0]) / PUBLISHED[name][0]
    assert run(path, tmp_path / "model.bitm", "--verify", "--json") == 0
    differences = json.loads(capsys.readouterr().out)["verification"]["differences"]
    assert max(difference["worst"] for difference in differences) < 1e-3
