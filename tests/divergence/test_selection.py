"""TIP: scores and selection against plain Python, one row at a time; nothing but the row may matter."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paced_verl.divergence.selection import selection_factor, tip_scores

KEEPS = ["0.01", "0.1", "0.2", "0.3", "0.5", "0.7", "1.0"]  # as written in a configuration


@st.composite
def batches(draw):
    """Entropies, reverse KLs and a mask, (B, T): responses of several lengths, with holes and with ties."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 120))
    levels = draw(st.sampled_from([1, 3, 2**20]))
    entropy, reverse_kl = torch.randint(levels, (2, *shape), generator=generator) / levels * torch.tensor(3.0).exp()
    lengths = torch.randint(shape[1] + 1, (shape[0], 1), generator=generator)
    holes = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.2]))
    return entropy, reverse_kl, (torch.arange(shape[1]) < lengths) & ~holes


def to_unit(values):
    low, high = min(values), max(values)
    return [(v - low) / (high - low) if high > low else 0.0 for v in values]


def expected_scores(entropies, reverse_kls):
    """One row without its masked tokens."""
    cut = sorted(entropies)[math.ceil(Fraction("0.98") * len(entropies)) - 1]
    pairs = zip(to_unit([min(h, cut) for h in entropies]), to_unit(reverse_kls), strict=True)
    return [1 - (1 - h) * (1 - d) for h, d in pairs]


def expected_factor(scores, keep):
    count = math.ceil(Fraction(keep) * len(scores))
    best = sorted(range(len(scores)), key=lambda t: (-scores[t], t))[:count]
    return [len(scores) / count if t in best else 0.0 for t in range(len(scores))]


@settings(max_examples=50, deadline=None)
@given(batch=batches(), keep=st.sampled_from(KEEPS))
def test_each_row_is_what_plain_python_makes_of_it(batch, keep):
    entropy, reverse_kl, mask = batch
    scores = tip_scores(entropy, reverse_kl, mask)
    factor = selection_factor(scores, mask, float(keep))
    assert factor.dtype == torch.float32
    assert not scores[~mask].any()
    assert not factor[~mask].any()
    for row in range(len(mask)):
        if mask[row].any():
            expected = expected_scores(entropy[row][mask[row]].tolist(), reverse_kl[row][mask[row]].tolist())
            torch.testing.assert_close(scores[row][mask[row]], torch.tensor(expected), rtol=1e-5, atol=1e-6)
            kept = expected_factor(scores[row][mask[row]].tolist(), keep)
            torch.testing.assert_close(factor[row][mask[row]], torch.tensor(kept))


@settings(max_examples=50, deadline=None)
@given(batch=batches(), keep=st.sampled_from(KEEPS), padding=st.integers(0, 9), data=st.data())
def test_micro_batches_order_and_padding_never_change_a_bit(batch, keep, padding, data):
    entropy, reverse_kl, mask = batch
    scores = tip_scores(entropy, reverse_kl, mask)
    factor = selection_factor(scores, mask, float(keep))
    order = data.draw(st.permutations(range(len(mask))))
    size = data.draw(st.integers(1, len(mask)))
    for micro_batch in torch.tensor(order).split(size):
        h, d, m = (
            torch.nn.functional.pad(x[micro_batch], (padding, padding), value=7) for x in (entropy, reverse_kl, mask)
        )
        m[:, :padding] = m[:, m.shape[1] - padding :] = False
        theirs = tip_scores(h, d, m)
        inside = slice(padding, padding + mask.shape[1])
        assert torch.equal(theirs[:, inside], scores[micro_batch])
        assert torch.equal(selection_factor(theirs, m, float(keep))[:, inside], factor[micro_batch])


@settings(max_examples=25, deadline=None)
@given(batch=batches(), keep=st.sampled_from(KEEPS))
def test_the_mean_over_all_tokens_is_the_mean_over_the_kept_ones(batch, keep):
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    entropy, reverse_kl, mask = (x[batch[2].any(dim=1)] for x in batch)
    scores, loss = tip_scores(entropy, reverse_kl, mask), torch.rand(mask.shape)
    factor = selection_factor(scores, mask, float(keep))
    torch.testing.assert_close(factor.sum(dim=1), mask.sum(dim=1).float())
    for row in range(len(mask)):
        kept = factor[row] > 0
        assert kept.sum() == math.ceil(Fraction(keep) * int(mask[row].sum()))
        mean = core_algos.agg_loss((loss * factor)[row : row + 1], mask[row : row + 1], "token-mean")
        torch.testing.assert_close(mean, loss[row][kept].mean(), rtol=1e-4, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(batch=batches(), power=st.tuples(st.integers(-4, 4), st.integers(-4, 4)))
def test_units_do_not_matter(batch, power):
    entropy, reverse_kl, mask = batch
    scaled = tip_scores(entropy.double() * 2.0 ** power[0], reverse_kl.double() * 2.0 ** power[1], mask)
    assert torch.equal(scaled, tip_scores(entropy.double(), reverse_kl.double(), mask))


def test_the_uncertain_and_the_sure_but_wrong_tokens_are_kept():
    entropy = torch.tensor([[0.0, 0.01, 2.0, 0.02, 1.8, 0.01]])
    reverse_kl = torch.tensor([[0.0, 9.0, 0.3, 0.01, 0.2, 0.02]])
    mask = torch.ones(1, 6, dtype=torch.bool)
    factor = selection_factor(tip_scores(entropy, reverse_kl, mask), mask, 0.5)
    assert factor.tolist() == [[0.0, 2.0, 2.0, 0.0, 2.0, 0.0]]


def test_a_few_extreme_entropies_do_not_press_down_the_others():
    entropy = torch.linspace(0, 1, 100).unsqueeze(0)
    entropy[0, 98:] = 1000.0
    mask = torch.ones(1, 100, dtype=torch.bool)
    scores = tip_scores(entropy, torch.zeros(1, 100), mask)
    assert (scores[0, 97:] == 1).all()
    torch.testing.assert_close(scores[0, 49], entropy[0, 49] / entropy[0, 97])


@pytest.mark.parametrize(("keep", "tokens", "kept"), [(0.07, 100, 7), (0.28, 25, 7), (0.55, 100, 55), (0.5, 5, 3)])
def test_a_share_that_is_a_whole_number_of_tokens_keeps_that_number(keep, tokens, kept):
    factor = selection_factor(torch.rand(1, tokens), torch.ones(1, tokens, dtype=torch.bool), keep)
    assert (factor > 0).sum() == kept


def test_equal_scores_are_kept_from_the_first_on():
    mask = torch.tensor([[False, True, True, False, True, True, True]])
    assert selection_factor(torch.zeros(1, 7), mask, 0.4).tolist() == [[0.0, 2.5, 2.5, 0.0, 0.0, 0.0, 0.0]]


def test_a_row_without_tokens_and_a_row_of_one():
    mask = torch.tensor([[False, False], [False, True]])
    scores = tip_scores(torch.ones(2, 2), torch.ones(2, 2), mask)
    assert selection_factor(scores, mask, 0.01).tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_scores_and_factors_have_no_gradient():
    entropy = torch.rand(2, 5, requires_grad=True)
    mask = torch.ones(2, 5, dtype=torch.bool)
    scores = tip_scores(entropy, entropy, mask)
    assert not scores.requires_grad
    assert not selection_factor(entropy, mask, 0.5).requires_grad


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5, math.nan])
def test_a_share_that_is_none_is_refused(keep):
    with pytest.raises(ValueError, match=r"want a share of tokens to keep in \(0, 1\], got"):
        selection_factor(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), keep)
