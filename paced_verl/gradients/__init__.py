"""One distillation gradient a problem, from plain transformers models over Ray workers: ``paced-verl diagnose snr``."""
