"""Memory of a training step: what the backward pass keeps, and how freed memory is used again.

T timesteps make every activation T times as large, so a spiking network meets limits of memory that
its teacher does not. The page on speed measures both functions.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Saved:
    """Bytes that autograd has saved for backward passes, each piece of memory counted once."""

    def __init__(self) -> None:
        self._pieces: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        return sum(self._pieces.values())


@contextmanager
def saved() -> Iterator[Saved]:
    """Count what is kept for the backward pass by what runs inside::

        with saved() as kept:
            spikes = LIF()(current)
        kept.bytes / current.numel()    # bytes a neuron and timestep

    Two operations that save one tensor count once; a view counts with all of its memory; parameters
    do not count. Tensors are counted as they are saved: keep the result alive inside the block, or
    memory that is freed there and given out again is counted once for both.
    """
    kept = Saved()

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept._pieces[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def reuse() -> bool:
    """Keep freed memory in this process and use it again; whether this system can.

    By default the C library (glibc, Linux) gets every tensor above 32 MB from the kernel and gives
    it back as soon as it is freed. Then each step touches all its memory for the first time, and
    the kernel's zeroing of pages costs more than the arithmetic of a neuron. A teacher's
    activations often lie below 32 MB, a student's, T times as large, above. This sets glibc's
    M_MMAP_MAX to 0 and turns M_TRIM_THRESHOLD off, for the whole process, until it ends; no result
    changes. The process then holds its peak of memory. `ckdlite fit` calls it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    no_mmap, no_trim, pad = mallopt(-4, 0), mallopt(-1, -1), mallopt(-2, 64 * 2**20)
    return bool(no_mmap and no_trim and pad)
