"""The command line `bitm`: the same program as `native/tools/`, on top of `bitm.Model`.

Both print the same bytes on standard output and end with the same exit status: 0 done, 1 failed,
2 wrong usage, 130 interrupted.  Files and texts come from strangers, so control characters in them
are escaped before they reach a terminal; `--json` gives everything whole.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from bitm.cli.answering import run_classify, run_embed, run_fill_mask
from bitm.cli.arguments import UsageError, parse
from bitm.cli.inspecting import run_info, run_kernels, run_verify
from bitm.cli.measuring import run_bench, run_eval, tell_memory
from bitm.cli.terminal import OutputError, complain, print_text, version
from bitm.cli.usage import HELP

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
EXIT_BROKEN_PIPE = 141  # what a shell says of a program that SIGPIPE has ended

COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "info": run_info,
    "verify": run_verify,
    "fill-mask": run_fill_mask,
    "classify": run_classify,
    "embed": run_embed,
    "bench": run_bench,
    "eval": run_eval,
    "kernels": run_kernels,
}


def _run(words: list[str]) -> None:
    """Does what the words of the command line say.

    Raises:
        UsageError: they make no sense.
        BitmError, OutputError, OSError, MemoryError: it cannot be done.
    """
    if not words:
        raise UsageError("a command is missing")
    command = "" if words[0].startswith("-") else words[0]
    if command not in HELP:
        raise UsageError(f"there is no command '{command}'")
    rest = words[1:] if command else words
    asked = rest[: rest.index("--")] if "--" in rest else rest
    if "--help" in asked or "-h" in asked:
        print_text(HELP[command])
    elif "--version" in asked:
        print_text(f"bitm {version()}\n")
    elif not command:
        raise UsageError(f"unrecognized arguments: {words[0]}")
    else:
        arguments = parse(command, rest)
        if getattr(arguments, "memory", False):
            tell_memory(command, arguments)
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
    except UsageError as error:
        name = f" {words[0]}" if words and words[0] in COMMANDS else ""
        complain(f"{name}: ", f"{error} (see 'bitm{name} --help')")
        return EXIT_USAGE
    except BitmError as error:
        complain(f": error: {error.name}: ", str(error))
        return EXIT_FAILURE
    except MemoryError:
        complain(": error: NO_MEMORY: ", "the system refuses memory")
        return EXIT_FAILURE
    except OutputError:
        complain(": error: IO: ", "cannot write to standard output")
        return EXIT_FAILURE
    except BrokenPipeError:
        # What is left in the buffer must not fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0
