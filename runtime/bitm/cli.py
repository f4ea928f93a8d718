"""The command line `bitm`: the same program as `native/tools/`, on top of `bitm.Model`.

Both print the same bytes on standard output and end with the same exit status: 0 done, 1 failed,
2 wrong usage, 130 interrupted.  Files and texts come from strangers, so control characters in them
are escaped before they reach a terminal; `--json` gives everything whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bitm.model import Model

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
EXIT_BROKEN_PIPE = 141  # what a shell says of a program that SIGPIPE has ended

ACTIVATIONS = ("auto", "int8", "int16", "float32")
POSITIONS = ("one", "all", "none")
POOLINGS = ("mean", "cls", "max")
# Of `eval`; written here too so that other commands need not import it.
TEXT_FORMATS = ("auto", "lines", "ptb", "wikitext")
PROTOCOLS = ("bert", "original", "mask", "pseudo")

# Numbers of formats/SPEC.md 3.2.
HEADS = (
    "none",
    "masked LM",
    "masked LM and next sentence",
    "sequence classifier",
    "token classifier",
    "question answering",
)
PROBLEMS = ("", ", regression", ", one label", ", several labels", ", one logit")
MASKED_LM_HEADS, CLASSIFIER_HEAD = (1, 2), 3

# How much of a file's own texts is shown to people.
TEXT_MOST, LABELS_MOST = 200, 16

# The input of `verify`, and which of its tokens' masked-LM logits are hashed.
VERIFY_TOKENS, VERIFY_STEP = 24, 6

HELP_OPTIONS = """\
  --json                print one JSON document
  --help                print this text
  --version             print the version of bitm
"""
HELP_OPTIONS_TO_RUN = f"""\
  --device WHICH        cpu, cuda, cuda:N (GPU number N), or auto: a GPU where one can be
                        used, otherwise the CPU (default: auto)
  --threads N           threads of a run (default: the CPUs that this process may use)
  --activations MODE    auto, int8, int16 or float32 (default: auto, which is int16)
  --kernels OP=VARIANT,...
                        forces kernels, for measurements; see 'bitm kernels'
  --memory              tell the memory that this would take on the CPU, and do nothing
                        else
{HELP_OPTIONS}"""
HELP = {
    "": """\
usage: bitm COMMAND [model.bitm] [options]

Runs 1-bit BERT models.

commands:
  info        what is in a model file, and what runs it
  verify      checks a model file; prints the hashes by which machines are compared
  fill-mask   fills the mask tokens of texts
  classify    labels texts
  embed       turns texts into vectors
  bench       times a model on this machine
  eval        measures what a model gets right on a text (in the Python package alone)
  kernels     lists the kernels: which this machine can run, which are chosen

'bitm COMMAND --help' tells the options of a command. All of them take --json.
Exit status: 0 done, 1 failed, 2 wrong usage.

example:
  bitm fill-mask model.bitm "Paris is the [MASK] of France."
""",
    "info": f"""\
usage: bitm info model.bitm [options]

Tells what is in a model file, and what runs it here: arithmetic, threads, memory and
kernels.

options:
{HELP_OPTIONS_TO_RUN}
example:
  bitm info model.bitm
""",
    "verify": f"""\
usage: bitm verify model.bitm [options]

Reads the whole file and checks it: checksums, padding, finite values. Then runs a fixed
input in every arithmetic of activations (with --activations: in that one) and prints
the CRC-32 of each result. Two machines that print the same compute the same.

options:
{HELP_OPTIONS_TO_RUN}
example:
  bitm verify model.bitm
""",
    "fill-mask": f"""\
usage: bitm fill-mask [model.bitm] [text ...] [options]

Fills the mask tokens of texts: prints score, token and the filled text of the best
predictions. Without a text it reads texts from standard input, one a line.

The first word is a model if it ends in .bitm or is the path of something that exists. If
it is not, all words are texts, for the demo model of the Python package; the program in C
has no demo model.

options:
  --top-k N             predictions of each mask (default: 5)
  --targets WORD,...    words to choose from (default: the whole vocabulary)
{HELP_OPTIONS_TO_RUN}
example:
  bitm fill-mask model.bitm "Paris is the [MASK] of France." --top-k 3
  bitm fill-mask "The capital of France is [MASK]."
