import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from paced_verl.pacing import kernel as kernel_module
from paced_verl.pacing.kernel import Kernel, fit_exponents, fit_prior, register_kernel, weights_by_successes


@pytest.fixture
def custom(monkeypatch):
    """A registry that forgets what a test registers."""
    monkeypatch.setattr(kernel_module, "_CUSTOM", {})
    return register_kernel


def posterior_by_integration(weight, a, b):
    """E[w(p)], p ~ Beta(a, b), by adaptive quadrature on the quantile scale."""
    value, _ = integrate.quad(lambda u: weight(stats.beta.ppf(u, a, b)), 0, 1, limit=500, epsabs=1e-11)
    return value


def test_empirical_beta_by_hand():
    k = np.array([0, 2, 4, 8, 0])
    n = np.array([8, 8, 8, 8, 0])
    np.testing.assert_allclose(Kernel()(k, n), [0, 3 / 16, 1 / 4, 0, np.nan])
    np.testing.assert_allclose(Kernel(alpha=2, beta=1)(k, n), [0, 3 / 64, 1 / 8, 0, np.nan])
    np.testing.assert_allclose(Kernel(alpha=0, beta=1)(k, n), [1, 3 / 4, 1 / 2, 0, np.nan])  # 0^0 = 1


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (1, 2), (3, 1)])
def test_beta_peaks_where_the_paper_says(alpha, beta):
    rate = np.linspace(0, 1, 10001)
    assert rate[Kernel(alpha=alpha, beta=beta).of_rate(rate).argmax()] == pytest.approx(
        alpha / (alpha + beta), abs=1e-4
    )


def test_hard_filter_includes_its_bounds_even_after_decay():
    k, n = np.array([0, 1, 2, 4, 5, 0]), np.array([5, 5, 5, 5, 5, 0])
    np.testing.assert_array_equal(Kernel("hard_filter")(k, n), [0, 1, 1, 1, 0, np.nan])
    decayed = np.float32(0.9)
    np.testing.assert_array_equal(
        Kernel("hard_filter")(k.astype("f4") * decayed, n.astype("f4") * decayed)[:4], [0, 1, 1, 1]
    )


def test_uniform_knows_every_prompt():
    for estimate in ("empirical", "posterior"):
        np.testing.assert_array_equal(Kernel("uniform", estimate=estimate)([0, 3], [0, 8]), [1, 1])


@pytest.mark.parametrize("prior", [(1.0, 1.0), (0.4, 0.7), (5.0, 2.0)])
@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (2, 0.5), (-0.3, 1)])
def test_posterior_beta_is_the_expected_weight(prior, alpha, beta):
    kernel = Kernel(alpha=alpha, beta=beta, estimate="posterior", prior=prior)
    for k, n in ((0, 0), (0, 8), (3, 8), (8, 8)):
        truth = posterior_by_integration(lambda p: p**alpha * (1 - p) ** beta, prior[0] + k, prior[1] + n - k)
        assert kernel(k, n) == pytest.approx(truth, rel=2e-4)


def test_posterior_hard_filter_is_a_probability():
    rng = np.random.default_rng(0)
    kernel = Kernel("hard_filter", low=0.3, high=0.6, estimate="posterior", prior=(2, 3))
    for k, n in ((0, 0), (1, 4), (4, 4)):
        p = rng.beta(2 + k, 3 + n - k, 400_000)
        assert kernel(k, n) == pytest.approx(np.mean((p >= 0.3) & (p <= 0.6)), abs=4e-3)  # 5 standard errors


def test_posterior_keeps_unsolved_prompts_alive_and_tends_to_the_empirical_weight():
    kernel = Kernel(estimate="posterior")
    assert np.all(kernel([0, 8, 0], [8, 8, 0]) > 0)
    np.testing.assert_allclose(kernel(3e6, 8e6), Kernel()(3, 8), rtol=1e-5)


