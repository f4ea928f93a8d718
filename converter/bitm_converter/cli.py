"""bitm-convert: from a PyTorch checkpoint to a `.bitm` file."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import bitm_formats
from bitm_formats import FormatError, Layout, Status

from . import __version__
from .checkpoint import Checkpoint, open_checkpoint
from .errors import ConversionError, OutputError, VerificationError
from .naive import COMPONENTS, Binarization
from .recipes import RECIPES, Conversion, Options, bitmaps, choose
from .report import Report
from .verify import Verification, verify

_DESCRIPTION = """\
Converts a PyTorch BERT checkpoint to a .bitm file, which bitm runs without PyTorch.

The checkpoint is a file (torch.save, zip or older; safetensors), the index of a sharded one, or a
folder with one of them. config.json and the vocabulary are looked for beside it. Matrices that hold
two values (per tensor, row, group of rows, or column) are packed into bits, all others are kept
as floats. The checkpoint's code is never run, and PyTorch is not needed.
"""
_BINARIZE = """\
Makes bits of the float matrices of a plain BERT as they are. It was not trained for that, so it
loses most of its accuracy: an experiment, and a baseline. The components are

  layers                   query, key, value, attention output, intermediate, output
  layers-except-attention  of these intermediate and output
  layers-except-ffn        of these query, key, value and attention output
  embeddings               words and token types (not positions)
  head                     pooler, masked LM transform and decoder, next sentence, classifier
  all                      layers, embeddings and head

Biases and norms stay floats. A decoder that is the word embeddings stays so if both or neither are
binarized; else each is stored for itself, the one binary, the other float.
"""
_EXAMPLE = """\
example:
  bitm-convert bert-1bit/ bert.bitm --verify
  bitm-convert ckpt.pt bert.bitm --config config.json --vocab vocab.txt
  bitm-convert bert-base-uncased/ naive.bitm --binarize xnor --embeddings int8

