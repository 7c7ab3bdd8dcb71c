"""Learning-rate bounds computed before or beside training. Pure: numpy and scipy only."""

from lrsearch.bounds.covariance import (
    LargestEigenvalue,
    bound_from_eigenvalue,
    covariance_spectrum,
    largest_covariance_eigenvalue,
    max_learning_rate,
    mean_absolute_sum,
)
from lrsearch.bounds.lipschitz import (
    linear_regression_lipschitz,
    lipschitz_constant,
    regression_weight_bound,
)

__all__ = [
    "LargestEigenvalue",
    "bound_from_eigenvalue",
    "covariance_spectrum",
    "largest_covariance_eigenvalue",
    "linear_regression_lipschitz",
    "lipschitz_constant",
    "max_learning_rate",
    "mean_absolute_sum",
    "regression_weight_bound",
]