@pytest.mark.parametrize("trials", [2, 4, 8, 16])
@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_bias_and_dead_share_of_the_empirical_weight(trials, p):
    """E[p̂(1−p̂)] = (1−1/K) p(1−p), and P(weight 0) = p^K + (1−p)^K, by enumeration of the K+1 outcomes."""
    k = np.arange(trials + 1)
    chance, weight = stats.binom.pmf(k, trials, p), Kernel()(k, np.full(trials + 1, trials))
    assert chance @ weight == pytest.approx((1 - 1 / trials) * p * (1 - p))
    assert chance[weight == 0].sum() == pytest.approx(p**trials + (1 - p) ** trials)


def test_a_registered_kernel_gets_rates_and_its_posterior(custom):
    custom("mine")(lambda p: p**2 * (1 - p))
    k, n = np.array([[0, 1], [8, 0]]), np.array([[8, 8], [8, 0]])
    np.testing.assert_allclose(Kernel("mine")(k, n), Kernel(alpha=2, beta=1)(k, n))
    prior = {"estimate": "posterior", "prior": (0.6, 0.3)}
    np.testing.assert_allclose(Kernel("mine", **prior)(k, n), Kernel(alpha=2, beta=1, **prior)(k, n), rtol=1e-10)


@settings(deadline=None)
@given(a=st.floats(1e-3, 1e4), b=st.floats(1e-3, 1e4))
def test_quadrature_has_the_moments_of_the_beta_distribution(a, b):
    rates, mass = kernel_module._beta_quadrature(np.array([a]), np.array([b]))
    assert mass.sum() == pytest.approx(1)
    assert (mass * rates).sum() == pytest.approx(a / (a + b), rel=1e-9, abs=1e-12)
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    assert (mass * (rates - a / (a + b)) ** 2).sum() == pytest.approx(variance, rel=1e-7, abs=1e-14)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (1, 1), (0.3, 0.7), (1.5, 0.5)])
def test_quadrature_where_its_recurrence_is_singular(a, b):
    rates, mass = kernel_module._beta_quadrature(np.array([a]), np.array([b]))
    for power in range(1, 8):
        assert (mass * rates**power).sum() == pytest.approx(stats.beta.moment(power, a, b))


def test_a_root_kernel_is_integrated_to_three_digits(custom):
    custom("root")(lambda p: np.sqrt(p * (1 - p)))
    k, n = np.arange(9), np.full(9, 8)
    closed = Kernel(alpha=0.5, beta=0.5, estimate="posterior")(k, n)
    np.testing.assert_allclose(Kernel("root", estimate="posterior")(k, n), closed, rtol=1e-3)


@pytest.mark.parametrize("bad", [lambda p: p - 0.5, lambda p: p[:1], lambda p: p / 0 * np.inf])
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_bad_registered_kernel_is_named(custom, bad):
    custom("bad")(bad)
    with pytest.raises(ValueError, match="'bad' must return one finite weight"):
        Kernel("bad")([0, 4], [8, 8])


