"""Peers without a compiler: the notes' equations in NumPy, and scikit-learn's MLPClassifier."""

from typing import Any

import numpy as np

from experiments._benchmark.problem import Problem


class NumPy:
    """The equations of the notes, a batch at a time, in float32."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.random = problem, np.random.default_rng(0)
        self.layers = [(W.copy(), b.copy()) for W, b in problem.weights]

    def __call__(self) -> None:
        X, Y, b = self.problem.X, self.problem.Y, self.problem.batch_size
        order = self.random.permutation(len(X))
        for first in range(0, len(X), b):
            index = order[first : first + b]
            self.step(X[index], Y[index])

    def step(self, X: np.ndarray, Y: np.ndarray) -> None:
        """One forward pass, one backward pass, one step down the gradient."""
        activations = [X]
        for W, b in self.layers[:-1]:
            activations.append(np.maximum(activations[-1] @ W.T + b, 0))
        W, b = self.layers[-1]
        z = activations[-1] @ W.T + b
        delta = np.exp(z - z.max(1, keepdims=True))
        delta /= delta.sum(1, keepdims=True)
        delta[np.arange(len(Y)), Y] -= 1
        delta /= len(Y)
        for l in reversed(range(len(self.layers))):
            (W, b), a = self.layers[l], activations[l]
            grad_W, grad_b = delta.T @ a, delta.sum(0)
            if l:
                delta = (delta @ W) * (a > 0)
            W -= self.problem.rate * grad_W
            b -= self.problem.rate * grad_b

    def weights(self) -> list[tuple[Any, Any]]:
        """`(W, b)` of each layer."""
        return self.layers


class ScikitLearn:
    """`partial_fit`, which takes every example once, in a new order."""

    def __init__(self, problem: Problem) -> None:
        from sklearn.neural_network import MLPClassifier

        self.problem = problem
        make: Any = MLPClassifier
        self.model = make(
            problem.net.sizes[1:-1], activation="relu", solver="sgd", alpha=0, momentum=0, nesterovs_momentum=False,
            learning_rate="constant", learning_rate_init=problem.rate, batch_size=problem.batch_size, shuffle=True,
            random_state=np.random.RandomState(0),
        )  # fmt: skip
        some = slice(problem.batch_size)
        self.model.partial_fit(problem.X[some], problem.Y[some], classes=np.arange(10))  # makes the weights
        for (W, b), own_W, own_b in zip(problem.weights, self.model.coefs_, self.model.intercepts_, strict=True):
            own_W[...], own_b[...] = W.T, b

    def __call__(self) -> None:
        self.model.partial_fit(self.problem.X, self.problem.Y)

    def weights(self) -> list[tuple[Any, Any]]:
        """`(W, b)` of each layer."""
        return [(W.T, b) for W, b in zip(self.model.coefs_, self.model.intercepts_, strict=True)]
