"""Students of SpikingJelly for ImageNet: SEW-ResNet and Spikformer.

They want it installed: `pip install 'ckdlite[peers]'`. Page "Your own networks" shows how any other
network of that library becomes a student.
"""

import warnings
from importlib import import_module
from types import ModuleType

from torch import nn

from .networks import OverTime


def sew_resnet18(timesteps: int, classes: int = 1000) -> OverTime:
    """SEW-ResNet-18: the residual sum comes after the neurons; 11.7 million parameters.

    The two ways of a block are added (ADD). The neurons are LIF with this library's equation, tau 2
    and ATan as the surrogate; those of the paper's networks for ImageNet do not leak.
    Of images 224 x 224, `network.layer4` gives whole numbers `[T, B, 512, 7, 7]`, sums of spikes.

    Args:
        timesteps: T, how often the image is shown.
        classes: K.

    Raises:
        ImportError: SpikingJelly is not installed.
        ValueError: T or K below 1.

    Source: Fang et al. 2021 (NeurIPS), arXiv 2102.04159.
    """
    return _sew_resnet("sew_resnet18", timesteps, classes)


def sew_resnet34(timesteps: int, classes: int = 1000) -> OverTime:
    """SEW-ResNet-34: as `sew_resnet18`, with 21.8 million parameters.

    Source: Fang et al. 2021 (NeurIPS), arXiv 2102.04159.
    """
    return _sew_resnet("sew_resnet34", timesteps, classes)


def spikformer(timesteps: int, classes: int = 1000) -> OverTime:
    """Spikformer of six blocks, 384 channels, 12 heads: attention between spikes, no softmax.

    13.2 million parameters. Its neurons are SpikingJelly's choice for it: LIF with tau 2 that
    scales its input down too, and a threshold of 0.5 after the attention. A patch is 16 x 16: of
    images 224 x 224, `network.blocks.5` gives whole numbers `[T, B, 384, 14, 14]`, sums of spikes.

    Args:
        timesteps: T, how often the image is shown.
        classes: K.

    Raises:
        ImportError: SpikingJelly is not installed.
        ValueError: T or K below 1.

    Source: Zhou et al. 2023 (ICLR), arXiv 2209.15425.
    """
    _check_classes(classes)
    network = _model("spikformer").spikformer_s(num_classes=classes)
    return _over_time(network, timesteps)


def _sew_resnet(name: str, timesteps: int, classes: int) -> OverTime:
    _check_classes(classes)
    make = getattr(_model("sew_resnet"), name)
    from spikingjelly.activation_based import neuron, surrogate

    lif = {"spiking_neuron": neuron.LIFNode, "tau": 2.0, "decay_input": False}
    lif |= {"surrogate_function": surrogate.ATan(), "detach_reset": True}
    return _over_time(make(cnf="ADD", num_classes=classes, **lif), timesteps)


def _over_time(network: nn.Module, timesteps: int) -> OverTime:
    from spikingjelly.activation_based import functional

    functional.set_step_mode(network, "m")  # all steps at once, time first
    return OverTime(network, timesteps, functional.reset_net)


def _model(name: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its own, at import
            return import_module(f"spikingjelly.activation_based.model.{name}")
    except ImportError as error:
        raise ImportError(
            f"students for ImageNet want SpikingJelly: pip install 'ckdlite[peers]' ({error})"
        ) from error


def _check_classes(classes: int) -> None:
    if classes < 1:
        raise ValueError(f"classes: got {classes}, wanted at least 1")
