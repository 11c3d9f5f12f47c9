"""Several processes that train one model: started by `torchrun` or `accelerate launch`, joined by accelerate, summed by torch.

Every process has the same samples, schedule and masters, takes its share of each batch, and adds up with the others what was collected in
fp32. So a step divides by the labels of the whole batch without asking anybody for them, a process with text alone waits for none that has
pictures, and nothing but the selection's gradients travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from selectune.models import Model


class Processes:
    """This process among the others; alone, everything here does nothing."""

    def __init__(self, model: Model) -> None:
        """Joins the group that the environment names (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`), if it names one."""
        from accelerate import PartialState

        state = PartialState(cpu=model.device.type == "cpu")
        self.count: int = state.num_processes
        self.index: int = state.process_index
        self._device = model.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.index == 0

    def share(self, indices: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """This process's part of a batch: of the samples in order of length every n-th, so that all have about the same work."""
        if self.count == 1:
            return list(indices)
        ordered = sorted(indices, key=lambda index: (lengths[index], index))
        return ordered[self.index :: self.count]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, in place."""
        if self.count == 1:
            return
        waiting = [torch.distributed.all_reduce(tensor, async_op=True) for tensor in tensors]
        for one in waiting:
            if one is not None:
                one.wait()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; each gets the same answer."""
        if self.count == 1:
            return flag
        votes = torch.tensor([float(flag)], device=self._device)
        self.add_up([votes])
        return bool(votes.item())

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()
