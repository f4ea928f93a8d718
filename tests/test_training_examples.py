"""The examples of docs/training.md, at a toy's scale, up to the file that they are for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from bitm import Model
from bitm_converter.cli import main
from conftest import ROOT, run_command

EXAMPLES = ROOT / "examples/training"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "."]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked LM of random weights, with its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "max_position_embeddings": 16}
    config = BertConfig(vocab_size=len(WORDS), num_hidden_layers=1, num_attention_heads=2, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)})
    tokenizer.model_max_length = 16
    tokenizer.save_pretrained(folder)
    return folder


def run(name: str, *words: object) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = run_command(sys.executable, EXAMPLES / name, *words, env=environment)
    assert done.returncode == 0, done.stderr


def converted(folder: Path) -> Model:
    path = folder.with_suffix(".bitm")
    assert main([str(folder), str(path), "--quiet"]) == 0
    return Model(path)


def test_a_masked_lm(bert: Path, tmp_path: Path) -> None:
    texts, result = tmp_path / "texts.txt", tmp_path / "result"
    texts.write_text("a good film .\na bad film .\n" * 4)
    run("binarize_masked_lm.py", bert, texts, result, "--steps=2", "--batch=4", "--length=8")
    with converted(result) as model:
        assert model.info["one_bit_matrices"] == 6
        assert len(model.fill_mask("a [MASK] film .")) == 5


def test_a_classifier(bert: Path, tmp_path: Path) -> None:
    table, result = tmp_path / "table.tsv", tmp_path / "result"
    table.write_text("1\ta good film .\n0\ta bad film .\n" * 4)
    run("binarize_classifier.py", bert, table, result, "--epochs=1", "--activations=sign")
    with converted(result) as model:
        assert model.info["quantizes_activations"]
        assert {entry["label"] for entry in model.classify("a good film .", top_k=2)} == {
            "LABEL_0",
            "LABEL_1",
        }
