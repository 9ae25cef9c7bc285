"""A sampler as a table of coefficients: one row per network evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UsageError
from eri_runtime.sampling.schedule import Schedule
from eri_runtime.sampling.sigmas import Float64

Float32 = NDArray[np.float32]
MAX_W, MAX_V = 4, 2  # history of x_0 and of noise that a step graph's row holds
MAX_HISTORY = 13  # longest history of a table: PNDM's first steps are of four evaluations each
# the columns of a step graph's input row, and the width of each
COLUMNS = {
    **dict.fromkeys(("t", "c_in", "c_skip", "c_out", "p", "q", "A"), 1),
    "B": MAX_W,
    "C": MAX_V,
}


@dataclass(frozen=True)
class SamplerTable:
    """A sampler on one schedule, as K rows of float64 coefficients, one per network evaluation.

    Row k computes the denoised D from the guided network output F, and steps from x to x':

        F   = Σ mix · net(c_in·x, t, cond)                        guidance
        D   = hook(c_skip·x + c_out·F)                            x_0, clipped or thresholded
        m_k = p·x + q·D                                           history
        x'  = A·x + Σ_{j<W} B_j·m_{k−j} + Σ_{j<V} C_j·n_{k−j}     n: unit normals

    With E, x' also gets E_k·d, d the hook's change of D. The initial latents are `scale`·noise.
    Before row 0, the loop sets x = `A0`·x + `C0`·n, which changes x only for samplers that add
    noise before the first evaluation (churn). `len(table)` is K.

    Attributes:
        scale: Factor of the initial noise.
        points: The points of the K evaluations, and the final point; x before row k belongs to
            `points[k]`.
        c_in: Scale of the network's input, (K,).
        c_skip: Factor of x in D, (K,).
        c_out: Factor of F in D, (K,).
        p: Factor of x in the history m, (K,).
        q: Factor of D in the history m, (K,).
        A: Factor of x in x', (K,).
        B: Factors of the history in x', newest first, (K, W) with W ≤ 13; step graphs hold 4.
        C: Factors of the noises in x', newest first, (K, V) with V ≤ 2.
        A0: Factor of x before row 0.
        C0: Factor of the noise before row 0.
        E: Factors of the hook's change of D in x', (K,). None: 0.
        draws: Whether each row draws noise, (K,) bool; it may for later rows only, or for none.
            None: where C uses it.
    """

    scale: float
    points: Schedule
    c_in: Float64
    c_skip: Float64
    c_out: Float64
    p: Float64
    q: Float64
    A: Float64
    B: Float64
    C: Float64
    A0: float = 1.0
    C0: float = 0.0
    E: Float64 | None = None
    draws: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Returns the number of rows K, which is the number of network evaluations."""
        return len(self.points)

    def rows(self) -> Float32:
        """Returns the coefficients as the input of step graphs.

        Returns:
            (K, 13) float32: t, c_in, c_skip, c_out, p, q, A, four columns of B and two of C. B and
            C are padded with zeros.

        Raises:
            UsageError: If the table's history is longer than 4, which no step graph holds.
        """
        if self.B.shape[1] > MAX_W:
            expected = f"at most {MAX_W}, as step graphs hold"
            raise UsageError("a table's history", got=self.B.shape[1], expected=expected)
        single = [self.points.t[:-1], self.c_in, self.c_skip, self.c_out, self.p, self.q, self.A]
        wide = ((self.B, MAX_W), (self.C, MAX_V))
        padded = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part, width in wide]
        return np.hstack([np.stack(single, axis=1), *padded]).astype(np.float32)

    def level(self, k: int) -> float:
        """Returns the noise level before a row.

        Args:
            k: Index of the row; `len(table)` is the end of the loop.

        Returns:
            sigma/alpha for `vp` schedules, sigma for `flow`.
        """
        return self.points.clock.tau(self.points[k])

    def draws_noise(self, k: int) -> bool:
        """Returns whether a row draws noise.

        Args:
            k: Index of the row.
        """
        if self.draws is not None:
            return bool(self.draws[k])
        return any(self.C[k + j, j] != 0 for j in range(self.C.shape[1]) if k + j < len(self))
