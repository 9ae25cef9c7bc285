"""From the network's prediction F to the denoised x_0: D = c_skip·x + c_out·F(c_in·x, t).

Here x = alpha·x_0 + sigma·eps; eps, v and x_0 predictions as in Salimans & Ho 2022 (arXiv
2202.00512), flow predictions as in rectified flow. There x has the scale of training, so c_in = 1;
the networks of EDM have a preconditioning of their own.
"""

from __future__ import annotations

from math import hypot
from typing import NamedTuple

from eri_runtime.bundle import Prediction
from eri_runtime.sampling.schedule import Clock, Point


class Preconditioning(NamedTuple):
    """The coefficients of D = c_skip·x + c_out·F(c_in·x)."""

    c_in: float
    c_skip: float
    c_out: float


def precondition(prediction: Prediction, point: Point) -> Preconditioning:
    """Returns the coefficients for a prediction type at one point of the schedule."""
    _, alpha, sigma = point
    if prediction == "eps":  # x_0 = (x − sigma·eps) / alpha
        return Preconditioning(1.0, 1 / alpha, -sigma / alpha)
    if prediction == "v":  # v = alpha·eps − sigma·x_0, so x_0 = alpha·x − sigma·v
        return Preconditioning(1.0, alpha, -sigma)
    if prediction == "flow":  # v = eps − x_0 and alpha = 1 − sigma, so x_0 = x − sigma·v
        return Preconditioning(1.0, 1.0, -sigma)
    return Preconditioning(1.0, 0.0, 1.0)


def precondition_edm(prediction: Prediction, point: Point, clock: Clock) -> Preconditioning:
    """Returns the coefficients of EDM (Karras et al. 2022, arXiv 2206.00364, table 1).

    diffusers' `v_prediction` has c_out with the other sign.
    """
    data, sigma = clock.sigma_data, point.sigma
    norm = hypot(sigma, data)
    c_out = sigma * data / norm
    return Preconditioning(1 / norm, (data / norm) ** 2, -c_out if prediction == "v" else c_out)
