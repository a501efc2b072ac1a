"""The systems of the notes, a row each: equation, code, test, experiment. The page and README's table are made of it.

`python3 -m experiments._rows` prints the table for the README.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """One system; `code` is a file of jaxmlp and a name in it, `test` a file of tests and a function in it."""

    number: int
    system: str
    note: str
    equation: str
    code: tuple[str, str]
    test: tuple[str, str]
    experiment: tuple[str, str]  # its name and further arguments


ROWS = (
    Row(1, "Layers, notation, shapes", "000, 002", "z = W a + b, a = f(z); transposed, f(Wᵀx + b)",
        ("forward.py", "forward"), ("test_forward.py", "test_both_orientations_of_the_notes_give_the_same_numbers"),
        ("shapes", "")),
    Row(2, "Squared error, sigmoid, delta recursion, SGD", "000",
        "L = ½ (ŷ − y)²; δˡ = f′(zˡ) ⊙ (Wˡ⁺¹ᵀ δˡ⁺¹); ∇Wˡ = δˡ aˡ⁻¹ᵀ", ("backward.py", "backward"),
        ("test_backward.py", "test_gradient_equals_autodiff_on_random_networks"), ("gradcheck", "")),
    Row(3, "K layers, an activation each; the 2-2-1 case", "001", "zˡ = Wˡ aˡ⁻¹ + bˡ, aˡ = f_l(zˡ), l = 1..K",
        ("network.py", "MLP"), ("test_backward.py", "test_the_closed_two_layer_formulas"), ("shapes", "")),
    Row(4, "Softmax with cross-entropy, path by path", "003, 002", "δᴷ = ŷ − y; ∂aᵢ/∂zⱼ = aᵢ (1[i = j] − aⱼ)",
        ("losses.py", "Loss"), ("test_backward.py", "test_the_sum_over_all_paths_is_the_recursions_entry"),
        ("flow", "")),
    Row(5, "Sigmoid with binary cross-entropy", "002", "∂C/∂a = (a − y) / (a (1 − a)); δ = a − y",
        ("losses.py", "binary_cross_entropy"), ("test_losses.py", "test_binary_cross_entropy_where_a_rounds_to_0_or_1"),
        ("mnist", "--digits 5 6")),
    Row(6, "Linear output, regression", "003, 002", "L = ½ Σ (ŷ − y)²; δ = ŷ − y", ("losses.py", "squared_error"),
        ("test_losses.py", "test_both_routes_to_delta_agree"), ("housing", "")),
    Row(7, "Activations and their derivatives", "002, 001", "σ′ = σ (1 − σ); tanh′ = 1 − tanh²; ReLU′ = 1[z > 0]",
        ("activations.py", "Activation"), ("test_activations.py", "test_derivative_equals_autodiff"),
        ("activations", "")),
    Row(8, "Logistic regression by loops and vectorised", "002", "dw = (1/m) Σᵢ (aᵢ − yᵢ) xᵢ = Xᵀ(A − Y) / m",
        ("readouts.py", "mean_gradient"), ("test_experiments_notes.py", "test_loops_and_vectors_give_one_gradient"),
        ("vectorization", "")),
    Row(9, "Broadcasting: the calories table", "002", "100 A / Σ_rows A: columns sum to 100",
        ("data/scaling.py", "standardise"), ("test_experiments_notes.py", "test_loops_and_vectors_give_one_gradient"),
        ("vectorization", "")),
    Row(10, "XOR", "002", "w₀ < 0, w₀ + w₁ ≥ 0, w₀ + w₂ ≥ 0, w₀ + w₁ + w₂ < 0 contradict; 2-3-1 solves it",
        ("training/epoch.py", "epoch"),
        ("test_experiments.py", "test_xor_is_solved_by_a_hidden_layer_and_never_by_a_perceptron"), ("xor", "")),
    Row(11, "MNIST 784-64-10", "002", "δ² = ŷ − y; ∇W² = δ² a¹ᵀ; δ¹ = 1[z¹ > 0] ⊙ (W²ᵀ δ²); ∇W¹ = δ¹ xᵀ",
        ("training/fit.py", "fit"), ("test_experiments.py", "test_mnist_reaches_97_percent_in_a_few_epochs"),
        ("mnist", "")),
    Row(12, "Demand and house prices", "002", "hidden: affordability, awareness, perceived quality", ("data/csv.py", "read_csv"),
        ("test_experiments_notes.py", "test_hidden_units_find_the_hidden_factors"), ("demand", "")),
    Row(13, "Initialisation", "002, 004", "Var(W) = 1/n (Xavier), 2/n (He); equal weights stay equal",
        ("initializers.py", "draw"), ("test_experiments_notes.py", "test_equal_units_stay_equal_and_the_variance_decides"),
        ("initialization", "")),
    Row(14, "Saturation", "004, 002", "|z| large: f′(z) ≈ 0, so δ ≈ 0", ("training/monitors.py", "saturated"),
        ("test_experiments_notes.py", "test_large_weights_saturate_and_learn_slowly"), ("saturation", "")),
    Row(15, "Vanishing and exploding gradients", "002, 000", "‖δˡ‖ ≈ cᴷ⁻ˡ ‖δᴷ‖", ("readouts.py", "delta_norms"),
        ("test_experiments_notes.py", "test_gradients_vanish_or_explode_as_the_factors_say"), ("vanishing", "")),
    Row(16, "Gradient checking", "002", "(J(θ + ε) − J(θ − ε)) / 2ε; ‖a − b‖ / (‖a‖ + ‖b‖)",
        ("check.py", "check_gradients"), ("test_check.py", "test_each_classic_mistake_is_caught_and_named"),
        ("gradcheck", "")),
    Row(17, "L2 and L1", "000, 002, 004", "J + (λ/2m) Σ ‖W‖²: ∇ + (λ/m) W; J + s Σ |W|: ∇ + s sign(W)",
        ("training/penalties.py", "l2"), ("test_regularisation.py", "test_the_whole_cost_equals_autodiff"),
        ("regularization", "")),
    Row(18, "Dropout", "002", "a ← a ⊙ mask / keep", ("training/dropout.py", "dropout_masks"),
        ("test_regularisation.py", "test_dropout_masks_keep_their_share_and_the_mean"), ("regularization", "")),
    Row(19, "Normalised inputs", "002", "x ← (x − μ) / σ, μ and σ of the training set", ("data/scaling.py", "standardise"),
        ("test_data.py", "test_dev_and_test_are_scaled_by_the_training_mean_and_deviation"), ("normalization", "")),
    Row(20, "Train, dev and test sets", "002", "60/20/20; 98/1/1 when data is large", ("data/splits.py", "split"),
        ("test_data.py", "test_parts_are_disjoint_cover_all_and_keep_shares"), ("recipe", "")),
    Row(21, "Bias and variance, the basic recipe", "002", "bias = train − Bayes error; variance = dev − train error",
        ("metrics.py", "diagnosis"), ("test_metrics.py", "test_errors_are_diagnosed"), ("recipe", "")),
    Row(22, "Batch, mini-batch and stochastic descent", "002", "θ ← θ − η (1/b) Σ_batch ∇L",
        ("training/batches.py", "draws"),
        ("test_training.py", "test_an_epoch_takes_every_example_once_the_ragged_last_batch_included"),
        ("batch_size", "")),
    Row(23, "SGD over T draws, the best weights kept", "004", "w ← w − η_t (v + λ w), t = 1..T; argmin on validation",
        ("training/epoch.py", "finish"),
        ("test_training.py", "test_steps_with_replacement_return_the_best_not_the_last"), ("batch_size", "")),
    Row(24, "Exponentially weighted averages", "002", "v_t = β v_{t−1} + (1 − β) θ_t; v_t / (1 − βᵗ)",
        ("training/state.py", "Average"),
        ("test_regularisation.py", "test_an_average_equals_the_closed_form_and_is_what_is_validated"),
        ("averages", "")),
    Row(25, "Hyperparameters", "002", "chosen on the dev set", ("training/sweep.py", "sweep"),
        ("test_sweep.py", "test_each_member_is_its_own_run_of_fit_and_the_table_says_which_is_best"),
        ("search", "")),
    Row(26, "z = W o = B w", "004", "B = I ⊗ oᵀ; ∇w = Bᵀ δ", ("readouts.py", "weight_jacobian"),
        ("test_readouts.py", "test_weight_jacobian_ties_the_weights_to_the_recursion"), ("shapes", "")),
    Row(27, "The tail of the network as a loss", "004", "l_t(o_t) = l_{t+1}(o_{t+1}) = … = loss; δˡ = ∂l/∂zˡ",
        ("forward.py", "tail_loss"), ("test_backward.py", "test_deltas_are_the_gradients_of_the_tail"),
        ("gradcheck", "")),
    Row(28, "Circuits", "000", "f = (x + y) z at (−2, 5, −4): q = 3, f = −12, gradients (−4, −4, 3)",
        ("circuit.py", "circuit"), ("test_circuit.py", "test_random_compositions_equal_autodiff"), ("circuits", "")),
    Row(29, "Forward and backward flow", "000, 003", "nodes a and δ; edges W and ∇W", ("drawing.py", "draw_circuit"),
        ("test_experiments_circuits.py", "test_the_flow_along_paths_equals_the_recursion"), ("flow", "")),
    Row(30, "Deep against shallow: parity", "002", "x₁ ⊕ … ⊕ xₙ: O(n) units, log₂ n deep; or 2ⁿ⁻¹ in one layer",
        ("activations.py", "step"),
        ("test_experiments_circuits.py", "test_parity_by_hand_is_exact_and_as_large_as_promised"), ("parity", "")),
    Row(31, "Scores", "003", "accuracy = right / m; R² = 1 − Σ(ŷ − y)² / Σ(y − ȳ)²", ("metrics.py", "accuracy"),
        ("test_metrics.py", "test_classification_scores_equal_scikit_learns"), ("mnist", "")),
)  # fmt: skip


def markdown() -> str:
    """The rows as README's table."""
    lines = ["| # | system | equation | code | test | experiment |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        name, arguments = row.experiment
        shown = f"{name} {arguments}".strip()
        equation = row.equation.replace("|", "\\|")
        cells = [f"`{equation}`", f"[{row.code[1] or row.code[0]}](jaxmlp/{row.code[0]})",
                 f"[{row.test[1]}](tests/{row.test[0]})", f"[{shown}](experiments/{name}.py)"]  # fmt: skip
        lines.append(f"| {row.number} | {row.system} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
