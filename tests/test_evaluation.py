"""The evaluation of masked LMs: masks, sentences, metrics, intervals, cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bert_checkpoints
import bitm_formats
from bitm import BitmError, InputError, Model
from bitm.evaluation import Settings, analysis, compare, cost, evaluate, masked_lm
from bitm.evaluation.masking import KEPT, MASKED, RANDOM, Masking, Query
from bitm.evaluation.statistics import ratio
from bitm.evaluation.texts import (
    join_treebank_tokens,
    join_wikitext_tokens,
    read_text,
)
from bitm_converter.checkpoint import open_checkpoint
from bitm_converter.naive import Binarization
from bitm_converter.recipes import Options, choose
from conftest import needs

Ints = npt.NDArray[np.int32]
VOCABULARY = {"cls_id": 2, "sep_id": 3, "pad_id": 0, "mask_id": 4, "unk_id": 1, "n_tokens": 500}
SPECIAL = [0, 1, 2, 3, 4]
PINNED_POSITIONS = [4, 7, 8, 11, 14, 27, 30, 36, 38]
PINNED_INPUTS = [4, 4, 38, 4, 4, 4, 32, 4, 4]


def masking(protocol: str = "bert", seed: int = 0) -> Masking:
    return Masking.of(VOCABULARY, protocol, seed)


def sentence(n: int, seed: int = 0) -> Ints:
    """[CLS], tokens some of which are special, [SEP]."""
    inner = np.random.default_rng(seed).integers(0, 500, n)
    return np.concatenate([[2], inner, [3]]).astype(np.int32)


# ---- Masks ----


def test_masks_are_those_of_the_seed_and_the_sentence() -> None:
    """Pinned: another version or machine asks the same."""
    ids = np.arange(2, 42, dtype=np.int32)
    (query,) = masking(seed=7).queries(0, ids)
    assert query.positions.tolist() == PINNED_POSITIONS
    assert query.input_ids[query.positions].tolist() == PINNED_INPUTS
    (again,) = masking(seed=7).queries(31, ids)
    assert np.array_equal(query.input_ids, again.input_ids)
    (other,) = masking(seed=8).queries(0, ids)
    assert not np.array_equal(query.positions, other.positions)


@given(st.integers(0, 2**64 - 1), st.integers(0, 60), st.sampled_from(["bert", "mask", "original"]))
def test_what_is_asked(seed: int, n: int, protocol: str) -> None:
    ids = sentence(n, seed % 1000)
    (query,) = masking(protocol, seed).queries(5, ids)
    assert query.sentence == 5
    assert np.array_equal(query.targets, ids[query.positions])
    assert not np.isin(query.targets, [0, 2, 3, 4] if protocol == "original" else SPECIAL).any()
    others = np.delete(np.arange(len(ids)), query.positions)
    assert np.array_equal(query.input_ids[others], ids[others])
    shown = query.input_ids[query.positions]
    assert (shown[query.parts == MASKED] == 4).all()
    assert (shown[query.parts == KEPT] == query.targets[query.parts == KEPT]).all()
    assert ((shown >= 0) & (shown < 500)).all()
    if protocol == "mask":
        assert (query.parts == MASKED).all()


def test_shares_of_the_bert_protocol() -> None:
    queries = [q for i in range(2000) for q in masking(seed=3).queries(i, sentence(60, i))]
    n_askable = sum((~np.isin(sentence(60, i), SPECIAL)).sum() for i in range(2000))
    parts = np.concatenate([query.parts for query in queries])
    assert len(parts) / n_askable == pytest.approx(0.15, abs=0.003)
    for part, share in ((MASKED, 0.8), (RANDOM, 0.1), (KEPT, 0.1)):
        assert (parts == part).mean() == pytest.approx(share, abs=0.01)
    shown = np.concatenate([q.input_ids[q.positions][q.parts == RANDOM] for q in queries])
    assert np.bincount(shown // 50, minlength=10) / len(shown) == pytest.approx(
        [0.1] * 10, abs=0.03
    )


def test_pseudo_asks_for_every_token_in_turn() -> None:
    ids = np.array([2, 9, 1, 4, 8, 3], np.int32)
    queries = list(masking("pseudo").queries(0, ids))
    assert [query.positions.tolist() for query in queries] == [[1], [4]]
    assert [query.input_ids.tolist() for query in queries] == [
        [2, 4, 1, 4, 8, 3],
        [2, 9, 1, 4, 4, 3],
    ]


# ---- Sentences ----


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (" do n't you think it 's the company 's ? ", "don't you think it's the company's?"),
        ("they 're gon na pay $ N or # N , n't they", "they're gonna pay $N or #N,n't they"),
        ("`` yes , '' he said -lrb- twice -rrb- .", '"yes," he said (twice).'),
        ("the traders ' <unk> 's 50 %", "the traders' <unk>'s 50%"),
        ("", ""),
    ],
)
def test_treebank_tokens_become_text(tokens: str, text: str) -> None:
    assert join_treebank_tokens(tokens) == text


def test_wikitext_tokens_become_text() -> None:
    tokens = " weigh 0 @.@ 7 \u2013 2 @.@ 2 kg ( 1 @,@ 600 lb ) ; it 's well @-@ known . "
    assert join_wikitext_tokens(tokens) == "weigh 0.7 \u2013 2.2 kg (1,600 lb); it's well-known."


@pytest.mark.parametrize(
    ("content", "format_", "sentences"),
    [
        ("A paragraph.\r\n\r\n  Another one. \n", "lines", ["A paragraph.", "Another one."]),
        (" no it was n't <unk> \n N years \n", "ptb", ["no it wasn't <unk>", "N years"]),
        (" \n = A = \n \n 7 @.@ 2 kg , \n = = B = = \n", "wikitext", ["7.2 kg,"]),
    ],
)
def test_formats_are_seen(tmp_path: Path, content: str, format_: str, sentences: list[str]) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content.encode())
    text = read_text(path)
    assert (text.format, text.sentences) == (format_, sentences)
    assert read_text(path, "lines").sentences == [
        line.strip() for line in content.splitlines() if line.strip()
    ]


def test_real_formats_are_seen(shared: Path) -> None:
    for name, format_, n in (
        ("ptb/ptb.valid.txt", "ptb", 3370),
        ("ptb/ptb.test.txt", "ptb", 3761),
        ("wikitext-2/wiki.test.tokens.txt", "wikitext", None),
        ("pretrain/wiki_valid.txt", "lines", None),
    ):
        text = read_text(shared / "data" / name)
        assert text.format == format_
        assert n is None or len(text.sentences) == n
        assert not any("@-@" in sentence for sentence in text.sentences)


def test_unreadable_texts(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    with pytest.raises(BitmError, match=r"text\.txt: No such file") as caught:
        read_text(path)
    assert caught.value.name == "IO"
    path.write_bytes(b"good\nb\xe4d")
    with pytest.raises(InputError, match=r"text\.txt: byte 6 is no UTF-8"):
        read_text(path)
    path.write_text("\n \n")
    with pytest.raises(InputError, match=r"text\.txt: no sentence"):
        read_text(path)


def test_sentences_become_ids(tiny_model: Path) -> None:
    with Model(tiny_model) as model:
        encoded, n_cut = masked_lm.encode(model, ["w1 <unk> w2<unk>", "<unk>", "w1 w2 w3 w4"], 5)
        w = [model.tokenize(f"w{i}")[1] for i in range(5)]
    assert [ids.tolist() for ids in encoded] == [
        [2, w[1], 1, w[2], 3],
        [2, 1, 3],
        [2, w[1], w[2], w[3], 3],
    ]
    assert n_cut == 2


# ---- Intervals ----


def test_interval_of_a_mean_is_the_usual_one() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = ratio(values, np.ones(400))
    assert found.value == pytest.approx(values.mean())
    assert found.half_width == pytest.approx(1.96 * values.std(ddof=1) / 20, rel=1e-4)


def test_intervals_cover_the_truth() -> None:
    """Where masks of a sentence depend on each other: 95 of 100 intervals hold the true ratio."""
    rng = np.random.default_rng(1)
    n_covered, n_naive = 0, 0
    for _ in range(1000):
        counts = rng.integers(1, 9, 200)
        levels = rng.normal(0, 1, 200)  # of the sentence
        losses = [3 + level + rng.normal(0, 1, n) for level, n in zip(levels, counts)]
        found = ratio([loss.sum() for loss in losses], counts)
        n_covered += found.low <= 3 <= found.high
        flat = np.concatenate(losses)
        n_naive += abs(flat.mean() - 3) <= 1.96 * flat.std() / math.sqrt(len(flat))
    assert 930 <= n_covered <= 968
    assert n_naive < 800  # masks taken for independent: why it is done so


def test_intervals_of_nothing() -> None:
    assert math.isnan(ratio([0], [0]).value)
    one = ratio([1], [2])
    assert one.value == 0.5
    assert math.isnan(one.half_width)


# ---- Metrics ----


def test_judgement_of_logits() -> None:
    """Against float64, with ties and one certain prediction."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (200, 700)).astype(np.float32)
    logits[0] = 0
    logits[1, 5] = 1e4
    targets = rng.integers(0, 700, 200).astype(np.int32)
    targets[:2] = 3, 5
    exact = logits.astype(np.float64)
    exact = exact - exact.max(1, keepdims=True)
    log_p = exact - np.log(np.exp(exact).sum(1, keepdims=True))
    query = Query(0, targets, np.arange(200, dtype=np.int32), targets, np.zeros(200, np.int8))
    found = masked_lm._judge(query, logits.copy())
    rows = np.arange(200)
    assert found.losses == pytest.approx(-log_p[rows, targets], abs=2e-5)
    assert found.confidences == pytest.approx(np.exp(log_p.max(1)), abs=1e-6)
    assert found.entropies == pytest.approx(-(np.exp(log_p) * log_p).sum(1), abs=1e-4)
    order = np.argsort(-logits, axis=1, kind="stable")
    assert found.best.tolist() == order[:, 0].tolist()
    assert found.ranks.tolist() == (1 + (order == targets[:, None]).argmax(1)).tolist()
    assert found.ranks[0] == 4


