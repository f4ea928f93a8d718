"""Several processes train one model together, each on a GPU of its own: those that torchrun starts.

Each takes batches of its own, and all take the steps that the mean of their gradients says. Where
there is one process, nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn


def begin(device: str) -> tuple[int, int]:
    """Meets the other processes; gives the number of this one and how many there are.

    With `device` "cuda", each process takes one GPU as its "cuda" from here on. Gradients go
    through NCCL there, and what is on the CPU, the clock above all, through gloo.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return 0, 1
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    return distributed.get_rank(), count


def end() -> None:
    """Parts from the other processes, when all is done.

    A process that ends without it may be aborted: threads of gloo's are still under way.
    """
    if are_several():
        distributed.destroy_process_group()


def are_several() -> bool:
    """Whether there are other processes."""
    return distributed.is_available() and distributed.is_initialized()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces every gradient by the mean of the processes' ones, in one message."""
    if not are_several():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    message = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(message)
    message /= distributed.get_world_size()
    parts = message.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients)])


@torch.no_grad()
def copy_from_first(model: nn.Module) -> None:
    """Gives every process the parameters and buffers of the first."""
    if are_several():
        for tensor in (*model.parameters(), *model.buffers()):
            distributed.broadcast(tensor, 0)


def from_first(value: float) -> float:
    """The first process's value."""
    if are_several():
        message = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(message, 0)
        return float(message)
    return value


def mean(values: Tensor) -> float:
    """The mean of the values [n] of all processes, n the same in each."""
    message = values.double().mean().cpu()
    if are_several():
        distributed.all_reduce(message)
        message /= distributed.get_world_size()
    return float(message)
