"""The checkpoint readers: what torch and transformers write is read exactly, the rest refused."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitm_converter import unpickler
from bitm_converter.checkpoint import Checkpoint, open_checkpoint
from bitm_converter.errors import (
    CheckpointError,
    ConversionError,
    MissingError,
    UnsafePickleError,
)

REAL = Path(__file__).parents[2] / "shared" / "checkpoints" / "w1-small-en"

# Containers, written here by hand: no torch needed, and every field can be wrong


def plain(value: object) -> bytes:
    """The opcodes that push a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def tensor(
    key: str = "0",
    storage: str = "torch\nFloatStorage",
    count: int = 6,
    offset: object = 0,
    shape: object = (2, 3),
    strides: object = (3, 1),
) -> bytes:
    """The opcodes that torch.save writes for a tensor."""
    return b"".join(
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            plain("storage") + b"c" + storage.encode() + b"\n" + plain(key) + plain("cpu"),
            plain(count) + b"tQ" + plain(offset) + plain(shape) + plain(strides),
            b"\x89ccollections\nOrderedDict\n)RtR",
        )
    )


def dictionary(items: dict[str, bytes]) -> bytes:
    body = b"".join(plain(key) + value for key, value in items.items())
    return b"ccollections\nOrderedDict\n)R(" + body + b"u"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


STATE = dictionary({"a.weight": tensor(), "b.bias": tensor("1", count=4, shape=(4,), strides=(1,))})
A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.array([0.5, -0.0, np.inf, 1e-40], np.float32)
STORAGES = {"0": A.tobytes(), "1": B.tobytes()}


def write_zip(path: Path, body: bytes = STATE, extra: dict[str, bytes] | None = None) -> Path:
    entries = {"archive/data.pkl": pickled(body), "archive/byteorder": b"little", **(extra or {})}
    for key, data in STORAGES.items():
        entries[f"archive/data/{key}"] = data
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def write_legacy(
    path: Path,
    body: bytes = STATE,
    *,
    little: bool = True,
    protocol: int = 1001,
    keys: object = ("0", "1"),
) -> Path:
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    storages = b"".join((len(d) // 4).to_bytes(8, "little") + d for d in STORAGES.values())
    names = plain(list(keys) if isinstance(keys, tuple) else keys)
    pickles = (plain(0x1950A86A20F9469CFC6C), plain(protocol), plain(system), body, names)
    path.write_bytes(b"".join(pickled(p) for p in pickles) + storages)
    return path


def write_safetensors(
    path: Path, header: object = None, data: bytes = A.tobytes() + B.tobytes()
) -> Path:
    if header is None:
        header = {
            "__metadata__": {"format": "pt"},
            "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
            "b.bias": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]},
        }
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "zip": write_zip,
    "legacy": write_legacy,
    "safetensors": write_safetensors,
}


def assert_refused(path: Path, error: type[ConversionError], *fragments: str) -> None:
    with pytest.raises(error) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    for fragment in (*fragments, str(path.name)):
        assert fragment in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("container", WRITERS)
def test_reads_every_container(container: str, tmp_path: Path) -> None:
    opened = open_checkpoint(WRITERS[container](tmp_path / "any.name"))
    assert opened.container == container
    assert opened.files == (tmp_path / "any.name",)
    assert list(opened) == ["a.weight", "b.bias"]
    assert opened["a.weight"].shape == (2, 3)
    assert opened["a.weight"].dtype == "float32"
    assert opened["a.weight"].read().tobytes() == A.tobytes()
    assert opened["b.bias"].read().tobytes() == B.tobytes()
    assert opened.wrapper is None
    assert opened.config is None
    assert opened.vocab_path is None


# What torch writes


def as_numpy(value: Any) -> np.ndarray[Any, Any]:
    torch = pytest.importorskip("torch")
    if value.dtype == torch.bfloat16:
        value = value.float()
    array: np.ndarray[Any, Any] = value.detach().numpy()
    return array