def test_a_built_in_kernel_cannot_be_replaced(custom):
    with pytest.raises(ValueError, match="built-in"):
        custom("beta")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "bta"}, "Did you mean 'beta'"),
        ({"name": "?"}, "Choose from: beta, hard_filter, uniform"),
        ({"estimate": "bayes"}, "'empirical' or 'posterior'"),
        ({"low": 0.9}, "low <= high"),
        ({"prior": (0.0, 1.0)}, "prior must be positive"),
        ({"alpha": -0.1}, "alpha must be >= 0"),
        ({"beta": float("nan")}, "beta must be >= 0"),
        ({"beta": -1.0, "estimate": "posterior"}, "beta must be > -1"),
        ({"alpha": -0.5, "estimate": "posterior", "prior": (0.5, 1.0)}, "alpha must be > -0.5"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Kernel(**settings)


def test_fit_prior_maximises_the_beta_binomial_likelihood():
    rng = np.random.default_rng(1)
    n = rng.choice([0, 4, 8, 16], 50_000)
    k = rng.binomial(n, rng.beta(0.7, 1.9, len(n)))
    a, b = fit_prior(k, n)
    assert (a, b) == pytest.approx((0.7, 1.9), rel=0.03)

    seen = n > 0

    def likelihood(a, b):
        return stats.betabinom.logpmf(k[seen], n[seen], a, b).sum()

    best = likelihood(a, b)
    for factor in (0.99, 1.01):
        assert best > likelihood(a * factor, b)
        assert best > likelihood(a, b * factor)


def test_fit_prior_takes_fractions_and_stays_bounded():
    rng = np.random.default_rng(2)
    n = np.full(20_000, 8)
    k = rng.binomial(n, rng.beta(2, 2, len(n)))
    assert fit_prior(k * 0.5, n * 0.5) != pytest.approx(fit_prior(k, n), rel=0.05)  # half the evidence, other prior
    two_kinds = np.repeat([0, 8], [999, 1])  # all or nothing: without a bound a would be 3e-4
    for extreme in (np.full(10, 4), two_kinds, 8 - two_kinds):
        assert all(0.05 * 0.999 <= value <= 1e4 * 1.001 for value in fit_prior(extreme, np.full(len(extreme), 8)))


@pytest.mark.parametrize("successes", [0, 8])
def test_a_table_without_a_difference_fits_no_prior_that_one_later_rollout_overthrows(successes):
    """Of 1,000 prompts none (each) was solved 8 times of 8; then one prompt is solved once of 4."""
    k, n = np.full(1000, successes, float), np.full(1000, 8.0)
    prior = fit_prior(k, n)
    k[0], n[0] = k[0] + (1 if successes == 0 else 3), 12
    weights = Kernel(estimate="posterior", prior=prior)(k, n)
    assert 1 < weights[0] / weights.mean() < 5
    assert prior == (1.0, 1.0)


def test_fit_prior_needs_samples():
    with pytest.raises(ValueError, match="no prompt has been sampled"):
        fit_prior([0, 0], [0, 0])


@pytest.mark.parametrize(("variance", "exponents"), [(1 / 12, (0, 0)), (1 / 20, (1, 1))])
def test_fit_exponents_gives_the_papers_numbers(variance, exponents):
    rate = np.array([0.5 - variance**0.5, 0.5 + variance**0.5, 0.0, 1.0])  # the extremes are left out
    assert fit_exponents(rate * 8, np.full(4, 8)) == pytest.approx(exponents, abs=1e-9)


def test_fit_exponents_recovers_the_exponents_of_a_beta_density():
    """If pass rates have density ∝ p^α (1−p)^β, that is Beta(α+1, β+1), the rule returns α and β."""
    rate = np.random.default_rng(3).beta(3, 2.5, 100_000)
    assert fit_exponents(rate, np.ones_like(rate)) == pytest.approx((2, 1.5), rel=0.03)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        ([0.2, 0.8], r"v=0.09.*v < m\(1-m\)/3 = 0.08333.*set alpha and beta by hand"),
        ([0.0, 1.0], "no prompt has a pass rate strictly between"),
        ([0.5, 0.5], "variance v is 0"),
        ([0.01] * 8 + [0.21] * 2, "negative exponent"),
    ],
)
def test_fit_exponents_explains_why_it_cannot(rate, message):
    with pytest.raises(ValueError, match=message):
        fit_exponents(rate, np.ones(len(rate)))


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "kernel",
    [Kernel(), Kernel(alpha=3, beta=0.5), Kernel(estimate="posterior"), Kernel("hard_filter"), Kernel("uniform")],
)
def test_weights_by_successes_have_mean_1_where_pass_rates_are_uniform(kernel, n):
    """P(k of n) integrated over p on [0, 1], numerically, is what w̃ is averaged with."""
    p = (np.arange(20000) + 0.5) / 20000
    chances = [stats.binom.pmf(k, n, p).mean() for k in range(n + 1)]
    weights = weights_by_successes(kernel, n)
    nothing = n == 1 and not kernel([0, 1], [1, 1]).any()
    assert float(np.dot(chances, weights)) == pytest.approx(0 if nothing else 1, abs=1e-6)
    np.testing.assert_allclose(weights_by_successes(kernel, n, 0.2), kernel(np.arange(n + 1), n) / 0.2)


def test_without_other_responses_a_prompt_weighs_the_mean():
    for kernel in (Kernel(), Kernel(estimate="posterior"), Kernel("uniform")):
        assert weights_by_successes(kernel, 0).tolist() == [1]
