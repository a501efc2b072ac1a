"""K-FAC of curvlinops in PyTorch's usual loop: its inverse maps each gradient before SGD with momentum."""
# pyright: reportMissingImports=false

import warnings
from typing import Any

import torch
from torch import nn

from experiments._benchmark.problem import Problem
from experiments._benchmark.second_order import DAMPING, MOMENTUM, PERIOD, RATE
from experiments._benchmark.torch_accelerator import find_device
from experiments._benchmark.torch_peers import Loop


class Curvlinops(Loop):
    """An epoch; the factors are those of one batch, because curvlinops keeps no running averages."""

    def __init__(self, problem: Problem) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its imports use what PyTorch deprecates
            import curvlinops

        super().__init__(problem, device=find_device())
        self.curvlinops = curvlinops
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.SGD(self.parameters, lr=RATE, momentum=MOMENTUM)
        self.steps = 0

    def __call__(self) -> None:
        order = torch.randperm(len(self.X), device=self.device)
        for first in range(0, len(self.X), self.batch_size):
            index = order[first : first + self.batch_size]
            X, Y = self.X.index_select(0, index), self.Y.index_select(0, index)
            if self.steps % PERIOD == 0:
                self.inverse = self.invert(X, Y)
            self.optimizer.zero_grad()
            self.loss(self.model(X), Y).backward()
            direction = self.inverse @ [parameter.grad for parameter in self.parameters]
            for parameter, mapped in zip(self.parameters, direction, strict=True):
                parameter.grad = mapped
            self.optimizer.step()
            self.steps += 1
        if self.device == "cuda":
            torch.cuda.synchronize()

    def invert(self, X: torch.Tensor, Y: torch.Tensor) -> Any:
        """The damped inverse of the batch's factors, computed when it first maps a gradient and then kept."""
        factors = self.curvlinops.KFACLinearOperator(
            self.network, nn.CrossEntropyLoss(), self.parameters, [(X, Y)], check_deterministic=False, seed=self.steps,
            separate_weight_and_bias=False, num_data=len(X), num_per_example_loss_terms=1,
        )  # fmt: skip
        return self.curvlinops.KFACInverseLinearOperator(factors, damping=DAMPING, use_heuristic_damping=True)
