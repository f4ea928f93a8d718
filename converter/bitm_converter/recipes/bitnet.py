"""BitNet b1.58 as transformers applies it to a BERT: ternary weights, 8-bit activations.

Formulas, for every linear that was converted (T of -1, 0, +1; per token k = 127 / max(abs(x))):
    xq = clamp(round(x k), -128, 127) / k,  y = m T xq + bias
`quantization_config` in config.json says what the checkpoint holds:
    autobitlinear, online:   latent W; m = mean of abs(W), at least 1e-5; T = clamp(round(W / m))
    autobitlinear, offline:  T, and weight_scale = m; there the bias is multiplied by m as well
    bitlinear:               T, and weight_scale = 1 / m
T is packed, four rows in one of bytes. With `use_rms_norm` an RMS norm precedes each converted
linear: its gain is `rms_norm.weight` of the linear, its epsilon is in `quantization_config`.
Embeddings, norms, attention and the last linear of a head are those of a plain BERT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from bitm_converter.binarize import rounded
from bitm_converter.checkpoint import Checkpoint, LazyTensor
from bitm_converter.errors import CheckpointError, ConfigError, MissingError, ShapeError
from bitm_converter.packing import Codes
from bitm_formats import Layout, Quantizer, QuantizerKind, Scope

from .assembly import Draft, Floats, Part, build, is_tied, read_finite
from .base import Conversion, Options, Progress
from .settings import Settings
from .skeleton import DECODER_WEIGHT, Skeleton

NAME = "bitnet"

_EIGHT_BITS = Quantizer(QuantizerKind.DYN_SYM, Scope.TOKEN, -128, 127, eps=1e-5)
_CLASSES = {"bitlinear": 0, "autobitlinear": 1}
_MODES = {"offline": 0, "online": 1}
_ROWS_PER_BYTE = 4

# What stays float where the configuration does not say: the linears that give logits. Releases of
# transformers differ here; of what is packed, the checkpoint itself shows it.
_LAST_LINEARS = ("classifier", "qa_outputs", "cls.seq_relationship", "cls.predictions.decoder")


def recognizes(checkpoint: Checkpoint) -> bool:
    """By `quantization_config`, or by packed weights beside their scales."""
    stated = (checkpoint.config or {}).get("quantization_config")
    if isinstance(stated, dict) and stated.get("quant_method") == "bitnet":
        return True
    return any(
        name.endswith(".weight") and tensor.dtype == "uint8" and f"{name}_scale" in checkpoint
        for name, tensor in checkpoint.items()
    )


def convert(
    checkpoint: Checkpoint, options: Options, progress: Progress | None = None
) -> Conversion:
    """Makes the model of any of the heads that plain BERT has.

    Raises ConversionError: an unknown, missing or misshapen tensor, an impossible configuration,
    packed bits that are no weight.
    """
    settings = Settings.of(checkpoint, options.config)
    form = _Form.of(settings)
    skeleton = Skeleton.of(_with_plain_shapes(checkpoint), settings)
    parts = {
        slot: Part.as_it_is(checkpoint[name])
        for slot, name in skeleton.sources.items()
        if slot != DECODER_WEIGHT or not is_tied(checkpoint, skeleton)
    }
    quantizers = {}
    for place, stem in _linears(skeleton):
        if form.is_converted(stem, checkpoint):
            linear = _Linear(checkpoint, skeleton, form, place, stem)
            parts.update(linear.parts())
            quantizers[place] = _EIGHT_BITS
    draft = Draft(
        family=NAME,
        config=replace(skeleton.config, rms_norm_eps=form.rms_norm_eps),
        parts=parts,
        quantizers=quantizers,
        accounted=skeleton.accounted_names(),
        metadata=skeleton.label_metadata(),
        notes=form.notes(),
    )
    return build(checkpoint, options, settings, draft, progress)


def _linears(skeleton: Skeleton) -> list[tuple[str, str]]:
    """The place and the stem in the checkpoint of every linear."""
    places = [*skeleton.encoder_linears(), "mlm.transform", "mlm.decoder"]
    places += ["next_sentence", "classifier"]
    sources = {place: skeleton.sources.get(f"{place}.weight") for place in places}
    return [(place, name[: -len(".weight")]) for place, name in sources.items() if name]


def _with_plain_shapes(checkpoint: Checkpoint) -> Checkpoint:
    """The same with packed weights described as the float matrices that they stand for."""
    tensors = {}
    for name, tensor in checkpoint.items():
        bias = checkpoint.get(name[: -len("weight")] + "bias")
        if tensor.dtype == "uint8" and name.endswith(".weight") and bias is not None:
            n_outputs = int(np.prod(bias.shape))
            packed_rows = -(-n_outputs // _ROWS_PER_BYTE)
            if len(tensor.shape) != 2 or tensor.shape[0] != packed_rows:
                problem = (
                    f"expected {packed_rows} rows of packed weights, "
                    f"as the bias is of {n_outputs}, found shape {tensor.shape}"
                )
                raise ShapeError(tensor.path, problem, tensor=name)
            tensor = replace(tensor, dtype="float32", shape=(n_outputs, tensor.shape[1]))
        tensors[name] = tensor
    return replace(checkpoint, tensors=tensors)


@dataclass(frozen=True)
class _Form:
    """What `quantization_config` says.

    `rms_norm_eps` is 0 without such norms; `kept` are patterns of linears that were not converted,
    None where that is not stated.
    """

    is_auto: bool
    is_online: bool
    rms_norm_eps: float
    kept: tuple[str, ...] | None

    @classmethod
    def of(cls, settings: Settings) -> _Form:
        """Raises ConfigError."""
        stated = settings.values.get("quantization_config")
        if not isinstance(stated, Mapping):
            problem = (
                "'quantization_config': expected the object that says how BitNet's weights are "
                f"kept, found {stated!r}"
            )
            raise ConfigError(settings.path, problem)
        form = Settings(settings.path, stated)
        form.require("quant_method", "bitnet")
        is_auto = form.choice("linear_class", _CLASSES, "bitlinear") == 1
        is_online = form.choice("quantization_mode", _MODES, "offline") == 1
        eps = form.number("rms_norm_eps", 1e-6) if form.flag("use_rms_norm", False) else 0.0
        return cls(is_auto, is_auto and is_online, eps, _patterns(form))

    def is_converted(self, stem: str, checkpoint: Checkpoint) -> bool:
        """Whether a linear is one of BitNet's; of what is packed, the scale beside it shows it."""
        if not self.is_online and f"{stem}.weight_scale" in checkpoint:
            return True
        return not _is_named(stem, _LAST_LINEARS if self.kept is None else self.kept)

    def notes(self) -> list[str]:
        """What could be understood otherwise."""
        if self.is_online and self.kept is None:
            return [
                "modules_to_not_convert is not stated: the linears that give logits are taken for "
                "floats, all others for ternary"
            ]
        return []


