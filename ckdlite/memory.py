"""Memory of a training step: what the backward pass keeps, and how freed memory is used again.

T timesteps make every activation T times as large, so a spiking network meets limits of memory that
its teacher does not. The page on speed measures both functions.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor, nn


class _Piece:
    """A saved tensor, as long as its graph lives."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Saved:
    """What autograd keeps for backward passes."""

    def __init__(self) -> None:
        self._pieces: WeakSet[_Piece] = WeakSet()

    @property
    def bytes(self) -> int:
        """Bytes kept at this moment, each piece of memory counted once."""
        storages = (piece.tensor.untyped_storage() for piece in self._pieces)
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@contextmanager
def saved() -> Iterator[Saved]:
    """Count what is kept for the backward pass by what runs inside::

        with saved() as kept:
            spikes = LIF()(current)
        kept.bytes / current.numel()    # bytes a neuron and timestep

    Two operations that save one tensor count once; a view counts with all of its memory; parameters
    do not count. Look while the result is alive: what nobody can go back through is not kept.
    """
    kept = Saved()

    def pack(tensor: Tensor) -> Tensor | _Piece:
        if isinstance(tensor, nn.Parameter):
            return tensor
        piece = _Piece(tensor)
        kept._pieces.add(piece)
        return piece

    def unpack(packed: Tensor | _Piece) -> Tensor:
        return packed.tensor if isinstance(packed, _Piece) else packed

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield kept


def reuse() -> bool:
    """Keep freed memory in this process and use it again; whether this system can.

    By default the C library (glibc, Linux) gets every tensor above 32 MB from the kernel and gives
    it back as soon as it is freed. Then each step touches all its memory for the first time, and
    the kernel's zeroing of pages costs more than the arithmetic of a neuron. A teacher's
    activations often lie below 32 MB, a student's, T times as large, above. This sets glibc's
    M_MMAP_MAX to 0 and turns M_TRIM_THRESHOLD off, for the whole process, until it ends; no result
    changes. The process then holds its peak of memory. The command
    line calls it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library than glibc
        return False
    no_mmap, no_trim, pad = mallopt(-4, 0), mallopt(-1, -1), mallopt(-2, 64 * 2**20)
    return bool(no_mmap and no_trim and pad)
