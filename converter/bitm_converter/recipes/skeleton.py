"""The part that all families share: a post-layer-norm BERT under the names of transformers.

From the configuration and the tensors' names and shapes come the format's configuration, and the
name in the checkpoint for every slot of the file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from bitm_converter.checkpoint import Checkpoint
from bitm_converter.errors import CheckpointError, ConfigError, MissingError, ShapeError
from bitm_formats import Activation, Config, Head, Pooler, Problem, slots

from .settings import Settings

_WORDS = "embeddings.word_embeddings.weight"

_BODY_STEMS = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
_LAYER_STEMS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
_HEAD_STEMS = {
    "mlm.transform": "cls.predictions.transform.dense",
    "mlm.norm": "cls.predictions.transform.LayerNorm",
    "mlm.decoder": "cls.predictions.decoder",
    "next_sentence": "cls.seq_relationship",
}
_LEAVES = {"weight": "weight", "bias": "bias", "gain": "weight"}

DECODER_WEIGHT = "mlm.decoder.weight"
DECODER_BIAS = "mlm.decoder.bias"
# transformers keeps one bias under two names; older files have the first alone.
DECODER_BIAS_NAMES = ("cls.predictions.bias", "cls.predictions.decoder.bias")

_ACTIVATIONS = {
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
    "swish": Activation.SWISH,
    "silu": Activation.SWISH,
    "mish": Activation.MISH,
}
_PROBLEMS = {
    "regression": Problem.REGRESSION,
    "single_label_classification": Problem.ONE_LABEL,
    "multi_label_classification": Problem.SEVERAL_LABELS,
}


@dataclass(frozen=True)
class Skeleton:
    """The model's configuration (without its tokenizer), and where its parts are.

    `sources` gives the name in the checkpoint for each slot in the order of the slots, also for a
    decoder that is not there; `shapes` what each slot expects. `body` is the prefix of the
    encoder's names, `bert.` or nothing. `labels` are the label names of a classifier.
    """

    config: Config
    body: str
    sources: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    labels: list[str]

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, settings: Settings, attention_size: int | None = None
    ) -> Skeleton:
        """`attention_size` are the rows of query, key and value, if not as many as hidden_size.

        Raises ConfigError, MissingError, ShapeError or CheckpointError.
        """
        body = _find_body(checkpoint)
        _refuse_other_models(settings)
        head = _find_head(checkpoint, settings, body)
        labels = _labels(checkpoint, settings, head)
        config = _config(checkpoint, settings, body, head, len(labels), attention_size)
        stems = _stems(config, body)
        sources: dict[str, str] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for slot in slots(config, ()):
            stem, _, leaf = slot.name.rpartition(".")
            if stem in stems and leaf in _LEAVES:
                sources[slot.name] = f"{stems[stem]}.{_LEAVES[leaf]}"
                shapes[slot.name] = slot.shape
        if DECODER_BIAS in sources:
            sources[DECODER_BIAS] = _decoder_bias(checkpoint)
        skeleton = cls(config, body, sources, shapes, labels)
        skeleton._check_tensors(checkpoint, settings)
        return skeleton

    def accounted_names(self) -> set[str]:
        """Every name in the checkpoint that belongs to a plain BERT."""
        buffers = {f"{self.body}embeddings.{name}" for name in ("position_ids", "token_type_ids")}
        biases = DECODER_BIAS_NAMES if DECODER_BIAS in self.sources else ()
        return {*self.sources.values(), *buffers, *biases}

    def layer_linears(self) -> list[str]:
        """The places of the layers' linears."""
        matrices = (slot for slot in self.sources if slot.endswith(".weight"))
        return [slot[: -len(".weight")] for slot in matrices if slot.startswith("layers.")]

    def encoder_linears(self) -> list[str]:
        """The places of the layers' linears and of the pooler's, if there is one."""
        pooler = ["pooler"] if "pooler.weight" in self.sources else []
        return self.layer_linears() + pooler

    def label_metadata(self) -> dict[str, str]:
        """The labels' names as the file keeps them (SPEC.md, section 3.6)."""
        return {f"label.{n}": label for n, label in enumerate(self.labels)}

    def _check_tensors(self, checkpoint: Checkpoint, settings: Settings) -> None:
        for slot, name in self.sources.items():
            tensor = checkpoint.get(name)
            if tensor is None:
                if slot == DECODER_WEIGHT:  # tied to the word embeddings
                    continue
                raise MissingError(checkpoint.path, "is needed but not there", tensor=name)
            if tensor.shape != self.shapes[slot]:
                problem = (
                    f"expected shape {self.shapes[slot]} by the configuration "
                    f"({settings.path.name}), found {tensor.shape}"
                )
                raise ShapeError(checkpoint.path, problem, tensor=tensor.name)
            if not tensor.dtype.startswith(("float", "bfloat")):
                problem = f"expected floating-point numbers, found {tensor.dtype}"
                raise CheckpointError(checkpoint.path, problem, tensor=name)


