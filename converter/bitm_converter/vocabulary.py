"""The tokens of a checkpoint and how text is cut into them, read as by transformers' BertTokenizer.

Tokens come from vocab.txt (one a line) or from the WordPiece model of a tokenizer.json; whether
text is lowercased and which tokens are special from tokenizer_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitm_formats import Config, Tokenizer, TokenizerFlag

from .checkpoint import read_json
from .errors import VocabularyError

_MAX_WORD_CHARS = 100
_MAX_TOKEN_BYTES = 1024  # SPEC.md, section 3.5
_SPECIAL_TOKENS = {
    "unk_id": ("unk_token", "[UNK]"),
    "cls_id": ("cls_token", "[CLS]"),
    "sep_id": ("sep_token", "[SEP]"),
    "pad_id": ("pad_token", "[PAD]"),
    "mask_id": ("mask_token", "[MASK]"),
}
_WORDPIECE_CLASSES = (
    "BertTokenizer",
    "BertTokenizerFast",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, how text is prepared, and the ids of the special tokens (-1: absent)."""

    path: Path
    tokens: list[str]
    lowercase: bool
    strip_accents: bool
    split_cjk: bool
    max_word_chars: int
    special_ids: dict[str, int]
    notes: list[str] = field(default_factory=list)

    def config_fields(self) -> dict[str, int]:
        """The fields of the format's configuration that describe the tokenizer."""
        flags = TokenizerFlag(0)
        if self.lowercase:
            flags |= TokenizerFlag.LOWERCASE
        if self.strip_accents:
            flags |= TokenizerFlag.STRIP_ACCENTS
        if self.split_cjk:
            flags |= TokenizerFlag.SPLIT_CJK
        return {
            "tokenizer": Tokenizer.WORDPIECE,
            "tokenizer_flags": int(flags),
            "max_word_chars": self.max_word_chars,
            **self.special_ids,
        }


def read_vocabulary(
    path: Path, settings: Mapping[str, Any], lowercase: bool | None, config: Config
) -> Vocabulary:
    """Reads a vocab.txt or a tokenizer.json (by its suffix).

    `settings` are those of tokenizer_config.json; `lowercase` overrides them. Raises
    VocabularyError if the file is not a vocabulary, has no unknown token or more tokens than the
    model has embeddings.
    """
    if path.suffix == ".json":
        tokenizer = read_json(path)
        tokens = _tokens_of_json(path, tokenizer, config.vocab_size)
        settings = {**_settings_of_json(path, tokenizer), **_stated(settings)}
    else:
        tokens = _tokens_of_text(path)
    _check_tokens(path, tokens, config.vocab_size)
    notes = []
    tokenizer_class = settings.get("tokenizer_class")
    if tokenizer_class not in (None, *_WORDPIECE_CLASSES):
        notes.append(
            f"tokenizer_class is {tokenizer_class}: text will be cut as BertTokenizer does it"
        )
    stated = settings.get("do_lower_case")
    if lowercase is None:
        lowercase = True if stated is None else bool(stated)
        if stated is None and (n_cased := _count_cased(tokens)):
            notes.append(
                f"text will be lowercased, as transformers does unless told otherwise, but "
                f"{n_cased} tokens have upper-case letters: --cased keeps case"
            )
    accents = settings.get("strip_accents")
    cjk = settings.get("tokenize_chinese_chars")
    return Vocabulary(
        path=path,
        tokens=tokens,
        lowercase=lowercase,
        strip_accents=lowercase if accents is None else bool(accents),
        split_cjk=True if cjk is None else bool(cjk),
        max_word_chars=settings.get("max_word_chars", _MAX_WORD_CHARS),
        special_ids=_special_ids(path, tokens, settings),
        notes=notes,
    )


