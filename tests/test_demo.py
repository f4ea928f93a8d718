"""The model that comes with the package: where it is, how large, and what it knows."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bitm import Model
from bitm.cli import main
from bitm.model import demo_path
from conftest import ROOT

DATA = ROOT / "tests/data"
MOST_BYTES = 12_000_000
# How many times larger the encoder is in float32; a row's scale and padding count as encoder too.
LEAST_ENCODER_RATIO = 30
TEXT_TOKENS = 62
EVERY = 7
PARIS = "The capital of France is [MASK]."


@pytest.fixture(scope="module")
def demo() -> Iterator[Model]:
    with Model.demo() as model:
        yield model


def test_it_is_small(demo: Model) -> None:
    info = demo.info
    assert demo_path().stat().st_size <= MOST_BYTES
    assert info["encoder_weights"] * 4 >= LEAST_ENCODER_RATIO * info["encoder_bytes"]
    assert info["float_matrices"] == info["ternary_matrices"] == 0


def test_it_is_sound(demo: Model) -> None:
    demo.verify()


def test_it_fills_everyday_sentences(demo: Model) -> None:
    lines = (DATA / "everyday_sentences.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("\t") for line in lines]
    assert len(pairs) == 20
    predictions = demo.fill_mask([sentence for sentence, _ in pairs], top_k=5)
    found = [{entry["token_str"] for entry in entries} for entries in predictions]
    right = sum(word in words for (_, word), words in zip(pairs, found))
    assert right >= 12


def scores(model: Model, windows: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Cross-entropy and accuracy where every EVERYth token of windows [n, L] is masked."""
    positions = np.tile(np.arange(EVERY, windows.shape[1] - 1, EVERY), (len(windows), 1))
    targets = np.take_along_axis(windows, positions, 1)
    masked = windows.copy()
    np.put_along_axis(masked, positions, model.info["mask_id"], 1)
    logits = model.logits(masked, positions=positions).astype(np.float64)
    own = np.take_along_axis(logits, targets[..., np.newaxis], 2)[..., 0]
    losses = np.log(np.exp(logits - logits.max(2, keepdims=True)).sum(2)) + logits.max(2) - own
    return float(losses.mean()), float((logits.argmax(2) == targets).mean())


@pytest.fixture(scope="module")
def windows(demo: Model) -> npt.NDArray[np.int64]:
    """Held-out text, as rows of [CLS], TEXT_TOKENS tokens and [SEP]."""
    ids = demo.tokenize((DATA / "wikipedia_slice.txt").read_text(encoding="utf-8"))
    cls, inner, sep = ids[0], ids[1:-1], ids[-1]
    n = len(inner) // TEXT_TOKENS
    return np.array(
        [[cls, *inner[k * TEXT_TOKENS : (k + 1) * TEXT_TOKENS], sep] for k in range(n)], np.int64
    )


def test_it_predicts_text_it_has_not_seen(demo: Model, windows: npt.NDArray[np.int64]) -> None:
    assert len(windows) > 100
    cross_entropy, accuracy = scores(demo, windows)
    assert cross_entropy < 2.6
    assert accuracy > 0.5


def test_the_mode_it_was_trained_in_is_as_good(demo: Model, windows: npt.NDArray[np.int64]) -> None:
    with Model.demo(activations="int8") as model:
        assert model.info["activations"] == "int8"
        np.testing.assert_allclose(scores(model, windows), scores(demo, windows), atol=0.02)


def test_pickled(demo: Model) -> None:
    with pickle.loads(pickle.dumps(demo)) as again:
        assert again.fill_mask(PARIS) == demo.fill_mask(PARIS)


# The command line


def run_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = [str(Path(path).resolve()) for path in sys.path if path]
    return subprocess.run(
        [sys.executable, "-m", "bitm.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_command_line_without_a_model(tmp_path: Path) -> None:
    done = run_in(tmp_path, "fill-mask", PARIS, "--top-k", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=2)[1:] == ["paris", "the capital of france is paris.\n"]


def test_memory_without_a_model(tmp_path: Path) -> None:
    done = run_in(tmp_path, "fill-mask", "--memory", "--json", PARIS)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["file_bytes"] == Path(told["path"]).stat().st_size
    assert told["total_bytes"] > told["file_bytes"]


def test_several_texts_without_a_model(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["fill-mask", PARIS, "Tokyo is the capital of [MASK].", "--top-k=1"]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert [lines[0], lines[3]] == [PARIS, "Tokyo is the capital of [MASK]."]
    assert lines[4].split()[1] == "japan"


def test_texts_from_standard_input_without_a_model(tmp_path: Path) -> None:
    assert run_in(tmp_path, "fill-mask").stdout == ""


@pytest.mark.parametrize("name", ["absent.bitm", "there"])
def test_what_looks_like_a_path_is_a_model(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").write_bytes(b"no model")
    done = run_in(tmp_path, "fill-mask", name, PARIS)
    assert done.returncode == 1
    assert name in done.stderr


def test_the_path_of_nothing_is_a_text(tmp_path: Path) -> None:
    done = run_in(tmp_path, "fill-mask", "absent", PARIS)
    assert done.returncode == 1
    assert "text 1: " in done.stderr
