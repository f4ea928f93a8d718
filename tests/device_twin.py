"""A pytest plugin: every model runs on the GPU, and every answer is compared with the CPU's.

`pytest -p device_twin tests/test_quantizers.py tests/test_family_bit.py ...` runs tests that were
written for the CPU; whatever they ask of a model must be the same bits on both.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from bitm import Model

_real_init = Model.__init__
_compared = 0


def _init(self: Any, path: Any, threads: Any = None, device: str = "auto", *rest: Any) -> None:
    _real_init(self, path, threads, "cuda", *rest)
    self._twin = Model.__new__(Model)
    _real_init(self._twin, path, threads, "cpu", *rest)


@functools.wraps(_real_init)
def _init_by_name(self: Any, path: Any, *arguments: Any, **names: Any) -> None:
    order = ("threads", "device", "activations", "kernels")
    given = dict(zip(order, arguments)) | names
    rest = [given.get("activations", "auto"), given.get("kernels")]
    _init(self, path, given.get("threads"), "cuda", *rest)


def _compare(name: str) -> None:
    real = getattr(Model, name)

    @functools.wraps(real)
    def both(self: Any, *arguments: Any, **names: Any) -> Any:
        global _compared
        found = real(self, *arguments, **names)
        if hasattr(self, "_twin"):
            wanted = real(self._twin, *arguments, **names)
            np.testing.assert_array_equal(found, wanted, err_msg=f"{name}: the GPU's, the CPU's")
            _compared += 1
        return found

    setattr(Model, name, both)


def pytest_configure() -> None:
    Model.__init__ = _init_by_name  # type: ignore[method-assign]
    for name in ("logits", "hidden_states"):
        _compare(name)


def pytest_sessionfinish(session: Any) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes
        session.config.workeroutput["compared"] = _compared


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    global _compared
    _compared += node.workeroutput["compared"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(f"{_compared} answers compared with the CPU's")