def predictions_of(path: Path, **options: Any) -> masked_lm.Predictions:
    with Model(path, threads=options.pop("threads", 1), activations="int8") as model:
        masks = Masking.of(model.info, options.pop("protocol", "bert"), 0)
        sentences = [sentence(n % 30 + 1, n) % 101 for n in range(60)]
        queries = masked_lm.mask_all(masks, sentences)
        return masked_lm.predict(model, queries, **options).predictions


@pytest.mark.parametrize("protocol", ["bert", "pseudo"])
def test_batch_and_threads_change_nothing(tiny_model: Path, protocol: str) -> None:
    expected = predictions_of(tiny_model, batch=1, protocol=protocol)
    for batch, threads in ((7, 1), (128, 2)):
        found = predictions_of(tiny_model, batch=batch, threads=threads, protocol=protocol)
        for name, values in vars(expected).items():
            assert np.array_equal(getattr(found, name), values), name


def test_small_buffers_change_nothing(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = predictions_of(tiny_model, batch=128)
    monkeypatch.setattr(masked_lm, "_MAX_LOGITS", 1000)
    monkeypatch.setattr(masked_lm, "_CHUNK_LOGITS", 200)
    found = predictions_of(tiny_model, batch=128)
    for name, values in vars(expected).items():
        assert np.array_equal(getattr(found, name), values), name


def reference_metrics(folder: Path, queries: list[Query]) -> dict[str, float]:
    """The metrics of the same masked batches with transformers and PyTorch."""
    needs("torch")
    needs("transformers")
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    losses, right, reciprocal = [], [], []
    for begin in range(0, len(queries), 32):
        group = queries[begin : begin + 32]
        length = max(len(query.input_ids) for query in group)
        ids, mask = (
            torch.zeros(len(group), length, dtype=torch.long),
            torch.zeros(len(group), length, dtype=torch.long),
        )
        labels = torch.full((len(group), length), -100)
        for row, query in enumerate(group):
            n = len(query.input_ids)
            ids[row, :n] = torch.from_numpy(query.input_ids)
            mask[row, :n] = 1
            labels[row, query.positions.tolist()] = torch.from_numpy(query.targets).long()
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits
        asked = labels != -100
        logits, labels = logits[asked], labels[asked]
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
        hits = logits.topk(32).indices == labels[:, None]
        right.append(hits[:, 0].float())
        reciprocal.append((hits / torch.arange(1, 33)).sum(1))
    names = ("cross_entropy", "accuracy", "mrr")
    return {n: float(torch.cat(v).mean()) for n, v in zip(names, (losses, right, reciprocal))}


@pytest.mark.parametrize(
    ("data", "protocol", "limit"),
    [("ptb/ptb.valid.txt", "bert", 40), ("wikitext-2/wiki.valid.tokens.txt", "pseudo", 2)],
)
def test_metrics_are_those_of_transformers(
    small_model: Path, small_checkpoint: Path, shared: Path, data: str, protocol: str, limit: int
) -> None:
    settings = Settings(data=shared / "data" / data, protocol=protocol, length=40, limit=limit)
    with Model(small_model, activations="float32") as model:
        evaluation = evaluate(model, settings)
    assert evaluation.queries is not None
    expected = reference_metrics(small_checkpoint, evaluation.queries)
    metrics = evaluation.result.metrics
    for name, value in expected.items():
        assert metrics[name].value == pytest.approx(value, abs=1e-3), name
    assert metrics["perplexity"].value == pytest.approx(math.exp(metrics["cross_entropy"].value))


def test_int8_is_close_to_float32(small_model: Path, shared: Path) -> None:
    settings = Settings(data=shared / "data/pretrain/wiki_valid.txt", length=32, limit=60)
    evaluations = []
    for mode in ("float32", "int8"):
        with Model(small_model, activations=mode) as model:
            evaluations.append(evaluate(model, settings))
    compared = compare(*evaluations)
    assert compared is not None
    assert compared["agreement"].value > 0.95
    difference = compared["cross_entropy_difference"]
    entropies = [e.result.metrics["cross_entropy"] for e in evaluations]
    assert difference.value == pytest.approx(entropies[1].value - entropies[0].value)
    # 0.2 %, as far as so few masks tell.
    assert abs(difference.value) < 0.002 * entropies[0].value + difference.half_width
    assert difference.half_width < 0.1 * entropies[0].half_width


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "entropy"), [("ptb/ptb.valid.txt", 4.444), ("pretrain/wiki_valid.txt", 2.810)]
)
def test_known_cross_entropy(small_model: Path, shared: Path, data: str, entropy: float) -> None:
    """What another implementation measured with masks of its own."""
    settings = Settings(data=shared / "data" / data, limit=600)
    with Model(small_model, activations="int8") as model:
        found = evaluate(model, settings).result.metrics["cross_entropy"]
    assert found.low < entropy < found.high
    assert found.half_width < 0.2


