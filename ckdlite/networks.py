"""One ResNet for both roles: with ReLU it is the teacher (ANN), with LIF the student (SNN).

The networks are those of CKDSNN's code (commit 13c9f7b): a 3x3 stem with no pooling, stages of
basic blocks, the activation after the residual sum, a shortcut of average pooling, 1x1
convolution and batch norm, and a linear head on features averaged over space.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load as load_weights
from torch import Tensor, nn

from ._assets import damaged, read, read_json
from .lif import LIF, check_timesteps, repeat


class Frames(nn.Sequential):
    """Layers that know no time: `[..., C, H, W]` is run as one batch of frames.

    Batch norm inside sees all `T * B` frames as one batch.
    """

    def forward(self, x: Float[Tensor, "*L C H W"]) -> Float[Tensor, "*L D H2 W2"]:
        """Each frame through the layers; the axes in front come back as they were."""
        return super().forward(x.flatten(0, -4)).unflatten(0, x.shape[:-3])


def _conv_norm(inputs: int, outputs: int, stride: int = 1) -> Frames:
    return Frames(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Block(nn.Module):
    """Basic residual block: `act(norm(conv(act(norm(conv(x))))) + shortcut(x))`.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: 2 halves the size, 1 keeps it.
        activation: makes the layer between the convolutions.
        last_activation: makes the layer after the sum.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        activation: Callable[[], nn.Module],
        last_activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.conv1 = _conv_norm(inputs, outputs, stride)
        self.act1 = activation()
        self.conv2 = _conv_norm(outputs, outputs)
        self.act2 = last_activation()
        if stride == 1 and inputs == outputs:
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.shortcut = Frames(
                # Rounds an odd size up, as the convolution beside it does.
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Float[Tensor, "*L C H W"]) -> Float[Tensor, "*L D H2 W2"]:
        """Two convolutions and the way around them, added up before the last activation."""
        return self.act2(self.conv2(self.act1(self.conv1(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """A residual network that is a teacher (ReLU) or a student (LIF over time).

    Layers to name: `stem`, `stage1`, `stage2`, ..., `head`. Features of a stage are
    `[B, C, H, W]` in a teacher and `[T, B, C, H, W]` in a student; read them with `record`.

    Args:
        blocks: how many basic blocks each stage has; each stage after the first halves the size.
        channels: how many channels each stage has.
        classes: how many classes K the head tells apart.
        timesteps: `None` for a teacher with ReLU; T for a student with LIF. The attribute of the
            same name may be changed later: the weights do not depend on T.
        in_channels: channels of the image (3), or of an event frame (2).
        neuron: makes one layer of the student's neurons.
        relu_last: the last block of a student ends in ReLU (the released code; the paper's map
            sums spikes). Difference 4 of chapter 3.5.
        head_width: `None` for one linear layer; 256 for the two linear layers of the released
            code, with no activation between. Difference 9 of chapter 3.5.

    Raises:
        ValueError: stages of unequal number, a count below 1, or `relu_last` on a teacher.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        channels: Sequence[int],
        classes: int = 10,
        *,
        timesteps: int | None = None,
        in_channels: int = 3,
        neuron: Callable[[], nn.Module] = LIF,
        relu_last: bool = False,
        head_width: int | None = None,
    ) -> None:
        super().__init__()
        if len(blocks) != len(channels) or not blocks:
            raise ValueError(
                f"blocks and channels: got {len(blocks)} and {len(channels)} stages, "
                "wanted one number of blocks and of channels a stage"
            )
        counts = [("classes", classes), ("in_channels", in_channels)]
        counts += [("blocks", n) for n in blocks] + [("channels", n) for n in channels]
        counts += [] if head_width is None else [("head_width", head_width)]
        for name, count in counts:
            if count < 1:
                raise ValueError(f"{name}: got {count}, wanted at least 1")
        if timesteps is not None:
            check_timesteps(timesteps)
        elif relu_last:
            raise ValueError("relu_last: a teacher (timesteps=None) has ReLU everywhere already")

        self.timesteps = timesteps
        self.in_channels = in_channels
        activation = nn.ReLU if timesteps is None else neuron
        self.stem = _conv_norm(in_channels, channels[0])
        self.stem_act = activation()
        self.stages = len(blocks)
        width = channels[0]
        for i, (depth, outputs) in enumerate(zip(blocks, channels, strict=True)):
            stage = nn.Sequential()
            for j in range(depth):
                last = i == self.stages - 1 and j == depth - 1
                stride = 2 if i > 0 and j == 0 else 1
                ends_in = nn.ReLU if last and relu_last else activation
                stage.append(Block(width, outputs, stride, activation, ends_in))
                width = outputs
            self.add_module(f"stage{i + 1}", stage)
        if head_width is None:
            self.head: nn.Module = nn.Linear(width, classes)
        else:
            self.head = nn.Sequential(nn.Linear(width, head_width), nn.Linear(head_width, classes))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Image to logits.

        Teacher: `[B, C, H, W]` to logits `[B, K]`. Student: `[B, C, H, W]`, shown at every
        timestep, or frames `[T, B, C, H, W]`, whose own T then counts, to the logits of each step,
        `[T, B, K]`; their mean over T is the prediction.

        Raises:
            ValueError: a wrong number of axes or of channels, or an input that is not finite.
        """
        ranks = (4,) if self.timesteps is None else (4, 5)
        if x.dim() not in ranks or x.shape[-3] != self.in_channels:
            frames = "" if self.timesteps is None else " or [T, B, C, H, W]"
            raise ValueError(
                f"input: got shape {list(x.shape)}, wanted [B, C, H, W]{frames} "
                f"with C = {self.in_channels}"
            )
        # A NaN never crosses a threshold: it would end in the first neurons, and nobody would see.
        if not torch.compiler.is_compiling() and not bool(x.isfinite().all()):
            raise ValueError("input: got NaN or infinity, wanted finite numbers")
        # The stem sees a still image once, not T times: its output is the same at every step.
        x = self.stem(x)
        if self.timesteps is not None and x.dim() == 4:
            x = repeat(x, self.timesteps)
        x = self.stem_act(x)
        for i in range(self.stages):
            x = self.get_submodule(f"stage{i + 1}")(x)
        return self.head(x.mean((-2, -1)))

    def extra_repr(self) -> str:
        return "" if self.timesteps is None else f"timesteps={self.timesteps}"


def resnet19(classes: int = 10, **options: Any) -> ResNet:
    """ResNet-19 of CKDSNN: 3, 3, 2 blocks of 128, 256, 512 channels; 12,569,226 parameters.

    Options: see `ResNet`.
    """
    return ResNet((3, 3, 2), (128, 256, 512), classes, **options)


def resnet20(classes: int = 10, **options: Any) -> ResNet:
    """ResNet-20 of CKDSNN: 3, 3, 3 blocks of 16, 32, 64 channels; 272,474 parameters.

    Options: see `ResNet`.
    """
    return ResNet((3, 3, 3), (16, 32, 64), classes, **options)


def resnet8(classes: int = 10, **options: Any) -> ResNet:
    """The chapters' network: 1, 1, 1 block of 16, 32, 64 channels; 78,042 parameters.

    Options: see `ResNet`.
    """
    return ResNet((1, 1, 1), (16, 32, 64), classes, **options)


def layer(model: nn.Module, name: str) -> nn.Module:
    """The layer of `model` that has this name.

    Raises:
        ValueError: there is none; the message lists names that come near.
    """
    layers = dict(model.named_modules())
    if name in layers and name:
        return layers[name]
    near = difflib.get_close_matches(name, layers, n=5, cutoff=0.5)
    known = near or [n for n in layers if n and "." not in n]
    raise ValueError(
        f"layer: got {name!r}, which {type(model).__name__} has not; "
        f"{'near it are' if near else 'it has'} {', '.join(known)}"
    )


@contextmanager
def record(model: nn.Module, *names: str) -> Iterator[dict[str, Float[Tensor, "..."]]]:
    """Keep the outputs of named layers while the model runs::

        with record(student, "stage3") as features:
            logits = student(images)
        features["stage3"]          # [T, B, C, H, W]

    Any module and any layer; one forward pass. If the model runs twice, the last run counts. A
    layer that runs several times in one pass, as in a network that is called step by step
    (`OverTime`), is kept as a stack of its outputs, the first one first.

    Raises:
        ValueError: no layer has that name; the message lists names that come near.
    """
    kept: dict[str, Tensor] = {}
    calls: dict[str, list[Tensor]] = {name: [] for name in names}

    def begin(_module: nn.Module, _inputs: Any) -> None:
        for outputs in calls.values():
            outputs.clear()

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            # Cloned, because the next layer may write over it: ReLU(inplace=True).
            calls[name].append(output.clone())

        return hook

    def end(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        for name, outputs in calls.items():
            if outputs:
                kept[name] = outputs[0] if len(outputs) == 1 else torch.stack(outputs)

    layers = {name: layer(model, name) for name in names}  # every name is known before any hook
    hooks = [model.register_forward_pre_hook(begin)]
    hooks += [found.register_forward_hook(keep(name)) for name, found in layers.items()]
    hooks.append(model.register_forward_hook(end))
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


class OverTime(nn.Module):
    """A spiking network of another library as a student: `[B, C, H, W]` to `[T, B, K]`.

    The image is shown at each of T timesteps, and the network forgets the image before: a neuron
    that keeps its potential from one forward pass to the next would start from it. Events
    `[T, B, C, H, W]` go through as they are, one step a frame.

    Its layers have the network's names behind `network.`, as `"network.layer4"`.

    Args:
        network: takes all steps at once, `[T, B, C, H, W]` to `[T, B, K]`; or, `stepwise`, one
            step, `[B, C, H, W]` to `[B, K]`, and keeps its state in its neurons.
        timesteps: T, for still images.
        reset: brings the state back to rest; it gets the network. `functional.reset_net` of
            SpikingJelly, `utils.reset` of snnTorch.
        stepwise: call the network once a step.

    Raises:
        ValueError: fewer than one timestep, or an input of another number of axes.

    Page "Your own networks".
    """

    def __init__(
        self,
        network: nn.Module,
        timesteps: int,
        reset: Callable[[nn.Module], object],
        stepwise: bool = False,
    ) -> None:
        super().__init__()
        check_timesteps(timesteps)
        self.network, self.timesteps = network, timesteps
        self.reset, self.stepwise = reset, stepwise

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "T B K"]:
        """Reset, then every step; the logits of each."""
        if x.dim() not in (4, 5):
            raise ValueError(
                f"input: got shape {list(x.shape)}, wanted [B, C, H, W] or [T, B, C, H, W]"
            )
        self.reset(self.network)
        steps = repeat(x, self.timesteps) if x.dim() == 4 else x
        if self.stepwise:
            return torch.stack([self.network(step) for step in steps])
        return self.network(steps)


def pretrained(name: str) -> ResNet:
    """One of the small networks that come with the library, in eval mode.

    `"teacher"` (ANN), and four students: `"label-only"`, `"samd"` (labels and SAMD), `"nld"`
    (labels and NLD) and `"distilled"` (the whole loss). All are `resnet8`, trained on cluttered
    Fashion-MNIST by `experiments/train_shipped.py`; `assets/shipped.csv` holds their scores.
    Chapters 0 and 3.2.

    Raises:
        ValueError: an unknown name, or a damaged file.
        FileNotFoundError: a missing file.
    """
    manifest = read_json("weights.json")
    try:
        known = {n: (e["file"], e["sha256"], e["timesteps"]) for n, e in manifest.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(damaged("weights.json")) from error
    if name not in known:
        raise ValueError(f"pretrained: got {name!r}, wanted one of {', '.join(known)}")
    file, sha256, timesteps = known[name]
    weights = read(file, sha256)
    model = resnet8(timesteps=timesteps)
    model.load_state_dict(load_weights(weights))
    return model.eval()