""",
    "classify": f"""\
usage: bitm classify model.bitm [text ...] [options]

Labels texts: prints score and name of the best labels. Without a text it reads texts
from standard input, one a line.

options:
  --top-k N             labels of each text (default: 5)
{HELP_OPTIONS_TO_RUN}
example:
  bitm classify model.bitm "What a wonderful film." --top-k 2
""",
    "embed": f"""\
usage: bitm embed model.bitm [text ...] [options]

Turns texts into vectors of length 1, one a line. Without a text it reads texts from
standard input, one a line.

options:
  --pooling WHICH       mean of the last hidden states over all tokens, their max, or
                        cls: that of the first token (default: mean)
{HELP_OPTIONS_TO_RUN}
example:
  bitm embed model.bitm "Paris is the capital of France."
""",
    "bench": f"""\
usage: bitm bench model.bitm [options]

Times runs of a fixed input on this machine: the encoder alone, and with the head.

options:
  --batch N             sequences of a run (default: 1)
  --length N            tokens of a sequence (default: 64, or what the model takes)
  --repeat N            timed runs (default: 20)
  --warmup N            runs before them (default: 3)
  --positions WHICH     masked-LM logits at one position of each sequence, at all of
                        them, or none: the encoder alone (default: one)
{HELP_OPTIONS_TO_RUN}
example:
  bitm bench model.bitm --length 128 --threads 1
""",
    "eval": f"""\
usage: bitm eval model.bitm --data FILE [options]