def test_repeated_masking_narrows_the_noise(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"w{i} w{i + 1} a b c w{i + 2}\n" for i in range(40)))
    with Model(tiny_model) as model:
        seeds = [evaluate(model, Settings(path, seed=seed)) for seed in range(3)]
        all_three = evaluate(model, Settings(path, repeat=3))
    masks = [e.result.details["masks"] for e in seeds]
    assert all_three.result.details["masks"] == sum(masks)
    total = sum(e.result.metrics["cross_entropy"].value * n for e, n in zip(seeds, masks))
    assert all_three.result.metrics["cross_entropy"].value == pytest.approx(total / sum(masks))
    assert all_three.result.data["sentences"] == 40
    assert compare(seeds[0], seeds[1]) is None  # they were asked other things


# ---- What is wrong, and what is said ----


def made_predictions(**changes: Any) -> masked_lm.Predictions:
    n = 8
    fields: dict[str, Any] = {
        "sentences": np.array([0, 0, 0, 1, 1, 1, 2, 3]),
        "positions": np.arange(1, 9, dtype=np.int32),
        "targets": np.array([5, 6, 7, 5, 5, 6, 7, 8], np.int32),
        "parts": np.array([0, 0, 1, 0, 2, 0, 0, 0], np.int8),
        "losses": np.array([1.0, 2, 3, 4, 5, 6, 9, 9]),
        "ranks": np.array([1, 2, 40, 1, 1, 7, 900, 2000]),
        "best": np.array([5, 5, 5, 5, 5, 5, 6, 9], np.int32),
        "confidences": np.linspace(0.15, 0.85, n),
        "entropies": np.ones(n),
    }
    return masked_lm.Predictions(**(fields | changes))


