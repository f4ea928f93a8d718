"""What a training loop needs besides the losses: the optimizers, a schedule, and the loop."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from . import processes

MatrixOptimizer = Literal["muon", "adamw"]


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is made orthogonal before it is applied (Jordan et al. 2024).

    For the matrices of the encoder; matrices of one shape are worked on together. An update is
    scaled to the size that one of AdamW has, so that the two share a learning rate (Liu et al.
    2025, "Muon is scalable for LLM training").
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: defaultdict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(parameter.shape)].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                gradients = torch.stack([p.grad for p in parameters])
                state = self.state[parameters[0]]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(gradients)
                state["momentum"].lerp_(gradients, 1 - group["momentum"])
                # Nesterov's: one step further along the momentum.
                ahead = gradients.lerp_(state["momentum"], group["momentum"])
                size = 0.2 * math.sqrt(max(rows, columns))
                updates = orthogonalized(ahead) * size
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-group["lr"])


def orthogonalized(matrices: Tensor) -> Tensor:
    """U V of the singular value decompositions U S V of matrices [n, rows, columns], roughly.

    Five steps of a Newton-Schulz iteration with Jordan's coefficients, which bring all singular
    values between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


def optimizers(
    model: nn.Module,
    lr: float,
    vector_lr: float,
    weight_decay: float = 0.1,
    of_matrices: MatrixOptimizer = "muon",
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between the embeddings and the logits, AdamW for everything else.

    With `of_matrices` "adamw", these matrices have AdamW too, at their own rate `lr`. Scales and
    steps, which are much smaller than 1, change at a tenth of `vector_lr`.
    """
    matrices, scales, others = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim == 2 and "embeddings" not in name and "decoder" not in name:
            matrices.append(parameter)
        elif name.endswith((".scale", ".step")):
            scales.append(parameter)
        else:
            others.append(parameter)
    groups = [{"params": others}, {"params": scales, "lr": vector_lr / 10, "weight_decay": 0.0}]
    if of_matrices == "adamw":
        groups.append({"params": matrices, "lr": lr, "weight_decay": weight_decay})
    adam = torch.optim.AdamW(
        groups, lr=vector_lr, betas=(0.9, 0.98), weight_decay=0.01, fused=others[0].is_cuda
    )
    if of_matrices == "adamw":
        return [adam]
    return [Muon(matrices, lr, weight_decay=weight_decay), adam]


def rate(progress: float, warm_up: float = 0.03) -> float:
    """The factor of the learning rate, by the share of the budget that is used: up, then down to 0
    in a straight line."""
    if progress < warm_up:
        return progress / warm_up
    return max(0.0, (1 - progress) / (1 - warm_up))


def train(
    loss_of: Callable[[float], Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    seconds: float,
    report: Callable[[int, float, float], None],
    n_between: int = 10,
) -> int:
    """Trains until the time is up; returns the number of steps.

    `loss_of(progress)` gives the loss of the next batch, `progress` the share of the time that is
    used. `report(steps, progress, loss)` is called every `n_between` steps with their mean loss.
    Raises FloatingPointError when that is no number. Several processes (`processes`) take their
    steps together, by the clock of the first, and see the mean of their losses.
    """
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    parameters = [
        p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]
    ]
    begin = time.monotonic()
    n_steps, progress = 0, 0.0
    losses: list[Tensor] = []
    while progress < 1:
        for optimizer, rates in zip(optimizers, peaks):
            for group, peak in zip(optimizer.param_groups, rates):
                group["lr"] = peak * rate(progress)
        loss = loss_of(progress)
        loss.backward()
        processes.average_gradients(parameters)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        n_steps += 1
        progress = processes.from_first((time.monotonic() - begin) / seconds)
        if n_steps % n_between == 0:
            # Reading the losses also keeps the clock and a GPU together.
            mean = processes.mean(torch.stack(losses))
            losses.clear()
            if not math.isfinite(mean):
                raise FloatingPointError(f"the loss is {mean} after {n_steps} steps")
            report(n_steps, progress, mean)
    return n_steps
