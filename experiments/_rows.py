"""The 31 rows of the notes: each system with its equations, code and tests. `python3 -m experiments._rows` prints them.

An experiment's docstring names the rows that it shows ("Rows 17 and 18 of the notes' systems"), and no other place
does. In an equation `^{}` raises and `_{}` lowers.
"""

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent
NOT_EXPERIMENTS = {"__init__", "__main__", "datasets", "output"}


@dataclass(frozen=True)
class Row:
    """A system of the notes; code and tests are `file::name`."""

    number: int
    system: str
    equations: tuple[str, ...]
    code: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def experiments(self) -> tuple[tuple[str, ...], ...]:
        """The commands that show the row: each an experiment's name and its arguments."""
        return tuple(command for command, rows in rows_by_command().items() if self.number in rows)


def _row(number: int, system: str, equations: str, code: str, tests: str) -> Row:
    in_files = lambda text, prefix: tuple(prefix + part for part in text.split())
    lines = tuple(line.strip() for line in equations.strip().splitlines())
    return Row(number, system, lines, in_files(code, "jaxmlp/"), in_files(tests, "tests/test_"))


ROWS = (
    _row(1, "Layers, notation, shapes", """
        z^{l} = W^{l} a^{l−1} + b^{l},  a^{l} = f_{l}(z^{l}),  a^{0} = x
        W^{l} is n_{l} × n_{l−1}; transposed, a = f(Wᵀx + b) gives the same numbers""",
        "network.py::MLP _forward.py::forward",
        "network.py::test_shapes_of_the_notes_networks "
        "forward.py::test_both_orientations_of_the_notes_give_the_same_numbers"),
    _row(2, "Squared error, sigmoid, the delta recursion, SGD", """
        L = ½ (ŷ − y)²
        δ^{K} = ∂L/∂z^{K},  δ^{l} = f_{l}′(z^{l}) ⊙ (W^{l+1})ᵀ δ^{l+1}
        ∂L/∂W^{l} = δ^{l} (a^{l−1})ᵀ,  ∂L/∂b^{l} = δ^{l},  W ← W − η ∂L/∂W""",
        "_backward.py::backward readouts.py::mean_gradient",
        "backward.py::test_gradient_equals_autodiff_of_the_obvious_cost "
        "backward.py::test_gradient_equals_autodiff_on_random_networks"),
    _row(3, "K layers, an activation each; the written-out 2-2-1 case", """
        δ^{1} = f_{1}′(z^{1}) ⊙ (W^{2})ᵀ (f_{2}′(z^{2}) ∂L/∂ŷ)
        w_{48}^{[5]} joins unit 8 of layer 4 to unit 4 of layer 5""",
        "network.py::MLP _backward.py::backward",
        "backward.py::test_the_closed_two_layer_formulas backward.py::test_delta_has_as_many_entries_as_w_has_rows "
        "network.py::test_a_weights_indices_name_the_units_it_joins"),
    _row(4, "Softmax output with cross-entropy, path by path", """
        ∂a_{i}/∂z_{j} = a_{i} (1[i = j] − a_{j}),  δ^{K} = ŷ − y
        ∂L/∂w = Σ over the paths from w to L of the product of the factors along the path""",
        "losses.py::cross_entropy activations.py::Softmax starts.py::output_delta",
        "activations.py::test_softmax_jacobian_is_that_of_the_notes "
        "backward.py::test_softmax_with_the_second_of_four_classes_true "
        "backward.py::test_the_sum_over_all_paths_is_the_recursions_entry"),
    _row(5, "Sigmoid output with binary cross-entropy", """
        C = −y log a − (1 − y) log(1 − a)
        ∂C/∂a = (a − y) / (a (1 − a)),  δ = a − y""",
        "losses.py::binary_cross_entropy",
        "losses.py::test_both_routes_to_delta_agree losses.py::test_binary_cross_entropy_where_a_rounds_to_0_or_1"),
    _row(6, "Linear output, regression, squared error", """
        L = ½ (ŷ − y)²,  δ = ŷ − y""",
        "losses.py::squared_error", "losses.py::test_derivatives_equal_autodiff"),
    _row(7, "Activations and their derivatives", """
        σ′ = σ (1 − σ),  tanh′ = 1 − tanh²,  relu′(z) = 1[z > 0]""",
        "activations.py::Activation",
        "activations.py::test_derivative_equals_autodiff activations.py::test_never_overflows_and_keeps_the_dtype"),
    _row(8, "Logistic regression: two loops, one, none", """
        ∂J/∂w = (1/m) Σ_{i} (a_{i} − y_{i}) x_{i} = (1/m) Xᵀ(a − y),  ∂J/∂b = (1/m) Σ_{i} (a_{i} − y_{i})""",
        "_backward.py::value_and_grad", "experiments.py::test_experiment[vectorization]"),
    _row(9, "Broadcasting: shares of calories", """
        share_{ij} = 100 A_{ij} / Σ_{k} A_{kj};  the shares in each column sum to 100""",
        "data/scaling.py::Standard",
        "experiments.py::test_experiment[vectorization]"),
    _row(10, "XOR: not by a perceptron, but by 2-3-1", """
        2w_{0} + w_{1} + w_{2} ≥ 0 and 2w_{0} + w_{1} + w_{2} < 0: no perceptron
        ŷ = σ(W^{2} σ(W^{1} x + b^{1}) + b^{2})""",
        "training/_epoch.py::epoch network.py::MLP",
        "experiments.py::test_experiment[xor]"),
    _row(11, "MNIST by 784-64-10 and 784-10-10", """
        ŷ = softmax(W^{2} relu(W^{1} x + b^{1}) + b^{2}),  W^{1}: 64 × 784,  W^{2}: 10 × 64
        δ^{2} = ŷ − y,  δ^{1} = relu′(z^{1}) ⊙ (W^{2})ᵀ δ^{2}""",
        "training/_fit.py::fit data/idx.py::read_idx",
        "experiments.py::test_a_run_of_mnist_reaches_97_percent_and_leaves_its_files"),
    _row(12, "Demand prediction and house prices", """
        a^{1} = f(W^{1} x + b^{1}): affordability, awareness, perceived quality;  ŷ = σ(w · a^{1} + b)""",
        "network.py::MLP data/csv.py::read_csv",
        "experiments.py::test_experiment[demand] "
        "experiments.py::test_experiment[housing]"),
    _row(13, "Initial weights", """
        Var(w) = 1/n_{l−1} (Xavier),  2/n_{l−1} (He);  equal weights keep units equal forever""",
        "initializers.py::draw network.py::init",
        "initializers.py::test_initial_weights_have_the_named_variance "
        "experiments.py::test_experiment[initialization]"),
    _row(14, "Large weights saturate and learn slowly", """
        |z| large ⇒ σ′(z) = σ(z) (1 − σ(z)) ≈ 0 ⇒ δ^{l} = f_{l}′(z^{l}) ⊙ … ≈ 0""",
        "training/monitors.py::saturated", "experiments.py::test_experiment[saturation]"),
    _row(15, "Vanishing and exploding gradients", """
        δ^{1} = D^{1} (W^{2})ᵀ D^{2} (W^{3})ᵀ … δ^{K},  D^{l} = diag f_{l}′(z^{l}): a product of K factors""",
        "_backward.py::backward readouts.py::delta_norms",
        "experiments.py::test_experiment[vanishing]"),
    _row(16, "Gradient checking", """
        g(θ) ≈ (J(θ + ε) − J(θ − ε)) / 2ε,  error = ‖a − b‖ / (‖a‖ + ‖b‖)""",
        "check.py::check_gradients differences.py::central_difference",
        "check.py::test_random_networks_pass_by_all_three_routes check.py::test_the_worked_example_of_the_notes "
        "gradient_mistakes.py::test_each_classic_mistake_is_caught_and_named"),
    _row(17, "L2 and L1 regularization", """
        J + (λ/2m) Σ_{l} ‖W^{l}‖²: gradient + (λ/m) W^{l};  w ← w − η (v + λw)
        J + s Σ_{l} Σ |W^{l}|: gradient + s sign(W^{l})""",
        "penalties.py::l2 penalties.py::l1",
        "regularization.py::test_the_whole_cost_equals_autodiff regularization.py::test_the_notes_forms_of_l2"),
    _row(18, "Dropout", """
        a^{l} ⊙ mask / p,  mask ~ Bernoulli(p), the same mask backwards;  E[mask / p] = 1""",
        "dropout.py::dropout_masks",
        "regularization.py::test_dropout_masks_keep_their_share_and_the_mean "
        "regularization.py::test_dropout_in_fit_is_a_step_with_masks_drawn_anew_and_none_at_validation"),
    _row(19, "Normalized inputs", """
        x ← (x − μ) / σ, with μ and σ of the training examples for dev and test too""",
        "data/scaling.py::standardize",
        "scaling.py::test_dev_and_test_are_scaled_by_the_training_mean_and_deviation "
        "scaling.py::test_standardized_features_are_those_of_scikit_learn"),
    _row(20, "Training, dev and test set", """
        60/20/20, for large data 98/1/1; dev and test from one distribution""",
        "data/splits.py::split", "splits.py::test_parts_are_disjoint_cover_all_and_keep_shares"),
    _row(21, "Bias, variance, the basic recipe", """
        bias = train − Bayes,  variance = train-dev − train,  mismatch = dev − train-dev
        1% and 11%: high variance;  15% and 16%: high bias""",
        "metrics.py::diagnosis",
        "metrics.py::test_errors_are_diagnosed metrics.py::test_the_gaps_add_up_and_name_the_problems "
        "experiments.py::test_experiment[recipe]"),
    _row(22, "Batch, mini-batch and stochastic descent", """
        W ← W − η (1/b) Σ_{i in batch} δ_{i} a_{i}ᵀ,  b = 1, 64 … 512, or m""",
        "training/sampling.py::draw training/step.py::descend",
        "fit.py::test_the_full_batch_is_one_step_of_the_mean_gradient "
        "sampling.py::test_an_epoch_takes_every_example_once_the_ragged_last_batch_included "
        "experiments.py::test_experiment[batch_size]"),
    _row(23, "SGD over T steps, the best weights on validation", """
        for t = 1 … T: draw i with replacement;  w ← w − η_{t} (∂L_{i}/∂w + λw);  return the w that validated best""",
        "training/_fit.py::fit",
        "fit.py::test_steps_with_replacement_return_the_best_not_the_last "
        "sampling.py::test_replacement_draws_some_examples_twice_and_follows_the_draws"),
    _row(24, "Exponentially weighted averages; momentum, RMSprop, Adam", """
        v_{t} = β v_{t−1} + (1 − β) θ_{t},  corrected v_{t} / (1 − β^{t})""",
        "training/state.py::Average",
        "experiments.py::test_experiment[averages]"),
    _row(25, "Hyperparameters, chosen on the dev set", """
        rate, steps, layers, units, activation: the settings with the least error on the dev set""",
        "training/_fit.py::fit",
        "fit.py::test_another_rate_or_key_does_not_compile_again "
        "epoch.py::test_a_population_is_a_vmap_of_the_epoch"),
    _row(26, "z as a linear function of the weights", """
        z = W o = B w,  w = vec(W) by rows,  B = I ⊗ oᵀ = ∂z/∂w,  ∂L/∂w = Bᵀ δ""",
        "readouts.py::weight_jacobian", "readouts.py::test_weight_jacobian_ties_the_weights_to_the_recursion"),
    _row(27, "The tail of the network as a loss", """
        ℓ_{t}(o_{t}) = ℓ_{t+1}(o_{t+1}) = … = loss,  δ^{l} = ∂ℓ_{l}/∂z^{l}""",
        "_forward.py::tail_loss",
        "forward.py::test_the_tail_is_the_same_loss_at_every_layer "
        "backward.py::test_deltas_are_the_gradients_of_the_tail"),
    _row(28, "Circuits, gate by gate", """
        f = (x + y) z at (−2, 5, −4): q = 3, f = −12, gradients (−4, −4, 3)
        ∂f/∂in = (∂out/∂in) (∂f/∂out): local gradient times upstream gradient""",
        "_circuit.py::circuit circuit_drawing.py::draw_circuit",
        "circuit.py::test_the_notes_example circuit.py::test_each_gate_equals_autodiff "
        "circuit.py::test_random_compositions_equal_autodiff"),
    _row(29, "Forward and backward flow, in pictures", """
        forward: a in the units, W on the edges;  backward: δ in the units, ∂L/∂W on the edges""",
        "_forward.py::forward _backward.py::backward",
        "experiments.py::test_experiment[flow]"),
    _row(30, "Deep against shallow: parity", """
        x_{1} ⊕ x_{2} ⊕ … ⊕ x_{n}: a tree log_{2} n deep, or one layer of 2^{n−1} AND gates""",
        "network.py::MLP",
        "experiments_parity.py::test_parity_by_hand_is_exact_and_as_large_as_promised "
        "experiments.py::test_experiment[parity]"),
    _row(31, "Scores", """
        accuracy = (1/m) Σ_{i} 1[ŷ_{i} = y_{i}];  RMSE² = (1/m) Σ_{i} (ŷ_{i} − y_{i})²""",
        "metrics.py::accuracy metrics.py::per_class_accuracy metrics.py::regression_errors",
        "metrics.py::test_classification_scores_equal_scikit_learns "
        "metrics.py::test_regression_errors_equal_scikit_learns"),
)  # fmt: skip