def test_analysis() -> None:
    p = made_predictions()
    sentences = [np.array([2, 5, 6, 7, 3]), np.array([2, 9, 9, 9, 5, 5, 6, 3]), np.array([7, 8])]
    encoded = [ids.astype(np.int32) for ids in sentences]

    def spell(ids: Any) -> str:
        return "-".join(f"t{i}" for i in ids)

    said = analysis.what_is_predicted(p, spell)
    assert said["most_frequent"] == {
        "token": "t5",
        "share": 0.75,
        "mean_confidence": pytest.approx(np.linspace(0.15, 0.85, 8)[:6].mean()),
    }
    assert said["distinct_predictions"] == 3
    assert said["entropy_of_predictions_bits"] == pytest.approx(
        -(0.75 * math.log2(0.75) + 2 * 0.125 * math.log2(0.125))
    )
    assert said["common"][0] == {"token": "t5", "predicted_share": 0.75, "true_share": 0.375}
    parts = {row["part"]: row for row in analysis.by_part(p)}
    assert {name: row["masks"] for name, row in parts.items()} == {
        "masked": 6,
        "random": 1,
        "kept": 1,
    }
    assert parts["masked"]["accuracy"].value == pytest.approx(2 / 6)
    assert parts["random"]["cross_entropy"].value == 3
    frequencies = {row["occurrences"]: row for row in analysis.by_frequency(p, encoded)}
    assert frequencies["1-2"]["masks"] == 5
    assert frequencies["3-9"]["accuracy"].value == 1  # token 5 occurs three times
    ranks = [row["share"] for row in analysis.rank_shares(p)]
    assert ranks == [3 / 8, 1 / 8, 1 / 8, 2 / 8, 1 / 8]
    worst = analysis.worst_sentences(p, encoded, spell)
    assert [row["sentence"] for row in worst] == [2, 1]  # others have one mask
    assert worst[0]["mean_loss"] == 5
    assert worst[0]["masks"][2] == {
        "position": 6,
        "part": "masked",
        "true": "t6",
        "predicted": "t5",
        "confidence": pytest.approx(0.65),
        "rank": 7,
        "loss": 6,
    }
    bins = analysis.by_confidence(p)
    assert sum(row["masks"] for row in bins) == 8
    expected = sum(abs(c - (r == 1)) for c, r in zip(p.confidences, p.ranks)) / 8
    assert analysis.calibration_error(bins) == pytest.approx(expected)  # a mask a bin


