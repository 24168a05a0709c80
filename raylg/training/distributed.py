"""Who takes part in a run. Ray Train, torchrun or a test makes the process group; this module only uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from raylg.errors import EnvironmentUnfitError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of one run. With `size` 1 no collective is ever called.

    Raises:
        EnvironmentUnfitError: several processes but no process group, or one of another size.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    def __post_init__(self) -> None:
        if self.size == 1:
            return
        made = dist.get_world_size() if dist.is_initialized() else 0
        if made != self.size:
            raise EnvironmentUnfitError(
                f"a run of {self.size} workers needs a torch.distributed process group of that size, this process has "
                f"{made or 'none'}; start it through Ray Train (raylg.train) or torchrun, or set scale.num_workers=1"
            )

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `values` over all processes, the same on each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """The `value` of every process in the order of ranks, on every process; picklable objects only."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # all_gather_object has replaced every None
