"""The two command lines, in C and in Python: the same text, the same exit status."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitm_formats
from bitm import Model
from bitm._native import why_no_gpu
from bitm.cli.terminal import printable
from conftest import run_command
from tiny_models import classifier, config, encoder, masked_lm, vector

COMMANDS = ("info", "verify", "fill-mask", "classify", "embed", "bench", "kernels")
IN_PYTHON_ALONE = "eval"  # see test_evaluation_cli.py
PYTHON = [sys.executable, "-m", "bitm.cli"]
# Where this process finds its modules, whatever the folder that a tool is started in.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


class Tools:
    """Both command lines, called with the same words."""

    def __init__(self, bitm_tool: Path) -> None:
        self.programs = [[str(bitm_tool)], PYTHON]

    def run(
        self, *words: object, text: bytes = b"", environment: Mapping[str, str] = ENVIRONMENT
    ) -> list[subprocess.CompletedProcess[bytes]]:
        """Runs both; they end alike."""
        done = [
            subprocess.run(
                [*program, *(os.fsencode(str(word)) for word in words)],
                input=text,
                capture_output=True,
                timeout=600,
                env=environment,
            )
            for program in self.programs
        ]
        assert done[0].returncode == done[1].returncode, (done[0].stderr, done[1].stderr)
        for result in done:
            assert b"Traceback" not in result.stderr
        return done

    def output(self, *words: object, text: bytes = b"", **options: Any) -> str:
        """The standard output of both, which succeed with the same."""
        in_c, in_python = self.run(*words, text=text, **options)
        assert in_c.returncode == 0, in_c.stderr
        assert in_c.stdout == in_python.stdout
        return in_c.stdout.decode()

    def document(self, *words: object, text: bytes = b"") -> dict[str, Any]:
        """The JSON document of both."""
        in_c, in_python = self.run(*words, "--json", text=text)
        assert in_c.returncode == 0, in_c.stderr
        document: dict[str, Any] = json.loads(in_c.stdout)
        assert document == json.loads(in_python.stdout)
        return document

    def complaint(self, status: int, *words: object, text: bytes = b"") -> str:
        """The one line on standard error of both, which fail alike."""
        in_c, in_python = self.run(*words, text=text)
        assert in_c.returncode == status, in_c.stderr
        assert in_c.stdout == in_python.stdout == b""
        assert in_c.stderr == in_python.stderr
        assert in_c.stderr.count(b"\n") == 1
        return in_c.stderr.decode()


@pytest.fixture(scope="module")
def tools(bitm_tool: Path) -> Tools:
    return Tools(bitm_tool)


@pytest.fixture(scope="module")
def labelled_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token classifier: many labels, no vocabulary, texts that attack terminals."""
    rng = np.random.default_rng(3)
    c = config(head=4, n_labels=20, problem=2, head_activation=0, head_norm_eps=0.0)
    tensors = encoder(rng, c)
    tensors["classifier.weight"] = bitm_formats.Tensor.from_float(
        rng.normal(size=(c.n_labels, c.hidden_size)).astype(np.float32), bitm_formats.DType.F32
    )
    tensors["classifier.bias"] = vector(rng, c.n_labels)
    metadata = {
        "label.0": "good\x1b[31m",
        "label.1": "sch\u00f6n \U0001f600",
        "model.description": 'a "long"\nlife\u202e\x9b' + "\u00e4" * 300,
        "model.name\x07": "tab\there\\",
    }
    path = tmp_path_factory.mktemp("labels") / "labels.bitm"
    bitm_formats.write(path, bitm_formats.ModelFile(c, tensors, {}, None, metadata))
    return path


