"""Sketches against the vectors themselves, over many seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paced_verl.diagnostics import projection
from paced_verl.diagnostics.projection import off_diagonal_error, sketch

SEEDS = 400


def vectors(count: int, size: int, heavy: bool = False) -> torch.Tensor:
    """Gradients with something in common; ``heavy``: a few coordinates that hold nearly all of it."""
    generator = torch.Generator().manual_seed(count)
    shared = 0.3 * torch.randn(size, generator=generator)
    rows = shared + torch.randn(count, size, generator=generator)
    return rows * torch.arange(1, size + 1) ** -1.0 if heavy else rows


def sketches(rows: torch.Tensor, dimensions: int) -> np.ndarray:
    """(seeds, n, d)."""
    return np.stack([[sketch([row], dimensions, seed).numpy() for row in rows] for seed in range(SEEDS)])


@pytest.mark.parametrize("heavy", [False, True])
def test_inner_products_are_right_on_average_and_no_further_off_than_said(heavy: bool) -> None:
    x, y = vectors(2, 300, heavy)
    found = np.einsum("snd,smd->snm", (s := sketches(torch.stack([x, y]), 64).astype(np.float64)), s)
    for a, b, products in ((x, x, found[:, 0, 0]), (x, y, found[:, 0, 1]), (y, y, found[:, 1, 1])):
        bound = np.sqrt(2 / 64) * float(a.norm() * b.norm())
        assert products.mean() == pytest.approx(float(a @ b), abs=4 * bound / np.sqrt(SEEDS))
        assert products.std() < 1.1 * bound


def test_what_is_said_of_a_sum_over_pairs_is_its_spread_over_seeds() -> None:
    """Spread evenly, the coordinates that meet themselves, which the bound counts, are few: it is nearly reached."""
    rows = vectors(6, 400)
    exact = (rows @ rows.T).double().numpy()
    s = sketches(rows, 50).astype(np.float64)
    gram = np.einsum("snd,smd->snm", s, s)
    sums = gram.sum(axis=(1, 2)) - np.trace(gram, axis1=1, axis2=2)
    said = off_diagonal_error(exact, 50)
    assert sums.mean() == pytest.approx(exact.sum() - np.trace(exact), abs=4 * said / np.sqrt(SEEDS))
    assert sums.std() == pytest.approx(said, rel=0.15)


def test_of_a_single_gradient_there_are_no_pairs_to_be_wrong_about() -> None:
    assert off_diagonal_error(np.array([[7.0]]), 10) == 0


def test_a_sketch_is_a_sum_of_signed_coordinates_whatever_the_parts_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(1.0, 601)
    whole = sketch([x], 32, seed=3)
    columns = torch.stack([sketch([row], 32, seed=3) for row in torch.eye(600)])
    assert (columns.abs().sum(1) == 1).all(), "each coordinate goes to one place, with a sign"
    torch.testing.assert_close(whole, x @ columns)
    monkeypatch.setattr(projection, "CHUNK", 7)
    torch.testing.assert_close(sketch([x[:250].view(50, 5), x[250:]], 32, seed=3), whole)
    assert not torch.equal(sketch([x], 32, seed=4), whole)


def test_coordinates_are_spread_evenly_and_signs_balanced() -> None:
    columns = torch.stack([sketch([row], 16, seed=0) for row in torch.eye(1600)])
    signs, places = columns.sum(1), columns.abs().argmax(1)
    assert abs(float(signs.sum())) < 4 * 1600**0.5
    counts = np.bincount(places.numpy(), minlength=16)
    assert ((counts - 100) ** 2 / 100).sum() < 40, "chi square of 15 degrees of freedom"


def test_a_short_gradient_is_kept_as_it_is() -> None:
    x = torch.randn(5, 6)
    assert torch.equal(sketch([x, x[0]], 36, seed=0), torch.cat([x.flatten(), x[0]]))
    assert len(sketch([x, x[0]], 35, seed=0)) == 35
