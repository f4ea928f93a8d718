"""Evaluation of heads for labels, against the field's own scripts, and on small random models."""

from __future__ import annotations

import json
import string
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bitm_formats
from bitm import BitmError, InputError, Model
from bitm.evaluation import Settings, answers, classification, entities, evaluate
from conftest import needs
from test_tasks import classifier as head_shapes
from test_tasks import labels as label_settings
from test_tasks import write_model
from tiny_models import classifier as classifier_file

WORDS = ["the", "river", "paris", "city", "do", "not", "a", "b", "c", "flowing"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def tag_settings(tags: list[str]) -> dict[str, Any]:
    return {"architectures": ["BertForTokenClassification"], **label_settings(tags)}


def sentences(n: int, seed: int = 0) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    return [rng.choice(WORDS, rng.integers(2, 12)).tolist() for _ in range(n)]


# ---- Classification ----


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of random weights that does not always say the same."""
    folder = tmp_path_factory.mktemp("sentiment")
    write_model(folder, head_shapes("classifier", 2), **label_settings(["negative", "positive"]))
    return folder / "model.bitm"


def write_table(path: Path, rows: Sequence[tuple[str, str]], header: str) -> Path:
    path.write_text("\n".join([header, *("\t".join(row) for row in rows), ""]))
    return path


@pytest.mark.parametrize("spelling", [["0", "1"], ["negative", "Positive"]])
def test_accuracy(sentiment: Path, tmp_path: Path, spelling: list[str]) -> None:
    texts = [" ".join(words) for words in sentences(60)]
    labels = np.random.default_rng(1).integers(0, 2, 60)
    rows = [(spelling[label], text) for label, text in zip(labels, texts)]
    path = write_table(tmp_path / "dev.tsv", rows, "label\tcontent")
    with Model(sentiment) as model:
        said = [each["label"] for each in model.classify(texts)]
        result = evaluate(model, Settings(path, batch=7)).result
    right = [a == ["negative", "positive"][label] for a, label in zip(said, labels)]
    assert result.task == "classification"
    assert result.metrics["accuracy"].value == np.mean(right)
    counts = {row["label"]: row for row in result.details["labels"]}
    assert counts["positive"]["true"] == labels.sum()
    assert counts["positive"]["predicted"] == said.count("positive")
    assert sum(row["right"] for row in counts.values()) == sum(right)
    mistakes = result.details["mistakes"]
    confidences = [row["confidence"] for row in mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert all(row["true"] != row["predicted"] for row in mistakes)


def test_one_logit_decides(tmp_path: Path) -> None:
    path = tmp_path / "one.bitm"
    bitm_formats.write(path, classifier_file(np.random.default_rng(51), 1, 4))
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 60, rng.integers(1, 15))) for _ in range(40)]
    rows = [("1", text) for text in texts]
    data = write_table(tmp_path / "dev.tsv", rows, "label\tsentence")
    with Model(path) as model:
        said = [each["label"] for each in model.classify(texts)]
        result = evaluate(model, Settings(data)).result
    assert 0 < said.count("LABEL_1") < 40
    assert result.metrics["accuracy"].value == said.count("LABEL_1") / 40


def test_long_texts_are_cut(sentiment: Path, tmp_path: Path) -> None:
    rows = [("0", "the river " * 100), ("1", "paris")]
    data = write_table(tmp_path / "dev.tsv", rows, "label\ttext")
    with Model(sentiment) as model:
        result = evaluate(model, Settings(data)).result
    assert (result.cut, result.tokens) == (1, 64 + 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("good film\t1\n", "line is 'good film.t1', expected names of columns"),
        ("label\tsentence\n1\n", "line 2 has 1 cells, the header has 2"),
        ("label\tsentence\n", "a header without rows"),
        ("label\tsentence\n2\tgood\n", "label '2', but the model's are negative, positive"),
    ],
)
def test_wrong_tables(sentiment: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text(content)
    with Model(sentiment) as model, pytest.raises(InputError, match=message):
        evaluate(model, Settings(path))


def test_real_sst2(shared: Path) -> None:
    rows = classification.read_labelled(shared / "data/sst2/dev.tsv")
    assert len(rows) == 872
    assert {row.label for row in rows} == {"0", "1"}


# ---- Entities ----

_TAG = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])


@settings(deadline=None)  # the first example imports the reference
@given(st.lists(st.lists(st.tuples(_TAG, _TAG), min_size=1, max_size=12), min_size=1, max_size=8))
def test_entity_f1_is_that_of_seqeval(pairs: list[list[tuple[str, str]]]) -> None:
    needs("seqeval")
    from seqeval import metrics

    truth = [[a for a, _ in sentence] for sentence in pairs]
    found = [[b for _, b in sentence] for sentence in pairs]
    ours, by_type = entities.score(truth, found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of types that are never predicted
        for name, reference in (
            ("f1", metrics.f1_score),
            ("precision", metrics.precision_score),
            ("recall", metrics.recall_score),
        ):
            value = ours[name].value
            assert (0 if np.isnan(value) else value) == pytest.approx(reference(truth, found))
        report = metrics.classification_report(truth, found, output_dict=True, zero_division=0)
    assert ours["tag_accuracy"].value == pytest.approx(metrics.accuracy_score(truth, found))
    for row in by_type:
        assert row["f1"] == pytest.approx(report[row["type"]]["f1-score"])
        assert row["true"] == report[row["type"]]["support"]


def test_entities_by_the_rules() -> None:
    tags = ["I-PER", "I-PER", "B-PER", "I-LOC", "O", "B-LOC", "I-LOC"]
    assert list(entities.entities(tags)) == [
        ("PER", 0, 2),
        ("PER", 2, 3),
        ("LOC", 3, 4),
        ("LOC", 5, 7),
    ]
    assert list(entities.entities([])) == []


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token classifier of random weights."""
    folder = tmp_path_factory.mktemp("tagger")
    write_model(folder, head_shapes("classifier", len(TAGS)), **tag_settings(TAGS))
    return folder / "model.bitm"


def write_conll(path: Path, words: list[list[str]], tags: list[list[str]]) -> Path:
    lines = ["-DOCSTART- -X- -X- O", ""]
    for sentence, of in zip(words, tags):
        lines += [f"{word} NN I-NP {tag}" for word, tag in zip(sentence, of)] + [""]
    path.write_text("\n".join(lines))
    return path


def test_tags_of_words(tagger: Path, tmp_path: Path) -> None:
    """A word's tag is that of its first token, computed here from the logits."""
    words = [*sentences(30), ["the"] * 80]
    rng = np.random.default_rng(2)
    truth = [rng.choice(TAGS, len(sentence)).tolist() for sentence in words]
    path = write_conll(tmp_path / "test.txt", words, truth)
    expected = []
    with Model(tagger, activations="float32") as model:
        for sentence in words:
            pieces = [model.tokenize(word)[1:-1] for word in sentence]
            places = np.cumsum([1, *(len(piece) for piece in pieces[:-1])])
            ids = [2, *[token for piece in pieces for token in piece][:62], 3]
            best = model.logits([ids])[0].argmax(1)
            expected.append([TAGS[best[i]] if i < 63 else "O" for i in places])
        result = evaluate(model, Settings(path, batch=4)).result
    metrics, by_type = entities.score(truth, expected)
    assert result.metrics == metrics
    assert result.details["types"] == by_type
    assert (result.task, result.cut, result.sequences) == ("entities", 1, 31)
    assert result.details["mistakes"][0]["text"] == " ".join(["the"] * 80)


def test_wrong_columns(tagger: Path, sentiment: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    with Model(tagger) as model:
        for content, message in (
            ("EU B-ORG\nword\n", "line 2 is 'word', expected a word and, last, a tag"),
            ("EU X-ORG\n", "line 1 is 'EU X-ORG'"),
            ("\n", "no words with tags"),
        ):
            path.write_text(content)
            with pytest.raises(InputError, match=message):
                evaluate(model, Settings(path))


def test_labels_that_are_no_tags(tmp_path: Path) -> None:
    write_model(tmp_path, head_shapes("classifier", 2), **tag_settings(["O", "PERSON"]))
    path = write_conll(tmp_path / "test.txt", [["a"]], [["O"]])
    message = "label 'PERSON', expected O, B-TYPE or I-TYPE"
    with Model(tmp_path / "model.bitm") as model, pytest.raises(InputError, match=message):
        evaluate(model, Settings(path))


def test_real_conll(shared: Path) -> None:
    for name, n_sentences, n_entities in (("valid", 3250, 5942), ("test", 3453, 5648)):
        tagged = entities.read_tagged(shared / f"data/conll2003/{name}.txt")
        assert len(tagged) == n_sentences
        assert sum(len(list(entities.entities(each.tags))) for each in tagged) == n_entities


# ---- Answers ----

_PIECE = st.sampled_from([*" aAnthe19.,!-'\u2019\u00e9bcTHE", "the ", " an"])
_ANSWER = st.lists(_PIECE, max_size=12).map("".join)


@settings(deadline=None)  # the first example imports the reference
@given(_ANSWER, st.lists(_ANSWER, min_size=1, max_size=3))
def test_answers_are_judged_as_squad_does(found: str, golds: list[str]) -> None:
    needs("torchmetrics")
    from torchmetrics.functional.text import squad

    expected = squad(
        [{"prediction_text": found, "id": "1"}],
        [{"answers": {"answer_start": [0] * len(golds), "text": golds}, "id": "1"}],
    )
    assert answers.exact_match(found, golds) * 100 == float(expected["exact_match"])
    if answers.normalize(found):  # the official script calls an empty answer's F1 0, as we do
        assert answers.f1(found, golds) * 100 == pytest.approx(float(expected["f1"]), abs=1e-3)


def test_normalization() -> None:
    assert answers.normalize(" The  U.S.'s\tan apple, a day! ") == "uss apple day"
    assert answers.normalize("theatre") == "theatre"
    assert answers.normalize(string.punctuation) == ""
    assert answers.f1("Denver Broncos", ["The Broncos", "Denver"]) == pytest.approx(2 / 3)
    assert answers.f1("", [""]) == 0
    assert answers.exact_match("", ["the"])


def test_questions(tmp_path: Path, shared: Path) -> None:
    write_model(tmp_path, head_shapes("qa_outputs", 2))
    real = answers.read_questions(shared / "data/squad/dev-v1.1.json")
    assert len(real) == 10570
    context = "the river is in paris, a city. do not flow."
    entries: list[dict[str, Any]] = [
        {"question": "where is it?", "answers": [{"text": "paris"}, {"text": "in paris"}]},
        {"question": "is it a city?", "answers": [{"text": "a city"}]},
    ]
    paragraphs = [{"context": context, "qas": entries}]
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    with Model(tmp_path / "model.bitm") as model:
        said = [
            model.answer(entry["question"], context, max_answer_len=30, max_seq_len=64)
            for entry in entries
        ]
        result = evaluate(model, Settings(path)).result
    golds = [[answer["text"] for answer in entry["answers"]] for entry in entries]
    f1s = [answers.f1(a["answer"], g) for a, g in zip(said, golds)]
    assert result.metrics["f1"].value == pytest.approx(np.mean(f1s))
    assert result.task == "answers"
    for content in ("[]", '{"data": [{}]}', "{", '{"data": [{"paragraphs": [{"context": "a"}]}]}'):
        path.write_text(content)
        with pytest.raises(InputError, match=r"expected SQuAD v1\.1's JSON"):
            answers.read_questions(path)


# ---- What has nothing to evaluate ----


def test_no_head(tmp_path: Path) -> None:
    write_model(tmp_path, {})
    data = write_table(tmp_path / "dev.tsv", [("1", "a")], "label\ttext")
    with Model(tmp_path / "model.bitm") as model, pytest.raises(BitmError) as caught:
        evaluate(model, Settings(data))
    assert caught.value.name == "NO_HEAD"