@pytest.fixture(scope="module")
def headless_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder alone, of few positions."""
    c = config(head=0, head_activation=0, head_norm_eps=0.0, max_positions=7)
    path = tmp_path_factory.mktemp("headless") / "headless.bitm"
    tensors = encoder(np.random.default_rng(4), c)
    bitm_formats.write(path, bitm_formats.ModelFile(c, tensors, {}, None, {}))
    return path


# ---- Help and usage ----


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(tools: Tools, command: str) -> None:
    words = [command] if command else []
    text = tools.output(*words, "--help")
    assert text.startswith(f"usage: bitm {command}")
    assert "\nexample:\n  bitm " in text
    assert tools.output(*words, "-h", "--foo") == text
    for option in ("--json", "--help"):
        assert option in text


def test_help_of_all_commands_is_found(tools: Tools) -> None:
    found = re.findall(r"^  ([a-z-]+)  ", tools.output("--help"), re.MULTILINE)
    assert found == [*COMMANDS[:-1], IN_PYTHON_ALONE, COMMANDS[-1]]


def test_what_is_in_python_alone_is_said(tools: Tools) -> None:
    done = subprocess.run([*tools.programs[0], IN_PYTHON_ALONE, "--help"], capture_output=True)
    assert done.returncode == 1
    assert done.stdout == b""
    assert (
        done.stderr
        == b"bitm: error: UNSUPPORTED: eval is in the Python package: pip install bitm\n"
    )


def test_version(tools: Tools) -> None:
    import bitm

    assert tools.output("--version") == f"bitm {bitm.__version__}\n"
    assert tools.output("info", "--version") == tools.output("--version")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a command is missing"),
        (["foo\x1b"], r"there is no command 'foo\x1b'"),
        (["--foo"], "unrecognized arguments: --foo"),
        (["info"], "the following arguments are required: model"),
        (["info", "a", "b"], "unrecognized arguments: b"),
        (["info", "a", "--top-k=3"], "unrecognized arguments: --top-k=3"),
        (["verify", "a", "--threads"], "argument --threads: expected one argument"),
        (["verify", "a", "--threads", "--json"], "argument --threads: expected one argument"),
        (["verify", "a", "--threads", "0"], "argument --threads: expected 1 to 1024, found '0'"),
        (["verify", "a", "--threads=2x"], "argument --threads: expected 1 to 1024, found '2x'"),
        (["bench", "a", "--warmup", "9999999999"], "expected 0 to 1000000, found '9999999999'"),
        (["bench", "a", "--positions", "some"], "expected one, all or none, found 'some'"),
        (["embed", "a", "--pooling", "sum"], "expected mean, cls or max, found 'sum'"),
        (["embed", "a", "--top-k", "2"], "unrecognized arguments: --top-k"),
        (
            ["info", "a", "--activations", "int4"],
            "expected auto, int8, int16, float32 or int11, found",
        ),
        (["kernels", "--threads", "2"], "unrecognized arguments: --threads"),
        (["kernels", "--kernels", "gemm_w1a8=scalar"], "argument --kernels: needs a model"),
        (["info", "a", "--device", "gpu"], "expected auto, cpu, cuda or cuda:N, found 'gpu'"),
        (["verify", "a", "--device=cuda:1234"], "argument --device: expected auto, cpu, cuda or"),
        (["kernels", "--device=cuda:"], "argument --device: expected auto, cpu, cuda or cuda:N"),
        (["bench", "a", "--memory", "--device=cuda"], "--memory: tells of the CPU alone"),
    ],
)
def test_wrong_usage(tools: Tools, words: list[str], message: str) -> None:
    in_c, in_python = tools.run(*words)
    command = f" {words[0]}" if words and words[0] in COMMANDS else ""
    for done in (in_c, in_python):
        line = done.stderr.decode()
        assert done.returncode == 2
        assert done.stdout == b""
        assert line.startswith(f"bitm{command}: ")
        assert message in line
        assert line.endswith(f"(see 'bitm{command} --help')\n")
        assert line.count("\n") == 1


# ---- info, kernels ----


@pytest.mark.parametrize("model", ["tiny_model", "labelled_model", "headless_model"])
def test_info(tools: Tools, model: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    options = ("--threads", "2", "--activations=int16")
    with Model(path, threads=2, activations="int16") as opened:
        assert tools.document("info", path, *options) == opened.info
    text = tools.output("info", path, *options)
    assert "2 layers, hidden size 48, 3 heads of 17, intermediate size 75" in text
    assert re.search(r"^activations +int16$", text, re.MULTILINE)
    assert re.search(r"^threads +2$", text, re.MULTILINE)
    assert "(1.00 bits each)" not in text  # rows of 48, 51 and 75 bits are padded to 64
    assert "12 one-bit, 0 ternary, 0 float matrices" in text


def test_info_json_is_the_same_text(tools: Tools, labelled_model: Path) -> None:
    assert tools.output("info", labelled_model, "--json").isascii()


def test_info_escapes_and_clips(tools: Tools, labelled_model: Path) -> None:
    text = tools.output("info", labelled_model)
    assert "labels           20: good\\x1b[31m, sch\u00f6n \U0001f600, LABEL_2, " in text
    assert "LABEL_15, ...\n" in text
    assert "LABEL_16" not in text
    clipped = 'a "long"\\x0alife\\u202e\\u009b' + "\u00e4" * (200 - 15) + "...\n"
    assert f"model.description {clipped}" in text
    assert "model.name\\x07   tab\\x09here\\\n" in text
    assert "tokenizer        none" in text


def test_a_path_is_escaped(tools: Tools, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\x1b]0;\xff.bitm")
    path.symlink_to(tiny_model)
    assert "/\\x1b]0;\\xff.bitm, " in tools.output("info", path)
    assert tools.document("info", path)["path"] == str(path)


def test_output_is_utf8_in_any_locale(tools: Tools, labelled_model: Path) -> None:
    environment = {**ENVIRONMENT, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert "sch\u00f6n" in tools.output("info", labelled_model, environment=environment)


def test_kernels(tools: Tools) -> None:
    kernels = tools.document("kernels")["kernels"]
    for op in {kernel["op"] for kernel in kernels}:
        chosen = [k for k in kernels if k["op"] == op and k["chosen"]]
        assert len(chosen) == 1
        assert chosen[0]["available"]
    lines = [line.split() for line in tools.output("kernels").splitlines()]
    assert lines[0][:4] == ["op", "variant", "available", "chosen"]
    assert [line[:2] for line in lines[1:]] == [[k["op"], k["variant"]] for k in kernels]
    assert {line[4] for line in lines[1:]} == {"-"}  # no model runs them


def test_the_best_kernels_are_chosen(tools: Tools) -> None:
    """The first of an op that is available; looking up by permutes is fast on AMD's alone."""
    processor = Path("/proc/cpuinfo")
    if not processor.exists():
        pytest.skip("expected: the system does not tell the processor's maker")
    permutes = "AuthenticAMD" in processor.read_text()
    best: dict[str, str] = {}
    for kernel in tools.document("kernels")["kernels"]:
        if kernel["available"] and (permutes or kernel["variant"] != "permute"):
            best.setdefault(kernel["op"], kernel["variant"])
        if kernel["chosen"]:
            assert best[kernel["op"]] == kernel["variant"]


