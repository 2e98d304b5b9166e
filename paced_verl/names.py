"""Names under which verl finds what the plugin adds."""

LOSS_MODE = "paced"
TRAINER_MODES = ("paced_sync", "paced_colocate_async", "paced_separate_async")
MANAGER = "paced_verl.training.rollout.PacedAgentLoopManager"
ESTIMATOR = "paced"
"""The advantage, as verl knows it: ``algorithm.adv_estimator``."""
