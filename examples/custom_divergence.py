r"""A divergence of your own, without touching paced-verl: the alpha-divergence between teacher T and student S.

    D_α(T‖S) = Σ (α T + (1−α) S − T^α S^(1−α)) / (α (1−α)),    0 < α < 1

runs from the reverse KL(S‖T) at α → 0 to the forward KL(T‖S) at α → 1, and is 4 (1 − Σ √(T S)) at α = .5.

    PYTHONPATH=examples VERL_USE_EXTERNAL_MODULES=custom_divergence \
        python -m verl.trainer.main_ppo … +paced=reverse_kl \
        paced.schedule.0.divergence=alpha_divergence +paced.schedule.0.parameters.alpha=0.3

verl imports the module in each of its processes, hence also in the trainer's workers, which compute the loss;
`paced-verl plan` with the same variables and overrides says whether the name is found. Import nothing of verl at the
top of the module, nor more of paced_verl than this: verl itself is only half imported when its turn comes.

What comes out: "alpha_divergence on student responses" in the plan, and `paced/divergence/value` in its units.
"""

import torch

from paced_verl.divergence import register_divergence


@register_divergence("alpha_divergence")
def alpha_divergence(student: torch.Tensor, teacher: torch.Tensor, alpha: float = 0.5) -> torch.Tensor:
    """(n, k+1) finite log-probabilities of k tokens and the tail → (n,), never negative."""
    if not 0 < alpha < 1:
        raise ValueError(
            f"alpha_divergence needs 0 < alpha < 1, got {alpha}; use forward_kl or reverse_kl for the ends"
        )
    geometric = (alpha * teacher + (1 - alpha) * student).exp()
    return (alpha * teacher.exp() + (1 - alpha) * student.exp() - geometric).sum(-1) / (alpha * (1 - alpha))
