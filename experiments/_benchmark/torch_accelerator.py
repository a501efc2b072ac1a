"""PyTorch's usual loop on the chip that ours runs on, with its products rounded or not."""
# pyright: reportMissingImports=false

import jax
import torch

from experiments._benchmark.problem import Problem
from experiments._benchmark.torch_peers import Loop

PRECISION = {None: "highest", "tensorfloat32": "high", "bfloat16": "highest"}  # PyTorch's names


def find_device() -> str:
    """PyTorch's name of the device that ours runs on; RuntimeError where it finds none."""
    backend = jax.default_backend()
    if backend not in ("cpu", "gpu") or (backend == "gpu" and not torch.cuda.is_available()):
        raise RuntimeError(f"this PyTorch finds no {backend.upper()}")
    return "cuda" if backend == "gpu" else "cpu"


class Accelerated(Loop):
    """An epoch; the pictures are in the chip's memory. bfloat16 is by `torch.autocast`, its usual way."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, device=find_device())
        products, eager = problem.net.products, self.network
        self.precision = PRECISION[products]

        def forward(X: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device, torch.bfloat16, enabled=products == "bfloat16"):
                scores = eager(X)
            return scores.float()

        self.model = forward

    def __call__(self) -> None:
        torch.set_float32_matmul_precision(self.precision)
        try:
            super().__call__()
        finally:
            torch.set_float32_matmul_precision("highest")  # for the next contestant
