"""What `bitm_converter.training` saves with learned steps: a plain BERT whose linears quantize.

For a linear with `quantizer.step` a and `quantizer.shift` t, z = x + t, and n bits:
    y = W Q(z) + bias
    signed:   one bit a sgn(z), sgn(0) = 0; else a clamp(round(z / a), -2^(n-1), 2^(n-1) - 1)
    unsigned: a clamp(round(z / a), 0, 2^n - 1), for the linear behind the activation function
config.json tells n: `quantization_config` is {"quant_method": "bitm", "activation_bits": n}.
Without learned steps the checkpoint is plain, and `hf` reads it.
"""

from __future__ import annotations

from dataclasses import replace

from bitm_converter.checkpoint import Checkpoint, LazyTensor
from bitm_converter.errors import ConfigError, MissingError, ShapeError
from bitm_formats import Quantizer, QuantizerKind

from .assembly import Draft, Part, build, is_tied
from .base import Conversion, Options, Progress
from .low_bit import LearnedSteps
from .settings import Settings
from .skeleton import DECODER_WEIGHT, Skeleton

NAME = "bitm"

_BITS = (1, 2, 4)
_UNSIGNED = ".output"


def recognizes(checkpoint: Checkpoint) -> bool:
    """By `quantization_config`."""
    stated = (checkpoint.config or {}).get("quantization_config")
    return isinstance(stated, dict) and stated.get("quant_method") == "bitm"


def convert(
    checkpoint: Checkpoint, options: Options, progress: Progress | None = None
) -> Conversion:
    """Makes the model of any of the heads that plain BERT has.

    Raises ConversionError: an unknown, missing or misshapen tensor, an impossible configuration, a
    number of bits that is none of 1, 2 and 4.
    """
    settings = Settings.of(checkpoint, options.config)
    bits = _bits(settings)
    skeleton = Skeleton.of(checkpoint, settings)
    parts = {
        slot: Part.as_it_is(checkpoint[name])
        for slot, name in skeleton.sources.items()
        if slot != DECODER_WEIGHT or not is_tied(checkpoint, skeleton)
    }
    accounted = set(skeleton.accounted_names())
    quantizers = {}
    for place in skeleton.encoder_linears():
        stem = skeleton.sources[f"{place}.weight"].removesuffix("weight") + "quantizer"
        step = checkpoint.get(f"{stem}.step")
        if step is None:
            continue
        quantizers[place] = _quantizer(step, bits, signed=not place.endswith(_UNSIGNED))
        n_columns = skeleton.shapes[f"{place}.weight"][1]
        parts[f"{place}.shift"] = Part.as_it_is(_shift(checkpoint, f"{stem}.shift", n_columns))
        accounted |= {f"{stem}.step", f"{stem}.shift"}
    draft = Draft(
        NAME,
        skeleton.config,
        parts,
        quantizers,
        accounted,
        metadata=skeleton.label_metadata(),
    )
    return build(checkpoint, options, settings, draft, progress)


def _quantizer(step: LazyTensor, bits: int, signed: bool) -> Quantizer:
    quantizer = LearnedSteps(bits).quantizer(step, signed=True)
    if signed:
        return quantizer
    return replace(quantizer, kind=QuantizerKind.INT, lo=0, hi=2**bits - 1)


def _shift(checkpoint: Checkpoint, name: str, n: int) -> LazyTensor:
    shift = checkpoint.get(name)
    if shift is None:
        raise MissingError(checkpoint.path, "is needed but not there", tensor=name)
    if shift.shape != (n,):
        problem = f"expected shape {(n,)}, found {shift.shape}"
        raise ShapeError(checkpoint.path, problem, tensor=name)
    return shift


def _bits(settings: Settings) -> int:
    stated = settings.values.get("quantization_config")
    bits = stated.get("activation_bits") if isinstance(stated, dict) else None
    if bits not in _BITS:
        problem = f"'activation_bits' of 'quantization_config': expected 1, 2 or 4, found {bits!r}"
        raise ConfigError(settings.path, problem)
    return int(bits)
