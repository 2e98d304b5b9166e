"""When does pacing pay? Plain torch, with this package's own pass rates, samplers, kernels and divergences."""
