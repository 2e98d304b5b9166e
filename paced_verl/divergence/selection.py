"""TIP: which tokens of a response are trained (Token Importance in on-Policy distillation, arXiv 2604.14084).

The tokens that teach are those where the student is uncertain, and those where it is sure and the teacher disagrees.
With h the student's entropy and d = KL(S‖T), both brought to [0, 1], a token's score is the soft "or" h + d − h·d. The
top share of a response's tokens is kept, and the loss is the mean over them.

In the paper, as public reimplementations of it agree, h and d are brought to [0, 1] by their extremes over all tokens
of a batch, entropies being cut at their 98th percentile there first; then the top share of each response is kept. Here
the extremes and the percentile are those of the response alone. So what a response trains depends on nothing but the
response: not on the others of its batch, not on how a batch is split into micro-batches and ranks, which would each
have extremes of their own. What is lost is the common scale: an entropy that is high for its response counts as high.

A constant factor of h or d changes no score, so it does not matter whether entropy is divided by log V. Where both come
from a teacher's top-k, they are over k+1 categories and so below those over the whole vocabulary.
"""

from collections.abc import Callable, Mapping

import torch

from paced_verl.registry import registered, registering

TokenWeight = Callable[[Mapping[str, torch.Tensor], torch.Tensor, float], torch.Tensor]
_REGISTRY: dict[str, TokenWeight] = {}

# Entropies above this share of a response's are all taken for equal: a few extreme ones would press down the others.
ENTROPY_QUANTILE = 0.98


def register_token_weight(name: str) -> Callable[[TokenWeight], TokenWeight]:
    """Decorator: make a function known as ``paced.tokens.select``.

    It gets what is known of the tokens of B responses, by name, (B, T) float each without gradient:
    ``student_entropy``, ``forward_kl``, ``reverse_kl``, ``tail_mass`` (the teacher's) and ``student_tail_mass``;
    the tokens that count, (B, T) bool; and ``paced.tokens.keep``. It returns what the loss of each token is multiplied
    by, (B, T) float, 0 outside the mask. Where that sums to a row's number of tokens, a response weighs as before.

    >>> @register_token_weight("agree")
    ... def agree(known, mask, keep):
    ...     return (-known["reverse_kl"]).exp() * mask

    Raises:
        ValueError: The name is taken.
    """
    return registering(_REGISTRY, "token weight", name)


def get_token_weight(name: str) -> TokenWeight:
    """The token weight of that name.

    Raises:
        PacedError: There is none; it gives the nearest name, or all there are.
    """
    return registered(_REGISTRY, "token weight", name)


@register_token_weight("tip")
def tip(known: Mapping[str, torch.Tensor], mask: torch.Tensor, keep: float) -> torch.Tensor:
    """TIP, as at the top of this file."""
    return selection_factor(tip_scores(known["student_entropy"], known["reverse_kl"], mask), mask, keep)


@torch.no_grad()
def tip_scores(entropy: torch.Tensor, reverse_kl: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Score h + d − h·d of each token, in [0, 1].

    Args:
        entropy: (B, T) entropy of the student's distribution, float, one response a row.
        reverse_kl: (B, T) KL(S‖T), float, in the same unit or another.
        mask: (B, T) bool, the tokens that count; the others are not read.

    Returns:
        (B, T) in the dtype of the arguments, 0 outside the mask. A measure that is equal at all tokens of a row counts
        as 0 in it.
    """
    ascending = entropy.masked_fill(~mask, torch.inf).sort(dim=1).values
    quantile = ascending.gather(1, _share(ENTROPY_QUANTILE, mask) - 1)  # by nearest rank: one of the row's entropies
    h = _to_unit(entropy.minimum(quantile), mask)
    d = _to_unit(reverse_kl, mask)
    return h + d - h * d


@torch.no_grad()
def selection_factor(scores: torch.Tensor, mask: torch.Tensor, keep: float) -> torch.Tensor:
    """What to multiply the loss of each token by, so that its mean over a row's tokens is the mean over the kept ones.

    Args:
        scores: (B, T) float, one response a row.
        mask: (B, T) bool, the tokens that count.
        keep: share of a row's tokens to keep, in (0, 1]: ⌈keep · tokens⌉, the highest scores, of equal ones the first.

    Returns:
        (B, T) float32: tokens / kept where the token is kept, else 0. It sums to the number of tokens in each row.

    Raises:
        ValueError: if keep is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"want a share of tokens to keep in (0, 1], got {keep}; 1 keeps all of them")
    kept = _share(keep, mask)
    order = scores.masked_fill(~mask, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(mask.shape[1], device=mask.device).expand_as(order))
    return torch.where(mask & (rank < kept), (mask.sum(dim=1, keepdim=True) / kept).float(), 0.0)


def _share(share: float, mask: torch.Tensor) -> torch.Tensor:
    """(B, 1) ⌈share · tokens⌉ of each row, at least 1."""
    # 0.07 · 100 is a little more than 7 in binary: a share that is meant to be a whole number of tokens must stay one.
    return torch.ceil(share * mask.sum(dim=1, keepdim=True).double() - 1e-9).clamp_min(1).long()


def _to_unit(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(x − min) / (max − min) over the masked tokens of each row; 0 outside the mask and where there is no range."""
    low = x.masked_fill(~mask, torch.inf).amin(dim=1, keepdim=True)
    range_ = x.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True) - low
    return torch.where(mask & (range_ > 0), (x - low) / range_, 0.0)
