"""Makes a 1-bit BERT by training: binary linears, distillation losses, optimizer and schedule.

Needs PyTorch and transformers (the extra `train`); nothing else of this package does.

    model = BertForMaskedLM.from_pretrained(...)
    binarize_model(model, activations="int8")
    ...  # train it with transformers' Trainer or a loop of your own, best with `Distillation`
    save(model, "my-1-bit-bert", tokenizer)      # then: bitm-convert my-1-bit-bert model.bitm
"""

from .losses import Distillation, hidden_state_loss, soft_cross_entropy
from .modules import BinaryLinear, LearnedStep, TokenInt8, binarize_model, binary_linears
from .saving import save

__all__ = [
    "BinaryLinear",
    "Distillation",
    "LearnedStep",
    "TokenInt8",
    "binarize_model",
    "binary_linears",
    "hidden_state_loss",
    "save",
    "soft_cross_entropy",
]
