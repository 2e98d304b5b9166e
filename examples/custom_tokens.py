r"""A choice of tokens of your own, without touching paced-verl: those where the student is uncertain.

    PYTHONPATH=examples VERL_USE_EXTERNAL_MODULES=custom_tokens \
        python -m verl.trainer.main_ppo … +paced=two_stage paced.tokens.select=forking paced.tokens.keep=0.2

The fifth of a response's tokens with the highest entropy is where its reasoning forks; RL on them alone does as well
as RL on all (arXiv 2506.01939). Here the same is asked of distillation.

What comes out: "tokens: forking" in the plan; the loss is the mean over the tokens that are kept.
"""

from collections.abc import Mapping

import torch

from paced_verl.divergence.selection import register_token_weight, selection_factor


@register_token_weight("forking")
def forking(known: Mapping[str, torch.Tensor], mask: torch.Tensor, keep: float) -> torch.Tensor:
    """Tokens that count, (B, T) bool → what their loss is multiplied by, (B, T)."""
    return selection_factor(known["student_entropy"], mask, keep)
