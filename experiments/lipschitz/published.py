"""What [L] printed in Tables 1 and 2, and what its authors' notebooks printed beside it.

Notebooks: github.com/yrahul3910/lipschitz-learning-rate ("Batch Gradient Descent", "Logistic
regression", "New softmax", "MNIST"). Their printed numbers are used, and the settings that these
imply; none of their code is. All of it is single runs without a seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Final

from experiments.harness.comparing import Figures, Published

GUESS: Final = "0.1"  # the paper's standard choice of a rate
OURS: Final = "1/L"  # L as the notebooks compute it
TEXT: Final = "1/L, the text's K"  # L as section 7.1 reads; another one for least squares alone
AT_SIZE: Final = "1/L of all rows"  # Covertype: the published rate, brought to the sample's size
OF_BATCH: Final = "1/L, m of a batch"  # MNIST: m = 128, as section 7.4 asks
WHOLE: Final = "1/L, whole loss"  # MNIST: without what Keras did to the loss


@dataclass(frozen=True, slots=True)
class Row:
    """A line of Table 1.

    Attributes:
        title: as printed.
        threshold: T_L, of the loss.
        rate: 1/L as printed.
        slow, fast: epochs at 0.1 and at 1/L.
        notebook_rate: 1/L in the notebook's output; NaN if there is none.
        unit: of the last digit of ``rate``.
    """

    title: str
    threshold: float
    rate: float
    slow: int
    fast: int
    notebook_rate: float = nan
    unit: float = 0.001

    @property
    def implied(self) -> float:
        """The rate that the epochs imply: where weights barely move, epochs go as 1 / rate.

        An epoch is counted for the first look, which no step precedes.
        """
        return 0.1 * (self.slow - 1) / (self.fast - 1)


TABLE1: Final[Mapping[str, Row]] = {
    "boston": Row("Boston housing prices", 200.0, 9.316, 46_041, 555, 8.314056750609444),
    "california": Row(
        "California housing prices", 2.8051, 5163.5, 24_582, 2, 5163.501867504555, 0.1
    ),
    "energy": Row("Energy efficiency", 100.0, 12.78, 489_592, 3_833, 12.777895560537498, 0.01),
    "news": Row("Online news popularity", 73_355_000.0, 1.462, 10_985, 753, 1.462188436455874),
    "breast-cancer": Row("Breast cancer", 0.69, 4280.23, 37_008, 2, 4280.227670674592, 0.01),
    "covertype": Row("Covertype", 0.69314, 17.48e6, 216_412, 2, nan, 1e4),
    "iris": Row("Iris", 0.2, 1.902, 413, 49),
}

# Of the least-squares losses the notebook printed for all 39 644 articles, 73355536.389 after
# 1 000 epochs and 53.727 less after each further 1 000: what it was before the first.
NEWS_FIRST_LOSS: Final = 73_355_590.116
NEWS_ROWS: Final = 39_644
COVERTYPE_ROWS: Final = 495_141  # of classes 1 and 2, Table 2
COVERTYPE_FIRST: Final = 100_000  # Table 1

# Figure 1, California at 1/L: the losses that the notebook printed every 500 epochs, until 1.0 was
# passed in epoch 8 431.
FIGURE1: Final = {
    500 * (number + 1): loss
    for number, loss in enumerate(
        (
            *(2.5763599709, 2.3734938630, 2.1937232488, 2.0341096495, 1.8921202501, 1.7655688696),
            *(1.6525657874, 1.5514750731, 1.4608782800, 1.3795435326, 1.3063991903, 1.2405113944),
            *(1.1810649118, 1.1273467777, 1.0787323172, 1.0346731881),
        )
    )
}
FIGURE1_EPOCHS: Final = 8_431

# Table 2's 1/L. That of MNIST and Covertype as the notebooks print it, to more digits.
RATES2: Final = {
    "Iris": 1.935878668751384,
    "Digits": 0.6349478016005805,
    "MNIST": 10.241714719086842,
    "Cover Type": 189_355_845.128,
    "Breast cancer": 4280.227670674592,
}
# As printed in Table 2; truncated, not rounded, for the last two.
PRINTED2: Final = {
    "Iris": "1.936",
    "Digits": "0.635",
    "MNIST": "10.24",
    "Cover Type": "189.35M",
    "Breast cancer": "4280.22",
}


def _pair(
    dataset: str, epochs: int, guess: float, ours: float, unit: float = 0.01
) -> dict[tuple[object, ...], Published]:
    return {
        (dataset, epochs, GUESS): Published(guess, unit=unit),
        (dataset, epochs, OURS): Published(ours, unit=unit),
    }


# (data set, epochs, rate) -> percent. The notebook trained Breast cancer for 100 epochs.
TABLE2: Final[Figures] = {
    **_pair("Iris", 200, 93.33, 97.78),
    **_pair("Digits", 200, 91.3, 94.63),
    **_pair("MNIST", 200, 92.7, 92.8, 0.1),
    **_pair("Cover Type", 1000, 43.05, 57.21),
    **_pair("Breast cancer", 100, 43.23, 90.5),
    **_pair("Breast cancer", 1000, 43.23, 90.5),
}
