"""The `.bitm` file: SPEC.md against code, round trips, element rules, the writer's promises."""

from __future__ import annotations

import re
import stat
import struct
from itertools import product
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitm_formats import (
    Config,
    DType,
    FormatError,
    Layout,
    ModelFile,
    Quantizer,
    QuantizerKind,
    Scope,
    Status,
    Tensor,
    crc32c,
    dump,
    read,
    slots,
    spec,
    to_bytes,
    write,
)
from malformed import RawFile, full_model

ROOT = Path(__file__).parents[1]
SPEC = (ROOT / "formats" / "SPEC.md").read_text("utf-8")


def smallest_model() -> ModelFile:
    """The model of section 8."""
    config = Config(
        vocab_size=2,
        hidden_size=2,
        n_layers=0,
        n_heads=1,
        head_size=1,
        intermediate_size=1,
        max_positions=1,
        n_token_types=1,
        score_scale=1.0,
    )
    tensors = {
        "embeddings.word.weight": Tensor.from_bits([[True, False], [True, True]]),
        "embeddings.position.weight": Tensor.from_float([[0, 0]], DType.F16),
        "embeddings.token_type.weight": Tensor.from_float([[0.5, -0.5]], DType.F16),
        "embeddings.norm.gain": Tensor.from_float([1, 1]),
        "embeddings.norm.bias": Tensor.from_float([0, 0]),
    }
    return ModelFile(config, tensors)


# What SPEC.md prints.


def _dump_of_section_8() -> list[str]:
    return SPEC.split("## 8. ")[1].split("```")[1].strip("\n").split("\n")