def test_kernels_of_a_model(tools: Tools, tiny_model: Path) -> None:
    names = {kernel["op"] for kernel in tools.document("kernels")["kernels"]}
    forced = ("--kernels", ",".join(f"{op}=scalar" for op in sorted(names)))
    kernels = tools.document("kernels", tiny_model, *forced)["kernels"]
    assert all(kernel["chosen"] == (kernel["variant"] == "scalar") for kernel in kernels)
    for mode in ("int8", "int16", "float32", "int11"):
        runs = tools.document("info", tiny_model, *forced, "--activations", mode)["kernels"]
        assert runs == {k["op"]: k["variant"] for k in kernels if mode in k["modes"]}
        assert set(runs.values()) == {"scalar"}
    text = tools.output("kernels", tiny_model, *forced)
    assert re.search(r"^gemm_w1a8 +scalar +yes +yes +int8$", text, re.MULTILINE)


# ---- --device ----

no_gpu = pytest.mark.skipif(not why_no_gpu(), reason="expected: there is a GPU")


@no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_gpu_the_reason_is_told(
    tools: Tools, tiny_model: Path, command: str, device: str
) -> None:
    line = tools.complaint(1, command, tiny_model, "--device", device)
    assert line == f"bitm: error: DEVICE: {tiny_model}: {why_no_gpu()}\n"


