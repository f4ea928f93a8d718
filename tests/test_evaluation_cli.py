"""`bitm eval`: its words, its table, its files, its errors."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import bitm_formats
import tiny_models
from bitm import BitmError, cli
from bitm._native import why_no_gpu
from bitm.cli import arguments
from bitm.evaluation import plots
from bitm.evaluation.command import Bar
from bitm.evaluation.masking import PROTOCOLS
from bitm.evaluation.report import write_whole
from bitm.evaluation.texts import FORMATS
from conftest import needs

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("".join(f"w{i} w{i % 7} a b w{i + 2} <c> $ 5\n" for i in range(30)))
    return path


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "other.bitm"
    bitm_formats.write(path, tiny_models.masked_lm(np.random.default_rng(1)))
    return path


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bitm.cli", "eval", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert "Traceback" not in done.stderr
    return done


def output(*words: object) -> str:
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar, as it is no terminal
    return done.stdout


def test_help() -> None:
    text = output("--help")
    assert text.startswith("usage: bitm eval model.bitm --data FILE")
    assert "\nexample:\n  bitm eval model.bitm --data ptb.valid.txt" in text
    assert max(map(len, text.splitlines())) <= 100
    for option in re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE):
        assert option in ("--help", "--version") or option in str(
            arguments._parser("eval")._option_string_actions
        )


def test_choices_are_those_of_the_modules() -> None:
    assert arguments.TEXT_FORMATS == FORMATS
    assert arguments.PROTOCOLS == PROTOCOLS


def test_table_and_json(tiny_model: Path, data: Path) -> None:
    words = (tiny_model, "--data", data, "--seed", "3", "--threads", "1")
    text = output(*words)
    document = json.loads(output(*words, "--json"))
    (result,) = document["results"]
    assert document["comparisons"] == []
    assert result["settings"] == {
        "length": 40,
        "batch": 128,
        "protocol": "bert",
        "seed": 3,
        "repeat": 1,
    }
    entropy = result["metrics"]["cross_entropy"]
    assert entropy["low"] < entropy["value"] < entropy["high"]
    assert f"{entropy['value']:.2f} \u00b1 " in text
    assert result["details"]["two_to_the_cross_entropy"] == pytest.approx(2 ** entropy["value"])
    assert re.search(r"^2\^CE, as the original printed +\d", text, re.MULTILINE)
    assert re.search(rf"^masks +{result['details']['masks']}$", text, re.MULTILINE)
    assert "protocol   bert: 15 % of the tokens" in text
    assert result["threads"] == 1
    assert result["file_bytes"] == tiny_model.stat().st_size


def test_batch_changes_no_metric(tiny_model: Path, data: Path) -> None:
    documents = [
        json.loads(output(tiny_model, "--data", data, "--json", "--batch", n))["results"][0]
        for n in (1, 50)
    ]
    for key in ("metrics", "details"):
        assert documents[0][key] == documents[1][key]


def test_comparison(tiny_model: Path, other_model: Path, data: Path) -> None:
    words = (tiny_model, "--data", data, "--compare", other_model, "--activations", "int8,float32")
    document = json.loads(output(*words, "--json"))
    names = [(result["name"], result["activations"]) for result in document["results"]]
    assert names == [
        ("tiny.bitm", "int8"),
        ("tiny.bitm", "float32"),
        ("other.bitm", "int8"),
        ("other.bitm", "float32"),
    ]
    entropies = [result["metrics"]["cross_entropy"]["value"] for result in document["results"]]
    for compared, entropy in zip(document["comparisons"], entropies[1:]):
        difference = compared["cross_entropy_difference"]["value"]
        assert difference == pytest.approx(entropy - entropies[0])
        assert 0 <= compared["agreement"]["value"] <= 1
    text = output(*words)
    assert len(re.search(r"^activations +(.*)$", text, re.MULTILINE)[1].split()) == 4  # type: ignore[index]
    assert "same best token as the first" in text


def test_models_of_different_tasks(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "classifier.bitm"
    bitm_formats.write(path, tiny_models.classifier(np.random.default_rng(0), 2, 2))
    done = run(tiny_model, "--data", data, "--compare", path)
    assert done.returncode == 1
    assert f"{data}: the first line is" in done.stderr  # the classifier wants a table


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["MODEL"], 2, "the following arguments are required: --data"),
        (["--data", "DATA"], 2, "the following arguments are required: model"),
        (["MODEL", "--data", "DATA", "--protocol", "gpt"], 2, "expected bert, original, mask or"),
        (["MODEL", "--data", "DATA", "--activations", "int8,int4"], 2, "found 'int4'"),
        (["MODEL", "--data", "DATA", "--batch", "0"], 2, "expected 1 to 65536, found '0'"),
        (["MODEL", "--data", "absent.txt"], 1, "IO: absent.txt: No such file or directory"),
        (["absent.bitm", "--data", "DATA"], 1, "IO: "),
        (["DATA", "--data", "DATA"], 1, "FILE_MAGIC: "),
        (["MODEL", "--data", "DATA", "--length", "41"], 1, "tiny.bitm: length is 41, but the"),
        (["MODEL", "--data", "DATA", "--kernels", "x=y"], 1, "error: "),
        (["MODEL", "--data", "DATA", "--compare", "absent.bitm"], 1, "absent.bitm"),
    ],
)
def test_errors(
    tiny_model: Path, data: Path, words: Sequence[str], status: int, message: str
) -> None:
    paths = {"MODEL": tiny_model, "DATA": data}
    done = run(*(paths.get(word, word) for word in words))
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


# ---- Pictures and the page ----


class _Page(HTMLParser):
    """Collects tags, and what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [v or "" for k, v in attributes if k in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_page_and_pictures(tiny_model: Path, other_model: Path, data: Path, tmp_path: Path) -> None:
    needs("matplotlib")
    report, folder = tmp_path / "report.html", tmp_path / "new" / "plots"
    words = ("--data", data, "--report", report, "--plots", folder, "--compare", other_model)
    output(tiny_model, *words)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("memory.png", "ranks.png", "frequency.png", "parts.png", "confidence.png"),
        *("predictions-1.png", "predictions-2.png"),
    }
    for path in folder.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    text = report.read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []  # every tag is closed
    assert len(page.sources) == len(names)
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in re.sub('base64,[^"]*', "", text)  # nothing comes from a network
    assert "url(" not in text
    assert {"How much it gets right", "The worst sentences", "What it costs"} <= set(page.headings)
    assert "tiny.bitm" in text
    assert "other.bitm" in text
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_page_of_labels(tmp_path: Path) -> None:
    needs("matplotlib")
    model, table = tmp_path / "<b>.bitm", tmp_path / "dev.tsv"
    bitm_formats.write(model, tiny_models.classifier(np.random.default_rng(0), 2, 2))
    rows = "".join(f"{i % 2}\tw{i} <script>alert({i})</script>\n" for i in range(20))
    table.write_text(f"label\tsentence\n{rows}")
    report = tmp_path / "report.html"
    output(model, "--data", table, "--report", report)
    text = report.read_text()
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert "<script" not in text
    assert "&lt;b&gt;.bitm" in text