def _parse_hex(lines: list[str]) -> bytes:
    """The bytes of a hex dump whose `*` stands for lines that repeat the one before."""
    content = b""
    for line, following in zip(lines, lines[1:]):
        if line == "*":
            missing = int(following.split()[0], 16) - len(content)
            content += content[-16:] * (missing // 16)
        else:
            assert int(line[:8], 16) == len(content)
            content += bytes.fromhex(line[10:57])
    assert int(lines[-1], 16) == len(content)
    return content


def test_smallest_file_is_rewritten_byte_for_byte() -> None:
    content = _parse_hex(_dump_of_section_8())
    assert to_bytes(read(content)) == content
    assert to_bytes(smallest_model()) == content
    assert list(dump.hex_lines(content)) == _dump_of_section_8()


def test_bit_order_example() -> None:
    """Section 2: 70 columns, 1 in columns 0, 9 and 69 alone."""
    printed = re.search(r"^bytes: ((?:[0-9a-f]{2} )+) +((?:[0-9a-f]{2} ?)+)$", SPEC, re.MULTILINE)
    assert printed is not None
    bits = np.zeros((1, 70), bool)
    bits[0, [0, 9, 69]] = True
    tensor = Tensor.from_bits(bits)
    assert tensor.data.tobytes() == bytes.fromhex(printed[1] + printed[2])
    assert tensor.data.tolist() == [[1 + (1 << 9), 1 << 5]]
    assert np.flatnonzero(tensor.to_float32()[0] > 0).tolist() == [0, 9, 69]


@pytest.mark.parametrize(
    ("section", "record"),
    [
        ("3.1", spec.HEADER),
        ("3.2", spec.CONFIG),
        ("3.3", spec.TENSOR),
        ("3.4", spec.QUANTIZER),
    ],
)
def test_records_are_those_of_the_tables(section: str, record: spec.Record) -> None:
    text = SPEC.split(f"### {section} ")[1].split("\n### ")[0]
    rows = re.findall(r"^\| (\d+) \| (u32|u64|i32|f32|\d+ bytes) \| (\w+) \|", text, re.MULTILINE)
    codes = {"u32": "I", "u64": "Q", "i32": "i", "f32": "f"}
    printed = [
        (int(offset), codes.get(kind) or kind.split()[0] + "s", name) for offset, kind, name in rows
    ]
    assert printed == [(record.offsets[name], code, name) for name, code in record.fields]
    assert record.size == {"3.2": 192}.get(section, 128)


def test_limits_are_those_of_the_table() -> None:
    section = SPEC.split("## 6. ")[1].split("## 7. ")[0]
    rows = re.findall(r"^\| (\w+) \| (?:2\^(\d+)|([\d,]+)) \|$", section, re.MULTILINE)
    printed = {
        name: 1 << int(power) if power else int(number.replace(",", ""))
        for name, power, number in rows
    }
    assert list(printed.items()) == list(spec.LIMITS.items())


def test_statuses_are_those_of_the_header_file() -> None:
    header = (ROOT / "native" / "include" / "bitm.h").read_text("ascii")
    declared = dict(re.findall(r"BITM_(FILE_\w+) = (\d+)", header))
    assert {name: int(number) for name, number in declared.items()} == {
        status.name: status.value for status in Status
    }


def test_config_has_the_fields_of_the_record() -> None:
    names = {name for name, _ in spec.CONFIG.fields} - {"reserved"}
    assert set(Config.__dataclass_fields__) == names


# Checksums.


def test_crc32c_check_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0


@given(st.binary(max_size=300), st.integers(0, 300))
def test_crc32c_is_the_division_bit_by_bit(content: bytes, cut: int) -> None:
    register = 0xFFFFFFFF
    for octet in content:
        register ^= octet
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    assert crc32c(content) == register ^ 0xFFFFFFFF
    assert crc32c(content[cut:], crc32c(content[:cut])) == crc32c(content)


@pytest.mark.parametrize("n_bytes", [1_001, 1_673, 20_001, 110_003, 1_200_001])
def test_crc32c_of_long_messages(n_bytes: int) -> None:
    """RFC 3720 has no such vector: pieces too short for the sparse multiple have to agree."""
    content = np.random.default_rng(0).bytes(n_bytes)
    crc = 0
    for start in range(0, n_bytes, 1_000):
        crc = crc32c(content[start : start + 1_000], crc)
    assert crc32c(content) == crc
    assert crc32c(content) != crc32c(content[:-1])


# Elements.

ROWS, COLUMNS = 6, 70
LAYOUTS = {
    Layout.NONE: 0,
    Layout.TENSOR: 1,
    Layout.ROW_GROUP: 3,
    Layout.ROW: ROWS,
    Layout.COLUMN: COLUMNS,
}


def _place(layout: Layout, n: int, r: int, c: int) -> int:
    """Section 3.3: which scale or offset belongs to row r and column c."""
    if layout == Layout.ROW_GROUP:
        return r // (ROWS // n)
    return {Layout.TENSOR: 0, Layout.ROW: r, Layout.COLUMN: c}[layout]


@pytest.mark.parametrize(
    ("dtype", "scale_layout", "offset_layout"),
    [
        *product([DType.BIT1, DType.TERN], Layout, Layout),
        *product([DType.I8], sorted(set(Layout) - {Layout.NONE}), [Layout.NONE]),
    ],
)
def test_element_rule(dtype: DType, scale_layout: Layout, offset_layout: Layout) -> None:
    rng = np.random.default_rng(3)
    n_scales, n_offsets = LAYOUTS[scale_layout], LAYOUTS[offset_layout]
    scales = rng.standard_normal(n_scales, np.float32) if n_scales else None
    offsets = rng.standard_normal(n_offsets, np.float32) if n_offsets else None
    if dtype == DType.I8:
        assert scales is not None
        codes = rng.integers(-127, 128, (ROWS, COLUMNS))
        tensor = Tensor.from_int8(codes, scales, scale_layout)
    elif dtype == DType.BIT1:
        codes = rng.choice([-1, 1], (ROWS, COLUMNS))
        tensor = Tensor.from_bits(codes > 0, scales, scale_layout, offsets, offset_layout)
    else:
        codes = rng.choice([-1, 0, 1], (ROWS, COLUMNS))
        tensor = Tensor.from_codes(codes, scales, scale_layout, offsets, offset_layout)
    values = tensor.to_float32()
    assert values.shape == (ROWS, COLUMNS)
    assert values.dtype == np.float32
    for r in range(ROWS):
        for c in range(COLUMNS):
            value = np.float32(codes[r, c])
            if scales is not None:
                value *= scales[_place(scale_layout, n_scales, r, c)]
            if offsets is not None:
                value += offsets[_place(offset_layout, n_offsets, r, c)]
            assert values[r, c] == value


def test_float_elements() -> None:
    array = np.array([[1.0, -0.1], [65504, 1e-8]])
    assert np.array_equal(Tensor.from_float(array).to_float32(), array.astype(np.float32))
    halves = Tensor.from_float(array, DType.F16)
    assert halves.data.tobytes() == struct.pack("<4e", *array.flat)
    assert np.array_equal(halves.to_float32(), array.astype(np.float16).astype(np.float32))
    assert Tensor.from_float([1, 2]).shape == (2,)


@given(st.integers(1, 4), st.integers(1, 130), st.integers(0, 2**32))
def test_bits_and_codes_come_back(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.random((rows, columns)) < 0.5
    packed = Tensor.from_bits(bits)
    assert packed.data.shape == (rows, spec.words_per_row(columns))
    assert packed.nbytes == spec.data_bytes(DType.BIT1, rows, columns)
    assert np.array_equal(packed.to_float32() > 0, bits)
    codes = rng.integers(-1, 2, (rows, columns))
    ternary = Tensor.from_codes(codes)
    assert ternary.nbytes == spec.data_bytes(DType.TERN, rows, columns)
    assert np.array_equal(ternary.to_float32(), codes)


def test_tern_planes() -> None:
    """First nonzero bits, then signs: 1 for +1, 0 for -1 and for 0."""
    assert Tensor.from_codes([[0, 1, -1]]).data.tolist() == [[[0b110]], [[0b010]]]


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda: Tensor.from_float(np.zeros((2, 2, 2))), "FILE_TENSOR_SHAPE"),
        (lambda: Tensor.from_float(np.zeros((0, 2))), "FILE_TENSOR_SHAPE"),
        (lambda: Tensor.from_bits(np.zeros(3, bool)), "FILE_TENSOR_SHAPE"),
        (lambda: Tensor(DType.F32, (2, 2), np.zeros((2, 3), np.float32)), "FILE_TENSOR_SHAPE"),
        (lambda: Tensor(DType.F32, (2,), np.zeros(2, np.float64)), "FILE_TENSOR_DTYPE"),
        (lambda: Tensor(DType.BIT1, (2, 65), np.zeros((2, 1), np.uint64)), "FILE_TENSOR_SHAPE"),
        (lambda: Tensor.from_codes([[2]]), "FILE_VALUE"),
        (lambda: Tensor.from_bits([[True]], [1.0]), "FILE_TENSOR_LAYOUT"),
        (lambda: Tensor.from_bits([[True]], None, Layout.ROW), "FILE_TENSOR_LAYOUT"),
        (lambda: Tensor.from_bits([[True]], [[1.0]], Layout.ROW), "FILE_TENSOR_LAYOUT"),
        (lambda: Tensor.from_bits([[True]], [], Layout.ROW), "FILE_TENSOR_LAYOUT"),
    ],
)
def test_tensor_refuses_arrays_that_do_not_fit(make: Callable[[], Tensor], status: str) -> None:
    with pytest.raises(FormatError) as caught:
        make()
    assert caught.value.status == status


