"""classify, tag, answer and embed against the pipelines of transformers, on small random models.

transformers 5 has no question-answering pipeline any more: `answer` is held against the parts of
the old one that live on in it, its tokenizer's windows and words and its choice of spans.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import bitm_formats
import tiny_models
from bert_checkpoints import CONFIG, HIDDEN, body_shapes, random_state, save
from bitm import InputError, Model, _filling, _native
from bitm_converter.checkpoint import open_checkpoint
from bitm_converter.recipes import Options, choose
from bitm_formats import DType
from conftest import needs
from tiny_models import SPECIAL_TOKENS

LETTERS = "abcdefghijklmnopqrstuvwy"  # no x and no z: words with them are unknown
VOCABULARY = [
    *SPECIAL_TOKENS,
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    *".,?!'-",
    *["the", "river", "flow", "##ing", "##s", "paris", "is", "city", "do", "not", "n", "中"],
]
POSITIONS = 64
SETTINGS = {**CONFIG, "vocab_size": len(VOCABULARY), "max_position_embeddings": POSITIONS}
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]

TEXTS = [
    "The rivers flow.",
    "Paris, Xanadu & the zoo do not flow!",
    "  it isn't  \u4e2d\u4e2d fl\u00f6wing\u0301s\x00 e\u0301  [MASK] [SEP] ok ",
    "",
]
PAIRS = [("Is Paris a city?", "The river flows."), ("", "zz top"), ("a", ""), ("a", " ")]
QUESTION = "Where is the river?"
CONTEXT = (
    "The river is in P\u00e1ris, a city; Paris flows\u2014it's the \u4e2d river. Rivers do not zzz!"
)


def write_model(
    folder: Path, shapes: dict[str, tuple[int, ...]], seed: int = 0, **settings: Any
) -> Path:
    """A checkpoint of random weights around VOCABULARY, and beside it the model made from it."""
    body = {
        **body_shapes(pooler=True),
        "bert.embeddings.word_embeddings.weight": (len(VOCABULARY), HIDDEN),
        "bert.embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
    }
    state = random_state(body | shapes, seed)
    save(folder, state, {**SETTINGS, **settings}, VOCABULARY)
    checkpoint = open_checkpoint(folder)
    conversion = choose(checkpoint).convert(checkpoint, Options())
    bitm_formats.write(folder / "model.bitm", conversion.model)
    return folder


def classifier(name: str, n_labels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_labels, HIDDEN), f"{name}.bias": (n_labels,)}


def labels(names: list[str]) -> dict[str, Any]:
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def open_model(folder: Path) -> Model:
    return Model(folder / "model.bitm", threads=1, activations="float32")


def reference(folder: Path, class_name: str) -> tuple[Any, Any]:
    """The model and the tokenizer of transformers."""
    needs("torch")
    needs("transformers")
    import torch
    import transformers

    torch.set_num_threads(1)
    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    model = getattr(transformers, class_name).from_pretrained(folder)
    return model.eval(), transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True)


def assert_same(found: Any, expected: Any) -> None:
    """Equal shapes, words and numbers; scores within 1e-5."""
    assert type(found) is type(expected)
    if isinstance(found, list):
        assert len(found) == len(expected), (found, expected)
        for a, b in zip(found, expected):
            assert_same(a, b)
        return
    score = found.pop("score")
    assert isinstance(score, float)
    assert score == pytest.approx(float(expected.pop("score")), abs=1e-5)
    assert found == expected


# ---- classify ----

CLASSIFIERS: dict[str, tuple[int, dict[str, Any]]] = {
    "one label": (3, labels(["bad", "fair", "good"])),
    "several labels": (4, {"problem_type": "multi_label_classification", **labels(list("abcd"))}),
    "regression": (1, {"problem_type": "regression", **labels(["stars"])}),
    "one output": (1, labels(["LABEL_0"])),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classify_is_the_pipeline(kind: str, tmp_path: Path) -> None:
    n_labels, settings = CLASSIFIERS[kind]
    write_model(tmp_path, classifier("classifier", n_labels), **settings)
    torch_model, tokenizer = reference(tmp_path, "BertForSequenceClassification")
    from transformers import pipeline

    pipe = pipeline("text-classification", torch_model, tokenizer=tokenizer)
    pairs = [{"text": text, "text_pair": pair} for text, pair in PAIRS]
    inputs: list[Any] = [*TEXTS, TEXTS, TEXTS[:1], *pairs, pairs]
    options: list[dict[str, Any]] = [{}, {"top_k": None}, {"top_k": 1}, {"top_k": 2}]
    options += [{"function_to_apply": name} for name in ("none", "softmax", "sigmoid")]
    with open_model(tmp_path) as model:
        for given in inputs:
            for arguments in options:
                assert_same(model.classify(given, **arguments), pipe(given, **arguments))
        assert model.classify(PAIRS) == model.classify(pairs)
        assert model.classify(PAIRS[0]) == model.classify(pairs[0])


def one_logit_model(path: Path) -> Path:
    model = tiny_models.classifier(np.random.default_rng(1), n_labels=1, problem=4)
    # A component of a hidden state, around its middle.
    weight = np.eye(1, model.config.hidden_size, dtype=np.float32)
    model.tensors["classifier.weight"] = bitm_formats.Tensor.from_float(weight, DType.F32)
    bias = np.array([-0.094], np.float32)
    model.tensors["classifier.bias"] = bitm_formats.Tensor.from_float(bias, DType.F32)
    model.metadata = {"label.0": "no", "label.1": "yes"}
    bitm_formats.write(path, model)
    return path


def test_one_logit_decides_between_two_labels(tmp_path: Path) -> None:
    texts = ["a b c", "d e f", "g", "h h h", "i j", "w1 w2", "k l m n"]
    with Model(one_logit_model(tmp_path / "m.bitm")) as model:
        logits = [float(model.logits([model.tokenize(text)])[0, 0]) for text in texts]
        both = model.classify(texts, top_k=None)
        best = model.classify(texts)
    assert min(logits) < 0 < max(logits)
    for logit, ranked, first in zip(logits, both, best):
        scores = {entry["label"]: entry["score"] for entry in ranked}
        assert scores["yes"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
        assert scores["no"] == pytest.approx(1 / (1 + np.exp(logit)), abs=1e-6)
        assert first == ranked[0]
        assert first["label"] == ("yes" if logit >= 0 else "no")


def test_a_logit_of_zero_is_label_1(tmp_path: Path) -> None:
    path = one_logit_model(tmp_path / "m.bitm")
    written = bitm_formats.read(path)
    for name in ("classifier.weight", "classifier.bias"):
        zeros = np.zeros(written.tensors[name].shape, np.float32)
        written.tensors[name] = bitm_formats.Tensor.from_float(zeros, DType.F32)
    bitm_formats.write(path, written)
    with Model(path) as model:
        assert model.classify("a") == [{"label": "yes", "score": 0.5}]


def test_token_types_are_zero_where_the_file_says_so(tmp_path: Path) -> None:
    path = write_model(tmp_path, classifier("classifier", 2)) / "model.bitm"
    with Model(path, activations="float32") as model:
        with_types = model.classify(PAIRS[0], top_k=None)
    written = bitm_formats.read(path)
    written.metadata["token_type_ids"] = "zero"
    bitm_formats.write(path, written)
    with Model(path, activations="float32") as model:
        found = model.classify(PAIRS[0], top_k=None, function_to_apply="none")
        text, pair = (model.tokenize(text) for text in PAIRS[0])
        expected = model.logits([text + pair[1:]])[0]
        assert sorted(entry["score"] for entry in found) == sorted(expected.tolist())
        assert model.classify(PAIRS[0], top_k=None) != with_types


# ---- tag ----


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tag_is_the_pipeline(seed: int, tmp_path: Path) -> None:
    settings = {"architectures": ["BertForTokenClassification"], **labels(TAGS)}
    write_model(tmp_path, classifier("classifier", len(TAGS)), seed, **settings)
    torch_model, tokenizer = reference(tmp_path, "BertForTokenClassification")
    from transformers import pipeline

    pipe = pipeline("token-classification", torch_model, tokenizer=tokenizer)
    texts = [*TEXTS, CONTEXT]
    n_entities = 0
    with open_model(tmp_path) as model:
        for strategy in ("none", "simple", "first", "average", "max"):
            for ignored in (["O"], [], ["O", "PER", "B-LOC"]):
                arguments: dict[str, Any] = {
                    "aggregation_strategy": strategy,
                    "ignore_labels": ignored,
                }
                for text in texts:
                    found = model.tag(text, **arguments)
                    n_entities += len(found)
                    assert_same(found, pipe(text, **arguments))
                assert_same(model.tag(texts, **arguments), pipe(texts, **arguments))
    assert n_entities > 100


# ---- answer ----


def pipeline_answers(
    torch_model: Any, tokenizer: Any, question: str, context: str, **options: Any
) -> Any:
    """The question-answering pipeline of transformers 4, put together from what 5 still has."""
    import torch
    from transformers.pipelines.document_question_answering import select_starts_ends

    top_k, align = options.get("top_k", 1), options.get("align_to_words", True)
    impossible = options.get("handle_impossible_answer", False)
    length = options.get("max_seq_len", min(384, POSITIONS))
    windows = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=length,
        stride=options.get("doc_stride", min(length // 2, 128)),
        return_overflowing_tokens=True,
        return_token_type_ids=True,
    )
    null: float = 1000000
    answers: list[dict[str, Any]] = []
    for i, encoding in enumerate(windows.encodings):
        with torch.no_grad():
            out = torch_model(
                input_ids=torch.tensor([windows["input_ids"][i]]),
                token_type_ids=torch.tensor([windows["token_type_ids"][i]]),
            )
        masked = np.array([[sequence != 1 for sequence in encoding.sequence_ids]])
        masked[0, 0] = False
        starts, ends, scores, null = select_starts_ends(
            out["start_logits"].numpy(),
            out["end_logits"].numpy(),
            masked.astype(np.int64),
            np.ones_like(masked, np.int64),
            null,
            2 * top_k + 10 if align else top_k,
            impossible,
            options.get("max_answer_len", 15),
        )
        for start, end, score in zip(starts.tolist(), ends.tolist(), scores.tolist()):
            if score == 0:
                continue  # no span at all
            begin, stop = encoding.offsets[start][0], encoding.offsets[end][1]
            if align:
                first, last = encoding.token_to_word(start), encoding.token_to_word(end)
                begin = encoding.word_to_chars(first, 1)[0]
                stop = encoding.word_to_chars(last, 1)[1]
            text = context[begin:stop]
            same = [a for a in answers if a["answer"].lower() == text.lower()]
            if same:
                same[0]["score"] += score
            else:
                answers.append({"score": score, "start": begin, "end": stop, "answer": text})
    if impossible:
        answers.append({"score": null, "start": 0, "end": 0, "answer": ""})
    answers = sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]
    return answers[0] if len(answers) == 1 else answers


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_answer_is_the_pipeline(seed: int, tmp_path: Path) -> None:
    write_model(tmp_path, classifier("qa_outputs", 2), seed)
    torch_model, tokenizer = reference(tmp_path, "BertForQuestionAnswering")
    short: list[dict[str, Any]] = [
        {},
        {"top_k": 4},
        {"top_k": 3, "align_to_words": False},
        {"max_answer_len": 2, "top_k": 2},
        {"handle_impossible_answer": True, "top_k": 3},
    ]
    windows: list[dict[str, Any]] = [{"doc_stride": 5}, {"max_seq_len": 24, "doc_stride": 3}]
    with open_model(tmp_path) as model:
        for context in ("Paris", CONTEXT, f"{CONTEXT} {CONTEXT}", f"{CONTEXT} " * 9):
            for options in [*short, *({**a, **b} for a in short for b in windows)]:
                found = model.answer(QUESTION, context, **options)
                expected = pipeline_answers(torch_model, tokenizer, QUESTION, context, **options)
                assert_same(found, expected)
        assert model.answer(QUESTION, " ") == {"score": 0.0, "start": 0, "end": 0, "answer": ""}


# ---- embed ----


def test_embed_pools_the_hidden_states_of_transformers(tmp_path: Path) -> None:
    needs("torch")
    write_model(tmp_path, {})
    torch_model, tokenizer = reference(tmp_path, "BertModel")
    import torch

    with open_model(tmp_path) as model:
        for pooling in ("mean", "cls", "max"):
            for normalize in (True, False):
                found = model.embed(TEXTS, pooling=pooling, normalize=normalize)
                assert found.dtype == np.float32
                assert found.shape == (len(TEXTS), HIDDEN)
                for text, vector in zip(TEXTS, found):
                    with torch.no_grad():
                        states = torch_model(**tokenizer(text, return_tensors="pt"))[0][0].numpy()
                    pooled = {"mean": states.mean(0), "cls": states[0], "max": states.max(0)}
                    expected = pooled[pooling]
                    if normalize:
                        expected = expected / np.linalg.norm(expected)
                    np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_embed_does_not_depend_on_the_batch(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a b c", "w1 w2 w3 w4 w5 w6", "", "a", "b c d e f g"]
    with Model(tiny_model) as model:
        together = model.embed(texts)
        apart = np.concatenate([model.embed(text) for text in texts])
        monkeypatch.setattr("bitm.tasks._MAX_EMBED_FLOATS", 800)
        grouped = model.embed(texts)
        assert model.embed([]).shape == (0, together.shape[1])
    np.testing.assert_array_equal(together, apart)
    np.testing.assert_array_equal(together, grouped)


# ---- fill_mask ----


@pytest.mark.parametrize("ids_at_once", [1, 1000, _filling._IDS_AT_ONCE])
def test_fill_mask_writes_texts_with_their_tokens_in_place(
    ids_at_once: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token of the vocabulary, padding among them, however many texts are written at once."""
    monkeypatch.setattr(_filling, "_IDS_AT_ONCE", ids_at_once)
    texts = ["a [MASK]", "[MASK] b [PAD] [MASK] c", "q [PAD] [MASK] a b c d", "[MASK]"]
    with Model(tiny_model) as model:
        pad_id, mask_id = (SPECIAL_TOKENS.index(token) for token in ("[PAD]", "[MASK]"))
        for text, answer in zip(texts, model.fill_mask(texts, top_k=101)):
            ids = model.tokenize(text)
            places = [i for i, token in enumerate(ids) if token == mask_id]
            single = len(places) == 1
            for place, predictions in zip(places, [answer] if single else answer):
                assert sorted(p["token"] for p in predictions) == list(range(101))
                for p in predictions:
                    filled = [*ids[:place], p["token"], *ids[place + 1 :]]
                    kept = [token for token in filled if token != pad_id]
                    assert p["token_str"] == model.decode([p["token"]])
                    assert p["sequence"] == model.decode(kept, skip_special_tokens=single)