def _stated(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _tokens_of_text(path: Path) -> list[str]:
    """One token a line; only the line's end is cut off, as a token may be any other character."""
    try:
        with path.open(encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file]
    except UnicodeDecodeError as error:
        raise VocabularyError(path, f"is not a text file in UTF-8: {error}") from None


def _tokens_of_json(path: Path, tokenizer: dict[str, Any], vocab_size: int) -> list[str]:
    model = tokenizer.get("model")
    kind = model.get("type", "WordPiece") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "WordPiece":
        raise VocabularyError(path, f"expected a WordPiece model, found {kind}")
    prefix = model.get("continuing_subword_prefix", "##")
    if prefix != "##":
        raise VocabularyError(path, f"continuing_subword_prefix: expected '##', found {prefix!r}")
    ids = model.get("vocab")
    if not isinstance(ids, dict) or not ids:
        raise VocabularyError(path, "expected a vocabulary of tokens and ids")
    by_id: dict[int, str] = {}
    for token, n in [*ids.items(), *_added_tokens(path, tokenizer)]:
        if type(n) is not int or not 0 <= n < vocab_size:
            problem = f"token {token!r}: id: expected 0 to {vocab_size - 1}, found {n!r}"
            raise VocabularyError(path, problem)
        if by_id.setdefault(n, token) != token:
            raise VocabularyError(path, f"token {token!r}: id {n} is that of {by_id[n]!r}")
    return [by_id.get(n, "") for n in range(1 + max(by_id))]


def _added_tokens(path: Path, tokenizer: dict[str, Any]) -> list[tuple[str, Any]]:
    added = tokenizer.get("added_tokens") or []
    try:
        return [(str(entry["content"]), entry["id"]) for entry in added]
    except (TypeError, KeyError):
        raise VocabularyError(path, "added_tokens: expected entries of content and id") from None


def _settings_of_json(path: Path, tokenizer: dict[str, Any]) -> dict[str, Any]:
    """What a tokenizer.json says, under the names of tokenizer_config.json."""
    for part, expected in (("normalizer", "BertNormalizer"), ("pre_tokenizer", "BertPreTokenizer")):
        value = tokenizer.get(part)
        found = value.get("type") if isinstance(value, dict) else None
        if found != expected:
            problem = f"{part}: expected {expected}, found {found}; --no-vocab leaves text out"
            raise VocabularyError(path, problem)
    normalizer, model = tokenizer["normalizer"], tokenizer["model"]
    return {
        "do_lower_case": normalizer.get("lowercase"),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars"),
        "unk_token": model.get("unk_token"),
        "max_word_chars": model.get("max_input_chars_per_word", _MAX_WORD_CHARS),
    }


def _check_tokens(path: Path, tokens: list[str], vocab_size: int) -> None:
    if not tokens:
        raise VocabularyError(path, "is empty")
    if len(tokens) > vocab_size:
        problem = f"expected at most {vocab_size} tokens, one an embedding, found {len(tokens)}"
        raise VocabularyError(path, problem)
    for n, token in enumerate(tokens):
        if len(token.encode("utf-8", "surrogatepass")) > _MAX_TOKEN_BYTES:
            problem = f"token {n} is longer than {_MAX_TOKEN_BYTES} bytes: {token[:20]!r}..."
            raise VocabularyError(path, problem)
        if any("\ud800" <= character <= "\udfff" for character in token):
            raise VocabularyError(path, f"token {n} is not Unicode text: {token!r}")


def _special_ids(path: Path, tokens: list[str], settings: Mapping[str, Any]) -> dict[str, int]:
    """The ids of the special tokens; of equal tokens the last one counts."""
    ids = {token: n for n, token in enumerate(tokens)}
    special: dict[str, int] = {}
    for name, (key, default) in _SPECIAL_TOKENS.items():
        token = settings.get(key) or default
        if isinstance(token, dict):  # as AddedToken is saved
            token = token.get("content")
        special[name] = ids.get(token, -1) if isinstance(token, str) else -1
        if name == "unk_id" and special[name] < 0:
            raise VocabularyError(path, f"has no unknown token, expected {token!r}")
    return special


def _count_cased(tokens: list[str]) -> int:
    """Tokens that lowercased text cannot have; those in brackets are special or unused."""
    return sum(token != token.lower() and not token.startswith("[") for token in tokens)
