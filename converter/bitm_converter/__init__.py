"""Converts binarized PyTorch BERT checkpoints to `.bitm` files, without torch."""

__version__ = "0.1.0"
