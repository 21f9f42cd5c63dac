"""To hardware: batch norm folded away, and a student as a graph that other simulators read.

The graph is in the Neuromorphic Intermediate Representation (NIR) of Pedersen et al. 2024 (Nature
Communications 15, arXiv 2311.14641). Needs nir: ``pip install 'ckdlite[hardware]'``. Chapter 6.1
builds both steps in plain lines.
"""

import copy
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .lif import LIF
from .networks import Frames, ResNet

try:
    import nir
except ImportError as error:
    raise ImportError(
        "ckdlite.hardware needs nir, which is not installed: pip install 'ckdlite[hardware]'"
    ) from error

#: Seconds of one timestep. NIR's time constants are in seconds and a graph has no timestep, so
#: writer and reader must mean the same one. This is what SpikingJelly and snnTorch take.
DT = 1e-4


def fold(network: ResNet) -> ResNet:
    r"""A copy of a network in eval mode whose convolutions hold what batch norm did after them.

    .. math:: w' = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} w, \quad
        b' = \beta - \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} \mu

    It is computed in float64 and stored in the type of the weights. The currents are those of the
    network to rounding, and a current that rounds to the other side of a threshold is another
    spike. A network that is folded already is copied.

    Raises:
        TypeError: not a `ResNet` of this library.
        ValueError: batch norm in train mode, where it has no fixed weights.

    Chapter 6.1.
    """
    if not isinstance(network, ResNet):
        raise TypeError(
            f"network: got a {type(network).__name__}, wanted a ResNet of ckdlite.networks; "
            "other libraries have exports of their own"
        )
    if any(m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        raise ValueError("network: its batch norm is in train mode; call network.eval() first")
    folded = copy.deepcopy(network)
    for frames in [m for m in folded.modules() if isinstance(m, Frames)]:
        if isinstance(frames[-1], nn.BatchNorm2d):
            device, dtype = frames[-2].weight.device, frames[-2].weight.dtype
            conv, norm = (module.cpu().double() for module in frames[-2:])
            frames[-2] = fuse_conv_bn_eval(conv, norm).to(device, dtype)
            del frames[-1]
    return folded


def to_nir(student: ResNet, size: Sequence[int], dt: float = DT) -> nir.NIRGraph:
    r"""A student in eval mode as a NIR graph, its batch norm folded.

    NIR's LIF is a differential equation. One Euler step of `dt` from v is

    .. math:: v \leftarrow v + \frac{dt}{\tau} (v_{\text{leak}} - v + R I)

    then a spike where v > v_threshold, and v = v_reset there. With

    .. math:: \tau = \frac{dt}{1 - \text{decay}}, \quad R = \frac{1}{1 - \text{decay}}, \quad
        v_{\text{leak}} = v_{\text{reset}} = 0

    it is our neuron: `v = decay * v + I`, a spike, the hard reset. For a decay of 0.5 this is exact
    in floating point, for others to rounding.

    The nodes have the layers' names: `stem`, `stem_act`, `stage1.0.conv1`, `stage1.0.act1`, ... In
    NIR the edges into one node add up, so a residual sum is two edges into `act2` and no node. The
    mean over space is an `AvgPool2d` named `pool`, and `output` gives logits at each step. What is
    not in the graph: the image is shown at each of the T steps, and the prediction is the mean of
    the logits over them; `metadata` holds T as `timesteps`, and `dt`.

    Args:
        student: a `ResNet` with timesteps.
        size: height and width of the image, in pixels.
        dt: seconds of a timestep; the reader must be given the same.

    Raises:
        TypeError: not a `ResNet` of this library.
        ValueError: a teacher, batch norm in train mode, a layer of other neurons (as the ReLU of
            `relu_last`), a soft reset, a decay of 1, a size that some stage would have to halve
            while odd, or a `dt` not above 0.

    Chapter 6.1.
    """
    folded = fold(student)
    if student.timesteps is None:
        raise ValueError("student: got a teacher (timesteps=None), wanted a student")
    _check_size(size, 2 ** (student.stages - 1))
    if not 0 < dt < float("inf"):
        raise ValueError(f"dt: got {dt}, wanted seconds above 0")

    shape = np.array([student.in_channels, *size])
    nodes: dict[str, nir.NIRNode] = {"input": nir.Input({"input": shape})}
    edges: list[tuple[str, str]] = []

    def add(name: str, node: nir.NIRNode, *sources: str) -> str:
        nodes[name] = node
        edges.extend((source, name) for source in sources)
        return name

    def add_conv(name: str, conv: nn.Conv2d, source: str, at: Sequence[int]) -> str:
        geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        weight, bias = conv.weight.numpy(force=True), conv.bias.numpy(force=True)
        return add(name, nir.Conv2d(tuple(at), weight, *geometry, bias), source)

    def add_lif(name: str, neuron: nn.Module, *sources: str) -> str:
        return add(name, _lif(name, neuron, _shape(nodes[sources[0]]), dt), *sources)

    last = add_conv("stem", folded.stem[0], "input", size)
    last = add_lif("stem_act", folded.stem_act, last)
    for stage in range(1, folded.stages + 1):
        for i, block in enumerate(folded.get_submodule(f"stage{stage}")):
            name, at = f"stage{stage}.{i}", _shape(nodes[last])[1:]
            x = add_conv(f"{name}.conv1", block.conv1[0], last, at)
            x = add_lif(f"{name}.act1", block.act1, x)
            at = _shape(nodes[x])[1:]
            x = add_conv(f"{name}.conv2", block.conv2[0], x, at)
            if isinstance(block.shortcut, Frames):
                pool = block.shortcut[0].kernel_size
                last = add(f"{name}.pool", _pool(pool, pool), last)
                last = add_conv(f"{name}.shortcut", block.shortcut[1], last, at)
            last = add_lif(f"{name}.act2", block.act2, x, last)

    shape = _shape(nodes[last])
    last = add("pool", _pool(*shape[1:]), last)
    # Counted from the end: some readers put a batch axis in front and do not shift the others.
    flat = nir.Flatten({"input": np.array([shape[0], 1, 1])}, start_dim=-3, end_dim=-1)
    last = add("flatten", flat, last)
    for name, layer in folded.head.named_modules(prefix="head"):
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.numpy(force=True), layer.bias.numpy(force=True)
            last = add(name, nir.Affine(weight, bias), last)
    add("output", nir.Output({"output": _shape(nodes[last])}), last)
    return nir.NIRGraph(nodes, edges, metadata={"timesteps": student.timesteps, "dt": dt})


def write(path: str | PathLike[str], graph: nir.NIRGraph) -> None:
    """`nir.write`, but no file is written over; `nir.read(path)` reads it back.

    Raises:
        FileExistsError: there is something at `path`.
        FileNotFoundError: its folder is not there.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: give another name, or delete it first")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder")
    nir.write(path, graph)


def _lif(name: str, neuron: nn.Module, shape: Sequence[int], dt: float) -> nir.LIF:
    if not isinstance(neuron, LIF):
        hint = " (relu_last)" if isinstance(neuron, nn.ReLU) else ""
        raise ValueError(f"{name}: got {type(neuron).__name__}{hint}, wanted ckdlite.lif.LIF")
    if neuron.reset != "hard":
        raise ValueError(f"{name}: got a {neuron.reset} reset, NIR's LIF has only the hard one")
    if neuron.decay == 1:
        raise ValueError(f"{name}: got decay 1, wanted less: without a leak there is no tau")

    def full(value: float) -> np.ndarray:
        # In float64: dt in float32 would bring back a tau / dt beside 2.
        return np.full(shape, value)

    kept = 1 - neuron.decay
    return nir.LIF(
        tau=full(dt / kept),
        r=full(1 / kept),
        v_leak=full(0.0),
        v_threshold=full(neuron.threshold),
        v_reset=full(0.0),
    )


def _pool(height: int, width: int) -> nir.AvgPool2d:
    sides = np.array([height, width])
    return nir.AvgPool2d(kernel_size=sides, stride=sides, padding=np.array([0, 0]))


def _shape(node: nir.NIRNode) -> tuple[int, ...]:
    return tuple(int(n) for n in node.output_type["output"])


def _check_size(size: Sequence[int], step: int) -> None:
    whole = isinstance(size, Sequence) and all(hasattr(n, "__index__") for n in size)
    if not whole or len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: got {size!r}, wanted height and width in pixels, as (32, 32)")
    # Our pooling rounds an odd size up, NIR's AvgPool2d down.
    if any(n % step for n in size):
        raise ValueError(
            f"size: got {tuple(size)}, wanted multiples of {step}: the network halves the image, "
            "and NIR's average pooling cannot round an odd size up"
        )
