"""raylg finds the hyperparameters that make LightGlue match best on your own images."""

__version__ = "0.1.0"
