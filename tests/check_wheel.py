"""Uses the installed wheel in an environment that has nothing but its dependencies.

Run by `make wheel-test`; not a pytest file, because that environment has no pytest.
"""

from __future__ import annotations

import sys
from pathlib import Path

import bitm
import bitm_formats
from bitm import Model

FOREIGN = ("torch", "transformers", "tokenizers", "safetensors", "pytest")
TREE = Path(__file__).resolve().parents[1]


def main() -> int:
    """Runs the demo model; returns the exit status."""
    for package in (bitm, bitm_formats):
        assert package.__file__ is not None
        outside = TREE / "build" in Path(package.__file__).parents
        assert outside, f"{package.__file__} is of the tree, not of the wheel"
    with Model.demo() as model:
        predictions = model.fill_mask("The capital of France is [MASK].", top_k=1)
    assert [entry["token_str"] for entry in predictions] == ["paris"], predictions
    loaded = sorted(set(FOREIGN) & set(sys.modules))
    assert not loaded, f"importing bitm has loaded {loaded}"
    print(f"1 passed, 0 failed: bitm {bitm.__version__} from {Path(bitm.__file__).parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
