"""Long gradients as short vectors that keep their inner products: a count sketch, seeded, computed in chunks.

Each coordinate k is added, with a sign s(k), to one of d sums. An inner product of two sketches has the mean of the
true one, and a variance of at most 2‖x‖²‖y‖²/d over the choice of signs and sums (Charikar, Chen and Farach-Colton
2002; Weinberger et al., arXiv 0902.2206). Signs and sums are a hash of the coordinate: nothing is stored for them, and
every machine has the same.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

CHUNK = 1 << 18  # coordinates at a time: 2 MB in float64, which a core keeps at hand, and work enough for a GPU


def sketch(vector: Iterable[torch.Tensor], dimensions: int, seed: int) -> torch.Tensor:
    """The count sketch of a vector.

    Args:
        vector: Its parts in order, of any shape, floating dtype and device.
        dimensions: d.
        seed: Sketches of one seed go together.

    Returns:
        (d,) float32 on the CPU; the vector itself where it has no more than d coordinates.
    """
    parts = [part.detach().reshape(-1) for part in vector]
    if sum(map(len, parts)) <= dimensions:
        return torch.cat([part.float().cpu() for part in parts])
    sums, start = torch.zeros(dimensions, dtype=torch.float64, device=parts[0].device), 0
    for part in parts:
        for chunk in part.split(CHUNK):
            hashed = _mixed(torch.arange(start, start + len(chunk), device=chunk.device), seed)
            sign = 1.0 - 2.0 * (hashed & 1).double()
            sums.index_add_(0, _shifted(hashed, 1) % dimensions, chunk.double() * sign)
            start += len(chunk)
    return sums.float().cpu()


def off_diagonal_error(gram: npt.NDArray[np.float64], dimensions: int) -> float:
    """How far Σ_{i≠j} ⟨g_i, g_j⟩ is off where it is taken from sketches: at most this standard deviation.

    That sum is Σ_k A_kk of A = u uᵀ − Σ_i g_i g_iᵀ with u = Σ_i g_i, so its variance is at most (2/d) ‖A‖², and
    ‖A‖² = ‖u‖⁴ − 2 Σ_i ⟨u, g_i⟩² + Σ_ij ⟨g_i, g_j⟩² is a matter of inner products again.

    Args:
        gram: (n, n) inner products.
        dimensions: d.
    """
    along = gram.sum(axis=1)
    square = along.sum() ** 2 - 2 * np.sum(along**2) + np.sum(gram**2)
    return float(np.sqrt(2 * max(square, 0.0) / dimensions))


def _mixed(number: torch.Tensor, seed: int) -> torch.Tensor:
    """A hash of int64 numbers: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    x = number * _signed(0x9E3779B97F4A7C15) + _signed((seed * 0xD1342543DE82EF95 + 1) % 2**64)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    """To the right, with zeros from the left: torch's own shift keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(x: int) -> int:
    """The int64 of the same 64 bits."""
    return x - 2**64 if x >= 2**63 else x
