"""How good a student is at probes, by how probable it finds correct responses: read once, where an answer is written.

    logit P(correct) = a + α_c + (b + β_c) z,    z = (ℓ − mean) / deviation

ℓ is the mean log-probability per token that the student gives to the teacher's correct response to a probe. What the
teacher gives it never changes, so ℓ rises by as much as the forward KL on that response falls. a and b are those of all
capabilities, α_c and β_c what one differs by: where accuracy has never moved, b says what a move of ℓ would mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from paced_verl.capability.scores import noise

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
COMMON_SD, OWN_SD = 5.0, 1.0
"""Prior deviations, in logits, of a and b, and of α_c and β_c."""


@dataclass(frozen=True)
class Calibration:
    """From ℓ to accuracy. F = 2 + 2C coefficients (a, b, α, β).

    Attributes:
        capabilities: C.
        centre, scale: Of ℓ.
        mean: (F,) most probable ones.
        cov: (F, F) of their posterior, by its curvature there.
    """

    capabilities: int
    centre: float
    scale: float
    mean: FloatArray
    cov: FloatArray

    @classmethod
    def fit(
        cls, values: FloatArray, groups: IntArray, successes: IntArray, samples: IntArray, capabilities: int
    ) -> Calibration:
        """By responses that were judged.

        Args:
            values: ℓ of a probe at a moment, finite, (R,).
            groups: Its capability, (R,).
            successes, samples: Correct responses of the student to it at that moment, and all, (R,).
            capabilities: C.
        """
        centre, scale = float(values.mean()), float(values.std()) or 1.0
        x = _inputs((values - centre) / scale, groups, capabilities)
        precision = np.array([COMMON_SD] * 2 + [OWN_SD] * 2 * capabilities) ** -2.0

        def curvature(w: FloatArray) -> FloatArray:
            p = expit(x @ w)
            return np.asarray((x.T * (samples * p * (1 - p))) @ x + np.diag(precision))

        found = minimize(
            lambda w: np.sum(samples * np.logaddexp(0, x @ w) - successes * (x @ w)) + precision @ w**2 / 2,
            np.zeros(x.shape[1]),
            jac=lambda w: x.T @ (samples * expit(x @ w) - successes) + precision * w,
            hess=curvature,
            method="trust-exact",
        )
        best = np.asarray(found.x, np.float64)
        cov = np.asarray(np.linalg.inv(curvature(best)), np.float64)
        return cls(capabilities, centre, scale, best, cov)

    def rates(self, values: FloatArray, groups: IntArray) -> tuple[FloatArray, FloatArray]:
        """P(correct) of probes, (P,), and its slopes by the coefficients, (P, F), for ℓ (P,)."""
        x = _inputs((values - self.centre) / self.scale, groups, self.capabilities)
        p = expit(x @ self.mean)
        return p, x * (p * (1 - p))[:, None]


def _inputs(z: FloatArray, groups: IntArray, capabilities: int) -> FloatArray:
    own = np.eye(capabilities)[groups]
    return np.column_stack([np.ones_like(z), z, own, own * z[:, None]])


@dataclass(frozen=True)
class Estimate:
    """Attributes:
    rates: (P,) of each probe.
    mean: (C,) of each capability's probes.
    se: (C,) its error, as far as the calibration's form is right.
    """

    rates: FloatArray
    mean: FloatArray
    se: FloatArray


def estimate(
    calibration: Calibration, values: FloatArray, groups: IntArray, successes: IntArray, samples: IntArray
) -> Estimate:
    """The accuracy of all probes of C capabilities now.

    Args:
        values: ℓ now, (P,); NaN: there is no correct response to the probe, which keeps what its samples have said.
        groups: Capability of each, (P,); each has a probe.
        successes, samples: When it was sampled last, (P,).
    """
    known = np.isfinite(values)
    rates = np.where(samples > 0, successes / np.maximum(samples, 1), 0.5)
    variance = np.where(known, 0.0, noise(successes, samples))
    slopes = np.zeros((len(values), len(calibration.mean)))
    if known.any():
        rates[known], slopes[known] = calibration.rates(values[known], groups[known])
    share = np.eye(calibration.capabilities)[groups].T
    share /= share.sum(axis=1, keepdims=True)
    through = share @ slopes
    own = np.einsum("cf,fg,cg->c", through, calibration.cov, through)
    return Estimate(rates, share @ rates, np.sqrt(own + share**2 @ variance))


def pooled(one: FloatArray, one_se: FloatArray, two: FloatArray, two_se: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Two independent measurements of the same numbers as one, by their precisions: means and errors."""
    first, second = one_se**-2.0, two_se**-2.0
    return (first * one + second * two) / (first + second), (first + second) ** -0.5


@dataclass
class Misfit:
    """How wrong calibrated scores were when answers were sampled beside them, beyond the noise of both.

    Attributes:
        total: Σ (difference² − variance of the samples − variance of the estimate).
        count: Differences.
    """

    total: float = 0.0
    count: int = 0

    def add(self, difference: FloatArray, sampled_se: FloatArray, estimated_se: FloatArray) -> None:
        """Of all capabilities at one moment, (C,) each; the estimate was made without these samples."""
        self.total += float(np.sum(difference**2 - sampled_se**2 - estimated_se**2))
        self.count += len(difference)

    @property
    def variance(self) -> float:
        """To be added to an estimate's own; 0 until something is known."""
        return max(0.0, self.total / self.count) if self.count else 0.0
