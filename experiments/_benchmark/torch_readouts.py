"""The readouts of BackPACK and Opacus, on the network, batch and weights of ours."""
# pyright: reportMissingImports=false

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments._benchmark.torch_peers import network

warnings.filterwarnings("ignore", "Full backward hook is firing")  # from the hooks of BackPACK and Opacus


def _zero_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def backpack(quantity: str, params, X: np.ndarray, Y: np.ndarray) -> Callable[[], None]:
    """The mean gradient and one of BackPACK's quantities."""
    from backpack import backpack as extended
    from backpack import extend, extensions

    extension = {
        "norms": extensions.BatchL2Grad,
        "second moment": extensions.SumGradSquared,
        "Kronecker factors": extensions.KFAC,
        "Gauss-Newton diagonal": extensions.DiagGGNExact,
    }[quantity]()
    model, loss = extend(network(params)), extend(nn.CrossEntropyLoss())
    x, y = torch.from_numpy(X), torch.from_numpy(Y).long()

    def run() -> None:
        _zero_gradients(model)
        with extended(extension):
            loss(model(x), y).backward()

    return run


def opacus_per_example(params, X: np.ndarray, Y: np.ndarray, max_norm: float) -> Callable[[], None]:
    """Clipping with every example's gradient formed."""
    from opacus.grad_sample import GradSampleModule

    model: Any = GradSampleModule(network(params))
    loss = nn.CrossEntropyLoss()
    x, y = torch.from_numpy(X), torch.from_numpy(Y).long()

    def run() -> None:
        for parameter in model.parameters():
            parameter.grad, parameter.grad_sample = None, None
        loss(model(x), y).backward()
        samples = [p.grad_sample for p in model.parameters()]
        norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples], dim=1).norm(dim=1)
        factor = (max_norm / norms.clamp(min=max_norm)) / len(x)
        for parameter, sample in zip(model.parameters(), samples, strict=True):
            parameter.grad = torch.einsum("m,m...->...", factor, sample)

    return run


def opacus_ghost(params, X: np.ndarray, Y: np.ndarray, max_norm: float) -> Callable[[], None]:
    """Ghost clipping: norms by one backward pass, the clipped gradient by a second."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    make: Any = GradSampleModuleFastGradientClipping
    model = make(network(params), max_grad_norm=max_norm, use_ghost_clipping=True)
    loss = nn.CrossEntropyLoss(reduction="none")
    x, y = torch.from_numpy(X), torch.from_numpy(Y).long()

    def run() -> None:
        _zero_gradients(model)
        losses = loss(model(x), y)
        losses.mean().backward(retain_graph=True)
        factor = model.get_clipping_coef()
        _zero_gradients(model)
        model.disable_hooks()
        (factor * losses).mean().backward()
        model.enable_hooks()

    return run
