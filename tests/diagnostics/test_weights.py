"""What a table implies, against sampling, enumeration, numeric integration and the product's own sampler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats
from typer.testing import CliRunner

from paced_verl.cli import app
from paced_verl.diagnostics.weights import diagnose, effective_share, efficiency, rows_needed
from paced_verl.errors import PacedError
from paced_verl.pacing.kernel import Kernel
from paced_verl.pacing.pass_rates import PassRateTable
from paced_verl.pacing.sampler import PassRateSampler

PRIORS = [(1.0, 1.0), (0.4, 0.6), (3.0, 1.5)]


def table(size: int = 60, samples: int = 4, seed: int = 0) -> PassRateTable:
    rng = np.random.default_rng(seed)
    result = PassRateTable(size)
    result.observe(np.arange(size), rng.binomial(samples, rng.beta(0.7, 0.9, size)), np.full(size, samples), step=0)
    return result


def test_the_effective_share_of_equal_weights_is_one_and_of_a_half_that_weighs_is_a_half() -> None:
    assert effective_share(np.full(8, 0.3)) == pytest.approx(1)
    assert effective_share(np.array([0.0, 2.0] * 4)) == pytest.approx(0.5)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_rows_are_the_second_moment_of_the_samplers_own_loss_weights(power: float) -> None:
    own, kernel = table(), Kernel()
    sampler = PassRateSampler(own, kernel, power=power, skip_zero_weight=False)
    q = sampler.probabilities()
    loss_weights = np.zeros(len(q))
    loss_weights[q > 0] = sampler.loss_weights(np.flatnonzero(q > 0))
    assert q.sum() == pytest.approx(1)
    assert rows_needed(kernel(own.successes, own.samples), power) == pytest.approx(q @ loss_weights**2, rel=1e-5)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("estimate", ["empirical", "posterior"])
def test_efficiency_by_numeric_integration(prior: tuple[float, float], estimate: str) -> None:
    kernel, samples = Kernel(alpha=1.5, beta=0.5, estimate=estimate, prior=prior), 4

    def mean(of: object) -> float:
        """Over p ~ Beta(prior), by quadrature."""
        return integrate.quad(lambda p: of(p) * stats.beta.pdf(p, *prior), 0, 1, limit=200)[0]  # type: ignore[operator]

    def true(p: float) -> float:
        return p**1.5 * (1 - p) ** 0.5

    def over_k(p: float, values: np.ndarray) -> float:
        return float(stats.binom.pmf(np.arange(samples + 1), samples, p) @ values)

    weights = kernel(np.arange(samples + 1), samples)
    cross = mean(lambda p: true(p) * over_k(p, weights))
    expected = cross**2 / (mean(lambda p: true(p) ** 2) * mean(lambda p: over_k(p, weights**2)))
    assert efficiency(kernel, samples, prior) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("prior", PRIORS)
def test_posterior_weights_are_never_worse_and_more_samples_never_hurt_them(prior: tuple[float, float]) -> None:
    posterior = [efficiency(Kernel(estimate="posterior", prior=prior), k, prior) for k in (1, 2, 4, 8, 64)]
    empirical = [efficiency(Kernel(), k, prior) for k in (1, 2, 4, 8, 64)]
    assert posterior == sorted(posterior)
    assert all(one >= other - 1e-12 for one, other in zip(posterior, empirical, strict=True))
    assert empirical[0] == 0, "one sample is 0 or 1, and weighs nothing either way"
    assert posterior[-1] < 1
    assert posterior[-1] == pytest.approx(1, abs=0.05)


def test_prompts_that_nobody_has_sampled_are_left_out() -> None:
    own = table()
    alone = diagnose(own.successes, own.samples)
    beside = diagnose(np.append(own.successes, [0.0] * 40), np.append(own.samples, [0.0] * 40))
    assert alone == beside
    assert alone.prompts == 60
    assert alone.zero_share == np.mean((own.successes == 0) | (own.successes == 4))


def test_a_table_without_samples_is_a_mistake() -> None:
    with pytest.raises(PacedError, match="No prompt"):
        diagnose(np.zeros(3), np.zeros(3))


def test_a_table_in_which_nobody_succeeds_still_has_an_answer() -> None:
    found = diagnose(np.zeros(5), np.full(5, 8.0))
    assert found.zero_share == 1
    assert found.effective_share == {"empirical": 0.0, "posterior": pytest.approx(1)}
    assert isinstance(found.exponents, str)


def test_the_command_prints_it(tmp_path: Path) -> None:
    own = table()
    own.save(tmp_path / "rates.parquet")
    done = CliRunner().invoke(app, ["diagnose", "weights", str(tmp_path / "rates.parquet")])
    assert done.exit_code == 0, done.output
    found = diagnose(own.successes, own.samples)
    assert f"60 prompts, 4.0 samples each; {found.zero_share:.0%} weigh 0" in done.output
    for price in found.prices:
        line = next(line for line in done.output.splitlines() if f" {price.rollouts} " in line)
        assert f"{price.empirical:.0%}" in line
        assert f"{price.posterior:.0%}" in line
    assert CliRunner().invoke(app, ["diagnose", "weights", str(tmp_path / "none.parquet")]).exit_code == 1