# Round trips.


def test_round_trip() -> None:
    model = full_model()
    content = to_bytes(model)
    again = read(content)
    assert again.config == model.config
    assert again.quantizers == model.quantizers
    assert again.vocabulary == model.vocabulary
    assert again.metadata == model.metadata
    assert set(again.tensors) == set(model.tensors)
    for name, tensor in model.tensors.items():
        found = again.tensors[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert (found.scale_layout, found.offset_layout) == (
            tensor.scale_layout,
            tensor.offset_layout,
        )
        assert np.array_equal(found.to_float32(), tensor.to_float32())
        assert found.nbytes == tensor.nbytes
    assert to_bytes(again) == content


def test_same_model_same_bytes() -> None:
    """The order in which a model is put together leaves no trace."""
    model = full_model()
    shuffled = ModelFile(
        model.config,
        dict(reversed(model.tensors.items())),
        dict(reversed(model.quantizers.items())),
        model.vocabulary,
        dict(reversed(model.metadata.items())),
    )
    assert to_bytes(shuffled) == to_bytes(model) == to_bytes(full_model())


def test_layout_of_the_file() -> None:
    """The data tile the file: sorted, aligned, zeros between."""
    content = to_bytes(full_model())
    raw = RawFile.parse(content)
    assert raw.build() == content
    names = [entry["name"] for entry in raw.tensors]
    assert names == sorted(names)
    assert len(content) % 64 == 0


def test_floats_are_those_of_the_file() -> None:
    config = smallest_model().config
    assert config.layer_norm_eps == float(np.float32(1e-12)) != 1e-12
    assert Quantizer(QuantizerKind.INT, Scope.STATIC, 0, 1, 0.1).step == float(np.float32(0.1))


def test_arrays_of_the_reader_cannot_be_changed() -> None:
    tensor = read(to_bytes(smallest_model())).tensors["embeddings.word.weight"]
    with pytest.raises(ValueError, match="read-only"):
        tensor.data[0, 0] = 0


def test_slots_name_every_tensor_of_a_model() -> None:
    model = full_model()
    listed = {slot.name: slot for slot in slots(model.config, model.tensors)}
    assert set(model.tensors) <= set(listed)
    for name, slot in listed.items():
        if name in model.tensors:
            assert model.tensors[name].shape == slot.shape
        else:
            assert slot.optional, name


# The writer.


def _config(**fields: Any) -> Callable[[ModelFile], None]:
    return lambda model: model.config.__dict__.update(fields)


def _tensor(name: str, tensor: Tensor) -> Callable[[ModelFile], None]:
    return lambda model: model.tensors.__setitem__(name, tensor)


def _quantizer(name: str, *fields: Any, **others: Any) -> Callable[[ModelFile], None]:
    return lambda model: model.quantizers.__setitem__(name, Quantizer(*fields, **others))


def _put(part: str, value: Any) -> Callable[[ModelFile], None]:
    return lambda model: setattr(model, part, value)


WIDE_SCALES = Tensor.from_bits(np.zeros((70, 70), bool), np.ones(69), Layout.ROW)
CODE_BELOW = Tensor.from_int8(np.full((9, 70), -128), np.ones(9))
PADDING_BIT = Tensor(DType.BIT1, (70, 70), np.full((70, 2), 2**63, np.uint64))


@pytest.mark.parametrize(
    ("breaks", "status"),
    [
        (_config(hidden_size=0), "FILE_CONFIG"),
        (_config(hidden_size=-1), "FILE_CONFIG"),
        (_config(mask_id=1.5), "FILE_CONFIG"),
        (_config(score_scale=1e39), "FILE_CONFIG"),
        (_config(flags=2), "FILE_RESERVED"),
        (_config(intermediate_size=68), "FILE_TENSOR_SHAPE"),
        (_tensor("pooler.Weight", Tensor.from_float([1])), "FILE_NAME"),
        (_tensor("é", Tensor.from_float([1])), "FILE_NAME"),
        (_tensor("x" * 64, Tensor.from_float([1])), "FILE_NAME"),
        (_tensor("x", Tensor.from_float([1])), "FILE_TENSOR_UNKNOWN"),
        (_tensor("pooler.weight.scale", Tensor.from_float([1])), "FILE_TENSOR_UNKNOWN"),
        (_tensor("pooler.weight", WIDE_SCALES), "FILE_TENSOR_LAYOUT"),
        (_tensor("pooler.norm.gain", Tensor.from_float(np.full(70, np.nan))), "FILE_VALUE"),
        (_tensor("pooler.bias", Tensor.from_float(np.zeros(70), DType.F16)), "FILE_TENSOR_DTYPE"),
        (_tensor("embeddings.word.weight", CODE_BELOW), "FILE_PADDING"),
        (_tensor("pooler.weight", PADDING_BIT), "FILE_PADDING"),
        (lambda model: model.tensors.pop("pooler.weight"), "FILE_TENSOR_MISSING"),
        (_quantizer("pooler", QuantizerKind.SIGN, Scope.TOKEN, -1, 1), "FILE_QUANTIZER"),
        (_quantizer("pooler", QuantizerKind.INT, Scope.STATIC, 0, 2**31), "FILE_QUANTIZER"),
        (_quantizer("pooler", QuantizerKind.INT, 0, 0, 1, step=1e-50), "FILE_QUANTIZER"),
        (_quantizer("nowhere", QuantizerKind.SIGN, Scope.STATIC, -1, 1), "FILE_QUANTIZER"),
        (_quantizer("", QuantizerKind.SIGN, Scope.STATIC, -1, 1), "FILE_NAME"),
        (_put("vocabulary", None), "FILE_CONFIG"),
        (_put("vocabulary", [b"a"] * 10), "FILE_CONFIG"),
        (_put("vocabulary", [b"\xff"] * 8), "FILE_VOCABULARY"),
        (_put("vocabulary", [b"x" * 1025] * 8), "FILE_VOCABULARY"),
        (_put("metadata", {"": "x"}), "FILE_METADATA"),
        (_put("metadata", {"k" * 256: "x"}), "FILE_METADATA"),
        (_put("metadata", {"k": "\ud800"}), "FILE_METADATA"),
        (_put("metadata", {"k": "x" * (1 << 24)}), "FILE_LIMIT"),
    ],
)
def test_writer_refuses_what_the_reader_would(
    breaks: Callable[[ModelFile], object], status: str, tmp_path: Path
) -> None:
    model = full_model()
    breaks(model)
    path = tmp_path / "model.bitm"
    with pytest.raises(FormatError, match=re.escape(str(path))) as caught:
        write(path, model)
    assert caught.value.status == status
    assert list(tmp_path.iterdir()) == []


def test_write(tmp_path: Path) -> None:
    path = tmp_path / "model.bitm"
    path.write_bytes(b"old")
    calls: list[tuple[int, int]] = []
    model = full_model()
    n_bytes = write(path, model, lambda done, total: calls.append((done, total)))
    assert path.read_bytes() == to_bytes(model)
    assert n_bytes == path.stat().st_size
    assert calls == sorted(calls)
    assert calls[-1] == (n_bytes, n_bytes)
    assert list(tmp_path.iterdir()) == [path]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)
    assert read(str(path)).metadata == model.metadata


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_write_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "model.bitm"
    path.write_bytes(b"old")

    def interrupt(done: int, total: int) -> None:
        raise error

    with pytest.raises(error):
        write(path, full_model(), interrupt)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# The listing.


def test_dump_lists_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = full_model()
    model.metadata["terminal"] = "\x1b[2J"
    path = tmp_path / "model.bitm"
    write(path, model)
    assert dump.main([str(path)]) == 0
    printed = capsys.readouterr().out
    for name in (*model.tensors, *model.quantizers, *model.metadata, *Config.__dataclass_fields__):
        assert re.search(rf"\b{re.escape(name)}\b", printed), name
    assert all(line.isprintable() for line in printed.splitlines())
    assert printed.endswith("valid, checksums included\n")
    assert dump.main([str(path), "--hex"]) == 0
    with_hex = capsys.readouterr().out
    assert with_hex.endswith(printed)
    hex_part = with_hex[: -len(printed)].splitlines()
    assert _parse_hex(hex_part) == path.read_bytes()


def test_dump_of_a_broken_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.bitm"
    path.write_bytes(to_bytes(full_model())[:-1])
    assert dump.main([str(path)]) == 1
    assert f"{path}: FILE_TRUNCATED: " in capsys.readouterr().err
    assert dump.main([str(tmp_path / "absent")]) == 1
    assert "No such file" in capsys.readouterr().err
