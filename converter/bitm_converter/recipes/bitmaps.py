"""bitmaps (nlp-capstone, 2020): 1-bit weights with learned scales; activations are floats.

Formulas, with s(w) = +1 for w >= 0 (-0.0 too), else -1:
    linear:     w = alpha_w s(W), bias = alpha_b s(b), one alpha for the tensor or for each head
    embedding:  w = alpha_w s(W), one alpha for each column, each row or the table
A module is binarized if it has alpha_w, its bias if it has alpha_b; an earlier revision adds an
offset gamma_w of the layout of alpha_w. The decoder of the masked LM is the latent word embeddings,
not their signs, so the file holds both. The checkpoint has neither configuration nor vocabulary:
both are those of bert-base-uncased, its sizes those of the tensors.

The first revision stored no alpha, and its tensors have the names of a plain BERT: with the scheme
`absmean`, the linears of the layers get mean of abs(W) and mean of abs(b), all else is as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from bitm_converter.binarize import mean
from bitm_converter.checkpoint import Checkpoint, LazyTensor
from bitm_converter.errors import CheckpointError, ShapeError
from bitm_converter.packing import Codes
from bitm_formats import Head, Layout, Problem

from .assembly import Draft, Floats, Part, build, is_tied, read_finite, task_settings
from .base import Conversion, Options, Progress
from .settings import Settings
from .skeleton import DECODER_WEIGHT, Skeleton

NAME = "bitmaps"

_CLASSIFIER = "binary_classifier."
_HEAD_SIZE = 64  # of every published BERT
_PER_HEAD = ("query", "key", "value")


def recognizes(checkpoint: Checkpoint) -> bool:
    """By the learned scales."""
    return any(name.endswith(".alpha_w") for name in checkpoint)


def convert(
    checkpoint: Checkpoint, options: Options, progress: Progress | None = None
) -> Conversion:
    """Makes the model of a masked LM, of a classifier (SST-2, CoLA) or of a body alone.

    Raises ConversionError: an unknown, missing or misshapen tensor, an impossible configuration,
    no vocabulary for a masked LM, stored scales together with `absmean`, or neither.
    """
    _check_scheme(checkpoint, options)
    plain = _with_plain_names(checkpoint)
    settings = _settings(checkpoint, plain, options)
    skeleton = Skeleton.of(plain, settings)
    model = _Model(checkpoint, plain, skeleton, is_absmean=options.scheme == "absmean")
    config, metadata = skeleton.config, skeleton.label_metadata()
    if config.head == Head.CLASSIFIER and config.n_labels == 1:
        config = replace(config, problem=Problem.ONE_LOGIT)
        labels = _two_labels(Settings.of(checkpoint, options.config).values)
        metadata = {f"label.{n}": label for n, label in enumerate(labels)}
    if f"{_CLASSIFIER}alpha_w" in checkpoint:
        # Since the classifier is binarized, its forward pass takes no token types.
        metadata["token_type_ids"] = "zero"
    draft = Draft(
        family=NAME,
        config=config,
        parts=model.parts(),
        accounted=skeleton.accounted_names(),
        metadata=metadata,
    )
    return build(checkpoint, options, settings, draft, progress)


def _check_scheme(checkpoint: Checkpoint, options: Options) -> None:
    if options.scheme == "absmean" and recognizes(checkpoint):
        problem = "holds learned scales (alpha_w): the scheme absmean is not for it"
        raise CheckpointError(checkpoint.path, problem)
    if options.scheme == "stored" and not recognizes(checkpoint):
        problem = (
            "holds no learned scales (alpha_w), as those of the first revision of bitmaps, which "
            "--scheme absmean computes"
        )
        raise CheckpointError(checkpoint.path, problem)


def _with_plain_names(checkpoint: Checkpoint) -> Checkpoint:
    """The same with the classifier under the name that it has in a plain BERT."""
    tensors = {
        name.replace(_CLASSIFIER, "classifier.") if name.startswith(_CLASSIFIER) else name: tensor
        for name, tensor in checkpoint.items()
    }
    return replace(checkpoint, tensors=tensors)


def _settings(checkpoint: Checkpoint, plain: Checkpoint, options: Options) -> Settings:
    """The configuration, with the number of heads, and the head, that the tensors show."""
    settings = Settings.of(checkpoint, options.config)
    if settings.values.get("num_attention_heads") is None:
        settings = settings.updated(num_attention_heads=_count_heads(checkpoint))
    architecture = None
    if "classifier.weight" in plain:
        is_sequence = f"{_CLASSIFIER}weight" in checkpoint
        task = "Sequence" if is_sequence else "Token"
        architecture = [f"BertFor{task}Classification"]
    return task_settings(plain, settings.updated(architectures=architecture))


def _count_heads(checkpoint: Checkpoint) -> int | None:
    """A query has a scale for each head, or one and then heads of the usual size."""
    for name, tensor in checkpoint.items():
        if name.endswith("attention.self.query.weight") and len(tensor.shape) == 2:
            alpha = checkpoint.get(name[: -len("weight")] + "alpha_w")
            n_scales = 1 if alpha is None else int(np.prod(alpha.shape))
            return n_scales if n_scales > 1 else max(tensor.shape[0] // _HEAD_SIZE, 1)
    return None


def _two_labels(settings: Mapping[str, object]) -> list[str]:
    """The names of the labels that one logit stands for."""
    names = settings.get("id2label")
    if isinstance(names, dict) and set(names) == {"0", "1"}:
        return [str(names["0"]), str(names["1"])]
    return ["LABEL_0", "LABEL_1"]


class _Model:
    """Makes the parts of a model; `plain` has its tensors by the names of a plain BERT."""

    def __init__(
        self, checkpoint: Checkpoint, plain: Checkpoint, skeleton: Skeleton, is_absmean: bool
    ) -> None:
        self._checkpoint = checkpoint
        self._plain = plain
        self._skeleton = skeleton
        self._absmean_places = skeleton.layer_linears() if is_absmean else ()

    def parts(self) -> dict[str, Part]:
        """A part for each slot but for a decoder that is the word embeddings."""
        parts = {}
        for slot, name in self._skeleton.sources.items():
            if slot != DECODER_WEIGHT:
                parts[slot] = self._part(slot, self._plain[name])
            elif self._has_own_decoder():
                words = self._skeleton.sources["embeddings.word.weight"]
                parts[slot] = Part.as_it_is(self._plain.get(name) or self._plain[words])
        return parts

    def _has_own_decoder(self) -> bool:
        words = self._plain[self._skeleton.sources["embeddings.word.weight"]]
        is_binary = self._companion(words, "alpha_w") is not None
        return is_binary or not is_tied(self._plain, self._skeleton)

    def _part(self, slot: str, tensor: LazyTensor) -> Part:
        place, _, leaf = slot.rpartition(".")
        if place in self._absmean_places:
            return Part((tensor,), partial(_absmean, tensor))
        if leaf == "weight" and (alpha := self._companion(tensor, "alpha_w")) is not None:
            gamma = self._companion(tensor, "gamma_w")
            layout = self._layout(place, tensor, alpha)
            sources = (tensor, alpha) if gamma is None else (tensor, alpha, gamma)
            return Part(sources, partial(_scaled_signs, layout, *sources))
        if leaf == "bias" and (alpha := self._companion(tensor, "alpha_b")) is not None:
            self._layout(place, tensor, alpha)
            return Part((tensor, alpha), partial(_scaled_bias, tensor, alpha))
        return Part.as_it_is(tensor)

    def _companion(self, tensor: LazyTensor, leaf: str) -> LazyTensor | None:
        """A parameter of the module that a tensor belongs to."""
        return self._checkpoint.get(f"{tensor.name.rpartition('.')[0]}.{leaf}")

    def _layout(self, place: str, tensor: LazyTensor, alpha: LazyTensor) -> Layout:
        """What the values of alpha stand for, by their number.

        Where an embedding has as many rows as columns, it is the columns, as in the last revision.
        """
        n, rows = int(np.prod(alpha.shape)), tensor.shape[0]
        n_heads = self._skeleton.config.n_heads
        layouts = {1: Layout.TENSOR, rows: Layout.ROW}
        if place.startswith("embeddings."):
            layouts[tensor.shape[1]] = Layout.COLUMN
        elif place.endswith(_PER_HEAD):
            layouts.setdefault(n_heads, Layout.ROW_GROUP)
        if n not in layouts:
            expected = " or ".join(str(number) for number in sorted(layouts))
            problem = f"expected {expected} scales, found {n}"
            raise ShapeError(alpha.path, problem, tensor=alpha.name)
        return Layout.TENSOR if n == 1 else layouts[n]


def _signs(values: Floats) -> npt.NDArray[np.int8]:
    signs: npt.NDArray[np.int8] = np.where(values >= 0, np.int8(1), np.int8(-1))
    return signs


def _scaled_signs(
    layout: Layout, weight: LazyTensor, alpha: LazyTensor, gamma: LazyTensor | None = None
) -> Codes:
    scales = read_finite(alpha).reshape(-1)
    groups = {
        Layout.TENSOR: "the tensor",
        Layout.ROW_GROUP: f"each of {scales.size} heads",
        Layout.ROW: "each row",
        Layout.COLUMN: "each column",
    }[layout]
    found = f"signs, a learned scale for {groups}"
    codes = _signs(read_finite(weight))
    if gamma is None:
        return Codes(codes, scales, layout, found)
    if gamma.shape != alpha.shape:
        problem = f"expected the shape of its scales {alpha.shape}, found {gamma.shape}"
        raise ShapeError(gamma.path, problem, tensor=gamma.name)
    offsets = read_finite(gamma).reshape(-1)
    return Codes(codes, scales, layout, f"{found}, offsets", offsets)


def _scaled_bias(bias: LazyTensor, alpha: LazyTensor) -> Floats:
    values, scales = read_finite(bias), read_finite(alpha).reshape(-1)
    spread: Floats = np.repeat(scales, values.size // scales.size)
    return np.where(values >= 0, spread, -spread)


def _absmean(tensor: LazyTensor) -> Codes | Floats:
    """A weight or a bias times the mean magnitude of all its values."""
    values = read_finite(tensor)
    scales, signs = mean(np.abs(values), Layout.TENSOR), _signs(values)
    if values.ndim == 1:
        return (signs * scales).astype(np.float32)
    return Codes(signs, scales, Layout.TENSOR, "signs, mean magnitude")