def _find_body(checkpoint: Checkpoint) -> str:
    for body in ("bert.", ""):
        if body + _WORDS in checkpoint:
            return body
    found = ", ".join(list(checkpoint)[:3])
    problem = f"is no BERT: expected a tensor 'bert.{_WORDS}', found {found}, ..."
    raise MissingError(checkpoint.path, problem)


def _refuse_other_models(settings: Settings) -> None:
    settings.require("model_type", "bert")
    settings.require("position_embedding_type", "absolute")
    settings.require("is_decoder", False)
    settings.require("add_cross_attention", False)
    settings.require("pruned_heads", {})


# Heads

_HEAD_ARCHITECTURES = {
    "BertForMaskedLM": Head.MASKED_LM,
    "BertForPreTraining": Head.MASKED_LM_NEXT_SENTENCE,
    "BertForSequenceClassification": Head.CLASSIFIER,
    "BertForTokenClassification": Head.TOKEN_CLASSIFIER,
    "BertForQuestionAnswering": Head.QUESTION_ANSWERING,
}
_HEAD_NAMES = {
    Head.MASKED_LM: "cls.predictions.transform.dense.weight",
    Head.MASKED_LM_NEXT_SENTENCE: "cls.seq_relationship.weight",
    Head.CLASSIFIER: "classifier.weight",
    Head.TOKEN_CLASSIFIER: "classifier.weight",
    Head.QUESTION_ANSWERING: "qa_outputs.weight",
}
_UNKNOWN_HEADS = ("BertForMultipleChoice", "BertForNextSentencePrediction", "BertLMHeadModel")


def _find_head(checkpoint: Checkpoint, settings: Settings, body: str) -> Head:
    """The head by the tensors that are there; the configuration decides between the two that have
    a classifier, and between several heads in one file."""
    stated = _stated_head(settings)
    present = [head for head, name in _HEAD_NAMES.items() if name in checkpoint]
    if Head.MASKED_LM_NEXT_SENTENCE in present and Head.MASKED_LM in present:
        present.remove(Head.MASKED_LM)
    if Head.CLASSIFIER in present:
        # Without a word from the configuration, a pooler shows what the classifier reads.
        with_pooler = _has_pooler(checkpoint, body)
        present.remove(Head.TOKEN_CLASSIFIER if with_pooler else Head.CLASSIFIER)
        if stated in (Head.CLASSIFIER, Head.TOKEN_CLASSIFIER):
            return stated
    if stated in present:
        return stated
    if not present:
        if stated is None:
            return Head.NONE
        problem = f"is needed but not there: {settings.path.name} names a model with this head"
        raise MissingError(checkpoint.path, problem, tensor=_HEAD_NAMES[stated])
    if len(present) > 1:
        found = ", ".join(_HEAD_NAMES[head] for head in present)
        problem = f"holds several heads ({found}): name one in 'architectures' of {settings.path}"
        raise CheckpointError(checkpoint.path, problem)
    return present[0]


def _stated_head(settings: Settings) -> Head | None:
    architectures = settings.values.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if name in _UNKNOWN_HEADS:
        known = ", ".join(("BertModel", *_HEAD_ARCHITECTURES))
        problem = f"'architectures': expected one of {known}, found {name}"
        raise ConfigError(settings.path, problem)
    return _HEAD_ARCHITECTURES.get(name) if isinstance(name, str) else None


def _has_pooler(checkpoint: Checkpoint, body: str) -> bool:
    return f"{body}pooler.dense.weight" in checkpoint


def _labels(checkpoint: Checkpoint, settings: Settings, head: Head) -> list[str]:
    """The names of a classifier's labels: those of `id2label` if their number fits."""
    if head not in (Head.CLASSIFIER, Head.TOKEN_CLASSIFIER):
        return []
    tensor = _HEAD_NAMES[head]
    n_labels, _ = _matrix_shape(checkpoint, tensor)
    names = settings.values.get("id2label") or {}
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(settings.path, "'id2label': expected an object of strings")
    # Old files state a number of labels beside an `id2label` that was never filled in.
    stated = settings.integer("num_labels", len(names) or n_labels)
    if n_labels not in (stated, len(names)):
        problem = f"expected {stated} rows by the labels of {settings.path.name}, found {n_labels}"
        raise ShapeError(checkpoint.path, problem, tensor=tensor)
    if len(names) != n_labels:
        return [f"LABEL_{n}" for n in range(n_labels)]
    if set(names) != {str(n) for n in range(n_labels)}:
        raise ConfigError(settings.path, f"'id2label': expected the keys 0 to {n_labels - 1}")
    return [names[str(n)] for n in range(n_labels)]