Measures a model on a file of data. A masked LM: cross-entropy, perplexity, accuracy and
MRR of masked tokens, and what it says instead. Models with other heads: accuracy of labels
(a table with tabs, such as SST-2), entity F1 (CoNLL's columns), exact match and F1 of
answers (SQuAD v1.1). With time, memory and operations, and 95 % confidence intervals.

options:
  --data FILE           what to evaluate on
  --format FORMAT       of text: lines (a sentence a line), ptb (Penn Treebank), wikitext,
                        or auto (default: auto: what it looks like)
  --protocol WHICH      bert: 15 % of the tokens, of these 80 % become [MASK], 10 % a random
                        token, 10 % stay; original: so, unknown tokens included; mask: all of
                        them become [MASK]; pseudo: every token in turn, one at a time
                        (default: bert)
  --length N            tokens of a sequence at most (default: 64 for a masked LM, 384 for
                        question answering, else what the model takes)
  --batch N             sequences that run together; changes no result (default: 128)
  --seed N              of the masks (default: 0)
  --repeat N            masks every sentence N times, to narrow the interval (default: 1)
  --limit N             so many sentences, spread evenly over the file (default: all)
  --compare FILE ...    more models, in one table with the first
  --report FILE         writes a page of HTML with plots; needs matplotlib: bitm[plot]
  --plots FOLDER        writes the plots as PNG; needs matplotlib: bitm[plot]
  --device WHICH        cpu, cuda, cuda:N (GPU number N), or auto: a GPU where one can be
                        used, otherwise the CPU (default: auto)
  --threads N           threads of a run (default: the CPUs that this process may use)
  --activations MODE,...
                        auto, int8, int16 or float32, or several (default: auto, which is int16)
  --kernels OP=VARIANT,...
                        forces kernels, for measurements; see 'bitm kernels'
{HELP_OPTIONS}
example:
  bitm eval model.bitm --data ptb.valid.txt --seed 1 --report report.html
""",
    "kernels": f"""\
usage: bitm kernels [model.bitm] [options]

Lists the kernels, best first within an operation: whether this machine can run them,
whether they are chosen for their operation, and with which arithmetic of activations
the model runs them. With --device cuda it tells what a GPU multiplies with instead, or
why none can be used.

options:
  --device WHICH        cpu, cuda, cuda:N (GPU number N), or auto: a GPU where one can be
                        used, otherwise the CPU (default: cpu)
  --kernels OP=VARIANT,...
                        forces kernels of the model
{HELP_OPTIONS}
example:
  bitm kernels model.bitm --kernels gemm_w1a8=scalar
""",
}

# ---- Text for a terminal ----

# Controls, line separators, and characters that turn the direction of what follows; and lone
# surrogates, which stand for bytes that are no UTF-8.
_ESCAPED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Returns the text with everything escaped that a terminal would obey instead of showing."""

    def escape(match: re.Match[str]) -> str:
        code = ord(match.group())
        if code >= 0xDC80:  # surrogateescape: a byte
            code -= 0xDC00
            return f"\\x{code:02x}"
        return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"

    return _ESCAPED.sub(escape, text)


def _clipped(text: str) -> str:
    cut = "..." if len(text) > TEXT_MOST else ""
    return printable(text[:TEXT_MOST]) + cut


def _size(n_bytes: int) -> str:
    if n_bytes < 1000:
        return f"{n_bytes} bytes"
    return f"{n_bytes / 1e3:.1f} kB" if n_bytes < 1000000 else f"{n_bytes / 1e6:.1f} MB"


class _OutputError(Exception):
    """Standard output takes no more."""


def _print(text: str) -> None:
    """Prints as UTF-8, whatever the locale is, without a change to line ends."""
    if sys.stdout is None:
        raise _OutputError
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError:
        raise _OutputError from None


def _version() -> str:
    from bitm import __version__

    return __version__


def _print_json(document: Mapping[str, object]) -> None:
    _print(json.dumps(document, indent=2) + "\n")


def _complain(kind: str, text: str) -> None:
    print(f"bitm{kind}{printable(text)}", file=sys.stderr)


# ---- Arguments ----


class _UsageError(Exception):
    """The words of the command line make no sense."""


class _Parser(argparse.ArgumentParser):
    """One command's words.  Help and exit are not its business."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)

    def number(self, name: str, least: int, most: int, default: int | None) -> None:
        def read(text: str) -> int:
            if re.fullmatch("[0-9]{1,9}", text) and least <= int(text) <= most:
                return int(text)
            raise argparse.ArgumentTypeError(f"expected {least} to {most}, found '{text}'")

        self.add_argument(name, type=read, default=default)

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> None:
        self.add_argument(name, type=partial(_one_of, choices), default=default)

    def device(self, default: str) -> None:
        def read(text: str) -> str:
            if re.fullmatch("auto|cpu|cuda(:[0-9]{1,3})?", text):
                return text
            expected = "expected auto, cpu, cuda or cuda:N"
            raise argparse.ArgumentTypeError(f"{expected}, found '{text}'")

        self.add_argument("--device", type=read, default=default)

    def choices(self, name: str, choices: tuple[str, ...], default: str) -> None:
        def read(text: str) -> list[str]:
            return [_one_of(choices, word) for word in text.split(",")]

        self.add_argument(name, type=read, default=[default])


def _one_of(choices: tuple[str, ...], text: str) -> str:
    if text in choices:
        return text
    expected = f"{', '.join(choices[:-1])} or {choices[-1]}"
    raise argparse.ArgumentTypeError(f"expected {expected}, found '{text}'")


def _parser(command: str) -> _Parser:
    parser = _Parser()
    parser.add_argument("model", nargs="?" if command in ("fill-mask", "kernels") else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kernels")
    parser.device("cpu" if command == "kernels" else "auto")
    if command != "kernels":
        parser.number("--threads", 1, 1024, None)
    if command == "eval":
        _add_evaluation(parser)
    elif command != "kernels":
        parser.choice("--activations", ACTIVATIONS, "auto")
        parser.add_argument("--memory", action="store_true")
    if command in ("fill-mask", "classify", "embed"):
        parser.add_argument("texts", nargs="*")
    if command in ("fill-mask", "classify"):
        parser.number("--top-k", 1, 1000000, 5)
    if command == "fill-mask":
        parser.add_argument("--targets")
    if command == "embed":
        parser.choice("--pooling", POOLINGS, "mean")
    if command == "bench":
        parser.number("--batch", 1, 65536, 1)
        parser.number("--length", 1, 65536, None)
        parser.number("--repeat", 1, 1000000, 20)
        parser.number("--warmup", 0, 1000000, 3)
        parser.choice("--positions", POSITIONS, "one")
    return parser


def _add_evaluation(parser: _Parser) -> None:
    parser.add_argument("--data", required=True)
    parser.choice("--format", TEXT_FORMATS, "auto")
    parser.choice("--protocol", PROTOCOLS, "bert")
    parser.number("--length", 3, 65536, None)
    parser.number("--batch", 1, 65536, 128)
    parser.number("--seed", 0, 999999999, 0)
    parser.number("--repeat", 1, 1000, 1)
    parser.number("--limit", 1, 999999999, None)
    parser.choices("--activations", ACTIVATIONS, "auto")
    parser.add_argument("--compare", nargs="+", action="extend", default=[])
    for name in ("--report", "--plots"):
        parser.add_argument(name)


def _parse(command: str, words: list[str]) -> argparse.Namespace:
    arguments = _parser(command).parse_intermixed_args(words)
    if command == "kernels" and arguments.model is None and arguments.kernels is not None:
        raise _UsageError("argument --kernels: needs a model")
    if getattr(arguments, "memory", False) and arguments.device.startswith("cuda"):
        raise _UsageError("argument --memory: tells of the CPU alone")
    if command == "fill-mask" and not _is_path(arguments.model):
        arguments.texts = [text for text in (arguments.model, *arguments.texts) if text is not None]
        arguments.model = None
    return arguments


def _is_path(word: str | None) -> bool:
    """Whether a word means a model's path where it could as well be a text."""
    return word is not None and (word.endswith(".bitm") or os.path.exists(word))  # noqa: PTH110


def _open(arguments: argparse.Namespace, activations: str | None = None) -> Model:
    from bitm.model import Model, demo_path

    return Model(
        arguments.model or demo_path(),
        threads=arguments.threads,
        device=arguments.device,
        activations=activations or arguments.activations,
        kernels=arguments.kernels,
    )


# ---- info ----


def _row(name: str, value: str) -> str:
    return f"{name:<16} {value}\n"


def _encoder(info: Mapping[str, Any]) -> str:
    each = ""
    if info["encoder_weights"] > 0:
        each = f" ({info['encoder_bytes'] * 8 / info['encoder_weights']:.2f} bits each)"
    return (
        f"{info['encoder_weights'] / 1e6:.1f} M weights in {_size(info['encoder_bytes'])}{each}: "
        f"{info['one_bit_matrices']} one-bit, {info['ternary_matrices']} ternary, "
        f"{info['float_matrices']} float matrices"
    )


def _tokenizer(info: Mapping[str, Any]) -> str:
    if info["n_tokens"] == 0:
        return "none: the model takes token ids"
    special = "".join(
        f", {name.upper()} {info[f'{name}_id']}"
        for name in ("cls", "sep", "pad", "mask")
        if info[f"{name}_id"] >= 0
    )
    return f"WordPiece, {info['n_tokens']} tokens: unknown {info['unk_id']}{special}"


def _labels(info: Mapping[str, Any]) -> str:
    """Labels without a name are called as transformers calls them."""
    n = info["n_labels"]
    names = [
        _clipped(info["metadata"].get(f"label.{i}", f"LABEL_{i}"))
        for i in range(min(n, LABELS_MOST))
    ]
    return f"{n}: {', '.join(names)}{', ...' if n > LABELS_MOST else ''}"


def _name(names: tuple[str, ...], number: int, other: str) -> str:
    return names[number] if number < len(names) else other


def _in_file(info: Mapping[str, Any]) -> str:
    lines = [
        _row("file", f"{printable(info['path'])}, {_size(info['file_bytes'])}"),
        _row(
            "network",
            f"{info['n_layers']} layers, hidden size {info['hidden_size']}, "
            f"{info['n_heads']} heads of {info['head_size']}, "
            f"intermediate size {info['intermediate_size']}",
        ),
        _row(
            "input",
            f"at most {info['max_positions']} tokens, ids below {info['vocab_size']}, "
            f"{info['n_token_types']} token types",
        ),
        _row("head", _name(HEADS, info["head"], "unknown") + _name(PROBLEMS, info["problem"], "")),
    ]
    if info["n_labels"] > 0:
        lines.append(_row("labels", _labels(info)))
    lines += [
        _row("encoder", _encoder(info)),
        _row("embeddings", _size(info["embedding_bytes"])),
        _row("tokenizer", _tokenizer(info)),
    ]
    lines += [
        _row(_clipped(key), _clipped(value))
        for key, value in info["metadata"].items()
        if not key.startswith("label.")
    ]
    return "".join(lines)


def _chosen(kernels: Mapping[str, str]) -> str:
    """As --kernels takes them; a model on a GPU runs none."""
    return ",".join(f"{op}={variant}" for op, variant in kernels.items()) or "-"


def _runs_it(info: Mapping[str, Any]) -> str:
    where = " where the file defines none" if info["quantizes_activations"] else ""
    length = min(128, info["max_positions"])
    return "".join(
        [
            _row("activations", info["activations"] + where),
            _row("device", info["device"]),
            _row("threads", str(info["threads"])),
            _row("memory", f"{_size(info['model_bytes'])} beside the file"),
            _row("session memory", f"{_size(info['session_bytes_1x128'])} for 1 x {length} tokens"),
            _row("kernels", _chosen(info["kernels"])),
            _row("bitm", info["version"]),
        ]
    )


def _run_info(arguments: argparse.Namespace) -> None:
    with _open(arguments) as model:
        info = model.info
    if arguments.json:
        _print_json(info)
    else:
        _print(f"{_in_file(info)}\n{_runs_it(info)}")


# ---- verify ----


def _fixed_ids(shape: tuple[int, int], vocab_size: int) -> npt.NDArray[np.int64]:
    """The input that `verify` and `bench` run."""
    import numpy as np

    return ((np.arange(shape[0] * shape[1], dtype=np.int64) * 7919 + 13) % vocab_size).reshape(
        shape
    )


def _hash(model: Model, info: Mapping[str, Any], n_tokens: int) -> str:
    """CRC-32 of the model's answer to the fixed input, as little-endian float32."""
    import numpy as np

    ids = _fixed_ids((1, n_tokens), info["vocab_size"])
    if info["head"] == 0:
        output = model.hidden_states(ids)
    elif info["head"] in MASKED_LM_HEADS:
        output = model.logits(ids, positions=np.arange(0, n_tokens, VERIFY_STEP)[np.newaxis])
    else:
        output = model.logits(ids)
    return f"{zlib.crc32(output.astype('<f4').tobytes()):08x}"


def _run_verify(arguments: argparse.Namespace) -> None:
    modes = ACTIVATIONS[1:] if arguments.activations == "auto" else (arguments.activations,)
    hashes: dict[str, str] = {}
    for mode in modes:
        with _open(arguments, mode) as model:
            if not hashes:
                model.verify()
                info = model.info
                n_tokens = min(VERIFY_TOKENS, info["max_positions"])
            hashes[mode] = _hash(model, info, n_tokens)
    masked_lm = f"logits of every {VERIFY_STEP}th token"
    what = {0: "hidden states", **dict.fromkeys(MASKED_LM_HEADS, masked_lm)}
    output = what.get(info["head"], "logits")
    if arguments.json:
        _print_json(
            {
                "path": info["path"],
                "file_bytes": info["file_bytes"],
                "n_tokens": n_tokens,
                "output": output,
                "crc32": hashes,
                "version": info["version"],
            }
        )
        return
    _print(
        _row("file", f"{printable(info['path'])}, {_size(info['file_bytes'])}: sound")
        + _row("hashed", f"{output}, from {n_tokens} tokens")
        + "".join(_row(mode, hash_) for mode, hash_ in hashes.items())
    )


# ---- Texts ----


def _lines_of_input() -> Iterator[str]:
    """The texts on standard input, one a line; empty lines are none."""
    from bitm.errors import BitmError

    try:
        if sys.stdin is None:  # the program was started without one
            raise OSError
        for line in sys.stdin.buffer:
            text = line.removesuffix(b"\n").removesuffix(b"\r")
            if text:
                yield text.decode("utf-8", "surrogateescape")
    except OSError:
        raise BitmError("cannot read standard input", 3, "IO") from None


def _run_texts(
    arguments: argparse.Namespace,
    key: str,
    run: Callable[[str], Any],
    show: Callable[[Any], str],
    has_headers: bool = True,
) -> None:
    """Prints what `run` makes of each text, or one JSON document with that under `key`."""
    from bitm.errors import BitmError

    results = []
    for number, text in enumerate(arguments.texts or _lines_of_input()):
        try:
            result = run(text)
        except BitmError as error:
            if len(arguments.texts) == 1:
                raise
            message = f"text {number + 1}: {error}"
            raise BitmError(message, error.code, error.name) from None
        if arguments.json:
            results.append({"text": text, key: result})
            continue
        header = ""
        if has_headers and len(arguments.texts) != 1:
            header = ("\n" if number > 0 else "") + f"{printable(text)}\n"
        _print(header + show(result))
    if arguments.json:
        _print_json({"results": results})


# ---- fill-mask ----


def _predictions(masks: list[list[dict[str, Any]]]) -> str:
    lines = []
    for number, predictions in enumerate(masks, start=1):
        if len(masks) > 1:
            lines.append(f"mask {number} of {len(masks)}:\n")
        for p in predictions:
            token, sequence = printable(p["token_str"]), printable(p["sequence"])
            lines.append(f"{p['score']:.4f}  {token:<16}  {sequence}\n")
    return "".join(lines)


def _run_fill_mask(arguments: argparse.Namespace) -> None:
    targets = None if arguments.targets is None else arguments.targets.split(",")
    with _open(arguments) as model, warnings.catch_warnings():
        warnings.simplefilter("default")  # once for each target
        warnings.showwarning = lambda message, *_: _complain(": warning: ", str(message))

        def fill(text: str) -> list[Any]:
            filled = model.fill_mask(text, arguments.top_k, targets)
            return filled if isinstance(filled[0], list) else [filled]

        _run_texts(arguments, "masks", fill, _predictions)


# ---- classify, embed ----


def _labels_of_text(labels: list[dict[str, Any]]) -> str:
    return "".join(f"{entry['score']:.4f}  {printable(entry['label'])}\n" for entry in labels)


def _run_classify(arguments: argparse.Namespace) -> None:
    with _open(arguments) as model:

        def classify(text: str) -> Any:
            return model.classify(text, top_k=arguments.top_k)

        _run_texts(arguments, "labels", classify, _labels_of_text)


def _numbers(vector: list[float]) -> str:
    return " ".join(f"{x:.9g}" for x in vector) + "\n"


def _run_embed(arguments: argparse.Namespace) -> None:
    with _open(arguments) as model:

        def embed(text: str) -> Any:
            return model.embed(text, pooling=arguments.pooling)[0].tolist()

        _run_texts(arguments, "vector", embed, _numbers, has_headers=False)


# ---- bench ----


def _time(run: Callable[[], object], warmup: int, repeat: int, n_tokens: int) -> dict[str, float]:
    import numpy as np

    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    median = float(np.median(times))
    return {
        "median_ms": median,
        "min_ms": min(times),
        "max_ms": max(times),
        "tokens_per_second": n_tokens / median * 1e3,
    }


def _subjects(
    model: Model, info: Mapping[str, Any], ids: npt.NDArray[np.int64], positions: str
) -> dict[str, Callable[[], object]]:
    """What is timed."""
    import numpy as np

    subjects: dict[str, Callable[[], object]] = {"encoder": lambda: model.hidden_states(ids)}
    if positions == "none" or info["head"] == 0:
        return subjects
    if info["head"] not in MASKED_LM_HEADS:
        subjects["encoder and head"] = lambda: model.logits(ids)
    elif positions == "all":
        subjects["encoder and masked LM at all positions"] = lambda: model.logits(ids)
    else:
        middle = np.full((len(ids), 1), ids.shape[1] // 2)
        subjects["encoder and masked LM at one position"] = lambda: model.logits(
            ids, positions=middle
        )
    return subjects


def _bench_text(document: Mapping[str, Any]) -> str:
    head = [
        ("file", printable(document["path"])),
        (
            "input",
            f"{document['batch']} x {document['length']} tokens, {document['repeat']} runs",
        ),
        ("activations", document["activations"]),
        ("device", document["device"]),
        ("threads", document["threads"]),
        ("kernels", _chosen(document["kernels"])),
    ]
    columns = ("median ms", "min ms", "max ms", "tokens/s")
    lines = [f"{name:<12} {value}\n" for name, value in head]
    lines.append(f"\n{'':<40}" + "".join(f" {column:>10}" for column in columns) + "\n")
    lines += [
        f"{run['what']:<40} {run['median_ms']:10.3f} {run['min_ms']:10.3f} {run['max_ms']:10.3f} "
        f"{run['tokens_per_second']:10.0f}\n"
        for run in document["runs"]
    ]
    return "".join(lines)


def _run_bench(arguments: argparse.Namespace) -> None:
    with _open(arguments) as model:
        info = model.info
        length = arguments.length or min(64, info["max_positions"])
        ids = _fixed_ids((arguments.batch, length), info["vocab_size"])
        runs = [
            {"what": what, **_time(run, arguments.warmup, arguments.repeat, ids.size)}
            for what, run in _subjects(model, info, ids, arguments.positions).items()
        ]
    document = {
        "path": info["path"],
        "batch": arguments.batch,
        "length": length,
        "warmup": arguments.warmup,
        "repeat": arguments.repeat,
        "threads": info["threads"],
        "activations": info["activations"],
        "device": info["device"],
        "kernels": info["kernels"],
        "runs": runs,
        "version": info["version"],
    }
    if arguments.json:
        _print_json(document)
    else:
        _print(_bench_text(document))


# ---- Memory ----

# More than the program in C takes with the C library, its stack and texts: see tools/memory.c.
PROGRAM_BYTES = 4 << 20


def _need(
    command: str, arguments: argparse.Namespace, properties: Mapping[str, int]
) -> tuple[int, int, int]:
    """What the command in C asks of a session: batch, length; and the bytes of its results."""
    most, vocab_size = properties["max_positions"], properties["vocab_size"]
    hidden_size, n_labels = properties["hidden_size"], properties["n_labels"]
    head = properties["head"]
    if command == "info":
        return 1, min(128, most), 0
    if command == "bench":
        batch = arguments.batch
        length = arguments.length or min(64, most)
        n_floats = batch * length * hidden_size
        if head != 0 and arguments.positions != "none":
            one = head == CLASSIFIER_HEAD or (
                head in MASKED_LM_HEADS and arguments.positions == "one"
            )
            width = vocab_size if head in MASKED_LM_HEADS else n_labels
            n_floats = max(n_floats, (batch if one else batch * length) * width)
        return batch, length, 4 * n_floats + 4 * batch * (length + 1) + 8 * arguments.repeat
    if command != "verify":
        return 1, most, 4 * (most * hidden_size + n_labels)
    length = min(VERIFY_TOKENS, most)
    if head in MASKED_LM_HEADS:
        return 1, length, 4 * -(-length // VERIFY_STEP) * vocab_size
    n_rows = 1 if head == CLASSIFIER_HEAD else length
    return 1, length, 4 * n_rows * (hidden_size if head == 0 else n_labels)


def _tell_memory(command: str, arguments: argparse.Namespace) -> None:
    """Prints the memory that a command of the program in C needs, before anything is taken."""
    from bitm._native import measure

    def measured(batch: int, length: int, mode: str) -> tuple[dict[str, int], dict[str, int]]:
        return measure(
            arguments.model, arguments.kernels, batch, length, arguments.threads or 0, mode
        )

    _, properties = measured(1, 1, arguments.activations)
    batch, length, result_bytes = _need(command, arguments, properties)
    every = command == "verify" and arguments.activations == "auto"
    modes = ACTIVATIONS[1:] if every else (arguments.activations,)
    found = [measured(batch, length, mode)[0] for mode in modes]
    memory = max(found, key=lambda each: each["session_bytes"])
    parts = {
        "file": (memory["file_bytes"], "mapped: the system reads what is used"),
        "model": (memory["model_bytes"], "tables, and weights as the kernels want them"),
        "session": (memory["session_bytes"], "all that a run works on"),
        "stack": (memory["stack_bytes"], "of further threads"),
        "result": (result_bytes, "before they are printed"),
        "program": (PROGRAM_BYTES, "at most: the program in C itself, and texts"),
    }
    parts["total"] = (sum(n_bytes for n_bytes, _ in parts.values()), "all of this")
    if arguments.json:
        document = {"path": arguments.model, "batch": batch, "length": length}
        document["threads"] = memory["n_threads"]
        document.update({f"{name}_bytes": n_bytes for name, (n_bytes, _) in parts.items()})
        _print_json({**document, "version": _version()})
        return
    size = f"{batch} x {length} tokens, {memory['n_threads']} threads"
    rows = "".join(f"{name:<10} {n:14} bytes  {what}\n" for name, (n, what) in parts.items())
    _print(f"memory of {printable(arguments.model)} for {size}\n{rows}")


# ---- eval ----


def _run_eval(arguments: argparse.Namespace) -> None:
    from bitm.evaluation.command import run

    text, document = run(arguments)
    if arguments.json:
        _print_json(document)
    else:
        _print("".join(f"{printable(line)}\n" for line in text.splitlines()))


# ---- kernels ----


def _device_without_model(name: str) -> str:
    """Returns what a device is; "cpu" for "auto" where no GPU can be used."""
    from bitm._native import describe_device
    from bitm.errors import DeviceError

    try:
        return describe_device(name)
    except DeviceError:
        if name != "auto":
            raise
        return "cpu"


def _run_kernels(arguments: argparse.Namespace) -> None:
    """Lists those of the CPU unless --device asks for a GPU, which runs none of them."""
    from bitm._native import Library, default_kernels

    if arguments.model is None:
        device = _device_without_model(arguments.device)
        kernels = default_kernels()
    else:
        model = Library(arguments.model, arguments.kernels, arguments.device)
        with contextlib.closing(model) as library:
            device = library.device
            kernels = library.kernels()
    if device != "cpu":
        if arguments.json:
            _print_json({"device": device})
        else:
            _print(_row("device", device))
        return
    if arguments.json:
        _print_json({"kernels": kernels})
        return
    rows = [("op", "variant", "available", "chosen", "runs with activations")]
    for kernel in kernels:
        available, chosen = ("yes" if kernel[key] else "no" for key in ("available", "chosen"))
        modes = ",".join(kernel["modes"]) or "-"
        rows.append((kernel["op"], kernel["variant"], available, chosen, modes))
    _print("".join("{:<16} {:<16} {:<10} {:<7} {}\n".format(*row) for row in rows))


# ---- The program ----

COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "info": _run_info,
    "verify": _run_verify,
    "fill-mask": _run_fill_mask,
    "classify": _run_classify,
    "embed": _run_embed,
    "bench": _run_bench,
    "eval": _run_eval,
    "kernels": _run_kernels,
}


def _run(words: list[str]) -> None:
    """Does what the words of the command line say.

    Raises:
        _UsageError: they make no sense.
        BitmError, _OutputError, OSError, MemoryError: it cannot be done.
    """
    if not words:
        raise _UsageError("a command is missing")
    command = "" if words[0].startswith("-") else words[0]
    if command not in HELP:
        raise _UsageError(f"there is no command '{command}'")
    rest = words[1:] if command else words
    asked = rest[: rest.index("--")] if "--" in rest else rest
    if "--help" in asked or "-h" in asked:
        _print(HELP[command])
    elif "--version" in asked:
        _print(f"bitm {_version()}\n")
    elif not command:
        raise _UsageError(f"unrecognized arguments: {words[0]}")
    else:
        arguments = _parse(command, rest)
        if getattr(arguments, "memory", False):
            _tell_memory(command, arguments)
        else:
            COMMANDS[command](arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    Args:
        arguments: the words after the program's name; None: those of this process.
    """
    from bitm.errors import BitmError

    words = list(sys.argv[1:] if arguments is None else arguments)
    # The bytes that the C program gets, read as UTF-8 whatever the locale is.
    words = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in words]
    try:
        _run(words)
    except _UsageError as error:
        name = f" {words[0]}" if words and words[0] in COMMANDS else ""
        _complain(f"{name}: ", f"{error} (see 'bitm{name} --help')")
        return EXIT_USAGE
    except BitmError as error:
        _complain(f": error: {error.name}: ", str(error))
        return EXIT_FAILURE
    except MemoryError:
        _complain(": error: NO_MEMORY: ", "the system refuses memory")
        return EXIT_FAILURE
    except _OutputError:
        _complain(": error: IO: ", "cannot write to standard output")
        return EXIT_FAILURE
    except BrokenPipeError:
        # What is left in the buffer must not fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