@no_gpu
def test_kernels_of_a_gpu_that_is_not_there(tools: Tools) -> None:
    line = tools.complaint(1, "kernels", "--device=cuda")
    assert line == f"bitm: error: DEVICE: {why_no_gpu()}\n"
    assert tools.output("kernels", "--device=auto") == tools.output("kernels")


@no_gpu
def test_auto_is_the_cpu_where_there_is_no_gpu(tools: Tools, tiny_model: Path) -> None:
    for device in ("auto", "cpu"):
        assert tools.document("info", tiny_model, "--device", device)["device"] == "cpu"
    assert tools.output("verify", tiny_model) == tools.output(
        "verify", tiny_model, "--device", "cpu"
    )


def test_no_library_is_taken_from_the_current_folder(bitm_tool: Path, tmp_path: Path) -> None:
    """Of a program that was found by its name the system tells no folder."""
    (tmp_path / "libbitm_cuda.so").write_bytes(b"no library")
    environment = {**os.environ, "PATH": str(bitm_tool.parent)}
    done = run_command(bitm_tool.name, "kernels", "--device=cuda", cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert "libbitm_cuda.so is not beside the library of bitm" in done.stderr


# ---- --memory ----

MEMORY_CASES = [
    ("info", "tiny_model", []),
    ("info", "headless_model", ["--activations=float32"]),
    ("verify", "tiny_model", []),
    ("verify", "tiny_model", ["--activations", "int8"]),
    ("verify", "headless_model", ["--threads", "3"]),
    ("verify", "labelled_model", []),
    ("bench", "tiny_model", ["--batch", "3", "--length", "9", "--positions", "all"]),
    ("bench", "tiny_model", ["--batch", "70", "--repeat", "2"]),
    ("bench", "labelled_model", ["--positions", "none"]),
    ("bench", "headless_model", []),
    ("embed", "labelled_model", []),
    ("fill-mask", "tiny_model", ["--threads=1", "w1 [MASK]"]),
]


@pytest.mark.parametrize(("command", "model", "options"), MEMORY_CASES)
def test_memory(
    tools: Tools, command: str, model: str, options: list[str], request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(model)
    document = tools.document(command, path, *options, "--memory")
    parts = {key: n for key, n in document.items() if key.endswith("_bytes")}
    total = parts.pop("total_bytes")
    assert sum(parts.values()) == total
    assert parts["file_bytes"] == path.stat().st_size
    with Model(path) as opened:
        assert parts["model_bytes"] == opened.info["model_bytes"]
    text = tools.output(command, path, *options, "--memory")
    assert re.search(rf"^total +{total} bytes", text, re.MULTILINE)


def test_memory_of_info_is_what_info_tells(tools: Tools, tiny_model: Path) -> None:
    told = tools.document("info", tiny_model, "--memory")["session_bytes"]
    assert told == tools.document("info", tiny_model)["session_bytes_1x128"]


def run_within(n_bytes: int, *command: object) -> int:
    """The exit status of a program that may not have more addresses than this."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))

    return run_command(*command, preexec_fn=limit).returncode


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    "words",
    [
        ["fill-mask", "The river flows into the Atlantic [MASK]."],
        ["embed", "word " * 100],
        ["verify"],
        ["bench", "--batch=40", "--length=16", "--positions=all", "--repeat=1", "--warmup=0"],
    ],
)
def test_memory_suffices(
    bitm_tool: Path, small_model: Path, words: list[str], threads: int
) -> None:
    command = [bitm_tool, words[0], small_model, *words[1:], "--threads", threads]
    told = json.loads(run_command(*command, "--memory", "--json").stdout)
    assert run_within(told["total_bytes"], *command) == 0
    # And is no wild guess: without the session's share it fails.
    assert run_within(told["total_bytes"] - told["session_bytes"], *command) != 0


def test_memory_of_no_model(tools: Tools, tmp_path: Path) -> None:
    line = tools.complaint(1, "info", tmp_path / "absent.bitm", "--memory")
    assert line.startswith("bitm: error: IO: ")
    line = tools.complaint(1, "bench", tmp_path / "absent.bitm", "--memory", "--threads=2")
    assert line.startswith("bitm: error: IO: ")


# ---- verify ----


@pytest.mark.parametrize("model", ["tiny_model", "labelled_model", "headless_model"])
def test_verify(tools: Tools, model: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    document = tools.document("verify", path)
    expected = {}
    for mode in ("int8", "int16", "float32", "int11"):
        with Model(path, activations=mode) as opened:
            n = min(24, opened.info["max_positions"])
            ids = [[(i * 7919 + 13) % opened.info["vocab_size"] for i in range(n)]]
            if model == "headless_model":
                output = opened.hidden_states(ids)
            elif model == "tiny_model":
                output = opened.logits(ids)[:, ::6]
            else:
                output = opened.logits(ids)
        expected[mode] = f"{zlib.crc32(output.astype('<f4').tobytes()):08x}"
    assert document["crc32"] == expected
    assert document["n_tokens"] == n
    text = tools.output("verify", path)
    assert ": sound\n" in text
    assert [tuple(line.split()) for line in text.splitlines()[2:]] == list(expected.items())


def test_verify_in_one_mode_and_with_other_threads(tools: Tools, tiny_model: Path) -> None:
    every = tools.document("verify", tiny_model)["crc32"]
    one = tools.document("verify", tiny_model, "--activations", "int16", "--threads", "3")
    assert one["crc32"] == {"int16": every["int16"]}


def test_verify_finds_damage(tools: Tools, tiny_model: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_model.read_bytes())
    data[-64] ^= 1
    damaged = tmp_path / "damaged.bitm"
    damaged.write_bytes(data)
    line = tools.complaint(1, "verify", damaged)
    assert line.startswith("bitm: error: FILE_TENSOR_CHECKSUM: ")
    tools.output("info", damaged)  # which does not read all data


# ---- fill-mask ----


def pipeline(path: Path, text: str, **options: Any) -> list[list[dict[str, Any]]]:
    with Model(path) as model:
        filled = model.fill_mask(text, **options)
    return filled if isinstance(filled[0], list) else [filled]


def test_fill_mask_real(tools: Tools, small_model: Path) -> None:
    words = ("fill-mask", small_model, "The river flows into the Atlantic [MASK].")
    text = tools.output(*words, "--top-k", "3")
    first, *rest = text.splitlines()
    assert re.fullmatch(r"0\.8\d{3}  ocean +the river flows into the atlantic ocean\.", first)
    assert len(rest) == 2
    results = tools.document(*words)["results"]
    assert results == [{"text": words[2], "masks": pipeline(small_model, str(words[2]))}]


def test_fill_mask_several(tools: Tools, tiny_model: Path) -> None:
    texts = ["w1 [MASK] w2 [MASK]", "[MASK] a b \x1b"]
    words = ("fill-mask", "--top-k=2", tiny_model, *texts)
    assert tools.document(*words)["results"] == [
        {"text": text, "masks": pipeline(tiny_model, text, top_k=2)} for text in texts
    ]
    lines = tools.output(*words).splitlines()
    assert lines[0] == texts[0]
    assert [lines[1], lines[4]] == ["mask 1 of 2:", "mask 2 of 2:"]
    assert lines[7:9] == ["", "[MASK] a b \\x1b"]
    assert len(lines) == 11


def test_fill_mask_reads_standard_input(tools: Tools, tiny_model: Path) -> None:
    lines = b"a [MASK]\r\n\n[MASK] " + b"b " * 30 + b"\nw1 \xc3\xa4 [MASK]"
    texts = ["a [MASK]", "[MASK] " + "b " * 30, "w1 \u00e4 [MASK]"]
    text = tools.output("fill-mask", tiny_model, text=lines)
    assert text == tools.output("fill-mask", tiny_model, *texts)
    results = tools.document("fill-mask", tiny_model, text=lines)["results"]
    assert [result["text"] for result in results] == texts
    assert tools.output("fill-mask", tiny_model) == ""
    assert tools.document("fill-mask", tiny_model) == {"results": []}


def test_fill_mask_targets(tools: Tools, tiny_model: Path) -> None:
    words = ("fill-mask", tiny_model, "a [MASK]", "[MASK] b", "--targets", "w7,w3,Wq,w7,")
    with pytest.warns(UserWarning, match="target"):
        expected = pipeline(tiny_model, "a [MASK]", targets=["w7", "w3", "Wq"])
    assert {p["token_str"] for p in expected[0]} == {"w7", "w3", "w"} or len(expected[0]) == 3
    assert tools.document(*words)["results"][0]["masks"] == expected
    for done in tools.run(*words):
        assert done.stderr.count(b"bitm: warning: target 'Wq' ") == 1
        assert done.stderr.count(b"bitm: warning: target '' has no token: left out\n") == 1


def test_a_text_with_a_dash(tools: Tools, tiny_model: Path) -> None:
    assert tools.output("fill-mask", tiny_model, "--top-k", "1", "--", "-[MASK]").count("\n") == 1
    assert tools.output("fill-mask", tiny_model, "- [MASK]").count("\n") == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a b"], "NO_MASK: the text has no mask token"),
        (
            ["[MASK]" + " a" * 40],
            "TOO_LONG: sequences of 43 tokens, but the model has 40 positions",
        ),
        (["[MASK]", "--targets", "\x7f"], "ARGUMENT: targets: none of them has a token"),
    ],
)
def test_fill_mask_fails(tools: Tools, tiny_model: Path, words: list[str], message: str) -> None:
    for done in tools.run("fill-mask", tiny_model, *words):
        assert done.returncode == 1
        assert done.stdout == b""
        assert done.stderr.decode().splitlines()[-1] == f"bitm: error: {message}"


def test_fill_mask_names_the_text_that_fails(tools: Tools, tiny_model: Path) -> None:
    for done in tools.run("fill-mask", tiny_model, text=b"[MASK]\na\n"):
        assert done.returncode == 1
        assert done.stderr == b"bitm: error: NO_MASK: text 2: the text has no mask token\n"
        assert done.stdout.startswith(b"[MASK]\n")
    line = tools.complaint(1, "fill-mask", tiny_model, "--json", text=b"[MASK]\na\n")
    assert "text 2" in line  # and no half of a document


def test_text_that_is_no_utf8(tools: Tools, tiny_model: Path) -> None:
    for done in tools.run("fill-mask", tiny_model, os.fsdecode(b"\xff [MASK]")):
        assert done.returncode == 1
        assert done.stderr.startswith(b"bitm: error: TEXT: ")


def test_a_model_without_what_is_asked_for(
    tools: Tools, labelled_model: Path, tokenizer_model: Any
) -> None:
    line = tools.complaint(1, "fill-mask", labelled_model, "[MASK]")
    assert line.startswith("bitm: error: NO_VOCABULARY: ")
    path = tokenizer_model(["[UNK]", "[MASK]", "\x1b", "a"], True, True)
    assert tools.complaint(1, "fill-mask", path, "[MASK]").startswith("bitm: error: NO_HEAD: ")


def test_tokens_are_escaped(tools: Tools, tmp_path: Path) -> None:
    model = masked_lm(np.random.default_rng(0))
    assert model.vocabulary is not None
    model.vocabulary[5:9] = [b"\x1b[2J", "\u202e".encode(), b'"\\', "\U0001f600".encode()]
    path = tmp_path / "escapes.bitm"
    bitm_formats.write(path, model)
    text = tools.output("fill-mask", path, "[MASK]", "--top-k", "101")
    assert text.replace("\n", "").isprintable()
    assert "\\x1b[2J " in text
    assert "\\u202e " in text
    assert '  "\\ ' in text
    assert "  \U0001f600 " in text
    tokens = [
        p["token_str"]
        for p in tools.document("fill-mask", path, "[MASK]", "--top-k=101")["results"][0]["masks"][
            0
        ]
    ]
    assert {"\x1b[2J", "\u202e", '"\\', "\U0001f600"} <= set(tokens)


def test_printable() -> None:
    assert (
        printable("a\udc80\ud800\x00\u2028\u009f\u00a0") == "a\\x80\\ud800\\x00\\u2028\\u009f\u00a0"
    )


# ---- classify, embed ----


TEXTS = ("a b c", "w1 w2 d", "zz \x1b[31m [MASK]", "h")


@pytest.mark.parametrize(("problem", "n_labels"), [(1, 1), (2, 7), (3, 4), (4, 1)])
def test_classify(tools: Tools, problem: int, n_labels: int, tmp_path: Path) -> None:
    written = classifier(np.random.default_rng(problem), n_labels, problem)
    written.metadata = {"label.1": "fair\x1b", "label.2": "gut \u00fc"}
    bitm_formats.write(tmp_path / "m.bitm", written)
    text = tools.output("classify", tmp_path / "m.bitm", *TEXTS)
    assert text.replace("\n", "").isprintable()
    assert tools.output("classify", tmp_path / "m.bitm", text="\n\n".join(TEXTS).encode()) == text
    with Model(tmp_path / "m.bitm") as model:
        for top_k in (1, 2, 100):
            expected = model.classify(list(TEXTS), top_k=top_k)
            words = [*TEXTS, "--top-k", top_k]
            found = tools.document("classify", tmp_path / "m.bitm", *words)
            assert [result["labels"] for result in found["results"]] == expected
    best = tools.output("classify", tmp_path / "m.bitm", TEXTS[0], "--top-k=1")
    label = expected[0][0]
    assert best == f"{label['score']:.4f}  {printable(label['label'])}\n"


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_embed(tools: Tools, tiny_model: Path, pooling: str) -> None:
    lines = tools.output("embed", tiny_model, *TEXTS, "--pooling", pooling).splitlines()
    document = tools.document("embed", tiny_model, *TEXTS, f"--pooling={pooling}")
    with Model(tiny_model) as model:
        expected = model.embed(TEXTS, pooling=pooling)
    vectors = [result["vector"] for result in document["results"]]
    np.testing.assert_array_equal(np.array(vectors, np.float32), expected)
    printed = [[float(number) for number in line.split(" ")] for line in lines]
    np.testing.assert_array_equal(np.array(printed, np.float32), expected)
    assert [result["text"] for result in document["results"]] == list(TEXTS)


def test_classify_and_embed_fail_alike(
    tools: Tools, tiny_model: Path, labelled_model: Path
) -> None:
    line = tools.complaint(1, "classify", tiny_model, "a")
    assert line.startswith("bitm: error: NO_HEAD: the model has no sequence classifier")
    line = tools.complaint(1, "embed", labelled_model, "a")
    assert line.startswith("bitm: error: NO_VOCABULARY: ")
    line = tools.complaint(1, "embed", tiny_model, "a " * 40)
    assert line == (
        "bitm: error: TOO_LONG: the text has 42 tokens, but the model has 40 positions\n"
    )
    for done in tools.run("embed", tiny_model, "a", "b " * 40):
        assert done.returncode == 1
        assert done.stderr.startswith(b"bitm: error: TOO_LONG: text 2: the text has 42 tokens")


# ---- bench ----


@pytest.mark.parametrize(
    ("model", "options", "what"),
    [
        ("tiny_model", [], ["encoder", "encoder and masked LM at one position"]),
        (
            "tiny_model",
            ["--positions", "all"],
            ["encoder", "encoder and masked LM at all positions"],
        ),
        ("tiny_model", ["--positions", "none"], ["encoder"]),
        ("labelled_model", [], ["encoder", "encoder and head"]),
        ("headless_model", [], ["encoder"]),
    ],
)
def test_bench(
    tools: Tools,
    model: str,
    options: list[str],
    what: list[str],
    request: pytest.FixtureRequest,
) -> None:
    path = request.getfixturevalue(model)
    words = ("bench", path, "--batch=3", "--repeat", "4", "--warmup", "0", "--threads=1", *options)
    texts, documents = [], []
    for as_text, as_json in zip(tools.run(*words), tools.run(*words, "--json")):
        texts.append(
            re.sub(rb" +[0-9.]+ +[0-9.]+ +[0-9.]+ +[0-9]+$", b"", as_text.stdout, flags=re.M)
        )
        document = json.loads(as_json.stdout)
        assert [run.pop("what") for run in document["runs"]] == what
        for run in document.pop("runs"):
            assert 0 < run["min_ms"] <= run["median_ms"] <= run["max_ms"]
            n_tokens = 3 * document["length"]
            assert run["tokens_per_second"] == pytest.approx(n_tokens / run["median_ms"] * 1e3)
        documents.append(document)
    assert texts[0] == texts[1]
    assert texts[0].decode().splitlines()[-len(what) :] == what
    assert documents[0] == documents[1]
    assert documents[0]["length"] == (7 if model == "headless_model" else 40)
    with Model(path, threads=1) as opened:
        for key in ("threads", "activations", "device", "kernels"):
            assert documents[0][key] == opened.info[key]


def test_bench_refuses_what_the_model_cannot_take(tools: Tools, tiny_model: Path) -> None:
    for done in tools.run("bench", tiny_model, "--length", "41"):
        assert done.returncode == 1
        assert done.stderr.startswith(b"bitm: error: TOO_LONG: ")


# ---- Files, pipes, interrupts ----


@pytest.mark.parametrize("command", COMMANDS)
def test_files_that_are_none(tools: Tools, command: str, tmp_path: Path) -> None:
    missing, text = tmp_path / "missing\x1b.bitm", tmp_path / "text.bitm"
    text.write_text("hello")
    assert tools.complaint(1, command, text) == (
        f"bitm: error: FILE_MAGIC: {text}: " + tools.complaint(1, command, text).split(": ", 4)[4]
    )
    line = tools.complaint(1, command, missing)
    assert line.startswith("bitm: error: IO: ")
    assert "missing\\x1b.bitm: No such file" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="expected: no /dev/full here")
@pytest.mark.parametrize("words", [["--help"], ["kernels"], ["kernels", "--json"]])
def test_output_that_cannot_be_written(tools: Tools, words: list[str]) -> None:
    for program in tools.programs:
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [*program, *words], stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT
            )
        assert done.returncode == 1
        assert done.stderr == b"bitm: error: IO: cannot write to standard output\n"


@pytest.mark.skipif(os.name != "posix", reason="expected: signals are of POSIX")
def test_a_broken_pipe_is_quiet(tools: Tools, tiny_model: Path) -> None:
    for program in tools.programs:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*program, "info", tiny_model],
            stdout=writer,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),  # as a shell does
        )
        os.close(writer)
        assert done.stderr == b""
        assert done.returncode in (-signal.SIGPIPE, 128 + signal.SIGPIPE)


@pytest.mark.skipif(os.name != "posix", reason="expected: signals are of POSIX")
def test_an_interrupt_is_quiet(tools: Tools, tiny_model: Path) -> None:
    for program in tools.programs:
        running = subprocess.Popen(
            [*program, "fill-mask", tiny_model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            # A background job's children would ignore the signal.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"[MASK]\n")
        running.stdin.flush()
        assert running.stdout.readline() == b"[MASK]\n"  # it has begun: texts are done as they come
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        _, complaints = running.communicate(timeout=60)
        assert running.returncode == 130
        assert complaints == b""


def test_the_c_tool_stands_on_the_public_header_alone() -> None:
    folder = Path(__file__).parents[1] / "native/tools"
    sources = [*folder.glob("*.c"), *folder.glob("*.h")]
    assert sources
    included = {name for s in sources for name in re.findall(r'#include "(.+)"', s.read_text())}
    assert included == {"tool.h", "bitm.h"}
    for source in sources:
        assert not re.search(r"_WIN32|__linux__|__APPLE__", source.read_text())