@functools.cache
def docstrings() -> dict[str, str]:
    """The docstring of each experiment; imports none of them."""
    files = sorted(f for f in FOLDER.glob("*.py") if f.stem not in NOT_EXPERIMENTS and not f.stem.startswith("_"))
    return {f.stem: ast.get_docstring(ast.parse(f.read_text())) or "" for f in files}


@functools.cache
def rows_by_command() -> dict[tuple[str, ...], tuple[int, ...]]:
    """The rows that each command shows, as its docstring says; none for an experiment beyond the notes."""
    found: dict[tuple[str, ...], tuple[int, ...]] = {}
    for name, text in docstrings().items():
        match = re.search(r"^Rows? ([\d, andto]+) of the notes' systems", text, re.MULTILINE)
        found[name,] = _numbers(match[1]) if match else ()
        for arguments, row in re.findall(r"with `(--[^`]+)` row (\d+)", text):
            found[(name, *arguments.split())] = (int(row),)
    return found


def _numbers(text: str) -> tuple[int, ...]:
    """`13 to 15 and 19` is (13, 14, 15, 19)."""
    ranges = re.findall(r"(\d+)(?: to (\d+))?", text)
    return tuple(number for low, high in ranges for number in range(int(low), int(high or low) + 1))


def markdown() -> str:
    """The table for experiments/README.md, with a link in every cell."""
    lines = ["| # | system | code | test | experiment |", "|---|---|---|---|---|"]
    link = lambda reference: "[{1}](../{0})".format(*reference.split("::"))
    for row in ROWS:
        experiments = [f"[{' '.join(command)}]({command[0]}.py)" for command in row.experiments]
        cells = (", ".join(map(link, row.code)), ", ".join(map(_test_link, row.tests)), ", ".join(experiments))
        lines.append(f"| {row.number} | {row.system} | {cells[0]} | {cells[1]} | {cells[2] or 'its test'} |")
    return "\n".join(lines)


def _test_link(reference: str) -> str:
    file, name = reference.split("::")
    return f"[{name.removeprefix('test_').replace('_', ' ')}](../{file})"


if __name__ == "__main__":
    print(markdown())
