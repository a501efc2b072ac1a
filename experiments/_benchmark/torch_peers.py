"""PyTorch in its usual loop, eager and by `torch.compile`; and networks for XOR, one after another."""
# pyright: reportMissingImports=false

import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments._benchmark.problem import Problem
from experiments._benchmark.timing import Call, cores

torch.set_num_threads(cores())


def network(weights: Any, activation: type = nn.ReLU, keep: float | None = None) -> nn.Sequential:
    """A network with our weights; its outputs are scores. Before each layer is dropout where `keep` is given."""
    layers: list[nn.Module] = []
    for W, b in weights:
        layers += [] if keep is None else [nn.Dropout(1 - keep)]
        linear = nn.Linear(W.shape[1], W.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.array(W)))
            linear.bias.copy_(torch.from_numpy(np.array(b)))
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


class Loop:
    """An epoch: a permutation, then for each batch index_select, zero_grad, the loss, backward, step."""

    def __init__(self, problem: Problem, compiled: bool = False, device: str = "cpu") -> None:
        self.X, self.Y = torch.from_numpy(problem.X).to(device), torch.from_numpy(problem.Y).long().to(device)
        self.batch_size, self.device = problem.batch_size, device
        self.network = network(problem.weights, keep=problem.keep).to(device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=problem.rate)
        self.loss: Any = nn.CrossEntropyLoss()
        self.model: Any = self.network
        if compiled:
            torch.compiler.reset()  # a second batch size would make it compile for sizes that change
            self.model = torch.compile(self.network)

    def __call__(self) -> None:
        order = torch.randperm(len(self.X), device=self.device)
        for first in range(0, len(self.X), self.batch_size):
            index = order[first : first + self.batch_size]
            X, Y = self.X.index_select(0, index), self.Y.index_select(0, index)
            self.optimizer.zero_grad()
            self.loss(self.model(X), Y).backward()
            self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()

    def weights(self) -> list[tuple[Any, Any]]:
        """`(W, b)` of each layer."""
        linear = [layer for layer in self.network if isinstance(layer, nn.Linear)]
        return [(layer.weight.detach().cpu().numpy(), layer.bias.detach().cpu().numpy()) for layer in linear]


def compile_loop(problem: Problem) -> Loop:
    """The same loop with `torch.compile(model)`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch deprecates parts that it uses itself
        loop = Loop(problem, compiled=True)
        loop()
    return loop


def xor_one_by_one(X: np.ndarray, Y: np.ndarray, weights: Any, rate: float, steps: int) -> Call:
    """A call that trains a sigmoid network on XOR for `steps` full-batch steps and returns it."""
    inputs, targets = torch.from_numpy(X), torch.from_numpy(Y)

    def run() -> nn.Sequential:
        torch.set_num_threads(1)  # on four examples more threads only wait for each other
        model, loss = network(weights, nn.Sigmoid), nn.BCEWithLogitsLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
        torch.set_num_threads(cores())
        return model

    return run