def _patterns(form: Settings) -> tuple[str, ...] | None:
    stated = form.values.get("modules_to_not_convert")
    if stated is None:
        return None
    if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
        problem = f"'modules_to_not_convert': expected a list of names, found {stated!r}"
        raise ConfigError(form.path, problem)
    for pattern in stated:
        try:
            re.compile(pattern)
        except re.error as error:
            problem = f"'modules_to_not_convert': {pattern!r} is no pattern: {error}"
            raise ConfigError(form.path, problem) from None
    return tuple(stated)


def _is_named(stem: str, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern is the end of a name, or matches it or a module that it lies in."""
    words = stem.split(".")
    modules = [".".join(words[:n]) for n in range(1, len(words) + 1)]
    return any(
        stem.endswith(pattern) or any(re.fullmatch(pattern, module) for module in modules)
        for pattern in patterns
    )


class _Linear:
    """One of BitNet's linears."""

    def __init__(
        self, checkpoint: Checkpoint, skeleton: Skeleton, form: _Form, place: str, stem: str
    ) -> None:
        self._checkpoint = checkpoint
        self._form = form
        self._place = place
        self._stem = stem
        self._shape = skeleton.shapes[f"{place}.weight"]
        self._bias = checkpoint[skeleton.sources[f"{place}.bias"]]
        words = skeleton.sources["embeddings.word.weight"]
        # A decoder without a weight of its own is a linear on the word embeddings.
        is_decoder = place == "mlm.decoder" and f"{stem}.weight" not in checkpoint
        self._weight = checkpoint[words if is_decoder else f"{stem}.weight"]

    def parts(self) -> dict[str, Part]:
        """Its weight, its bias and the gain of its norm, by slot."""
        parts = {f"{self._place}.weight": Part((self._weight,), partial(_latent, self._weight))}
        if not self._form.is_online:
            scale = self._scale()
            codes = partial(_stored, self._weight, scale, self._shape[0], self._form.is_auto)
            parts[f"{self._place}.weight"] = Part((self._weight, scale), codes)
            if self._form.is_auto:
                scaled = partial(_scaled, self._bias, scale)
                parts[f"{self._place}.bias"] = Part((self._bias, scale), scaled)
        if self._form.rms_norm_eps > 0:
            parts[f"{self._place}.rms.gain"] = Part.as_it_is(self._take("rms_norm.weight"))
        return parts

    def _scale(self) -> LazyTensor:
        scale = self._take("weight_scale")
        if int(np.prod(scale.shape)) != 1:
            problem = f"expected one scale, found shape {scale.shape}"
            raise ShapeError(scale.path, problem, tensor=scale.name)
        return scale

    def _take(self, leaf: str) -> LazyTensor:
        name = f"{self._stem}.{leaf}"
        if name not in self._checkpoint:
            problem = "is needed but not there: quantization_config converts this linear"
            raise MissingError(self._checkpoint.path, problem, tensor=name)
        return self._checkpoint[name]


def _latent(weight: LazyTensor) -> Codes:
    return rounded(read_finite(weight))


def _stored(weight: LazyTensor, scale: LazyTensor, n_rows: int, is_auto: bool) -> Codes:
    """Weights that were made ternary before they were saved."""
    m = read_finite(scale).reshape(1)
    if not is_auto:
        if m[0] == 0:
            raise CheckpointError(scale.path, "expected 1 / m, found 0", tensor=scale.name)
        m = np.float32(1) / m
    found = "packed ternary" if weight.dtype == "uint8" else "ternary"
    return Codes(_stored_codes(weight, n_rows), m, Layout.TENSOR, f"{found}, one scale")


def _stored_codes(weight: LazyTensor, n_rows: int) -> npt.NDArray[np.int8]:
    """Bits 2j and 2j + 1 of byte row r of R are row j R + r, plus 1."""
    if weight.dtype == "uint8":
        packed = weight.read()
        planes = [packed >> shift & 3 for shift in (0, 2, 4, 6)]
        codes: npt.NDArray[np.int8] = np.concatenate(planes)[:n_rows].astype(np.int8) - np.int8(1)
        is_weight = codes < 2
    else:
        values = read_finite(weight)
        is_weight = np.isin(values, (-1, 0, 1))
        codes = values.astype(np.int8)
    if not is_weight.all():
        problem = "expected weights of -1, 0 and 1 alone, found others"
        raise CheckpointError(weight.path, problem, tensor=weight.name)
    return codes


def _scaled(bias: LazyTensor, scale: LazyTensor) -> Floats:
    return read_finite(bias) * read_finite(scale).reshape(1)