exit status: 0 done, 1 not converted (one line on stderr says why), 2 wrong usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (0 done, 1 failed; argparse exits with 2)."""
    arguments = _arguments(argv)
    try:
        report = _convert(arguments)
    except ConversionError as error:
        return _fail(str(error), error.code)
    except FormatError as error:
        return _fail(str(error), error.status)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", "io")
    except MemoryError:
        return _fail(f"{arguments.checkpoint}: not enough memory", "memory")
    except KeyboardInterrupt:
        return _fail("interrupted, nothing was written", "interrupted")
    if arguments.json:
        print(json.dumps(report.as_json(), indent=1, ensure_ascii=True))
    elif not arguments.quiet:
        print(report.as_text(every_tensor=arguments.verbose))
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.scheme == "absmean":
        # No tensor shows this family, so the scheme stands for it.
        if arguments.family not in ("auto", bitmaps.NAME):
            parser.error(f"--scheme absmean is of --family bitmaps, not {arguments.family}")
        arguments.family = bitmaps.NAME
    if arguments.binarize == "none" and (arguments.components or arguments.scales):
        parser.error("--components and --scales say what --binarize does: name a scheme")
    arguments.binarize = _binarization(arguments)
    if arguments.scales and arguments.binarize.scheme != "xnor":
        parser.error(f"--scales is of --binarize xnor: {arguments.binarize.scheme} has none")
    makes_bits = arguments.binarize is not None and arguments.binarize.scales_tables
    if arguments.table_scales and arguments.embeddings != "bit1" and not makes_bits:
        parser.error("--embedding-scales is of --embeddings bit1, or of --binarize xnor for them")
    return arguments


def _binarization(arguments: argparse.Namespace) -> Binarization | None:
    if arguments.binarize == "none":
        return None
    return Binarization(
        arguments.binarize,
        arguments.scales or "row",
        tuple(dict.fromkeys(arguments.components or ["layers"])),
        _table_layout(arguments),
    )


def _table_layout(arguments: argparse.Namespace) -> Layout:
    return Layout[(arguments.table_scales or "column").upper()]


def _fail(message: str, status: str) -> int:
    print(f"bitm-convert: error: {message} [{status}]", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bitm-convert",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="file, shard index or folder to read")
    add("output", type=Path, help="the .bitm file to write; it appears complete or not at all")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    add("--config", type=Path, metavar="FILE", help="config.json (default: beside the checkpoint)")
    vocab = parser.add_mutually_exclusive_group()
    vocab.add_argument(
        "--vocab",
        type=Path,
        metavar="FILE",
        help="vocab.txt or tokenizer.json (default: beside the checkpoint)",
    )
    vocab.add_argument("--no-vocab", action="store_true", help="a file for token ids, without text")
    case = parser.add_mutually_exclusive_group()
    case.add_argument(
        "--cased",
        dest="lowercase",
        action="store_const",
        const=False,
        help="keep the case of text (default: as tokenizer_config.json says, else lowercase)",
    )
    case.add_argument(
        "--uncased", dest="lowercase", action="store_const", const=True, help="lowercase text"
    )
    add(
        "--family",
        choices=("auto", *(recipe.NAME for recipe in RECIPES)),
        default="auto",
        help="what kind of checkpoint it is (default: found by its tensors)",
    )
    add(
        "--scheme",
        choices=("stored", "absmean"),
        default="stored",
        help="scales of a bitmaps checkpoint: in it, or the mean magnitudes of its first revision, "
        "whose tensors look like a plain BERT's",
    )
    _add_formats(parser)
    _add_binarize(parser)
    add(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out a tensor that bitm does not know, such as 'cls.extra.*'; may be repeated",
    )
    add(
        "--verify",
        action="store_true",
        help="run the file and the checkpoint, and write it only if their outputs agree",
    )
    add("--verbose", action="store_true", help="print a line for every tensor")
    add("--json", action="store_true", help="print the report as JSON")
    add("--quiet", action="store_true", help="print nothing but errors")
    return parser


def _add_formats(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--embeddings",
        choices=("auto", "fp16", "fp32", "int8", "bit1"),
        default="auto",
        help="word embeddings and decoder, where not two-valued (default: fp16 beside a 1-bit "
        "encoder of a plain BERT, else unchanged values); int8 has a scale a row, bit1 is the sign "
        "times a mean magnitude; positions and token types are kept one step finer",
    )
    add(
        "--embedding-scales",
        dest="table_scales",
        choices=("row", "column", "tensor"),
        help="what of 1-bit embeddings has a mean magnitude of its own (default: column)",
    )
    add(
        "--matrices",
        choices=("auto", "fp16", "fp32", "int8"),
        default="auto",
        help="other matrices, where not two-valued (default: beside a 1-bit encoder of a plain "
        "BERT fp16, with int8 or bit1 embeddings int8; else unchanged values)",
    )


def _add_binarize(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("naive binarization", _BINARIZE)
    group.add_argument(
        "--binarize",
        choices=("none", "sign", "zero-one", "xnor"),
        default="none",
        help="{-1, +1}, {0, 1}, or the sign times the mean magnitude (default: none)",
    )
    group.add_argument(
        "--components",
        action="append",
        choices=tuple(COMPONENTS),
        help="what to binarize; may be repeated (default: layers)",
    )
    group.add_argument(
        "--scales",
        choices=("row", "tensor", "head"),
        help="what has a mean magnitude of its own: each row, each matrix, or each attention "
        "head's rows of query, key and value, and every other matrix (default: row)",
    )


def _convert(arguments: argparse.Namespace) -> Report:
    checkpoint = open_checkpoint(arguments.checkpoint)
    target = _check_target(arguments.output, checkpoint)
    options = Options(
        config=arguments.config,
        vocab=arguments.vocab,
        use_vocab=not arguments.no_vocab,
        lowercase=arguments.lowercase,
        embeddings=arguments.embeddings,
        table_layout=_table_layout(arguments),
        matrices=arguments.matrices,
        binarize=arguments.binarize,
        ignore=tuple(arguments.ignore),
        scheme=arguments.scheme,
    )
    recipe = choose(checkpoint, arguments.family)
    with _ProgressBar(sys.stderr, is_shown=not arguments.quiet) as bar:
        conversion = recipe.convert(checkpoint, options, bar.show)
        verification = None
        if arguments.verify:
            verification = _write_verified(target, conversion, bar)
        else:
            _write(target, conversion, bar)
    return Report(
        conversion,
        recipe.NAME,
        checkpoint_bytes=sum(file.stat().st_size for file in checkpoint.files),
        file_bytes=target.stat().st_size,
        verification=verification,
    )


def _check_target(output: Path, checkpoint: Checkpoint) -> Path:
    """Returns where to write, links followed. Raises OutputError if that cannot be meant."""
    target = Path(os.path.realpath(output))
    if target.is_dir():
        raise OutputError(output, "expected a file to write, found a folder")
    if not target.parent.is_dir():
        raise OutputError(output, f"the folder {target.parent} does not exist")
    if any(target.exists() and target.samefile(file) for file in checkpoint.files):
        raise OutputError(output, "is the checkpoint itself")
    return target


def _write(path: Path, conversion: Conversion, bar: _ProgressBar) -> None:
    bitm_formats.write(path, conversion.model, lambda done, n: bar.show(done, n, "writing"))


def _write_verified(target: Path, conversion: Conversion, bar: _ProgressBar) -> Verification:
    """Writes beside the target, verifies, and puts the file in its place only then."""
    with tempfile.TemporaryDirectory(prefix=".bitm-convert-", dir=target.parent) as folder:
        path = Path(folder) / target.name
        try:
            _write(path, conversion, bar)
        except FormatError as error:
            problem = str(error).removeprefix(f"{path}: ")
            raise FormatError(Status[error.status], problem).within(str(target)) from None
        bar.show(1, 1, "verifying")
        verification = verify(path, conversion, shown_as=target)
        if not verification.passed:
            worst = verification.worst
            problem = (
                f"not written, as it is not what the checkpoint is: {worst.output}: expected a "
                f"difference of at most {worst.limit:.1e}, found {worst.worst:.1e}"
            )
            raise VerificationError(target, problem)
        path.replace(target)
    return verification


class _ProgressBar:
    """One line that is drawn over itself, on a terminal only, and gone at the end."""

    _WIDTH = 30

    def __init__(self, stream: TextIO, is_shown: bool) -> None:
        self._stream = stream
        self._is_shown = is_shown and stream.isatty()

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._draw("")

    def show(self, done: int, total: int, what: str) -> None:
        """Draws that `done` of `total` steps are done."""
        filled = self._WIDTH * done // max(total, 1)
        self._draw(f"[{'#' * filled:<{self._WIDTH}}] {what}")

    def _draw(self, line: str) -> None:
        if self._is_shown:
            self._stream.write(f"\r\x1b[K{line}")
            self._stream.flush()


if __name__ == "__main__":
    sys.exit(main())