def test_scores_count_only_the_best_32() -> None:
    found = analysis.scores(made_predictions())
    assert found["mrr"].value == pytest.approx((3 + 1 / 2 + 1 / 7) / 8)
    assert found["accuracy"].value == 3 / 8
    assert found["cross_entropy"].value == 39 / 8


# ---- Cost ----


def test_operations_of_known_networks(small_model: Path) -> None:
    tables = cost.read_tables(str(small_model))
    found = cost.operations(tables, "int8", 64.0)
    assert found.linears == 6 * (4 * 512 * 512 + 2 * 512 * 2048)
    assert found.linear_bits == 8 * found.linears
    assert found.one_bit_share == 1
    assert found.attention == 6 * 2 * 64 * 512
    assert found.attention_bits == 32 * 32 * found.attention
    assert found.head == 512 * 512 + 16384 * 512
    assert cost.operations(tables, "float32", 64.0).linear_bits == 32 * found.linears


def test_quantizers_count_their_bits() -> None:
    quantizers = {
        "sign": bitm_formats.Quantizer(bitm_formats.QuantizerKind.SIGN, 0, -1, 1),
        "two": bitm_formats.Quantizer(bitm_formats.QuantizerKind.INT, 0, -2, 1),
        "eight": bitm_formats.Quantizer(bitm_formats.QuantizerKind.DYN_SYM, 1, -128, 127),
        "one": bitm_formats.Quantizer(bitm_formats.QuantizerKind.INT, 0, 0, 1),
    }
    found = [cost._code_bits(quantizers, name, 16) for name in (*quantizers, "none")]
    assert found == [1, 2, 8, 1, 16]


