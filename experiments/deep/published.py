"""What [E] Table 4 and [L] Table 3 print of the deep networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from experiments.exptest.published import OWN, RUNS
from experiments.harness.comparing import Figures, Published, of_population

FACTORS: Final = (0.01, 0.1, 1.0, 10.0, 100.0)
# Best test accuracy of 75 epochs, percent; mean and numpy's deviation of five runs.
_TABLE4: Final[Mapping[str, tuple[tuple[float, float], ...]]] = {
    "Adam": ((73.45, 0.11), (81.51, 0.35), (10.0, 0.0), (10.0, 0.0), (10.0, 0.0)),
    "SGD": ((13.58, 0.68), (38.49, 3.24), (75.16, 0.22), (79.83, 0.48), (40.0, 24.1)),
    "SGD w/ Mom.": ((41.72, 1.38), (75.19, 0.54), (81.42, 0.10), (79.15, 0.37), (10.0, 0.0)),
    "RMSprop": ((71.14, 0.70), (79.68, 0.35), (20.40, 4.13), (10.0, 0.0), (10.0, 0.0)),
}
# The same figure stands in every column of the row.
EXPTEST_MOMENTUM: Final = of_population(81.52, 0.23, RUNS, unit=0.01)
TABLE4: Final[Figures] = {
    **{
        (method, f"{factor:g}"): of_population(mean, sd, RUNS, unit=0.01)
        for method, row in _TABLE4.items()
        for factor, (mean, sd) in zip(FACTORS, row, strict=True)
    },
    ("Adadelta", OWN): of_population(79.76, 0.31, RUNS, unit=0.01),
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of [L] Table 3: one run.

    Attributes:
        dataset, network, algorithm, policy, decay: as printed; ``decay`` is its "WD".
        accuracy: "VA", the best epoch on the test set, percent.
        unit: of its last digit.
        start: x of AdaMo, where the text gives it ([L] 7.4 and 7.4.1).
        rate: of the "Fixed" policy, where the text gives it.
    """

    dataset: str
    network: str
    algorithm: str
    policy: str
    decay: str
    accuracy: float
    unit: float = 0.01
    start: float | None = None
    rate: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What tells it from the other lines."""
        return self.dataset, self.network, self.algorithm, self.policy, self.decay


TABLE3: Final = (
    Line("MNIST", "Custom", "SGD", "Adaptive", "none", 99.5, 0.1),
    Line("MNIST", "Custom", "Momentum", "Adaptive", "none", 99.57, start=0.1),
    Line("MNIST", "Custom", "Adam", "Adaptive", "none", 99.43),
    Line("CIFAR-10", "ResNet20", "SGD", "Baseline", "1e-3", 60.33),
    Line("CIFAR-10", "ResNet20", "SGD", "Fixed", "1e-3", 87.02, rate=0.668),
    Line("CIFAR-10", "ResNet20", "SGD", "Adaptive", "1e-3", 89.37),
    Line("CIFAR-10", "ResNet20", "Momentum", "Baseline", "1e-3", 58.29),
    Line("CIFAR-10", "ResNet20", "Momentum", "Adaptive", "1e-2", 84.71, start=0.1),
    Line("CIFAR-10", "ResNet20", "Momentum", "Adaptive", "1e-3", 89.27, start=1.0),
    Line("CIFAR-10", "ResNet20", "RMSprop", "Baseline", "1e-3", 84.92),
    Line("CIFAR-10", "ResNet20", "RMSprop", "Adaptive", "1e-3", 86.66),
    Line("CIFAR-10", "ResNet20", "Adam", "Baseline", "1e-3", 84.67),
    Line("CIFAR-10", "ResNet20", "Adam", "Fixed", "1e-4", 70.57, rate=0.05),
    Line("CIFAR-10", "DenseNet", "SGD", "Baseline", "1e-4", 84.84),
    Line("CIFAR-10", "DenseNet", "SGD", "Adaptive", "1e-4", 91.34),
    Line("CIFAR-10", "DenseNet", "Momentum", "Baseline", "1e-4", 85.50),
    Line("CIFAR-10", "DenseNet", "Momentum", "Adaptive", "1e-4", 92.36, start=0.5),
    Line("CIFAR-10", "DenseNet", "RMSprop", "Baseline", "1e-4", 91.36),
    Line("CIFAR-10", "DenseNet", "RMSprop", "Adaptive", "1e-4", 90.14),
    Line("CIFAR-10", "DenseNet", "Adam", "Baseline", "1e-4", 91.38),
    Line("CIFAR-10", "DenseNet", "Adam", "Adaptive", "1e-4", 88.23),
    Line("CIFAR-100", "ResNet56", "SGD", "Adaptive", "1e-3", 54.29),
    Line("CIFAR-100", "ResNet164", "SGD", "Baseline", "1e-4", 26.96),
    Line("CIFAR-100", "ResNet164", "SGD", "Adaptive", "1e-4", 75.99),
    Line("CIFAR-100", "ResNet164", "Momentum", "Baseline", "1e-4", 27.51),
    Line("CIFAR-100", "ResNet164", "Momentum", "Adaptive", "1e-4", 75.39, start=0.5),
    Line("CIFAR-100", "ResNet164", "RMSprop", "Baseline", "1e-4", 70.68),
    Line("CIFAR-100", "ResNet164", "RMSprop", "Adaptive", "1e-4", 70.78),
    Line("CIFAR-100", "ResNet164", "Adam", "Baseline", "1e-4", 71.96),
    Line("CIFAR-100", "DenseNet", "SGD", "Baseline", "1e-4", 50.53),
    Line("CIFAR-100", "DenseNet", "SGD", "Adaptive", "1e-4", 68.18),
    Line("CIFAR-100", "DenseNet", "Momentum", "Baseline", "1e-4", 52.28),
    Line("CIFAR-100", "DenseNet", "Momentum", "Adaptive", "1e-4", 69.18, start=1.0),
    Line("CIFAR-100", "DenseNet", "RMSprop", "Baseline", "1e-4", 65.41),
    Line("CIFAR-100", "DenseNet", "RMSprop", "Adaptive", "1e-4", 67.30),
    Line("CIFAR-100", "DenseNet", "Adam", "Baseline", "1e-4", 66.05),
    Line("CIFAR-100", "DenseNet", "Adam", "Adaptive", "1e-4", 40.14),  # after 67 of 170 epochs
)
TABLE3_FIGURES: Final[Figures] = {
    line.key: Published(line.accuracy, unit=line.unit) for line in TABLE3
}
