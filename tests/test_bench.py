"""The scripts of bench/ that others build upon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bert_checkpoints import VOCABULARY, WORDS, masked_lm_state, save
from bitm import Model
from conftest import ROOT, run_command

TEXT = "The river flows into the [MASK]."


def make_model(path: Path, *options: str) -> None:
    command = [sys.executable, str(ROOT / "bench/make_model.py"), *options, "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("activations", ["float", "sign", "int4"])
def test_a_made_model_fills_masks(activations: str, tmp_path: Path) -> None:
    path = tmp_path / "m.bitm"
    make_model(path, "--size", "tiny", "--activations", activations)
    with Model(path) as model:
        assert model.info["vocab_size"] == 30_522
        assert model.info["quantizes_activations"] == (activations != "float")
        predictions = model.fill_mask(TEXT)
        assert sum(p["score"] for p in predictions) < 0.5  # nothing has been learned
        assert len({p["token"] for p in predictions}) == 5


def test_a_made_model_with_another_head(tmp_path: Path) -> None:
    make_model(tmp_path / "m.bitm", "--size", "tiny", "--head", "classifier")
    with Model(tmp_path / "m.bitm") as model:
        assert {p["label"] for p in model.classify(TEXT)} <= {"LABEL_0", "LABEL_1"}


@pytest.mark.slow
def test_memory_of_bert_base(bitm_tool: Path, tmp_path: Path) -> None:
    """A batch of 1 x 128 takes at most 24 MB beside the file."""
    make_model(tmp_path / "m.bitm", "--size", "base")
    options = ("--tool", str(bitm_tool), "--runs", "1", "--output", str(tmp_path / "results.json"))
    command = [sys.executable, str(ROOT / "bench/cold_start.py"), str(tmp_path / "m.bitm")]
    subprocess.run([*command, *options], check=True, capture_output=True)
    results = json.loads((tmp_path / "results.json").read_text())
    peak_bytes = {run["what"]: run["peak_bytes"] for run in results["runs"]}
    assert peak_bytes["C tool, 1 x 128 tokens"] <= results["file_bytes"] + 24e6


def bench(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_command(sys.executable, str(ROOT / "bench" / script), *map(str, arguments))


@pytest.mark.parametrize("script", ["tables.py", "picture.py"])
def test_what_is_drawn_of_results_is_current(script: str) -> None:
    done = bench(script, "--check")
    assert done.returncode == 0, done.stderr


def test_the_prediction_for_the_jetson_nano_is_current(tmp_path: Path) -> None:
    output = tmp_path / "nano.json"
    done = bench("nano.py", "--output", output)
    assert done.returncode == 0, done.stderr
    stored = json.loads((ROOT / "bench/results/nano.json").read_text())
    made = json.loads(output.read_text())
    assert made["runs"] == stored["runs"]
    # The product of all layers: population counts of two terms of 32 weights, 32 a clock.
    w1a1 = next(run for run in made["runs"] if (run["model"], run["length"]) == ("W1A1", 64))
    macs = 64 * 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert w1a1["parts_ms"]["linears"] == pytest.approx(macs / 32 * 2 / 32 / 921.6e3, rel=1e-3)


def test_the_table_of_a_gpu(tmp_path: Path) -> None:
    """What bench/cuda.py writes: our rows have floors, and a shape may lack an engine."""
    shape = {"batch": 1, "length": 64}
    document = {
        **{"command": "python bench/cuda.py", "commit": "c", "date": "d", "machine": "m"},
        **{"device": "cuda:0: G", "versions": {"torch": "2"}, "runs": 3},
        **{"sentences": 4096, "sentences_per_s": 1234.5},
        "results": [
            {**shape, "what": "bitm W1A1", "ms": 2.0, "floor_ms": 0.0071},
            {**shape, "what": "torch fp16", "ms": 0.5},
            {**shape, "batch": 8, "what": "bitm W1A1", "ms": 16.04, "floor_ms": 0.05},
        ],
    }
    path = tmp_path / "cuda.json"
    path.write_text(json.dumps(document))
    lines = bench("tables.py", path).stdout.splitlines()
    assert "| 1x64 | 2.00 (0.007) | 0.50 |" in lines
    assert "| 8x64 | 16.0 (0.050) |  |" in lines
    assert "`fill_mask` of 4,096 sentences in one call: 1,234 a second." in lines


def test_the_originals_table(tmp_path: Path) -> None:
    """Rows side by side, in order; the same as one after the other."""
    words = [*VOCABULARY, *(f"w{i}" for i in range(WORDS - len(VOCABULARY)))]
    folder = save(tmp_path / "checkpoint", masked_lm_state(), vocabulary=words)
    data = tmp_path / "ptb.txt"
    data.write_text(" paris is a city .\n" * 20)
    documents = []
    for jobs in ("1", "3"):
        output = tmp_path / f"{jobs}.json"
        options = ("--limit", "12", "--jobs", jobs, "--threads", "1", "--output", output)
        done = bench("original_table.py", folder, data, *options)
        assert done.returncode == 0, done.stderr
        documents.append(json.loads(output.read_text()))
    one, three = ([row | {"ms_per_sequence": 0} for row in d["rows"]] for d in documents)
    assert one == three
    assert [row["binarized"] for row in one[:3]] == ["None", "All", "All"]
    text = bench("tables.py", tmp_path / "3.json").stdout
    assert "12 sentences of ptb.txt" in text
    assert "3 rows at a time, 1 threads each" in text


def test_comparison(tmp_path: Path) -> None:
    for name in ("float", "sign"):
        make_model(tmp_path / f"base-{name}.bitm", "--size", "tiny", "--activations", name)
    output = tmp_path / "compare.json"
    done = bench(
        "compare.py",
        *("--models", tmp_path, "--output", output, "--engines", "bitm int8,bitm w1a1,bitm none"),
        *("--cells", "1x16,2x8", "--head-cells", "1x16", "--threads", "1"),
        *("--rounds", "2", "--turn-seconds", "0.01"),
    )
    assert done.returncode == 0, done.stderr
    # What cannot run is left out, with its reason.
    assert "bitm none left out: " in done.stderr
    results = json.loads(output.read_text())["results"]
    assert [(row["task"], row["batch"], row["length"]) for row in results[::2]] == [
        ("fill_mask", 1, 16),
        ("encoder", 1, 16),
        ("encoder", 2, 8),
        ("head", 1, 16),
    ]
    for row in results:
        assert row["engine"] in ("bitm int8", "bitm w1a1")
        assert len(row["ms"]) == 2
        assert min(row["ms"]) > 0
        assert row["busy_threads"] <= 1
    assert bench("tables.py", output).stdout.count("| 2x8 |") == 2
