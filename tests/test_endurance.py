"""Many calls, threads, processes, and a close in the middle of it all; `make soak` runs longer."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from bitm import BitmError, Model
from endurance import in_forks, in_threads, sentences, soak

linux = pytest.mark.skipif(sys.platform != "linux", reason="expected: reads /proc")


@linux
def test_many_calls_leave_nothing_behind(tiny_model: Path) -> None:
    with Model(tiny_model, threads=1) as model:
        done = soak(model, 4_000)
    assert done.grown_descriptors == 0
    assert done.leaked_bytes < 16 << 10  # 40 bytes a call
    # The fast calls, which other work on the machine does not touch; what piles up slows them all.
    assert np.percentile(done.last_ms, 10) < 5 * np.percentile(done.first_ms, 10)


def test_sixteen_threads_share_a_model(tiny_model: Path) -> None:
    with Model(tiny_model, threads=2) as model:
        assert in_threads(model, 16, 1.5) == 0


@pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="expected: no fork here")
def test_forks_share_a_model(tiny_model: Path) -> None:
    with Model(tiny_model, threads=2) as model:
        assert in_forks(model, 4, 1.0) == 0


def best_of(model: Model, text: str) -> object:
    return model.fill_mask(text)


def test_a_model_travels_to_processes(tiny_model: Path) -> None:
    with Model(tiny_model, threads=1) as model:
        texts = sentences(model, 6, seed=4)
        expected = [best_of(model, text) for text in texts]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            found = pool.starmap(best_of, [(model, text) for text in texts])
    assert found == expected


def test_closing_while_threads_run(tiny_model: Path) -> None:
    """Each call gives the right answer or says that the model is closed."""
    for _ in range(20):
        model = Model(tiny_model, threads=1)
        texts = sentences(model, 5, seed=5)
        expected = [model.fill_mask(text) for text in texts]
        started = threading.Barrier(5)
        wrong: list[object] = []

        def work(model: Model = model, started: threading.Barrier = started) -> None:
            started.wait()
            for i in range(1000):
                try:
                    found = model.fill_mask(texts[i % 5])  # noqa: B023
                except BitmError as err:
                    if "closed" not in str(err):
                        wrong.append(err)  # noqa: B023
                    return
                if found != expected[i % 5]:  # noqa: B023
                    wrong.append(found)  # noqa: B023

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait()
        model.close()
        for thread in threads:
            thread.join()
        assert wrong == []
