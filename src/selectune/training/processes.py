"""Several processes that train one model: started by `torchrun` or `accelerate launch`, joined by accelerate, summed by torch.

Every process has the same samples, schedule and masters, takes its share of each batch, and adds up with the others what was collected in
fp32. So a step divides by the labels of the whole batch without asking anybody for them, a process with text alone waits for none that has
pictures, and nothing but the selection's gradients travels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from selectune.errors import ProcessLost, SelectuneError

if TYPE_CHECKING:
    from selectune.models import Model


PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others before it gives them up; one that is killed is noticed at once. For groups that selectune joins:
one that the caller has joined keeps its own."""
_SILENCE = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out|timeout", re.IGNORECASE)
"""In what torch says where another process does not answer; a fault of a pass, such as wrong shapes, has none of these words."""
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
            self.count, self.index = joined(self._device)

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
        with _together():
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


def joined(device: torch.device) -> tuple[int, int]:
    """How many processes the group has, and which of them this is; joins the group that the environment names if that was not done."""
    from accelerate import PartialState

    started = torch.distributed.is_initialized()
    state = PartialState(cpu=device.type == "cpu", **({} if started else {"timeout": PATIENCE}))
    return state.num_processes, state.process_index


@contextmanager
def _together() -> Iterator[None]:
    """Raises ProcessLost where torch says in some words of its own that another process does not answer."""
    try:
        yield
    except RuntimeError as error:
        raise _lost(error) from error


@contextmanager
def answering(when: Callable[[], str], then: Callable[[], str]) -> Iterator[None]:
    """Says when it was, and what to do, if another process is lost inside: in our own exchanges, or in those that shards make in a pass.

    Raises ProcessLost.
    """
    try:
        yield
    except ProcessLost as lost:
        raise ProcessLost(f"{lost.what}, {when()}", where="training", then=then()) from lost
    except RuntimeError as error:
        if isinstance(error, SelectuneError) or not torch.distributed.is_initialized() or not _SILENCE.search(str(error)):
            raise
        raise ProcessLost(f"{_lost(error).what}, {when()}", where="training", then=then()) from error


def _lost(error: RuntimeError) -> ProcessLost:
    return ProcessLost(
        f"another process of this training is gone or does not answer ({str(error).splitlines()[0][:160]})", where="training"
    )
