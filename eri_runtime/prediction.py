"""What the network predicts, and how x_0 follows from it: D = c_skip·x + c_out·F(c_in·x, t).

With x = alpha·x_0 + sigma·eps, for the quantities of Salimans & Ho 2022 (arXiv 2202.00512) and of
rectified flow. Latents are kept in the network's own scale, so c_in = 1.
"""

from __future__ import annotations

from typing import NamedTuple

from eri_runtime.schedule import Point
from eri_runtime.spec import Prediction


class Preconditioning(NamedTuple):
    """D = c_skip·x + c_out·F(c_in·x)."""

    c_in: float
    c_skip: float
    c_out: float


def precondition(prediction: Prediction, point: Point) -> Preconditioning:
    """The coefficients at one point of the schedule."""
    _, alpha, sigma = point
    if prediction == "eps":  # x_0 = (x − sigma·eps) / alpha
        return Preconditioning(1.0, 1 / alpha, -sigma / alpha)
    if prediction == "v":  # v = alpha·eps − sigma·x_0, so x_0 = alpha·x − sigma·v
        return Preconditioning(1.0, alpha, -sigma)
    if prediction == "flow":  # v = eps − x_0 and alpha = 1 − sigma, so x_0 = x − sigma·v
        return Preconditioning(1.0, 1.0, -sigma)
    return Preconditioning(1.0, 0.0, 1.0)
