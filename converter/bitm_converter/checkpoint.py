"""Opens checkpoints as PyTorch and Hugging Face write them: a file, a shard index, a directory.

The names that come out are those of a plain BERT, whatever training script wrote the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .containers import (
    MAX_JSON_BYTES,
    Container,
    Contents,
    LazyTensor,
    is_safetensors,
    parse_json,
    read_container,
)
from .errors import CheckpointError, MissingError

__all__ = ["Checkpoint", "LazyTensor", "open_checkpoint", "read_json"]


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, LazyTensor]):
    """The tensors of a checkpoint by name, and what lies beside it.

    `files` are the data files, `wrapper` the key of the dictionary that the state dict was taken
    from, `prefix` what was stripped from the names. `config` and `tokenizer_config` are the parsed
    JSON files of these names, `vocab_path` is vocab.txt, `tokenizer_path` is tokenizer.json, each
    None where there is no such file.
    """

    tensors: Mapping[str, LazyTensor]
    path: Path
    files: tuple[Path, ...]
    container: Container
    wrapper: str | None
    prefix: str
    config: dict[str, Any] | None
    tokenizer_config: dict[str, Any] | None
    vocab_path: Path | None
    tokenizer_path: Path | None

    def __getitem__(self, name: str) -> LazyTensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint file, a shard index, or a directory in Hugging Face layout.

    Names are given as in a plain BERT: wrapper dictionaries are unwrapped, prefixes such as
    `module.` stripped, the old `LayerNorm.gamma/beta` renamed. Raises CheckpointError for anything
    that is not a sound checkpoint (UnsafePickleError for a pickle that wants more than tensors) and
    MissingError for a directory without a checkpoint or an index without its shards or tensors.
    """
    path = Path(path)
    directory = path if path.is_dir() else path.parent
    try:
        contents = _read_file(_find_model_file(path) if path.is_dir() else path)
        tensors, prefix = _plain_names(path, contents.tensors)
        return Checkpoint(
            tensors=tensors,
            path=path,
            files=contents.files,
            container=contents.container,
            wrapper=contents.wrapper,
            prefix=prefix,
            config=_read_json_beside(directory, "config.json"),
            tokenizer_config=_read_json_beside(directory, "tokenizer_config.json"),
            vocab_path=_if_file(directory / "vocab.txt"),
            tokenizer_path=_if_file(directory / "tokenizer.json"),
        )
    except OSError as error:
        where = Path(error.filename) if error.filename else path
        raise CheckpointError(where, f"cannot be read: {error.strerror or error}") from None


# Directories and shards

_MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_MODEL_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_TRAINER_FILES = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")


def _find_model_file(directory: Path) -> Path:
    for name in _MODEL_FILES:
        if (directory / name).is_file():
            return directory / name
    candidates = sorted(
        entry
        for entry in directory.iterdir()
        if entry.suffix in _MODEL_SUFFIXES
        and entry.is_file()
        and entry.name not in _TRAINER_FILES
        and not entry.name.startswith("rng_state")
    )
    if not candidates:
        wanted = ", ".join(_MODEL_FILES)
        raise MissingError(directory, f"no checkpoint here: expected {wanted} or one *.pt file")
    if len(candidates) > 1:
        found = ", ".join(entry.name for entry in candidates)
        raise CheckpointError(directory, f"several checkpoints, name one of them: {found}")
    return candidates[0]


def _read_file(path: Path) -> Contents:
    with path.open("rb") as file:
        head = file.read(9)
    is_index = head.startswith(b"{") and not is_safetensors(head)
    return _read_shards(path) if is_index else read_container(path)


def _read_shards(index_path: Path) -> Contents:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(index_path, "is JSON but not a shard index: no weight_map")
    shards: dict[str, Contents] = {}
    tensors: dict[str, LazyTensor] = {}
    for name, shard_name in weight_map.items():
        if not isinstance(shard_name, str) or Path(shard_name).name != shard_name:
            found = shard_name if isinstance(shard_name, str) else type(shard_name).__name__
            problem = f"expected the name of a file beside the index, found {found}"
            raise CheckpointError(index_path, problem, tensor=name)
        if shard_name not in shards:
            shard_path = index_path.parent / shard_name
            if not shard_path.is_file():
                raise MissingError(index_path, f"shard {shard_name} is missing", tensor=name)
            shards[shard_name] = read_container(shard_path)
        shard = shards[shard_name]
        if name not in shard.tensors:
            raise MissingError(index_path, f"not found in shard {shard_name}", tensor=name)
        tensors[name] = shard.tensors[name]
    files = tuple(file for shard in shards.values() for file in shard.files)
    return Contents(tensors, files, next(iter(shards.values())).container)


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _read_json_beside(directory: Path, name: str) -> dict[str, Any] | None:
    path = _if_file(directory / name)
    return None if path is None else read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises CheckpointError, OSError if there is no file."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(path, f"JSON of more than {MAX_JSON_BYTES} bytes")
    return parse_json(path, path.read_bytes())


# Names

_PREFIXES = ("module.", "student.", "model.")


def _plain_names(path: Path, tensors: dict[str, LazyTensor]) -> tuple[dict[str, LazyTensor], str]:
    """Returns the tensors by their names in a plain BERT, and the prefix that this took off.

    A prefix is stripped when at least nine names in ten begin with it, again and again until none
    does: a loss or a head that lives beside the wrapped model then keeps its own name.
    """
    names = {name: name for name in tensors}
    stripped = ""
    while prefix := next((p for p in _PREFIXES if _is_common(p, names.values())), ""):
        stripped += prefix
        names = {old: new[len(prefix) * new.startswith(prefix) :] for old, new in names.items()}
    result: dict[str, LazyTensor] = {}
    for old, new in names.items():
        plain = _current_layer_norm_name(new)
        if plain in result:
            problem = f"two names in the file mean this one, '{old}' is the second"
            raise CheckpointError(path, problem, tensor=plain)
        result[plain] = replace(tensors[old], name=plain)
    return result, stripped


def _is_common(prefix: str, names: Collection[str]) -> bool:
    return 10 * sum(name.startswith(prefix) for name in names) >= 9 * len(names)


def _current_layer_norm_name(name: str) -> str:
    if name.endswith("LayerNorm.gamma"):
        return name[: -len("gamma")] + "weight"
    if name.endswith("LayerNorm.beta"):
        return name[: -len("beta")] + "bias"
    return name
