"""Where a search starts, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lrsearch import Split, TaskData, TrainingTask
from lrsearch.engine.bound import rate_bound

# Four rows, two features, orthogonal after centring; the first is offset by 3.
X = np.array([[2.0, 2.0], [4.0, 2.0], [2.0, -2.0], [4.0, -2.0]])
ROWS = len(X)


def task_and_data(
    loss: str = "mse", outputs: int = 1, batch_size: int | None = 2, optimizer: str = "sgd"
) -> tuple[TrainingTask, TaskData]:
    inputs = torch.tensor(X, dtype=torch.float32)
    targets = (
        torch.zeros(ROWS, dtype=torch.int64)
        if loss == "cross_entropy"
        else torch.zeros(ROWS, outputs)
    )
    split = Split(inputs, targets)
    data = TaskData(split, split, split, outputs=outputs)
    task = TrainingTask(
        name="four",
        data=lambda seed: data,
        model=lambda data: nn.Linear(2, outputs),
        loss=loss,
        metric="mse" if loss == "mse" else "accuracy",
        batch_size=batch_size,
        optimizer=optimizer,
    )
    return task, data


def bound(mode: Any, **options: Any) -> Any:
    return rate_bound(*task_and_data(**options), mode)


# Standardised, the columns are +-1 and orthogonal: C = 4 / 3 I.
PAPER_LAMBDA = 4.0 / 3.0
# As fed, with the constant column: sums of squares 40, 16 and 4, of products 12 (column 1 and the
# constant), all over s - 1 = 3. The block [[40, 12], [12, 4]] has eigenvalues 22 +- sqrt(468).
ROBUST_LAMBDA = (22.0 + 468.0**0.5) / 3.0


@pytest.mark.parametrize(
    ("loss", "outputs", "batch_size", "expected"),
    [
        ("mse", 1, 2, 2.0 / PAPER_LAMBDA),  # Eq. 38
        ("mse", 3, 2, 6.0 / PAPER_LAMBDA),
        ("mse", 1, None, 2.0 * 4.0 / (PAPER_LAMBDA * 3.0)),  # Eq. 16
        ("mse", 1, 4, 2.0 * 4.0 / (PAPER_LAMBDA * 3.0)),  # a batch of all rows is full batch
        ("cross_entropy", 3, 2, 2.0 / PAPER_LAMBDA),  # App. C: no m, no s / (s - 1)
        ("cross_entropy", 3, None, 2.0 / PAPER_LAMBDA),
        ("binary_cross_entropy", 1, 2, 2.0 / PAPER_LAMBDA),
    ],
)
def test_paper_mode_is_the_papers_formula_on_standardised_inputs(
    loss: str, outputs: int, batch_size: int | None, expected: float
) -> None:
    found = bound("paper", loss=loss, outputs=outputs, batch_size=batch_size)
    assert found.lr_max == pytest.approx(expected, rel=1e-9)
    assert found.lambda_max == pytest.approx(PAPER_LAMBDA, rel=1e-9)
    assert found.method == "dense"
    assert found.residual < 1e-9


@pytest.mark.parametrize(
    ("loss", "outputs", "batch_size", "expected"),
    [
        ("mse", 1, 2, 1.0 / ROBUST_LAMBDA),  # torch's MSE is twice the paper's
        ("mse", 3, 2, 3.0 / ROBUST_LAMBDA),
        ("mse", 1, None, 4.0 / (3.0 * ROBUST_LAMBDA)),
        ("cross_entropy", 3, 2, 4.0 / ROBUST_LAMBDA),  # softmax: curvature at most 1/2
        ("binary_cross_entropy", 1, 2, 8.0 / ROBUST_LAMBDA),  # logistic: at most 1/4
    ],
)
def test_robust_mode_bounds_the_problem_as_it_is_trained(
    loss: str, outputs: int, batch_size: int | None, expected: float
) -> None:
    found = bound("robust", loss=loss, outputs=outputs, batch_size=batch_size)
    assert found.lr_max == pytest.approx(expected, rel=1e-6)
    assert found.lambda_max == pytest.approx(ROBUST_LAMBDA, rel=1e-6)


def test_momentum_takes_one_minus_mu_of_it_in_robust_mode_alone() -> None:
    plain, momentum = (bound("robust", optimizer=name).lr_max for name in ("sgd", "momentum"))
    assert momentum == pytest.approx(0.1 * plain, rel=1e-9)
    assert bound("paper", optimizer="momentum") == bound("paper", optimizer="sgd")


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop"])
def test_sign_like_optimizers_start_where_a_step_moves_an_output_by_a_fifth(optimizer: str) -> None:
    found = bound("robust", optimizer=optimizer)
    # Mean absolute inputs are 3 and 2, and 1 for the bias.
    assert found.lr_max == pytest.approx(0.2 / 6.0, rel=1e-6)
    assert found.method == "sign step"
    assert bound("paper", optimizer=optimizer).lr_max == bound("paper").lr_max


@pytest.mark.parametrize("outputs", [1, 3])
def test_full_batch_descent_on_a_linear_model_turns_unstable_exactly_at_the_robust_bound(
    outputs: int,
) -> None:
    task, data = task_and_data(outputs=outputs, batch_size=None)
    top = rate_bound(task, data, "robust").lr_max

    def grows(rate: float) -> bool:
        torch.manual_seed(0)
        model = nn.Linear(2, outputs).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        losses = []
        for _ in range(300):
            loss = nn.functional.mse_loss(
                model(data.train.inputs.double()), data.train.targets.double()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses[-1] > losses[100]

    assert grows(1.02 * top)
    assert not grows(0.98 * top)