def assert_same_tensors(opened: Checkpoint, expected: dict[str, Any]) -> None:
    assert set(opened) == set(expected)
    for name, value in expected.items():
        read = opened[name].read()
        assert read.shape == opened[name].shape == tuple(value.shape), name
        assert opened[name].dtype == str(value.dtype).partition(".")[2], name
        assert read.dtype == as_numpy(value).dtype, name
        assert read.tobytes() == as_numpy(value).tobytes(), name


def torch_tensors() -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    base = torch.randn(7, 5)
    wide = torch.randn(4, 3, 2)
    return {
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "row": base[3],
        "every_other": base[1::2, ::2],
        "permuted": wide.permute(2, 0, 1),
        "expanded": torch.randn(5, 1).expand(5, 6),
        "scalar": torch.tensor(2.5),
        "scalar_view": base[2, 3],
        "empty": torch.empty(0, 3),
        "half": torch.randn(3, 3).half(),
        "bfloat": torch.randn(3, 3).bfloat16(),
        "bfloat_scalar": torch.tensor(1.5).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "integers": torch.arange(5),
        "small": torch.arange(5).to(torch.int8),
        "bytes": torch.arange(5).to(torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "specials": torch.tensor([float("nan"), float("-inf"), -0.0, 1e-45]),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_tensors_of_every_kind(zipped: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = torch_tensors()
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    opened = open_checkpoint(tmp_path / "m.pt")
    assert opened.container == ("zip" if zipped else "legacy")
    assert_same_tensors(opened, state)
    assert opened["tied"].same_data(opened["base"])
    assert not opened["transposed"].same_data(opened["base"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_protocols(zipped: bool, protocol: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = torch.nn.Linear(3, 2).state_dict()
    path = tmp_path / "m.pt"
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert_same_tensors(open_checkpoint(path), state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module"])
@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoint(zipped: bool, wrapper: str, tmp_path: Path) -> None:
    """A state dict among optimizer and scheduler states, numpy metrics, arguments."""
    torch = pytest.importorskip("torch")
    import argparse
    import collections

    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    arguments = argparse.Namespace(
        path=Path("data"), device=torch.device("cpu"), dtype=torch.float16, seeds={1, 2}, rate=1e-4
    )
    whole = {
        "epoch": 3,
        wrapper: layer.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "loss": torch.tensor(0.25),
        "best": np.float64(0.5),
        "accuracy": np.float32(0.75),
        "random": np.random.default_rng(0).integers(0, 9, 4),
        "history": collections.defaultdict(list, {"loss": [1.0, 2.0]}),
        "frozen": frozenset([1]),
        "shape": torch.Size([2, 3]),
        "args": arguments,
        "big": 2**70,
        "name": "r\u00e9sum\u00e9",
    }
    torch.save(whole, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    opened = open_checkpoint(tmp_path / "m.pt")
    assert opened.wrapper == wrapper
    assert_same_tensors(opened, dict(layer.state_dict()))


def test_parameters_and_prefixes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    names = [f"bert.layer.{i}.weight" for i in range(19)]
    state = {f"module.model.{name}": torch.nn.Parameter(torch.randn(2)) for name in names}
    state["loss.weight"] = torch.ones(1)
    torch.save(state, tmp_path / "m.pt")
    opened = open_checkpoint(tmp_path / "m.pt")
    assert opened.prefix == "module.model."
    assert set(opened) == {*names, "loss.weight"}
    assert opened[names[0]].name == names[0]


def test_a_rare_prefix_stays(tmp_path: Path) -> None:
    body = dictionary({"student.a": tensor(), "teacher.a": tensor()})
    assert set(open_checkpoint(write_zip(tmp_path / "m.pt", body))) == {"student.a", "teacher.a"}


def test_layer_norm_names(tmp_path: Path) -> None:
    old = ("x.LayerNorm.gamma", "x.LayerNorm.beta", "query.gamma_w", "y.gamma")
    opened = open_checkpoint(write_zip(tmp_path / "m.pt", dictionary({n: tensor() for n in old})))
    assert set(opened) == {"x.LayerNorm.weight", "x.LayerNorm.bias", "query.gamma_w", "y.gamma"}


def test_names_that_collide(tmp_path: Path) -> None:
    body = dictionary({"LayerNorm.gamma": tensor(), "LayerNorm.weight": tensor()})
    assert_refused(write_zip(tmp_path / "m.pt", body), CheckpointError, "LayerNorm.weight")


def test_read_notices_a_file_that_shrank(tmp_path: Path) -> None:
    opened = open_checkpoint(write_safetensors(tmp_path / "m"))
    (tmp_path / "m").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"b\.bias.*expected 4 elements"):
        opened["b.bias"].read()
    (tmp_path / "m").unlink()
    with pytest.raises(CheckpointError, match=r"b\.bias.*cannot be read"):
        opened["b.bias"].read()


# Hugging Face directories


def tiny_bert() -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch").manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    return transformers.BertForMaskedLM(config)


@pytest.mark.parametrize("shard_size", ["1GB", "8KB"])
def test_save_pretrained(shard_size: str, tmp_path: Path) -> None:
    model = tiny_bert()
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    opened = open_checkpoint(tmp_path)
    assert opened.container == "safetensors"
    assert (len(opened.files) > 1) == (shard_size == "8KB")
    assert opened.config is not None
    assert opened.config["hidden_size"] == 16
    assert opened.tokenizer_config == {"do_lower_case": True}
    assert opened.vocab_path == tmp_path / "vocab.txt"
    state = model.state_dict()
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert set(state) - set(opened) <= tied
    assert_same_tensors(opened, {name: state[name] for name in opened})


def test_torch_shards(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = tiny_bert().state_dict()
    weight_map = {name: f"pytorch_model-{len(name) % 3}.bin" for name in state}
    for shard in set(weight_map.values()):
        part = {name: state[name] for name in state if weight_map[name] == shard}
        torch.save(part, tmp_path / shard)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for path in (tmp_path, index):
        assert_same_tensors(open_checkpoint(path), dict(state))


def test_single_file_of_a_directory(tmp_path: Path) -> None:
    write_zip(tmp_path / "epoch3.pt")
    write_zip(tmp_path / "optimizer.pt")
    assert open_checkpoint(tmp_path).files == (tmp_path / "epoch3.pt",)
    write_zip(tmp_path / "epoch4.pt")
    assert_refused(tmp_path, CheckpointError, "epoch3.pt, epoch4.pt")


def test_directory_without_a_checkpoint(tmp_path: Path) -> None:
    assert_refused(tmp_path, MissingError, "model.safetensors")


@pytest.mark.parametrize(
    ("weight_map", "error", "fragment"),
    [
        ({"a.weight": "../m.bin"}, CheckpointError, "../m.bin"),
        ({"a.weight": ".."}, MissingError, ".."),
        ({"a.weight": "gone.bin"}, MissingError, "gone.bin"),
        ({"a.weight": 7}, CheckpointError, "found int"),
        ({"c.weight": "m.bin"}, MissingError, "'c.weight'"),
        ({"a.weight": "index.json"}, CheckpointError, "a text file"),
        ({}, CheckpointError, "weight_map"),
    ],
)
def test_bad_index(
    weight_map: object, error: type[ConversionError], fragment: str, tmp_path: Path
) -> None:
    write_zip(tmp_path / "m.bin")
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(error, match=r"index\.json") as caught:
        open_checkpoint(tmp_path / "index.json")
    assert fragment in str(caught.value)


def test_the_trained_one_bit_model() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no checkpoint at {REAL}")
    opened = open_checkpoint(REAL)
    assert opened.container == "zip"
    assert opened.config is not None
    assert opened["bert.embeddings.word_embeddings.weight"].shape == (16384, 512)
    torch = pytest.importorskip("torch")
    expected = torch.load(REAL / "pytorch_model.bin", weights_only=True, map_location="cpu")
    assert_same_tensors(opened, expected)


# The stack machine against Python's own, on pickles without tensors

PLAIN = {
    "numbers": [0, 1, -1, 255, 256, -(2**31), 2**31, 2**100, 0.5, -0.0, 1e300, True, False, None],
    "text": ["", "a", "r\u00e9sum\u00e9\n", "x" * 300, "\u20ac" * 300],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((), ((),))],
    "lists": [[], [1], list(range(1001))],
    "dicts": {"a": {"b": {}}, "c": {str(n): n for n in range(1001)}},
}


def load(data: bytes) -> object:
    return unpickler.Unpickler(io.BytesIO(data), Path("m.pt")).load()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", PLAIN)
def test_plain_values_as_python_reads_them(kind: str, protocol: int) -> None:
    data = pickle.dumps([PLAIN[kind], PLAIN[kind]], protocol)
    loaded = load(data)
    assert loaded == pickle.loads(data)
    assert repr(loaded) == repr(pickle.loads(data))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes_as_python_reads_them(protocol: int) -> None:
    value = [b"", b"\x00\xff", b"x" * 300]
    assert load(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    "body",
    [
        b"K\x012\x86",
        b"K\x01(K\x02K\x031",
        b"K\x01(0",
        b"K\x01K\x020",
        b"(K\x01K\x02l",
        b"(X\x01\x00\x00\x00aK\x02d",
        b"U\x02ab",
        b"T\x02\x00\x00\x00ab",
    ],
)
def test_rare_opcodes_as_python_reads_them(body: bytes) -> None:
    assert load(pickled(body)) == pickle.loads(pickled(body))


def test_only_text_keys_are_kept() -> None:
    assert load(pickle.dumps({"a": 1, 2: 3, (4,): 5, None: 6, b"b": 7})) == {"a": 1}


def test_ordered_dict_of_python_2() -> None:
    pairs = plain([["a", 1], ("b", 2)])
    assert load(pickled(b"ccollections\nOrderedDict\n(" + pairs + b"tR")) == {"a": 1, "b": 2}


# Pickles that want to run code


class Runs:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


MARKER = "code-has-run"
SYSTEM = f"touch {MARKER}"
PYTHON = f"open({MARKER!r}, 'w')"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


RUNNING = {
    "reduce os.system": plain(Runs(os.system, SYSTEM)),
    "reduce eval": plain(Runs(builtins.eval, PYTHON)),
    "reduce getattr": plain(Runs(getattr, "text", "upper")),
    "newobj Popen": b"csubprocess\nPopen\n" + plain((["touch", MARKER],)) + b"\x81",
    "newobj_ex Popen": b"csubprocess\nPopen\n" + plain((["touch", MARKER],)) + b"}\x92",
    "inst": b"(" + text(SYSTEM) + b"ios\nsystem\n",
    "obj": b"(cos\nsystem\n" + text(SYSTEM) + b"o",
    "stack_global": text("os") + text("system") + b"\x93" + plain((SYSTEM,)) + b"R",
    "stack_global dotted": text("builtins")
    + text("eval.__call__")
    + b"\x93"
    + plain((PYTHON,))
    + b"R",
    "extension registry": b"\x82\x01" + plain((SYSTEM,)) + b"R",
    "torch.load": b"ctorch\nload\n" + plain((MARKER,)) + b"R",
    "allowed module, other name": b"ccollections\n_sys.exit\n" + plain((1,)) + b"R",
    "numpy's own runner": b"cnumpy.testing._private.utils\nrunstring\n"
    + plain((PYTHON, {}))
    + b"R",
    "call of a tensor": tensor() + plain((1,)) + b"R",
    "call of a storage class": b"ctorch\nFloatStorage\n" + plain((5,)) + b"R",
    "call of text": text("os.system") + plain((SYSTEM,)) + b"R",
    "build on a class": b"ctorch\nFloatStorage\n" + plain({"dtype": "x"}) + b"b",
    "build on a function": b"ctorch._utils\n_rebuild_tensor_v2\n" + plain({"__code__": 1}) + b"b",
    "build on a tensor": tensor() + plain({"__class__": 1}) + b"b",
    "persistent module": plain(("module", "os", SYSTEM)) + b"Q",
    "text persistent id": b"Pos.system\n",
    "bytearray buffer": b"\x96" + (1).to_bytes(8, "little") + b"x",
}


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("attack", RUNNING)
def test_code_is_refused(
    attack: str, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body = dictionary({"a.weight": tensor(), "x": RUNNING[attack], "b.bias": tensor("1", count=4)})
    path = tmp_path / "m.pt"
    write_zip(path, body) if container == "zip" else write_legacy(path, body)
    assert_refused(path, UnsafePickleError, "refused", "nothing was run")
    assert not Path(MARKER).exists()


@pytest.mark.parametrize(
    "attack", ["reduce os.system", "reduce eval", "inst", "obj", "stack_global"]
)
def test_the_attacks_are_real(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own unpickler does run them."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickled(RUNNING[attack]))
    assert Path(MARKER).exists()


def test_code_in_any_pickle_of_a_legacy_file(tmp_path: Path) -> None:
    runs = pickled(RUNNING["reduce os.system"])
    whole = write_legacy(tmp_path / "m.pt").read_bytes()
    starts = [0, *(whole.index(pickled(p)) for p in (plain(1001), STATE, plain(["0", "1"])))]
    for start in starts:
        (tmp_path / "m.pt").write_bytes(whole[:start] + runs + whole[start:])
        assert_refused(tmp_path / "m.pt", UnsafePickleError, "system")


def test_a_whole_model_gets_a_hint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    assert_refused(tmp_path / "m.pt", UnsafePickleError, "torch.nn", "save model.state_dict()")


# Files that are damaged, inconsistent, or something else

MALFORMED_PICKLES = {
    "storage of another size": (tensor(count=7), "expected 28 bytes (7 float32), found 24"),
    "storage of a huge size": (tensor(count=2**62), "found 24"),
    "negative size": (tensor(count=-1), "element count"),
    "unknown storage": (tensor("9"), "storage '9' is not in the zip"),
    "view past the end": (tensor(offset=1), "does not fit its storage"),
    "strides past the end": (tensor(strides=(4, 1)), "does not fit its storage"),
    "negative stride": (tensor(strides=(-3, 1)), "not sizes"),
    "negative offset": (tensor(offset=-1), "not sizes"),
    "boolean offset": (tensor(offset=False), "not sizes"),
    "shape of text": (tensor(shape="ab"), "not sizes"),
    "shape and strides differ": (tensor(strides=(1,)), "strides [1]"),
    "too many dimensions": (tensor(shape=(1,) * 9, strides=(1,) * 9), "not sizes"),
    "repeated without end": (tensor(shape=(2**20, 2**10), strides=(0, 0)), "does not fit"),
    "too many elements": (tensor(shape=(0, 2**40), strides=(0, 0)), "more than"),
    "integer of many bits": (plain(2**200), "201 bits"),
    "append to a tensor": (tensor() + plain(1) + b"a", "appends"),
    "items of a tensor": (tensor() + plain(1) + plain(1) + b"s", "sets items"),
    "memo entry missing": (b"h\x63", "memo entry 99"),
    "odd items": (b"}(" + plain("a") + b"u", "without a value"),
    "items without a mark": (b"}u", "a mark is missing"),
    "empty stack": (b"00000000", "empty stack"),
    "unknown opcode": (b"\xff", "not a valid pickle"),
    "parameter of nothing": (b"ctorch._utils\n_rebuild_parameter\n)R", "parameter"),
    "tensor of nothing": (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "without a storage"),
    "size of text": (b"ctorch\nSize\n" + plain(("ab",)) + b"R", "torch.Size"),
    "global named by numbers": (plain(1) + plain(2) + b"\x93", "whose name is not text"),
    "call with a list": (b"ctorch\nSize\n]R", "list for arguments"),
    "persistent id of a number": (plain(7) + b"Q", "persistent id"),
    "storage without a class": (plain(("storage", "x", "0", "cpu", 6)) + b"Q", "without a class"),
    "storage of four": (plain(("storage", "x", "0", "cpu")) + b"Q", "unsupported kind"),
    "additions to a dictionary": (b"}(\x90", "not a set"),
    "ordered dict of ordered dicts": (b"ccollections\nOrderedDict\n(}tR", "OrderedDict"),
    "ordered dict of numbers": (b"ccollections\nOrderedDict\n(](K\x01etR", "pairs"),
}


@pytest.mark.parametrize("case", MALFORMED_PICKLES)
def test_malformed_pickle(case: str, tmp_path: Path) -> None:
    body, fragment = MALFORMED_PICKLES[case]
    sound = dictionary({"b.bias": tensor("1", count=4, shape=(4,), strides=(1,))})
    path = write_zip(tmp_path / "m.pt", body + b"0" + sound)
    assert_refused(path, CheckpointError, fragment)


def test_one_storage_of_two_types(tmp_path: Path) -> None:
    body = dictionary({"x": tensor(), "y": tensor(storage="torch\nIntStorage")})
    assert_refused(write_zip(tmp_path / "m.pt", body), CheckpointError, "6 int32 here")


PAIRS = b"](" + plain((1, 2)) * 3000 + b"eq\x00"
BOMBS = {
    "opcodes": b"N0" * 6000,
    "copies": PAIRS + b"0ccollections\nOrderedDict\n(h\x00tR" * 9,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_work_is_bounded(bomb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "m.pt", BOMBS[bomb] + STATE)
    assert len(open_checkpoint(path)) == 2
    monkeypatch.setattr(unpickler, "MAX_STEPS", 16_000 if bomb == "copies" else 10_000)
    assert_refused(path, CheckpointError, "steps")


@pytest.mark.parametrize(
    "nest",
    [b"(" * 100_000, b"]" + b"\x85" * 100_000, b"]" * 100_000 + b"a" * 99_999],
    ids=["marks", "tuples", "lists"],
)
def test_deep_nesting(nest: bytes, tmp_path: Path) -> None:
    as_key = b"}" + nest + b"Ns"
    for body in (nest, as_key, nest + b"Q", nest + b")R", nest + b"b"):
        with pytest.raises(ConversionError):
            open_checkpoint(write_zip(tmp_path / "m.pt", body))


def test_memo_index_is_not_a_size(tmp_path: Path) -> None:
    body = STATE + b"r\xff\xff\xff\xff"
    assert len(open_checkpoint(write_zip(tmp_path / "m.pt", body))) == 2


def test_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    assert_refused(path, CheckpointError, "no data.pkl")


def test_torchscript(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pt", extra={"archive/constants.pkl": b""})
    assert_refused(path, CheckpointError, "TorchScript")


def test_big_endian(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pt", extra={"archive/byteorder": b"big"})
    assert_refused(path, CheckpointError, "byte order", "big")
    path = write_legacy(tmp_path / "m.pt", little=False)
    assert_refused(path, CheckpointError, "byte order")


def test_compressed_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_zip(tmp_path / "m.pt")) as plainly:
        entries = {name: plainly.read(name) for name in plainly.namelist()}
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data * 50 if "/data/" in name else data)
    assert_refused(tmp_path / "m.pt", CheckpointError, "compressed")


def test_zip_with_an_entry_twice(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pt")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", A.tobytes())
    assert_refused(path, CheckpointError, "archive/data/0")


def test_zip_entry_beyond_the_file(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pt")
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[entry + 20 : entry + 28] = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(data)
    assert_refused(path, CheckpointError, "of a file of")


def test_zip_entry_elsewhere(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pt")
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"PK\x03\x04", b"PK\x03\x00").replace(b"PK\x03\x00", b"PK\x03\x04", 1)
    )
    assert_refused(path, CheckpointError, "'archive/byteorder' is not where the table says")


def test_zip_with_a_huge_byte_order(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.pt", extra={"archive/byteorder": b"little" * 9})
    assert_refused(path, CheckpointError, "expected at most 16 bytes, found 54")


def test_zip_of_torch_before_2(tmp_path: Path) -> None:
    """Older files do not state the byte order."""
    path = write_zip(tmp_path / "m.pt")
    data = path.read_bytes().replace(b"archive/byteorder", b"archive/unrelated")
    path.write_bytes(data)
    assert open_checkpoint(path)["a.weight"].read().tobytes() == A.tobytes()


def test_legacy_storage_of_another_size(tmp_path: Path) -> None:
    path = write_legacy(tmp_path / "m.pt")
    data = path.read_bytes().replace((6).to_bytes(8, "little"), (7).to_bytes(8, "little"))
    path.write_bytes(data)
    assert_refused(path, CheckpointError, "storage '0': expected 6 elements, found 7")


@pytest.mark.parametrize(
    ("keys", "fragment"),
    [
        (("0",), "storage '1' is not in the file"),
        (("0", "0"), "storage '0' is listed twice"),
        (("0", "7"), "storage '7' is listed twice or used by no tensor"),
        ((0, 1), "not a list of names"),
        ("01", "not a list of names"),
    ],
)
def test_legacy_storage_names(keys: object, fragment: str, tmp_path: Path) -> None:
    assert_refused(write_legacy(tmp_path / "m.pt", keys=keys), CheckpointError, fragment)


def test_legacy_protocol(tmp_path: Path) -> None:
    assert_refused(write_legacy(tmp_path / "m.pt", protocol=1000), CheckpointError, "1001")


def test_plain_pickle(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(pickle.dumps({"a": [1, 2]}))
    assert_refused(tmp_path / "m.pt", CheckpointError, "not one that torch.save wrote")


@pytest.mark.parametrize(
    ("body", "fragment"),
    [
        (plain({"epoch": 3, "lr": 0.5}), "keys epoch, lr"),
        (plain([1, 2]), "found list"),
        (plain({}), "(none)"),
        (dictionary({"model": STATE, "module": STATE}), "several models: model, module"),
    ],
)
def test_no_single_state_dict(body: bytes, fragment: str, tmp_path: Path) -> None:
    assert_refused(write_zip(tmp_path / "m.pt", body), CheckpointError, fragment)


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "a text file beginning '<!DOCTYPE"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"name".ljust(257, b"\0") + b"ustar", "tar"),
        (b"{" + b" " * 2**24 + b"}", "JSON of more than"),
        (b"\x02" + bytes(7) + b"{}", "holds no tensors"),
        (b"\x00\x01\x02\xff", "00 01 02 ff"),
        (b"{broken", "not valid JSON"),
        (b'{"model_type": "bert"}', "no weight_map"),
        (b"PK\x03\x04 and then nothing", "damaged or truncated zip"),
    ],
)
def test_something_else(data: bytes, fragment: str, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(data)
    assert_refused(tmp_path / "m.pt", CheckpointError, fragment)


def test_no_such_file(tmp_path: Path) -> None:
    assert_refused(tmp_path / "gone.pt", CheckpointError, "No such file")


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b'{"a": 1, "a": 2}', b"[" * 10**5])
def test_bad_config(content: bytes, tmp_path: Path) -> None:
    write_zip(tmp_path / "m.pt")
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path / "m.pt")


def entry(
    dtype: object = "F32", shape: object = (2, 3), offsets: object = (0, 24)
) -> dict[str, object]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


SAFETENSORS_HEADERS = {
    "dtype unknown": (entry("F7"), "found F7"),
    "dtype a number": (entry(7), "found int"),
    "bytes missing": (entry(shape=[2, 4]), "needs 32 bytes, found 24"),
    "hole in front": (entry(offsets=[4, 28]), "begin at byte 0, found 4"),
    "file too short": (entry(shape=[7], offsets=[0, 28]), "bytes, found"),
    "trailing bytes": (entry(shape=[5], offsets=[0, 20]), "bytes, found"),
    "negative shape": (entry(shape=[-2, -3]), "not sizes"),
    "boolean shape": (entry(shape=[True, 6]), "not sizes"),
    "shape a number": (entry(shape=6), "not sizes"),
    "three offsets": (entry(offsets=[0, 24, 24]), "not sizes"),
    "huge shape": (entry(shape=[0, 2**40], offsets=[0, 0]), "too large"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 24]}}, "expected dtype, shape"),
    "not an object": ({"a": 3}, "expected dtype, shape"),
    "dtype nested": (entry([[[]]]), "found list"),
    "no tensors": ({}, "bytes, found"),
    "overlap": ({**entry(), "b": entry()["a"]}, "begin at byte 24, found 0"),
    "twice": (b'{"a": 1, "a": 2}', "twice"),
    "not JSON": (b"{]", "not valid JSON"),
    "not text": (b'{"\xff": 1}', "not valid JSON"),
    "deep": (b'{"a":' * 10**5, "not valid JSON"),
    "long number": (b'{"a":' + b"9" * 10**5 + b"}", "not valid JSON"),
}


@pytest.mark.parametrize("case", SAFETENSORS_HEADERS)
def test_malformed_safetensors(case: str, tmp_path: Path) -> None:
    header, fragment = SAFETENSORS_HEADERS[case]
    path = write_safetensors(tmp_path / "m", header, A.tobytes())
    assert_refused(path, CheckpointError, fragment)
    safetensors = pytest.importorskip("safetensors")
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(path, "np")


def test_safetensors_header_longer_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes((1000).to_bytes(8, "little") + b"{}")
    assert_refused(path, CheckpointError, "header of 1000 bytes")


def test_names_from_a_file_stay_on_one_line(tmp_path: Path) -> None:
    header = {"a\nb\x1b[31m\u202e": {"dtype": "F7", "shape": [], "data_offsets": [0, 0]}}
    assert_refused(
        write_safetensors(tmp_path / "m", header), CheckpointError, r"a\nb\x1b[31m\u202e"
    )


def test_long_names_are_cut(tmp_path: Path) -> None:
    header = {"a" * 10_000: {"dtype": "F7", "shape": [], "data_offsets": [0, 0]}}
    with pytest.raises(CheckpointError, match=r"aaa\.\.\.$") as caught:
        open_checkpoint(write_safetensors(tmp_path / "m", header))
    assert len(str(caught.value)) <= 600


# Random damage

MUTANTS = int(os.environ.get("BITM_FUZZ_MUTANTS", "1500"))


def mutate(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(damaged[: rng.randrange(len(damaged))])
    if kind == 1:
        begin = rng.randrange(len(damaged))
        del damaged[begin : begin + rng.randrange(1, 9)]
        return bytes(damaged)
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(damaged))
        if kind == 2:
            damaged[place] = rng.randrange(256)
        else:
            damaged[place] ^= 1 << rng.randrange(8)
    return bytes(damaged)


@pytest.mark.parametrize("container", WRITERS)
def test_damage_gives_only_our_errors(container: str, tmp_path: Path) -> None:
    rng = random.Random(20240607)
    path = tmp_path / "m"
    whole = WRITERS[container](path).read_bytes()
    refused: list[str] = []
    for _ in range(MUTANTS):
        path.write_bytes(mutate(whole, rng))
        try:
            for lazy in open_checkpoint(path).values():
                assert lazy.read().shape == lazy.shape
        except ConversionError as error:
            refused.append(str(error))
    assert len(refused) > MUTANTS // 4
    assert all(message.isprintable() for message in refused)


def test_random_pickles_give_only_our_errors(tmp_path: Path) -> None:
    """Sequences of real opcodes, which random bytes hardly ever are."""
    rng = random.Random(7)
    pieces = [bytes([c]) for c in b"(0N)]}tldaseubR\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x94Q2"]
    pieces += [b"q\x00", b"h\x00", b"K\x03", plain("storage"), plain("0"), tensor(), STATE]
    pieces += [b"ctorch\nFloatStorage\n", b"ctorch\nSize\n", b"cargparse\nNamespace\n"]
    pieces += [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"]
    refused: list[str] = []
    for _ in range(MUTANTS):
        body = b"".join(rng.choices(pieces, k=rng.randrange(1, 25)))
        machine = unpickler.Unpickler(io.BytesIO(pickled(body)), tmp_path / "m.pt")
        try:
            machine.load()
        except ConversionError as error:
            refused.append(str(error))
    assert 0 < len(refused) < MUTANTS
    assert all("m.pt" in message for message in refused)


FUZZ_CORPUS = Path(__file__).parent / "fuzz/corpus"


def test_what_fuzzing_has_found_gives_only_our_errors(tmp_path: Path) -> None:
    """Inputs of fuzz/fuzz_unpickler.py: as a pickle alone, and as a file."""
    inputs = [*FUZZ_CORPUS.glob("pickles/*"), *FUZZ_CORPUS.glob("found/pickles/*")]
    assert len(inputs) > 50
    for path in inputs:
        with contextlib.suppress(ConversionError):
            unpickler.Unpickler(io.BytesIO(path.read_bytes()), tmp_path / "m.pt").load()
        with contextlib.suppress(ConversionError):
            for lazy in open_checkpoint(path).values():
                assert lazy.read().shape == lazy.shape
