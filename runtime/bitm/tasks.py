"""What a model says of texts, in the shapes of the transformers pipelines."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Union

import numpy as np
import numpy.typing as npt

from bitm import _answering, _native, _tagging
from bitm._arrays import IntArray, pad, padding_mask
from bitm._native import Floats, Int32s, Library, Spans
from bitm.errors import InputError

Pair = Union[Mapping[str, str], tuple[str, str]]

# Numbers of formats/SPEC.md 3.2.
_CLASSIFIER, _TOKEN_CLASSIFIER, _QUESTION_ANSWERING = 3, 4, 5
_REGRESSION, _SEVERAL_LABELS, _ONE_LOGIT = 1, 3, 4

_FUNCTIONS = ("none", "softmax", "sigmoid")
_POOLINGS = ("mean", "cls", "max")
_MAX_EMBED_FLOATS = 1 << 24  # hidden states held at once, of a text at least


class _Encoded(NamedTuple):
    """Tokens of a text or a pair: ids and types int32 [n], spans [n, 2] in its last text."""

    ids: Int32s
    types: Int32s
    spans: Spans


class Tasks(abc.ABC):
    """The methods of a `Model` that take text to a finished answer."""

    @abc.abstractmethod
    def _use(self) -> AbstractContextManager[Library]:
        """Keeps the library open while it is used."""

    @abc.abstractmethod
    def logits(
        self,
        input_ids: IntArray,
        attention_mask: IntArray | None = None,
        token_type_ids: IntArray | None = None,
        positions: IntArray | None = None,
    ) -> Floats:
        """Returns the logits of the model's head."""

    @abc.abstractmethod
    def hidden_states(
        self,
        input_ids: IntArray,
        attention_mask: IntArray | None = None,
        token_type_ids: IntArray | None = None,
        layer: int = -1,
    ) -> Floats:
        """Returns the hidden states after a layer."""

    # ---- Whole texts ----

    def classify(
        self,
        texts: str | Pair | Sequence[str | Pair],
        top_k: int | str | None = "best",
        function_to_apply: str | None = None,
    ) -> Any:
        """Labels texts, as the transformers text-classification pipeline does.

        Args:
            texts: a text; a pair, {"text", "text_pair"} or a tuple; or a list of these.
            top_k: "best": the best label alone; otherwise a list of so many labels, best first;
                None: of all.
            function_to_apply: what makes scores of logits: "softmax", "sigmoid" or "none".  None:
                what the file says; "sigmoid" for a model of several labels, "none" for regression,
                otherwise "softmax".  Where one logit decides between two labels, it is the second
                label's and the first one's is 0: the softmax of these is the sigmoid of the logit
                and its complement, and label 1 is best when the logit is at least 0.

        Returns:
            {"label", "score"}; a list of one of them for a text alone (so does the pipeline), a
            list for a list.  With top_k, a list of them takes the place of each.

        Raises:
            InputError: the model is no sequence classifier (NO_HEAD) or has no vocabulary
                (NO_VOCABULARY), a text has too many tokens (TOO_LONG), or an argument is wrong.
        """
        if function_to_apply is not None:
            _check_choice("function_to_apply", function_to_apply, _FUNCTIONS)
        n_best = 1 if top_k == "best" else top_k
        if isinstance(n_best, str) or (n_best is not None and n_best < 1):
            raise InputError(f"top_k is {top_k!r}, expected 'best', None or at least 1")
        is_single = isinstance(texts, (str, Mapping, tuple))
        inputs: list[Any] = [texts] if is_single else list(texts)
        with self._use() as library:
            _need_head(library, _CLASSIFIER, "sequence classifier", "classify")
            if not inputs:
                return []
            encoded = [_encode(library, *_text_and_pair(given)) for given in inputs]
            labels, order, scores = self._labels_of(library, encoded, function_to_apply)
        results: list[Any] = []
        for places, row in zip(order.tolist(), scores.tolist()):
            ranked = [{"label": labels[i], "score": row[i]} for i in places[:n_best]]
            results.append(ranked[0] if top_k == "best" else ranked)
        if isinstance(texts, str) and top_k == "best":
            return results
        return results[0] if is_single else results

    def _labels_of(
        self, library: Library, encoded: Sequence[_Encoded], function: str | None
    ) -> tuple[list[str], npt.NDArray[np.intp], Floats]:
        """Returns names [C], and for each text the labels best first and their scores [B, C]."""
        logits = _label_logits(library, self.logits(*_batch(library, encoded)))
        problem = library.properties["problem"]
        if function is None:
            function = {_REGRESSION: "none", _SEVERAL_LABELS: "sigmoid"}.get(problem, "softmax")
        scores = _apply(function, logits)
        order = np.argsort(-scores, axis=1, kind="stable")
        if problem == _ONE_LOGIT:  # scores of small logits are equal
            order = np.where(logits[:, 1:] >= 0, np.array([1, 0]), np.array([0, 1]))
        return _label_names(library, logits.shape[1]), order, scores

    def embed(
        self, texts: str | Sequence[str], pooling: str = "mean", normalize: bool = True
    ) -> Floats:
        """Returns a vector for each text: float32 [N, H] (N is 1 for a text alone).

        Args:
            texts: a text or a list of texts.
            pooling: "mean" of the last hidden states over all tokens, [CLS] and [SEP] included;
                their "max"; or "cls": that of the first token.
            normalize: whether every vector is divided by its Euclidean norm.

        Raises:
            InputError: the model has no vocabulary (NO_VOCABULARY), a text has too many tokens
                (TOO_LONG), or an argument is wrong.
        """
        _check_choice("pooling", pooling, _POOLINGS)
        inputs = [texts] if isinstance(texts, str) else list(texts)
        with self._use() as library:
            hidden_size = library.properties["hidden_size"]
            encoded = [_encode(library, text, None) for text in inputs]
            vectors = np.empty((len(inputs), hidden_size), np.float32)
            for begin, end in _groups([len(text.ids) for text in encoded], hidden_size):
                group = encoded[begin:end]
                states = self.hidden_states(*_batch(library, group))
                for vector, text, of_text in zip(vectors[begin:end], group, states):
                    vector[:] = _pool(of_text[: len(text.ids)], pooling, normalize)
        return vectors

    # ---- Tokens ----

    def tag(
        self,
        text: str | Sequence[str],
        aggregation_strategy: str = "none",
        ignore_labels: Sequence[str] = ("O",),
    ) -> list[Any]:
        """Labels the tokens of a text, as the transformers token-classification pipeline does.

        Args:
            text: a text, or a list of texts.
            aggregation_strategy: "none": each token by itself; "simple": neighbours of one tag are
                one entity; "first", "average", "max": the same, after the tokens of every word have
                settled on one label.
            ignore_labels: labels that are left out.

        Returns:
            {"entity", "score", "index", "word", "start", "end"} for each token, or {"entity_group",
            "score", "word", "start", "end"} for each entity; for a list of texts a list of these
            lists.  start and end count characters of the text.

        Raises:
            InputError: the model is no token classifier (NO_HEAD) or has no vocabulary
                (NO_VOCABULARY), a text has too many tokens (TOO_LONG: nothing is cut off), or an
                argument is wrong.
        """
        _check_choice("aggregation_strategy", aggregation_strategy, _tagging.STRATEGIES)
        texts = [text] if isinstance(text, str) else list(text)
        with self._use() as library:
            _need_head(library, _TOKEN_CLASSIFIER, "token classifier", "tag")
            if not texts:
                return []
            encoded = [_encode(library, each, None) for each in texts]
            logits = _label_logits(library, self.logits(*_batch(library, encoded)))
            scores = _apply("softmax", logits)
            labels = _label_names(library, logits.shape[-1])
            results = [
                _tagging.entities(
                    list(_tokens(library, each, of_text, rows)),
                    labels,
                    aggregation_strategy,
                    ignore_labels,
                )
                for each, of_text, rows in zip(texts, encoded, scores)
            ]
        return results[0] if isinstance(text, str) else results

    def answer(
        self,
        question: str,
        context: str,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Any:
        """Finds the answer to a question in a text, as transformers' question-answering pipeline.

        Args:
            question: the question.
            context: the text that has the answer; a long one is read in windows.
            top_k: how many answers.
            doc_stride: tokens by which windows overlap; None: 128, or half of max_seq_len.
            max_answer_len: tokens of an answer at most.
            max_seq_len: tokens of question and window; None: 384, or what the model takes.
            handle_impossible_answer: whether the empty answer counts.
            align_to_words: whether an answer is widened to whole words.

        Returns:
            {"score", "start", "end", "answer"}, or a list of them, best first, when there are
            several.  start and end count characters of the context.

        Raises:
            InputError: the model has no question-answering head (NO_HEAD) or no vocabulary
                (NO_VOCABULARY), the question leaves no room for the context (TOO_LONG), or an
                argument is wrong.
        """
        for name, number in (("top_k", top_k), ("max_answer_len", max_answer_len)):
            if number < 1:
                raise InputError(f"{name} is {number}, expected at least 1")
        for name, text in (("question", question), ("context", context)):
            if not text:
                raise InputError(f"the {name} is empty")
        with self._use() as library:
            _need_head(library, _QUESTION_ANSWERING, "question-answering head", "answer")
            positions = library.properties["max_positions"]
            length = min(384, positions) if max_seq_len is None else max_seq_len
            stride = min(length // 2, 128) if doc_stride is None else doc_stride
            windows = self._windows(library, question, context, length, stride)
        answers = _answering.find(
            windows, context, top_k, max_answer_len, align_to_words, handle_impossible_answer
        )
        return answers[0] if len(answers) == 1 else answers

    def _windows(
        self, library: Library, question: str, context: str, length: int, stride: int
    ) -> list[_answering.Window]:
        """Runs the model on the question with every window of the context."""
        whole = _encode(library, question, context)
        first = len(library.tokenize(question))
        n_ends = int(library.properties["sep_id"] >= 0)
        n_context = len(whole.ids) - first - n_ends
        room = length - first - n_ends
        if n_context > room:
            if room < 1:
                raise InputError(
                    f"the question has {first} tokens: of {length}, none is left for the context",
                    60,
                    "TOO_LONG",
                )
            if not 0 <= stride < room:
                raise InputError(
                    f"doc_stride is {stride}, expected 0 to {room - 1}: windows have {room} tokens"
                )
        parts = _answering.split(n_context, room, stride)
        places = [
            np.r_[:first, first + begin : first + end, first + n_context : len(whole.ids)]
            for begin, end in parts
        ]
        encoded = [_Encoded(whole.ids[p], whole.types[p], whole.spans[p]) for p in places]
        logits = self.logits(*_batch(library, encoded))
        words = library.spellings(whole.ids)
        continues = np.array([word.startswith("##") for word in words], np.bool_)
        windows = []
        for part, rows, place, (begin, end) in zip(encoded, logits, places, parts):
            of_context = slice(first, first + end - begin)
            windows.append(
                _answering.Window(
                    logits=rows[: len(part.ids)],
                    first=first,
                    spans=part.spans[of_context],
                    continues=continues[place][of_context],
                )
            )
        return windows


# ---- Texts to tokens ----


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def _need_head(library: Library, head: int, name: str, verb: str) -> None:
    if library.properties["head"] != head:
        raise InputError(f"the model has no {name}, so it cannot {verb}", 65, "NO_HEAD")


def _text_and_pair(given: str | Pair) -> tuple[str, str | None]:
    if isinstance(given, str):
        return given, None
    if isinstance(given, tuple) and len(given) == 2:
        return given
    if isinstance(given, Mapping) and "text" in given and set(given) <= {"text", "text_pair"}:
        return given["text"], given.get("text_pair")
    raise InputError(f"expected a text, a tuple of two or {{'text', 'text_pair'}}, found {given!r}")


def _encode(library: Library, text: str, pair: str | None) -> _Encoded:
    """[CLS] text [SEP], or [CLS] text [SEP] pair [SEP] with type 1 from the pair on.

    An empty pair is none, as in transformers.
    """
    ids, spans = library.encode(text)
    types = np.zeros_like(ids)
    if pair:
        n_begins = int(library.properties["cls_id"] >= 0)
        second, second_spans = library.encode(pair)
        ids = np.concatenate([ids, second[n_begins:]])
        spans = np.concatenate([spans, second_spans[n_begins:]])
        type_of_pair = int(library.metadata().get("token_type_ids") != "zero")
        types = np.concatenate([types, np.full(len(second) - n_begins, type_of_pair, np.int32)])
    return _Encoded(ids, types, spans)


def _batch(library: Library, encoded: Sequence[_Encoded]) -> tuple[Int32s, Int32s | None, Int32s]:
    """Returns input_ids, attention_mask and token_type_ids [B, S]."""
    most = library.properties["max_positions"]
    for i, text in enumerate(encoded):
        if len(text.ids) > most:
            name = f"text {i}" if len(encoded) > 1 else "the text"
            raise InputError(
                f"{name} has {len(text.ids)} tokens, but the model has {most} positions",
                60,
                "TOO_LONG",
            )
    ids = [text.ids for text in encoded]
    return pad(ids, 0), padding_mask(ids), pad([text.types for text in encoded], 0)


def _tokens(
    library: Library, text: str, encoded: _Encoded, scores: Floats
) -> Iterator[_tagging.Token]:
    """The tokens of a text without the [CLS] and [SEP] around them."""
    words = library.spellings(encoded.ids)
    begin = int(library.properties["cls_id"] >= 0)
    end = len(encoded.ids) - int(library.properties["sep_id"] >= 0)
    for index in range(begin, end):
        first, last = encoded.spans[index].tolist()
        source = text[first:last]
        is_known = bool(encoded.ids[index] != library.properties["unk_id"])
        yield _tagging.Token(
            word=words[index] if is_known else source,
            scores=scores[index],
            place=index,
            start=first,
            end=last,
            is_subword=is_known and len(words[index]) != len(source),
        )


# ---- Outputs to scores and vectors ----


def _label_names(library: Library, n: int) -> list[str]:
    metadata = library.metadata()
    return [metadata.get(f"label.{i}", f"LABEL_{i}") for i in range(n)]


def _label_logits(library: Library, logits: Floats) -> Floats:
    """Makes two of the one logit [..., 1] that decides: 0 for label 0, the logit for label 1."""
    if library.properties["problem"] != _ONE_LOGIT:
        return logits
    logits = logits[..., :1]
    return np.concatenate([np.zeros_like(logits), logits], axis=-1)


def _apply(function: str, logits: Floats) -> Floats:
    if function == "none":
        return logits
    return _native.softmax(logits) if function == "softmax" else _native.sigmoid(logits)


def _groups(lengths: Sequence[int], hidden_size: int) -> Iterator[tuple[int, int]]:
    """Yields [begin, end) of texts whose hidden states are held at once."""
    begin, longest = 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > begin and (i + 1 - begin) * longest * hidden_size > _MAX_EMBED_FLOATS:
            yield begin, i
            begin, longest = i, length
    if begin < len(lengths):
        yield begin, len(lengths)


def _pool(states: Floats, pooling: str, normalize: bool) -> Floats:
    """Hidden states [n, H] to one vector [H].

    Sums are of float64 in the order of the elements, as in the command line written in C: the two
    then give the same bits.
    """
    if pooling == "cls":
        vector = states[0].astype(np.float64)
    elif pooling == "max":
        vector = states.max(axis=0).astype(np.float64)
    else:
        vector = np.cumsum(states, axis=0, dtype=np.float64)[-1] / len(states)
    if normalize:
        norm = np.sqrt(np.cumsum(vector * vector)[-1])
        vector = vector / max(norm, 1e-12)
    return np.asarray(vector, np.float32)
