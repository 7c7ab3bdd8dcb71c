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
    tikhonov_norm,
)
from lrsearch.bounds.stability import averaged_limit, heavy_ball_limit, nesterov_limit

__all__ = [
    "LargestEigenvalue",
    "averaged_limit",
    "bound_from_eigenvalue",
    "covariance_spectrum",
    "heavy_ball_limit",
    "largest_covariance_eigenvalue",
    "linear_regression_lipschitz",
    "lipschitz_constant",
    "max_learning_rate",
    "mean_absolute_sum",
    "nesterov_limit",
    "regression_weight_bound",
    "tikhonov_norm",
]