def _problem(settings: Settings, head: Head, n_labels: int) -> Problem:
    """How the pipelines of transformers read a classifier's logits."""
    if head == Head.TOKEN_CLASSIFIER:
        return Problem.ONE_LABEL
    if head != Head.CLASSIFIER:
        return Problem.NONE
    unstated = "single_label_classification" if n_labels > 1 else "multi_label_classification"
    return Problem(settings.choice("problem_type", _PROBLEMS, unstated))


# Sizes


def _config(
    checkpoint: Checkpoint,
    settings: Settings,
    body: str,
    head: Head,
    n_labels: int,
    attention_size: int | None,
) -> Config:
    """The configuration by config.json; sizes that it lacks are read off the tensors."""
    words, hidden = _matrix_shape(checkpoint, body + _WORDS)
    positions, _ = _matrix_shape(checkpoint, f"{body}embeddings.position_embeddings.weight")
    types, _ = _matrix_shape(checkpoint, f"{body}embeddings.token_type_embeddings.weight")
    inner, _ = _matrix_shape(checkpoint, f"{body}encoder.layer.0.intermediate.dense.weight")
    hidden_size = settings.integer("hidden_size", hidden)
    n_heads = settings.integer("num_attention_heads")
    size = hidden_size if attention_size is None else attention_size
    if size % n_heads:
        what = "hidden_size" if attention_size is None else "the size of attention"
        problem = f"{what} {size} is not a multiple of num_attention_heads {n_heads}"
        raise ConfigError(settings.path, problem)
    head_size = size // n_heads
    eps = settings.number("layer_norm_eps", 1e-12)
    activation = settings.choice("hidden_act", _ACTIVATIONS, "gelu")
    is_mlm = head in (Head.MASKED_LM, Head.MASKED_LM_NEXT_SENTENCE)
    return Config(
        vocab_size=settings.integer("vocab_size", words),
        hidden_size=hidden_size,
        n_layers=_layer_number(checkpoint, settings, body),
        n_heads=n_heads,
        head_size=head_size,
        intermediate_size=settings.integer("intermediate_size", inner),
        max_positions=settings.integer("max_position_embeddings", positions),
        n_token_types=settings.integer("type_vocab_size", types),
        score_scale=1 / math.sqrt(head_size),
        hidden_activation=activation,
        layer_norm_eps=eps,
        pooler=_pooler(checkpoint, body, head),
        head=head,
        n_labels=2 if head == Head.QUESTION_ANSWERING else n_labels,
        problem=_problem(settings, head, n_labels),
        head_activation=activation if is_mlm else 0,
        head_norm_eps=eps if is_mlm else 0.0,
    )


def _matrix_shape(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    if name not in checkpoint:
        raise MissingError(checkpoint.path, "is needed but not there", tensor=name)
    shape = checkpoint[name].shape
    if len(shape) != 2 or 0 in shape:
        problem = f"expected a matrix, found shape {shape}"
        raise ShapeError(checkpoint.path, problem, tensor=name)
    return shape[0], shape[1]


def _layer_number(checkpoint: Checkpoint, settings: Settings, body: str) -> int:
    """How many layers there are to look for: not more than there are tensors for."""
    pattern = re.compile(re.escape(body) + r"encoder\.layer\.(\d+)\.")
    found = len({match[1] for name in checkpoint if (match := pattern.match(name))})
    stated = settings.integer("num_hidden_layers", found or None)
    if stated > found:
        problem = f"expected {stated} layers by {settings.path.name}, found {found}"
        raise MissingError(checkpoint.path, problem)
    return stated


def _pooler(checkpoint: Checkpoint, body: str, head: Head) -> Pooler:
    needed = head in (Head.CLASSIFIER, Head.MASKED_LM_NEXT_SENTENCE)
    return Pooler.TANH if needed or _has_pooler(checkpoint, body) else Pooler.NONE


# Names


def _stems(config: Config, body: str) -> dict[str, str]:
    """The stem of names in the checkpoint for each stem of slots."""
    stems = {slot: body + name for slot, name in _BODY_STEMS.items()}
    for n in range(config.n_layers):
        for slot, name in _LAYER_STEMS.items():
            stems[f"layers.{n}.{slot}"] = f"{body}encoder.layer.{n}.{name}"
    stems.update(_HEAD_STEMS)
    is_answering = config.head == Head.QUESTION_ANSWERING
    stems["classifier"] = "qa_outputs" if is_answering else "classifier"
    return stems


def _decoder_bias(checkpoint: Checkpoint) -> str:
    """The name under which the decoder's bias is; both names must mean the same values."""
    first, second = DECODER_BIAS_NAMES
    if first not in checkpoint:
        return second if second in checkpoint else first
    if second in checkpoint:
        one, other = checkpoint[first], checkpoint[second]
        same = one.same_data(other) or (
            one.shape == other.shape and bool((one.read() == other.read()).all())
        )
        if not same:
            problem = f"expected the same values as in '{first}', found others"
            raise CheckpointError(checkpoint.path, problem, tensor=second)
    return first
