"""Uses the installed wheel in an environment that has nothing but its dependencies.

Run by `make wheel-test`; not a pytest file, because that environment has no pytest.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import bitm
import bitm_formats
from bitm import Model
from tiny_models import masked_lm

FOREIGN = ("torch", "transformers", "tokenizers", "safetensors", "pytest")
TREE = Path(__file__).resolve().parents[1]


def main() -> int:
    """Runs a tiny model; returns the exit status."""
    for package in (bitm, bitm_formats):
        assert package.__file__ is not None
        outside = TREE / "build" in Path(package.__file__).parents
        assert outside, f"{package.__file__} is of the tree, not of the wheel"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.bitm"
        bitm_formats.write(path, masked_lm(np.random.default_rng(0)))
        with Model(str(path)) as model:
            predictions = model.fill_mask("a [MASK] c", top_k=3)
    assert len(predictions) == 3, predictions
    loaded = sorted(set(FOREIGN) & set(sys.modules))
    assert not loaded, f"importing bitm has loaded {loaded}"
    print(f"1 passed, 0 failed: bitm {bitm.__version__} from {Path(bitm.__file__).parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