def test_fill_mask_without_a_token_for_padding(tmp_path: Path) -> None:
    model_file = tiny_models.masked_lm(np.random.default_rng(3))
    model_file.config.pad_id = -1
    bitm_formats.write(tmp_path / "model.bitm", model_file)
    texts = ["a [MASK]", "[MASK] b c d e", "q [MASK] [MASK]"]
    with Model(tmp_path / "model.bitm") as model:
        assert model.fill_mask(texts) == [model.fill_mask(text) for text in texts]


# ---- Scores ----


def test_softmax_and_sigmoid() -> None:
    x = np.concatenate([np.linspace(-30, 30, 101), [0, -0.0, 1e-9]]).astype(np.float32)
    rows = np.stack([x, x[::-1], x * 0 - 5])
    exact = np.exp(rows.astype(np.float64))
    expected = exact / exact.sum(axis=1, keepdims=True)
    # The difference from the greatest is rounded, by up to 2e-6 here.
    np.testing.assert_allclose(_native.softmax(rows), expected, rtol=3e-6)
    np.testing.assert_allclose(
        _native.sigmoid(rows), 1 / (1 + np.exp(-rows.astype(np.float64))), rtol=1e-6
    )
    far = np.array([-3e38, -200, 200, 3e38], np.float32)
    assert _native.sigmoid(far).tolist() == [0, 0, 1, 1]
    assert _native.softmax(far).tolist() == [0, 0, 0, 1]


