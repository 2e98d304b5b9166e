r"""A weight kernel of your own, without touching paced-verl: √(p (1−p)), the weight of SC-SDPO (arXiv 2605.27765).

    PYTHONPATH=examples VERL_USE_EXTERNAL_MODULES=custom_kernel \
        python -m verl.trainer.main_ppo … +paced=two_stage paced.weight.kernel=root

verl imports the module in each of its processes, before anything looks for the name; `paced-verl plan` with the same
variables and overrides says whether it is found. Several modules are separated by commas. On a cluster the file must be
on every node, and the variables in the environment of Ray's workers: see docs/cluster.md.

What comes out: "weight: root, …" in the plan, and weights that fall off more slowly towards p = 0 and p = 1 than those
of PACED, p (1−p): .3 instead of .09 at p = .1, before they are divided by their mean. `paced.weight.estimate=posterior`
works, too, by quadrature.
"""

import numpy as np

from paced_verl.pacing.kernel import register_kernel


@register_kernel("root")
def root(p: np.ndarray) -> np.ndarray:
    """Pass rates in [0, 1] → weights, finite and ≥ 0, of the same shape."""
    return np.sqrt(p * (1 - p))
