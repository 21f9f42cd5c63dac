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

    Any module and any layer; one forward pass. If the model runs twice, the last run counts.

    Raises:
        ValueError: no layer has that name, with the names that come near; or a layer's output is
            not one tensor.
    """
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if not isinstance(output, Tensor):
                kind = type(output).__name__
                raise ValueError(f"record: layer {name!r} gave a {kind}, wanted one tensor")
            kept[name] = output.clone()  # the next layer may write over it: ReLU(inplace=True)

        return hook

    layers = {name: layer(model, name) for name in names}  # every name is known before any hook
    hooks = [found.register_forward_hook(keep(name)) for name, found in layers.items()]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


class OverTime(nn.Module):
    """A spiking network of another library as a student: images `[B, C, H, W]` to `[T, B, K]`.

    A still image is shown at each of T timesteps; frames `[T, B, C, H, W]` have their own T. The
    network starts from rest: its neurons would keep their potentials from one forward pass to the
    next. They are reset after it as well, so that it can be copied and holds no old graph.

    The student's layers have the network's names behind `network.`, as `"network.layer4"`. A
    network that is called once a step has no features over time of its own: those of the layer
    named in `each_step` are stacked to `[T, B, C, H, W]`, as the student's layer `"spikes"`.

    Args:
        network: all steps at once, `[T, B, C, H, W]` to logits `[T, B, K]`; with `each_step` one
            step, `[B, C, H, W]` to `[B, K]`.
        timesteps: T of a still image.
        reset: is given the network, and brings every neuron in it to rest.
        each_step: `None`; or, to call the network once a step, the name of its layer whose
            outputs are kept.

    Raises:
        ValueError: T below 1, no layer of that name, an input or logits of other axes, or a layer
            that did not run.

    Page "Your own networks" has the lines for SpikingJelly and snnTorch.
    """

    def __init__(
        self,
        network: nn.Module,
        timesteps: int,
        reset: Callable[[nn.Module], object],
        each_step: str | None = None,
    ) -> None:
        super().__init__()
        check_timesteps(timesteps)
        self.network, self.timesteps, self.each_step = network, timesteps, each_step
        self.to_rest = reset  # not `reset`: SpikingJelly calls what has that name in any module
        if each_step is not None:
            layer(network, each_step)
            self.spikes = nn.Identity()

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "T B K"]:
        """Reset, every step, reset; the logits of each step."""
        if x.dim() not in (4, 5):
            raise ValueError(
                f"input: got shape {list(x.shape)}, wanted [B, C, H, W] or [T, B, C, H, W]"
            )
        steps = repeat(x, self.timesteps) if x.dim() == 4 else x
        self.to_rest(self.network)
        logits = self.network(steps) if self.each_step is None else self._one_by_one(steps)
        self.to_rest(self.network)
        _check_logits("[T, B, K]", logits, *steps.shape[:2])
        return logits

    def _one_by_one(self, steps: Tensor) -> Tensor:
        logits, spikes = [], []
        with record(self.network, self.each_step) as features:
            for step in steps:
                logits.append(self.network(step))
                _check_logits("[B, K] of each step", logits[-1], len(step))
                if self.each_step not in features:
                    raise ValueError(f"each_step: layer {self.each_step!r} did not run")
                spikes.append(features.pop(self.each_step))
        self.spikes(torch.stack(spikes))
        return torch.stack(logits)

    def extra_repr(self) -> str:
        each_step = "" if self.each_step is None else f", each_step={self.each_step!r}"
        return f"timesteps={self.timesteps}{each_step}"


class MeanFrames(nn.Module):
    r"""A network without time as the teacher of event frames: it sees their mean over T.

    .. math:: \bar{x} = \frac{1}{T} \sum_t x_t

    Its layers have the network's names behind `network.`, as `"network.stage3"`. The mean knows
    where events were, and no order in time. Our choice; CKDSNN's teacher of events is not public.

    Args:
        network: `[B, C, H, W]` to logits `[B, K]`.

    Raises:
        ValueError: an input that is not `[T, B, C, H, W]`.

    Chapter 4.3.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "B K"]:
        """The logits of the mean frame."""
        if x.dim() != 5:
            raise ValueError(f"input: got shape {list(x.shape)}, wanted [T, B, C, H, W]")
        return self.network(x.mean(0))


def _check_logits(axes: str, logits: Any, *sizes: int) -> None:
    is_tensor = isinstance(logits, Tensor)
    if not is_tensor or logits.dim() != len(sizes) + 1 or logits.shape[:-1] != sizes:
        got = f"shape {list(logits.shape)}" if is_tensor else f"a {type(logits).__name__}"
        wanted = ", ".join(map(str, sizes))
        raise ValueError(f"network: gave {got}, wanted logits {axes}, here [{wanted}, K]")


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
