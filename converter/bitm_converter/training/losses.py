"""Losses for distillation: a binarized model learns from its float teacher.

A binary network that learns from labels alone is far behind one that also learns what a float
network thinks of every alternative, and what it thinks on the way there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of softmax over the last dimension, mean over all others.

    Multiplied by temperature squared, so that gradients keep their size (Hinton et al. 2015).
    """
    target = functional.log_softmax(teacher.float() / temperature, -1)
    log_probabilities = functional.log_softmax(student.float() / temperature, -1)
    divergence = (target.exp() * (target - log_probabilities)).sum(-1).mean()
    return divergence * temperature**2


def hidden_state_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """Mean squared differences of states [..., H] over the mean squares of the teacher's."""
    losses = []
    for student, teacher in zip(students, teachers):
        wide = teacher.float()
        difference = (student.float() - wide).square().mean()
        losses.append(difference / wide.square().mean().clamp(min=1e-6))
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class Distillation:
    """A weighted sum: labels, the teacher's logits, the teacher's hidden states."""

    labels: float = 0.1
    logits: float = 0.9
    states: float = 0.5
    temperature: float = 1.0

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        student_states: Sequence[Tensor] = (),
        teacher_states: Sequence[Tensor] = (),
    ) -> Tensor:
        """Takes logits [..., C], labels [...] (-100: no loss there) and states [..., H]."""
        counts = labels != -100
        total = self.labels * functional.cross_entropy(student[counts].float(), labels[counts])
        soft = soft_cross_entropy(student[counts], teacher[counts], self.temperature)
        total = total + self.logits * soft
        if student_states:
            total = total + self.states * hidden_state_loss(student_states, teacher_states)
        return total