def test_without_matplotlib(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("bitm.evaluation.command.evaluate", None)  # it fails before the work
    words = ["eval", str(tiny_model), "--data", str(data), "--report", str(tmp_path / "r.html")]
    assert cli.main(words) == cli.EXIT_FAILURE
    with pytest.raises(BitmError, match=r"pip install 'bitm\[plot\]'") as caught:
        plots.require()
    assert caught.value.name == "UNSUPPORTED"


def test_without_a_gpu_the_reason_is_told(tiny_model: Path, data: Path) -> None:
    if not why_no_gpu():
        pytest.skip("expected: there is a GPU")
    done = run(tiny_model, "--data", data, "--device", "cuda")
    assert done.returncode == 1
    assert done.stderr == f"bitm: error: DEVICE: {tiny_model}: {why_no_gpu()}\n"


def test_a_page_that_cannot_be_written(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    needs("matplotlib")
    report = tmp_path / "absent" / "report.html"
    done = run(tiny_model, "--data", data, "--report", report)
    assert done.returncode == 1
    assert done.stderr.startswith("bitm: error: IO: ")
    assert done.stderr.count("\n") == 1


def test_files_appear_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(TypeError):
        write_whole(path, "no bytes")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == [path]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_goes_to_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, is_shown in ((_Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        bar = Bar("model")
        bar(1, 4)
        bar(4, 4)
        bar.clear()
        shown = stream.getvalue()
        assert bool(shown) == is_shown
        if is_shown:
            assert "model [#######" in shown
            assert "4/4" in shown
            assert shown.endswith("\r")
