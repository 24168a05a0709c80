"""Search spaces, studies and the sampler; the only home of optuna."""
