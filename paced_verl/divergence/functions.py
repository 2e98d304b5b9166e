"""Divergences between two (n, k+1) tensors of log-probabilities: k tokens, and the tail, all other tokens as one.

``T`` is the teacher, ``S`` the student. Merging tokens into a tail can only lose information (data processing
inequality), so the KLs and the JSD are never negative, never above their value over the whole vocabulary, and equal to
it at k = V; in float32 up to rounding (about 1e-6 nats), and up to the floor of a tail that the teacher did not say
(:func:`teacher_categories`). A divergence of one's own is a function and a name:

    @register_divergence("total_variation")
    def total_variation(student, teacher):
        return (teacher.exp() - student.exp()).abs().sum(-1) / 2
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from paced_verl.registry import registered, registering

Divergence = Callable[..., torch.Tensor]

# What log 0 counts as: the log of the smallest normal float32 number. 0 · log 0 then comes out as 0 (1e-36), and a
# divergence that punishes a zero is large, not infinite.
LOG_ZERO = math.log(torch.finfo(torch.float32).tiny)

# What can be known of 1 − Σ p where each log p comes from a softmax in float32: summed over a vocabulary of 150,000 in
# 1,024 parts, as a GPU adds them, it is off by 3e-7 (root mean square) and up to 1e-6.
SUM_RESOLUTION = 2.0**-20

_REGISTRY: dict[str, Divergence] = {}


def register_divergence(name: str) -> Callable[[Divergence], Divergence]:
    """Register ``f(student, teacher, **params) -> (n,)`` under a name, for the configuration and ``get_divergence``.

    ``f`` receives finite (n, k+1) log-probabilities in float32 (or float64), the teacher's without gradient: the
    registered function casts, detaches and replaces −inf by ``LOG_ZERO`` first. Those entries get no gradient.

    Raises:
        ValueError: if the name is taken.
    """

    def decorate(f: Divergence) -> Divergence:
        enter = registering(_REGISTRY, "divergence", name)

        @functools.wraps(f)
        def divergence(student: torch.Tensor, teacher: torch.Tensor, **params: Any) -> torch.Tensor:
            return f(_finite(student), _finite(teacher.detach()), **params)

        return enter(divergence)

    return decorate


def get_divergence(name: str) -> Divergence:
    """The divergence of that name.

    Raises:
        PacedError: if there is none; it gives the nearest name, or all there are.
    """
    return registered(_REGISTRY, "divergence", name)


def _finite(log_probs: torch.Tensor) -> torch.Tensor:
    log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    return log_probs.masked_fill(log_probs == -torch.inf, LOG_ZERO)


def teacher_categories(log_probs: torch.Tensor, vocab_size: int, tail: torch.Tensor | None = None) -> torch.Tensor:
    """Append the tail to the teacher's top-k log-probabilities, and divide the k+1 categories by their sum.

    A teacher that says its tail is taken at its word, however small it is. Otherwise it is 1 − Σ p, at least what such
    a sum can resolve (rounding may even push it below 0): ``SUM_RESOLUTION``, or ``finfo(dtype).eps`` if that is more;
    for float64, its eps. So a smaller tail is taken for larger than it is: the student's mass there is punished too
    little, by up to log(floor / tail) times it.

    Args:
        log_probs: (n, k), any floating dtype.
        vocab_size: V. At k = V there is no tail: its column is −inf and the others stay as they are.
        tail: (n,) log-probability of all other tokens together, any floating dtype; None: not known.

    Returns:
        (n, k+1) float32 (float64 for float64) whose exp sums to 1.
    """
    dtype = torch.promote_types(log_probs.dtype, torch.float32)
    if log_probs.shape[-1] == vocab_size:
        return torch.nn.functional.pad(log_probs.to(dtype), (0, 1), value=-torch.inf)
    exact = log_probs.double()
    if tail is None:
        tail = (1 - exact.exp().sum(-1)).clamp_min(_resolution(log_probs.dtype)).log()
    return torch.cat([exact, tail.double().unsqueeze(-1)], dim=-1).log_softmax(-1).to(dtype)


def _resolution(dtype: torch.dtype) -> float:
    """What 1 − Σ p can be known to, of log-probabilities that came in this dtype."""
    eps = torch.finfo(dtype).eps
    return eps if dtype == torch.float64 else max(eps, SUM_RESOLUTION)


@register_divergence("forward_kl")
def forward_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(T‖S)."""
    return _kl(teacher, student)


@register_divergence("reverse_kl")
def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(S‖T)."""
    return _kl(student, teacher)


@register_divergence("jsd")
def jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """β KL(T‖M) + (1−β) KL(S‖M) with M = β T + (1−β) S (GKD, arXiv 2306.13649).

    Raises:
        ValueError: if beta is not inside (0, 1). At its ends this is 0; divided by β (1−β) it tends to KL(T‖S) as β → 0
            and to KL(S‖T) as β → 1.
    """
    if not 0 < beta < 1:
        raise ValueError(f"jsd needs 0 < beta < 1, got {beta}; use forward_kl or reverse_kl for the ends")
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


@register_divergence("akl")
def akl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Adaptive KL (arXiv 2404.02657): r KL(T‖S) + (1−r) KL(S‖T), r = share of the gap |T − S| that lies in the head.

    The head is the teacher's most probable tokens up to a cumulative mass of 0.5, and always the first one. The tail is
    not a token, so it counts in the whole gap but never in the head. r is a constant for the gradient.
    """
    gap = (teacher.exp() - student.detach().exp()).abs()
    probs, order = teacher[:, :-1].exp().sort(dim=-1, descending=True)
    head = probs.cumsum(-1) <= 0.5
    head[:, 0] = True
    r = (gap.gather(-1, order) * head).sum(-1) / gap.sum(-1).clamp_min(torch.finfo(gap.dtype).tiny)
    return r * _kl(teacher, student) + (1 - r) * _kl(student, teacher)


@register_divergence("forward_kl_topk")
def forward_kl_topk(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """verl's ``forward_kl_topk``: Σ T (log T − log S) over the k tokens without the tail, clamped at 0.

    Not a divergence: where the student has more mass on the k tokens it may be negative, so clamped, with no gradient.
    """
    return _kl(teacher[:, :-1], student[:, :-1]).clamp_min(0.0)


def entropy(log_probs: torch.Tensor) -> torch.Tensor:
    """(n,) entropy of (n, C) log-probabilities, in nats; −inf counts as probability 0."""
    log_probs = _finite(log_probs)
    return -(log_probs.exp() * log_probs).sum(-1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - q)).sum(-1)
