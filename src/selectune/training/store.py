"""Tensors that were computed once: in memory up to a budget, and beyond it in a file that is gone with the process."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_PAGE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """Where one tensor lies in the file."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size


class Store:
    """Small groups of tensors by key. Nothing is ever thrown out: what fits neither in memory nor on disk is not kept, and counted."""

    def __init__(self, budget: int = 1 << 30, *, disk: int = 8 << 30, folder: Path | None = None) -> None:
        """`budget` and `disk` in bytes; of the disk never more than half of what is free when the file is begun. `folder`: the system's
        own for temporary files."""
        self.budget = budget
        self.disk = disk
        self.nbytes = 0
        """Bytes in memory."""
        self.on_disk = 0
        """Bytes in the file."""
        self.refused = 0
        self._folder = folder
        self._memory: dict[Hashable, Mapping[str, Tensor]] = {}
        self._places: dict[Hashable, Mapping[str, _Kept]] = {}
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self._memory) + len(self._places)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._memory or key in self._places

    def find(self, key: Hashable) -> Mapping[str, Tensor] | None:
        """The tensors kept under a key, on the device that they came from."""
        found = self._memory.get(key)
        if found is not None:
            return found
        places = self._places.get(key)
        return None if places is None else {name: self._read(place) for name, place in places.items()}

    def keep(self, key: Hashable, tensors: Mapping[str, Tensor]) -> None:
        """Keeps tensors while there is room; they must not be written to afterwards."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if self.nbytes + size <= self.budget:
            self._memory[key] = dict(tensors)
            self.nbytes += size
        elif self.on_disk + size + _PAGE * len(tensors) <= self._room():
            self._places[key] = {name: self._write(tensor) for name, tensor in tensors.items()}
        else:
            self.refused += 1

    def _room(self) -> int:
        if self.disk and self._file is None:
            free = shutil.disk_usage(self._folder or tempfile.gettempdir()).free
            self.disk = min(self.disk, free // 2)
        return self.disk

    def _write(self, tensor: Tensor) -> _Kept:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="selectune-", dir=self._folder)  # noqa: SIM115  # lives as long as the store
            weakref.finalize(self, self._file.close)
        start = -(-self.on_disk // _PAGE) * _PAGE
        place = _Kept(start=start, shape=tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device)
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        written = 0
        while written < len(data):
            written += os.pwrite(self._file.fileno(), data[written:], start + written)
        self.on_disk = start + len(data)
        return place

    def _read(self, place: _Kept) -> Tensor:
        assert self._file is not None
        data = bytearray(os.pread(self._file.fileno(), place.nbytes, place.start))
        if not data:
            return torch.empty(place.shape, dtype=place.dtype, device=place.device)
        return torch.frombuffer(data, dtype=place.dtype).reshape(place.shape).to(place.device)
