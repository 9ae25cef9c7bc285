"""k-diffusion's published formulas, written out in its own y and sigma, in float64.

`formula(model, y, sigmas, noise, **options)`: `model(y, sigma)` is x_0. With y = x/alpha and sigma
standing for sigma/alpha they hold for `vp` and, as they only see log(alpha/sigma), for `flow`; with
y = x, those that integrate dy/dsigma = (y − x_0)/sigma hold for `flow` as they stand.
"""

from __future__ import annotations

import itertools
from math import exp, expm1, log, sqrt

import numpy as np


def ancestral(sigma, sigma_next, eta=1.0):
    """sigma_down, sigma_up."""
    up = min(sigma_next, eta * sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return sqrt(sigma_next**2 - up**2), up


def euler(model, x, sigmas, noise, eta=0.0, s_noise=1.0):
    """Euler, and with eta Euler a; also DDIM and DDPM, whose eta is the same number."""
    for s, n in itertools.pairwise(sigmas):
        down, up = ancestral(s, n, eta)
        x = x + (x - model(x, s)) / s * (down - s)
        if up > 0:
            x = x + noise() * s_noise * up
    return x


def heun(model, x, sigmas, noise, s_churn=0.0, s_tmin=0.0, s_tmax=float("inf"), s_noise=1.0):
    gamma = min(s_churn / (len(sigmas) - 1), sqrt(2) - 1)
    for s, n in itertools.pairwise(sigmas):
        hat = s
        if gamma > 0 and s_tmin <= s <= s_tmax:
            hat = s * (1 + gamma)
            x = x + noise() * s_noise * sqrt(hat**2 - s**2)
        d = (x - model(x, hat)) / hat
        if n == 0:
            x = x + d * (n - hat)
        else:
            x2 = x + d * (n - hat)
            x = x + (d + (x2 - model(x2, n)) / n) / 2 * (n - hat)
    return x


def dpm2(model, x, sigmas, noise, eta=0.0):
    for s, n in itertools.pairwise(sigmas):
        down, up = ancestral(s, n, eta)
        d = (x - model(x, s)) / s
        if down == 0:
            x = x + d * (down - s)
        else:
            mid = exp((log(s) + log(down)) / 2)
            x2 = x + d * (mid - s)
            x = x + (x2 - model(x2, mid)) / mid * (down - s)
        if up > 0:
            x = x + noise() * up
    return x


def dpmpp_2s_a(model, x, sigmas, noise, eta=1.0, s_noise=1.0):
    for s, n in itertools.pairwise(sigmas):
        down, up = ancestral(s, n, eta)
        d = model(x, s)
        if down == 0:
            x = x + (x - d) / s * (down - s)
        else:
            t, t_next = -log(s), -log(down)
            mid = exp(-(t + (t_next - t) / 2))
            x2 = (mid / s) * x - expm1(-(t_next - t) / 2) * d
            x = (down / s) * x - expm1(-(t_next - t)) * model(x2, mid)
        if up > 0:
            x = x + noise() * s_noise * up
    return x


def dpmpp_sde(model, x, sigmas, noise, eta=1.0, s_noise=1.0):
    for s, n in itertools.pairwise(sigmas):
        d = model(x, s)
        if n == 0:
            x = x + (x - d) / s * (n - s)
            continue
        mid = sqrt(s * n)
        early = late = 0.0
        if eta > 0:
            early, late = noise(), noise()  # the path's two pieces, s to mid and mid to n
        whole = (sqrt(s - mid) * early + sqrt(mid - n) * late) / sqrt(s - n)
        down, up = ancestral(s, mid, eta)
        x2 = (down / s) * x - expm1(log(down / s)) * d + early * s_noise * up
        d2 = model(x2, mid)
        down, up = ancestral(s, n, eta)
        x = (down / s) * x - expm1(log(down / s)) * d2 + whole * s_noise * up
    return x


def dpmpp_2m(model, x, sigmas, noise):
    before = h_before = None
    for s, n in itertools.pairwise(sigmas):
        d = model(x, s)
        if before is None or n == 0:
            x = (n / s) * x + (1 - n / s) * d
            h = None if n == 0 else log(s / n)
        else:
            h = log(s / n)
            r = h_before / h
            x = (n / s) * x - expm1(-h) * ((1 + 1 / (2 * r)) * d - 1 / (2 * r) * before)
        before, h_before = d, h
    return x


def dpmpp_2m_sde(model, x, sigmas, noise, eta=1.0, s_noise=1.0):
    """With k-diffusion's `midpoint` correction."""
    before = h_before = None
    for s, n in itertools.pairwise(sigmas):
        d = model(x, s)
        if n == 0:
            x = d
            continue
        h = log(s / n)
        x = n / s * exp(-eta * h) * x - expm1(-h - eta * h) * d
        if before is not None:
            x = x - 0.5 * expm1(-h - eta * h) * (h / h_before) * (d - before)
        if eta > 0:
            x = x + noise() * n * sqrt(-expm1(-2 * eta * h)) * s_noise
        before, h_before = d, h
    return x


def dpmpp_3m_sde(model, x, sigmas, noise, eta=1.0, s_noise=1.0):
    d_1 = d_2 = h_1 = h_2 = None
    for s, n in itertools.pairwise(sigmas):
        d = model(x, s)
        if n == 0:
            x = d
            continue
        h = log(s / n)
        h_eta = h * (eta + 1)
        x = exp(-h_eta) * x - expm1(-h_eta) * d
        phi_2 = expm1(-h_eta) / h_eta + 1
        if h_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (d - d_1) / r0, (d_1 - d_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
        elif h_1 is not None:
            x = x + phi_2 * (d - d_1) / (h_1 / h)
        if eta:
            x = x + noise() * n * sqrt(-expm1(-2 * h * eta)) * s_noise
        d_1, d_2, h_1, h_2 = d, d_1, h, h_1
    return x


def lms(model, x, sigmas, noise, order=4):
    ds, at = [], []
    for s, n in itertools.pairwise(sigmas):
        ds, at = [(x - model(x, s)) / s, *ds][:order], [s, *at][:order]
        for j, d in enumerate(ds):
            others = [a for i, a in enumerate(at) if i != j]
            basis = np.poly1d(others, r=True) / np.prod([at[j] - a for a in others])
            integral = np.polyint(basis)
            x = x + (integral(n) - integral(s)) * d
    return x


def lcm(model, x, sigmas, noise):
    """On a flow: x_0 noised again (Luo et al. 2023, arXiv 2310.04378, alg. 1)."""
    for s, n in itertools.pairwise(sigmas):
        x = model(x, s)
        if n > 0:
            x = (1 - n) * x + n * noise()
    return x


# by the sampler's name
FORMULAS = {
    "ddim": euler,
    "ddpm": euler,
    "euler": euler,
    "euler_a": euler,
    "heun": heun,
    "dpm2": dpm2,
    "dpm2_a": dpm2,
    "dpmpp_2s_a": dpmpp_2s_a,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "lms": lms,
}
# on a flow these see sigma itself, the others log(alpha/sigma)
OVER_SIGMA = {"flow_euler": euler, "flow_heun": heun, "lms": lms, "dpm2": dpm2, "lcm": lcm}
