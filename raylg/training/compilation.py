"""`torch.compile` for training."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from raylg.errors import EnvironmentUnfitError
from raylg.models.attention import Block


def compile_for_training(model: nn.Module, try_step: Callable[[int], None]) -> None:
    """Let every block of a matcher train compiled; names of weights stay, and evaluation is not compiled.

    Args:
        model: the matcher.
        try_step: a forward and backward pass of that many pairs: what is missing is told at the start of a run.

    Raises:
        EnvironmentUnfitError: there is no compiler, or it does not work.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # here, because it takes seconds

    for module in model.modules():
        if isinstance(module, Block):
            module.compiled = True
    try:
        # One pair, or as many as there are heads or coordinates, would be compiled as a case of its own.
        try_step(3)
    except BackendCompilerFailed as error:
        reason = " ".join(str(error).strip().split("\n\n")[0].split())  # advice to developers of PyTorch follows
        raise EnvironmentUnfitError(
            f"train.compile = True: torch.compile does not work here ({reason}); it needs a C++ compiler (g++, or the "
            "one that CXX names), and Triton on GPUs; install them, or set train.compile=false"
        ) from error
