"""What several commands do with a model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bitm.model import Model

# Numbers of formats/SPEC.md 3.2.
MASKED_LM_HEADS, CLASSIFIER_HEAD = (1, 2), 3

# The input of `verify`, and which of its tokens' masked-LM logits are hashed.
VERIFY_TOKENS, VERIFY_STEP = 24, 6


def open_model(arguments: argparse.Namespace, activations: str | None = None) -> Model:
    """Opens the model that the words name."""
    from bitm.model import Model

    return Model(
        arguments.model,
        threads=arguments.threads,
        device=arguments.device,
        activations=activations or arguments.activations,
        kernels=arguments.kernels,
    )


def forced_as(kernels: Mapping[str, str]) -> str:
    """As --kernels takes them; a model on a GPU runs none."""
    return ",".join(f"{op}={variant}" for op, variant in kernels.items()) or "-"


def fixed_ids(shape: tuple[int, int], vocab_size: int) -> npt.NDArray[np.int64]:
    """The input that `verify` and `bench` run."""
    import numpy as np

    return ((np.arange(shape[0] * shape[1], dtype=np.int64) * 7919 + 13) % vocab_size).reshape(
        shape
    )
