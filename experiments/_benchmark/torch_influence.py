"""Influence by kronfluence's EK-FAC, on the network, examples and weights of ours."""
# pyright: reportMissingImports=false

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments._benchmark.methods import Contestant
from experiments._benchmark.torch_peers import network

AT_A_TIME = 512  # examples


@contextmanager
def few_objects() -> Iterator[None]:
    """kronfluence collects garbage ten times a call; among JAX's million objects that took nine tenths of its time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def kronfluence_scores(params: Any, X: np.ndarray, Y: np.ndarray, X_test: np.ndarray, Y_test: np.ndarray) -> Contestant:
    """Factors, eigenvalues and scores; kronfluence keeps them as files, here in a folder of a moment."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from kronfluence.utils.dataset import DataLoaderKwargs

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    task = Classification()
    model = prepare_model(network(params), task)
    train, test = (torch.utils.data.TensorDataset(torch.from_numpy(np.array(X)), torch.from_numpy(np.array(Y)).long())
                   for X, Y in ((X, Y), (X_test, Y_test)))  # fmt: skip

    def run() -> Any:
        with few_objects(), TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses what PyTorch deprecates
            analyzer = Analyzer("influence", model, task, cpu=not next(model.parameters()).is_cuda, disable_tqdm=True,
                                disable_model_save=True, output_dir=folder)  # fmt: skip
            analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0))
            arguments = FactorArguments(strategy="ekfac", use_empirical_fisher=True)
            analyzer.fit_all_factors("factors", train, per_device_batch_size=AT_A_TIME, factor_args=arguments)
            analyzer.compute_pairwise_scores(
                "scores", "factors", test, train, per_device_query_batch_size=AT_A_TIME,
                per_device_train_batch_size=AT_A_TIME, score_args=ScoreArguments(damping_factor=None),
            )  # fmt: skip
            return analyzer.load_pairwise_scores("scores")["all_modules"]

    return Contestant(run, lambda made: [made.T / len(X)])