# ---- Errors ----

REQUESTS: dict[str, Callable[[Model], Any]] = {
    "classify": lambda model: model.classify("a"),
    "tag": lambda model: model.tag("a"),
    "answer": lambda model: model.answer("a", "b"),
}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_a_model_without_the_head_says_so(request_name: str, tiny_model: Path) -> None:
    with Model(tiny_model) as model, pytest.raises(InputError, match=request_name) as caught:
        REQUESTS[request_name](model)
    assert (caught.value.name, caught.value.code) == ("NO_HEAD", 65)


def test_a_file_without_vocabulary_takes_no_text(tmp_path: Path) -> None:
    path = one_logit_model(tmp_path / "m.bitm")
    written = bitm_formats.read(path)
    written.vocabulary = None
    for name in ("tokenizer", "tokenizer_flags", "max_word_chars"):
        setattr(written.config, name, 0)
    for name in ("unk", "cls", "sep", "pad", "mask"):
        setattr(written.config, f"{name}_id", -1)
    bitm_formats.write(path, written)
    with Model(path) as model:
        for request in (model.classify, model.embed):
            with pytest.raises(InputError) as caught:
                request("a")
            assert (caught.value.name, caught.value.code) == ("NO_VOCABULARY", 66)


def test_texts_that_are_too_long_are_named(tmp_path: Path) -> None:
    too_long = "a " * POSITIONS
    write_model(tmp_path / "c", classifier("classifier", 2))
    write_model(tmp_path / "q", classifier("qa_outputs", 2))
    with open_model(tmp_path / "c") as model:
        for request in (model.classify, model.embed):
            with pytest.raises(InputError, match="text 1 has 66 tokens, but") as caught:
                request(["a", too_long])
            assert caught.value.name == "TOO_LONG"
        with pytest.raises(InputError, match="the text has 66 tokens"):
            model.classify(too_long)
    with open_model(tmp_path / "q") as model:
        with pytest.raises(InputError, match="none is left for the context") as caught:
            model.answer(too_long, "b")
        assert caught.value.name == "TOO_LONG"
        with pytest.raises(InputError, match="doc_stride is 40, expected 0 to"):
            model.answer("a " * 30, too_long, doc_stride=40)


