"""Before Ray: Hydra's callback, the plan, the doctor."""
