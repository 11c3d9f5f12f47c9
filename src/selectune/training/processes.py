"""Several processes that train one model: started by `torchrun` or `accelerate launch`, joined by accelerate, summed by torch.

Every process has the same samples, schedule and masters, takes its share of each batch, and adds up with the others what was collected in
fp32. So a step divides by the labels of the whole batch without asking anybody for them, a process with text alone waits for none that has
pictures, and nothing but the selection's gradients travels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from selectune.errors import ProcessLost

if TYPE_CHECKING:
    from selectune.models import Model


Found = TypeVar("Found")
Made = TypeVar("Made")


class Processes:
    """This process among the others; alone, everything here does nothing."""

    def __init__(self, model: Model | None = None) -> None:
        """Joins the group that the environment names (`RANK`, `WORLD_SIZE`, `MASTER_ADDR`), if it names one; before there is a model, as
        the machine has accelerators or has not."""
        self.count, self.index = 1, 0
        self._device = model.device if model is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if torch.distributed.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            state = PartialState(cpu=self._device.type == "cpu")
            self.count, self.index = state.num_processes, state.process_index

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.index == 0

    def share(self, indices: Sequence[int], lengths: Sequence[int]) -> list[int]:
        """This process's part of a batch: of the samples in order of length every n-th, so that all have about the same work."""
        return self._share(indices, lengths, self.index)

    def _share(self, indices: Sequence[int], lengths: Sequence[int], index: int) -> list[int]:
        if self.count == 1:
            return list(indices)
        return sorted(indices, key=lambda sample: (lengths[sample], sample))[index :: self.count]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, in place."""
        if self.count == 1:
            return
        with _together():
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

    def everywhere(self, names: Sequence[str]) -> set[str]:
        """The names that every process gives."""
        if self.count == 1:
            return set(names)
        given: list[list[str]] = [[] for _ in range(self.count)]
        with _together():
            torch.distributed.all_gather_object(given, list(names))
        return set(given[0]).intersection(*given[1:])

    def most(self, indices: Sequence[int], lengths: Sequence[int], count: Callable[[list[int]], int]) -> int:
        """The largest count that the share of any process gives."""
        return max(count(self._share(indices, lengths, index)) for index in range(self.count))

    def merged(self, found: Mapping[int, Found]) -> dict[int, Found]:
        """What all processes found, together."""
        if self.count == 1:
            return dict(found)
        given: list[dict[int, Found]] = [{} for _ in range(self.count)]
        with _together():
            torch.distributed.all_gather_object(given, dict(found))
        return {key: value for part in given for key, value in part.items()}

    def leads(self, make: Callable[[], Made]) -> Made:
        """What `make` gives in the first process, in every one; also the error that it raises there."""
        if self.count == 1:
            return make()
        box: list[tuple[bool, Any]] = [(True, None)]
        if self.is_first:
            try:
                box = [(True, make())]
            except Exception as error:  # noqa: BLE001  # whatever it is, the others must not wait for a result
                box = [(False, error)]
        torch.distributed.broadcast_object_list(box, src=0)
        made, value = box[0]
        if not made:
            raise value
        result: Made = value
        return result

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.count > 1:
            with _together():
                torch.distributed.barrier()


@contextmanager
def _together() -> Iterator[None]:
    """Raises ProcessLost where torch says in some words of its own that another process does not answer."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            f"another process of this training is gone or does not answer ({str(error).splitlines()[0][:160]})",
            where="training",
            then="Look at the end of its own messages, and start all of them again; from the last checkpoint, if there is one.",
        ) from error
