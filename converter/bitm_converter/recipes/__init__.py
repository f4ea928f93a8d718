"""Recipes: one module for each family of checkpoints, which knows its tensors and its arithmetic.

To add a family, write its module (`NAME`, `recognizes`, `convert`) and list it in `RECIPES`.
"""

from __future__ import annotations

from typing import Protocol

from bitm_converter.checkpoint import Checkpoint

from . import bibert, binarybert, bipft, bit, bitmaps, bitnet, hf, trained
from .base import Conversion, Options, Progress

__all__ = ["RECIPES", "Conversion", "Options", "Recipe", "choose"]


class Recipe(Protocol):
    """What a recipe's module offers."""

    NAME: str  # for `--family` and the file's metadata

    def recognizes(self, checkpoint: Checkpoint) -> bool:
        """Whether the names of the tensors, or the configuration, show this family."""

    def convert(
        self, checkpoint: Checkpoint, options: Options, progress: Progress | None = None
    ) -> Conversion:
        """Makes the model; raises ConversionError for a checkpoint that is not of the family."""


# In the order in which they are asked; a plain BERT is what no other family claims.
RECIPES: tuple[Recipe, ...] = (
    bitmaps,
    trained,
    bitnet,
    bipft,
    bit,
    bibert,
    binarybert,
    hf,
)


def choose(checkpoint: Checkpoint, family: str = "auto") -> Recipe:
    """The recipe of a family by its name, or the first that recognizes the checkpoint.

    Raises KeyError for a name that no recipe has.
    """
    if family != "auto":
        return {recipe.NAME: recipe for recipe in RECIPES}[family]
    return next(recipe for recipe in RECIPES if recipe.recognizes(checkpoint))