def distinct_values_count(model: bitm_formats.ModelFile) -> int:
    """The original project's rule: a tensor of at most two values takes a bit for each."""
    n_bytes = 0
    for name, tensor in model.tensors.items():
        if name.endswith((".scale", ".offset")):
            continue
        values = tensor.to_float32()
        is_binary = len(np.unique(values)) <= 2
        n_bytes += values.size // 8 if is_binary else values.size * 4
    return n_bytes


@pytest.mark.parametrize("component", ["layers", "layers-except-ffn", "all", None])
def test_memory_counts(tmp_path: Path, component: str | None) -> None:
    folder = bert_checkpoints.save(tmp_path, bert_checkpoints.masked_lm_state())
    checkpoint = open_checkpoint(folder)
    wish = Binarization("sign", components=(component,)) if component else None
    conversion = choose(checkpoint).convert(checkpoint, Options(binarize=wish))
    path = tmp_path / "model.bitm"
    bitm_formats.write(path, conversion.model)
    found = cost.memory(cost.read_tables(str(path)))
    model = conversion.model
    stored = sum(tensor.nbytes for tensor in model.tensors.values())
    assert found.layers + found.embeddings + found.head == stored
    elements = sum(math.prod(t.shape) for n, t in model.tensors.items() if ".scale" not in n)
    assert found.as_float32 == 4 * elements
    # Position and type tables of bits have rows that the rule rounds down to whole bytes.
    assert found.as_counted_by_bitmaps == pytest.approx(distinct_values_count(model), abs=8)
    if component == "layers":
        assert found.layers < 0.35 * (found.as_float32 - found.embeddings * 2 - found.head)


def test_peak_memory_begins_anew() -> None:
    if not cost.reset_peak():
        pytest.skip("expected: this system does not tell the peak memory of a process")
    before = cost.peak_bytes()
    block = np.ones(8_000_000)
    after = cost.peak_bytes()
    assert before is not None
    assert after is not None
    assert after - before > 0.9 * block.nbytes
    del block
    assert cost.reset_peak()
    again = cost.peak_bytes()
    assert again is not None
    assert again < after


# ---- Errors ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "gpt"}, "protocol is 'gpt', expected one of bert"),
        ({"format": "pdf"}, "format is 'pdf', expected one of auto"),
        ({"batch": 0}, "batch is 0, expected at least 1"),
        ({"length": 2}, "length is 2, expected at least 3"),
        ({"seed": -1}, "seed is -1"),
        ({"limit": 0}, "limit is 0"),
        ({"length": 41}, "length is 41, but the model has 40 positions"),
    ],
)
def test_wrong_settings(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("w1 w2\n")
    with Model(tiny_model) as model, pytest.raises(InputError, match=message):
        evaluate(model, Settings(data=path, **changes))


def test_text_without_an_askable_token(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("[MASK] [UNK]\n")
    with Model(tiny_model) as model, pytest.raises(InputError, match="asks for no token"):
        evaluate(model, Settings(data=path, protocol="pseudo"))


def test_limit_spreads(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{'a ' * (i + 1)}\n" for i in range(30)))
    with Model(tiny_model) as model:
        found = evaluate(model, Settings(data=path, protocol="pseudo", limit=3)).result
    assert found.data["sentences"] == 3
    assert found.data["tokens"] == sum(n + 2 for n in (1, 11, 21))
    assert found.sequences == 33
