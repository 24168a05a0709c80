"""The few meanings an error of raylg can have; each maps to an exit code of the command line.

A message names the thing, where it stands, its value and what to do about it.
"""


class RaylgError(Exception):
    """Root of every error that raylg raises on purpose."""

    exit_code = 1


class ConfigError(RaylgError):
    """The user's input is wrong; nothing was started (exit code 2)."""

    exit_code = 2


class EnvironmentUnfitError(RaylgError):
    """The machine lacks what the command needs: GPU, storage, Ray, weights (exit code 3)."""

    exit_code = 3


class ShardError(RaylgError):
    """A data set is missing, truncated, corrupt or of another format (exit code 3)."""

    exit_code = 3


class CheckpointError(RaylgError):
    """A checkpoint or weights file does not fit what it is loaded into (exit code 2)."""

    exit_code = 2


class NoFeasibleTrialError(RaylgError):
    """A search ended without one trial that could be scored (exit code 4)."""

    exit_code = 4


class TrialInfeasible(RaylgError):
    """A configuration cannot be trained here; a result of the search, not a crash.

    Attributes:
        reason: short word for tables and the sampler, such as ``diverged``.
    """

    reason = "infeasible"


class TrainingDiverged(TrialInfeasible):
    """The loss or the gradients stayed non-finite for longer than allowed."""

    reason = "diverged"


class OutOfMemory(TrialInfeasible):
    """The batch does not fit the device."""

    reason = "out_of_memory"