WRONG: list[tuple[str, str, Callable[[Model], Any]]] = [
    ("classifier", "top_k is 0", lambda model: model.classify("a", top_k=0)),
    ("classifier", "top_k is 'all'", lambda model: model.classify("a", top_k="all")),
    ("classifier", "softmax, sigmoid", lambda model: model.classify("a", function_to_apply="x")),
    ("classifier", "expected a text", lambda model: model.classify([cast(Any, ["a", "b"])])),
    ("classifier", "expected a text", lambda model: model.classify({"text": "a", "pair": "b"})),
    ("classifier", "mean, cls, max", lambda model: model.embed("a", pooling="sum")),
    ("classifier", "UTF-8", lambda model: model.classify("\ud800")),
    ("qa_outputs", "top_k is 0", lambda model: model.answer("a", "b", top_k=0)),
    ("qa_outputs", "max_answer_len", lambda model: model.answer("a", "b", max_answer_len=0)),
    ("qa_outputs", "the question is empty", lambda model: model.answer("", "b")),
    ("qa_outputs", "the context is empty", lambda model: model.answer("a", "")),
    ("qa_outputs", "the model has 64", lambda model: model.answer("a", "b " * 80, max_seq_len=70)),
]


@pytest.mark.parametrize(("head", "message", "wrong"), WRONG)
def test_wrong_arguments(
    head: str, message: str, wrong: Callable[[Model], Any], tmp_path: Path
) -> None:
    write_model(tmp_path, classifier(head, 2))
    with open_model(tmp_path) as model, pytest.raises(InputError, match=message):
        wrong(model)


def test_a_wrong_strategy_is_refused(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"architectures": ["BertForTokenClassification"]}
    write_model(tmp_path, classifier("classifier", 2), **settings)
    with open_model(tmp_path) as model, pytest.raises(InputError, match="none, simple, first"):
        model.tag("a", aggregation_strategy="last")
