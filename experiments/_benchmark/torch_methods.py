"""The newer quantities by curvlinops and laplace-torch, on the network, examples and weights of ours."""
# pyright: reportMissingImports=false

import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments._benchmark.methods import Contestant
from experiments._benchmark.torch_peers import network

STRUCTURES = {"kronecker": ("all", "kron"), "diagonal": ("all", "diag"), "last_layer": ("last_layer", "full")}


def _torch(*arrays: Any) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(array)) for array in arrays]


def _curvlinops() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports use what PyTorch deprecates
        import curvlinops
    return curvlinops


def curvlinops_product(kind: str, params: Any, X: np.ndarray, Y: np.ndarray, v: Any) -> Contestant:
    """The operator of one batch, made anew each time, as the weights change in use, times one vector."""
    curvlinops = _curvlinops()
    make = {"Hessian": curvlinops.HessianLinearOperator, "Gauss-Newton": curvlinops.GGNLinearOperator}[kind]
    model, loss, (x, y) = network(params), nn.CrossEntropyLoss(), _torch(X, Y)
    parameters, direction = list(model.parameters()), _torch(*(array for layer in v for array in layer))
    data = [(x, y.long())]
    return Contestant(lambda: make(model, loss, parameters, data, check_deterministic=False, num_data=len(x))
                      @ direction)  # fmt: skip


def curvlinops_factors(kind: str, params: Any, X: np.ndarray, Y: np.ndarray) -> Contestant:
    """Both factors of each layer, the bias as a weight on a constant 1."""
    curvlinops, model, (x, y) = _curvlinops(), network(params), _torch(X, Y)
    parameters, data = list(model.parameters()), [(x, y.long())]

    def run() -> Any:
        operator = curvlinops.KFACLinearOperator(
            model, nn.CrossEntropyLoss(), parameters, data, check_deterministic=False, separate_weight_and_bias=False,
            num_data=len(x), num_per_example_loss_terms=1, fisher_type=kind,
        )  # fmt: skip
        operator.compute_kronecker_factors()
        return operator._input_covariances, operator._gradient_covariances

    return Contestant(run, lambda made: [each for name in made[0] for each in (made[0][name], made[1][name])])


def _laplace(likelihood: str, structure: str, params: Any, X: np.ndarray, Y: np.ndarray) -> Any:
    """Fits laplace-torch's posterior by its default backend, curvlinops.

    Kronecker factors are ours only where all examples are one batch. The others form Jacobians: 128 examples at a time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from laplace import Laplace

    subset, hessian = STRUCTURES[structure]
    x, y = _torch(X, Y)
    data = torch.utils.data.TensorDataset(x, y.long() if likelihood == "classification" else y)
    batches = torch.utils.data.DataLoader(data, batch_size=len(x) if hessian == "kron" else 128)
    posterior = Laplace(network(params), likelihood, subset_of_weights=subset, hessian_structure=hessian)
    posterior.fit(batches)
    return posterior


def laplace_fit(structure: str, params: Any, X: np.ndarray, Y: np.ndarray) -> Contestant:
    """The fit of a classification's posterior, and its evidence."""
    fit = lambda: _laplace("classification", structure, params, X, Y).log_marginal_likelihood()
    return Contestant(fit, lambda evidence: [evidence.detach()])


def laplace_predict(structure: str, params: Any, X: np.ndarray, Y: np.ndarray, predicted: int) -> Contestant:
    """The mean and variance of a regression's predictions, linear in the weights."""
    posterior, (x,) = _laplace("regression", structure, params, X, Y), _torch(X[:predicted])
    return Contestant(lambda: posterior(x), lambda made: [made[0], made[1].diagonal(dim1=1, dim2=2)])
