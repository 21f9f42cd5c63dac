"""The LIF neuron of other libraries, set to what ours computes: same spikes, same gradients.

Each function takes a current `[T, ...]` and starts from rest. `tests/test_benchmarks.py` checks
that they agree.
"""

from collections.abc import Callable

import snntorch
import torch
from snntorch import surrogate as snn_surrogate
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor, nn

from ckdlite.lif import LIF


def spikingjelly(x: Tensor) -> Tensor:
    node = sj_neuron.LIFNode(
        tau=2.0,
        decay_input=False,
        v_threshold=1.0,
        v_reset=0.0,
        detach_reset=False,
        surrogate_function=sj_surrogate.PiecewiseQuadratic(alpha=1.0),
        step_mode="m",
    )
    return node(x)


# Made once: snnTorch registers each neuron that it makes, and its decay is a buffer.
_triangle = snn_surrogate.custom_surrogate(lambda x, g, s: g * (1 - x.abs()).clamp(min=0))
_leaky: dict[tuple[torch.device, torch.dtype], nn.Module] = {}


def _snntorch(x: Tensor, leaky: nn.Module) -> Tensor:
    membrane, spikes = torch.zeros_like(x[0]), []
    for x_t in x:
        s, membrane = leaky(x_t, membrane)
        spikes.append(s)
    return torch.stack(spikes)


def _with_leaky(run: Callable[[Tensor, nn.Module], Tensor]) -> Callable[[Tensor], Tensor]:
    def neuron(x: Tensor) -> Tensor:
        key = (x.device, x.dtype)
        if key not in _leaky:
            leaky = snntorch.Leaky(
                beta=0.5, reset_mechanism="zero", reset_delay=False, spike_grad=_triangle
            )
            _leaky[key] = leaky.to(x.device, x.dtype)
        return run(x, _leaky[key])

    return neuron


# Compiled for each shape that comes, which was faster than once for any shape: a network has few.
NEURONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ckdlite compiled": LIF(compiled=True),
    "ckdlite plain": LIF(),
    "SpikingJelly compiled": torch.compile(spikingjelly, dynamic=False),
    "SpikingJelly": spikingjelly,
    "snnTorch compiled": _with_leaky(torch.compile(_snntorch, dynamic=False)),
    "snnTorch": _with_leaky(_snntorch),
}


class Neuron(nn.Module):
    """One of `NEURONS` as a layer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return NEURONS[self.name](x)
