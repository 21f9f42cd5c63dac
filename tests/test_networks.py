"""The networks against counts derived by hand and a second, functional forward pass."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from ckdlite.lif import LIF
from ckdlite.networks import ResNet, layer, record, resnet8, resnet19, resnet20

BUILD = {"resnet8": resnet8, "resnet19": resnet19, "resnet20": resnet20}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def settled(model):
    """Weights and batch-norm statistics away from their defaults, so that each one matters."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.6, 1.4)
            nn.init.uniform_(m.bias, 0.0, 0.6)
            nn.init.uniform_(m.running_mean, -0.3, 0.3)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return model.double().eval()


# ---------------------------------------------------------------- parameters


def count_by_hand(blocks, channels, classes=10, in_channels=3, head_width=None):
    """Counts of the architecture as the paper's code draws it, written without the module.

    A 3x3 convolution from i to o channels has 9 i o weights and no bias, a batch norm 2 o, a
    1x1 convolution i o, a linear layer i o + o. Only the first block of stages 2 and up changes
    its size, so only there has the shortcut weights.
    """
    c0 = channels[0]
    total = 9 * in_channels * c0 + 2 * c0
    width = c0
    for stage, (depth, c) in enumerate(zip(blocks, channels, strict=True)):
        total += 9 * width * c + 2 * c + 9 * c * c + 2 * c  # first block
        if stage > 0:
            total += width * c + 2 * c  # its shortcut
        total += (depth - 1) * (2 * 9 * c * c + 2 * 2 * c)
        width = c
    if head_width is None:
        return total + width * classes + classes
    return total + width * head_width + head_width + head_width * classes + classes


COUNTS = {
    "resnet8": ((1, 1, 1), (16, 32, 64), 78_042),
    "resnet19": ((3, 3, 2), (128, 256, 512), 12_569_226),
    "resnet20": ((3, 3, 3), (16, 32, 64), 272_474),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_to_the_digit(name):
    blocks, channels, total = COUNTS[name]
    assert count_by_hand(blocks, channels) == total
    with torch.device("meta"):
        for timesteps in (None, 4):
            model = BUILD[name](timesteps=timesteps)
            assert sum(p.numel() for p in model.parameters()) == total


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(
    "options",
    [
        {"classes": 100},
        {"classes": 100, "head_width": 256},
        {"in_channels": 2, "timesteps": 3},
        {"timesteps": 3, "relu_last": True, "head_width": 256},
    ],
    ids=str,
)
def test_parameter_counts_with_options(name, options):
    blocks, channels, _ = COUNTS[name]
    counted = {k: v for k, v in options.items() if k not in ("timesteps", "relu_last")}
    with torch.device("meta"):
        model = BUILD[name](**options)
    assert sum(p.numel() for p in model.parameters()) == count_by_hand(blocks, channels, **counted)


@pytest.mark.parametrize("options", [{}, {"head_width": 256}], ids=str)
def test_teacher_and_student_share_their_weights(options):
    teacher = settled(resnet8(**options))
    student = resnet8(timesteps=2, **options).double()
    assert list(teacher.state_dict()) == list(student.state_dict())
    student.load_state_dict(teacher.state_dict())
    for a, b in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    teacher.load_state_dict(resnet8(timesteps=5, relu_last=True, **options).state_dict())


# ---------------------------------------------------------------- a second forward pass


def forward_by_hand(weights, x, timesteps, blocks, relu_last=False):
    """The network in eval mode from its state dict alone: functional calls and a loop over time.

    Every timestep is run through every layer, the stem too, on a list of T frames.
    """

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{name}.{n}"] for n in names))

    def each(frames, f):
        return [f(frame) for frame in frames]

    def act(frames):
        if timesteps is None:
            return each(frames, torch.relu)
        u, out = torch.zeros_like(frames[0]), []
        for frame in frames:
            u = u / 2 + frame
            s = torch.where(u > 1, 1.0, 0.0).to(u)
            u = torch.where(s == 1, torch.zeros_like(u), u)
            out.append(s)
        return out

    def conv3(frames, name, stride=1):
        return each(
            frames,
            lambda f: norm(F.conv2d(f, weights[f"{name}.0.weight"], None, stride, 1), f"{name}.1"),
        )

    frames = list(x) if x.dim() == 5 else [x] * (timesteps or 1)
    frames = act(conv3(frames, "stem"))
    for i, depth in enumerate(blocks):
        for j in range(depth):
            name = f"stage{i + 1}.{j}"
            stride = 2 if i and not j else 1
            y = act(conv3(frames, f"{name}.conv1", stride))
            y = conv3(y, f"{name}.conv2")
            short = frames
            if stride == 2:
                short = each(
                    frames,
                    lambda f, name=name: norm(
                        F.conv2d(F.avg_pool2d(f, 2), weights[f"{name}.shortcut.1.weight"]),
                        f"{name}.shortcut.2",
                    ),
                )
            frames = [a + b for a, b in zip(y, short, strict=True)]
            if relu_last and i == len(blocks) - 1 and j == depth - 1:
                frames = each(frames, torch.relu)
            else:
                frames = act(frames)
    logits = torch.stack(
        each(
            frames, lambda f: F.linear(f.mean((2, 3)), weights["head.weight"], weights["head.bias"])
        )
    )
    return logits if timesteps else logits[0]


@pytest.mark.parametrize("timesteps", [None, 1, 3])
@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
def test_equals_a_forward_pass_by_hand(name, timesteps):
    model = settled(BUILD[name](timesteps=timesteps))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    want = forward_by_hand(model.state_dict(), x, timesteps, COUNTS[name][0])
    got = model(x)
    assert got.shape == ((2, 10) if timesteps is None else (timesteps, 2, 10))
    assert got.std() > 0
    assert_close(got, want)


def test_relu_last_equals_a_forward_pass_by_hand():
    model = settled(resnet8(timesteps=2, relu_last=True))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert_close(model(x), forward_by_hand(model.state_dict(), x, 2, (1, 1, 1), relu_last=True))


def test_event_frames_equal_a_forward_pass_by_hand():
    model = settled(resnet8(11, timesteps=4, in_channels=2))
    frames = torch.randn(4, 2, 2, 16, 16, dtype=torch.float64)
    got = model(frames)
    assert got.shape == (4, 2, 11)
    assert_close(got, forward_by_hand(model.state_dict(), frames, 4, (1, 1, 1)))


def test_frames_that_stand_still_are_an_image():
    model = settled(resnet8(timesteps=3))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert_close(model(torch.stack([x] * 3)), model(x))


def test_stem_once_equals_stem_repeated_in_train_mode():
    # The mean and variance of T copies are those of one, so the stem can run once.
    model = settled(resnet8(timesteps=4)).train()
    again = copy.deepcopy(model)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with record(model, "stem", "stem_act") as once:
        logits = model(x)
    with record(again, "stem") as repeated:
        logits_repeated = again(torch.stack([x] * 4))
    by_hand = F.conv2d(torch.cat([x] * 4), model.stem[0].weight, padding=1)
    by_hand = F.batch_norm(
        by_hand, None, None, model.stem[1].weight, model.stem[1].bias, training=True
    ).unflatten(0, (4, 3))
    for step in range(4):
        assert_close(by_hand[step], once["stem"])
        assert_close(repeated["stem"][step], once["stem"])
    assert_close(logits, logits_repeated)
    assert_close(model.stem[1].running_mean, again.stem[1].running_mean)


def test_batch_norm_after_the_stem_sees_time_and_batch_together():
    model = settled(resnet8(timesteps=3)).train()
    with record(model, "stem_act", "stage1.0.conv1") as seen:
        model(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    first = model.stage1[0].conv1
    out = F.conv2d(seen["stem_act"].flatten(0, 1), first[0].weight, padding=1)
    mean = out.mean((0, 2, 3), keepdim=True)
    std = (out.var((0, 2, 3), keepdim=True, correction=0) + first[1].eps).sqrt()
    want = (out - mean) / std * first[1].weight[:, None, None] + first[1].bias[:, None, None]
    assert_close(seen["stage1.0.conv1"].flatten(0, 1), want)


# ---------------------------------------------------------------- time


def test_timesteps_may_change_later():
    model = settled(resnet8(timesteps=1))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    one = model(x)
    model.timesteps = 3
    three = model(x)
    assert one.shape == (1, 2, 10) and three.shape == (3, 2, 10)
    # The first step knows nothing of the later ones; with memory these differ from it.
    assert_close(three[:1], one)
    assert not torch.allclose(three[1], three[0])
    assert_close(three, forward_by_hand(model.state_dict(), x, 3, (1, 1, 1)))


@pytest.mark.parametrize("head_width", [None, 16])
def test_mean_over_time_before_or_after_the_linear_head(head_width):
    model = settled(resnet8(timesteps=3, head_width=head_width))
    with record(model, "stage3") as features:
        logits = model(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    before = model.head(features["stage3"].mean((0, 3, 4)))
    assert_close(before, logits.mean(0))


# ---------------------------------------------------------------- features and options


def test_features_of_any_stage_by_name():
    x = torch.randn(2, 3, 16, 16)
    names = ("stem", "stage1", "stage2", "stage3", "head")
    sizes = {"stem": (16, 16, 16), "stage1": (16, 16, 16), "stage2": (32, 8, 8)}
    sizes |= {"stage3": (64, 4, 4), "head": (10,)}
    for timesteps, front in ((None, (2,)), (3, (3, 2))):
        model = resnet8(timesteps=timesteps).eval()
        plain = model(x)
        with record(model, *names) as features:
            logits = model(x)
        assert set(features) == set(names)
        for name in names:
            want = (2,) if name == "stem" else front  # the stem sees a still image once
            assert features[name].shape == (*want, *sizes[name])
        assert torch.equal(logits, plain)
        assert torch.equal(features["head"], logits)
    assert not any(m._forward_hooks for m in model.modules()), "hooks must go with the context"


def test_record_lets_the_gradient_through_and_goes_after_an_error():
    model = resnet8(timesteps=2)
    with record(model, "stage2") as features:
        model(torch.randn(2, 3, 8, 8))
    features["stage2"].sum().backward()
    assert model.stem[0].weight.grad.abs().sum() > 0
    with pytest.raises(ZeroDivisionError), record(model, "stage2"):
        raise ZeroDivisionError
    assert not any(m._forward_hooks for m in model.modules())


def test_spikes_everywhere_but_where_relu_last():
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for relu_last in (False, True):
        model = settled(resnet8(timesteps=2, relu_last=relu_last))
        with record(model, "stage2", "stage3") as f:
            model(x)
        for name in ("stage2", "stage3"):
            binary = bool(((f[name] == 0) | (f[name] == 1)).all())
            assert binary == (name == "stage2" or not relu_last)
            assert f[name].sum() > 0 and f[name].min() >= 0


def test_two_linear_layers_are_one():
    # No activation between: W2 (W1 x + b1) + b2 is the single layer W2 W1, W2 b1 + b2.
    model = settled(resnet8(head_width=256))
    first, second = model.head
    assert (first.out_features, second.in_features) == (256, 256)
    x = torch.randn(4, 64, dtype=torch.float64)
    weight, bias = second.weight @ first.weight, second.weight @ first.bias + second.bias
    assert_close(model.head(x), x @ weight.T + bias)


def test_a_neuron_of_your_own():
    model = resnet8(timesteps=2, neuron=lambda: LIF(decay=0.9, reset="soft"))
    neurons = [m for m in model.modules() if isinstance(m, LIF)]
    assert len(neurons) == 1 + 2 * 3
    assert all(m.decay == 0.9 and m.reset == "soft" for m in neurons)
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    assert not any(isinstance(m, LIF) for m in resnet8().modules())


@pytest.mark.parametrize("timesteps", [None, 2])
def test_channels_last_changes_no_value(timesteps):
    model = settled(resnet8(timesteps=timesteps))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    want = model(x)
    laid = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    with record(laid, "stage3") as features:
        assert_close(laid(x), want)
    frames = features["stage3"] if timesteps is None else features["stage3"].flatten(0, 1)
    assert frames.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("timesteps", [None, 2])
def test_empty_batch(timesteps):
    model = resnet8(timesteps=timesteps).eval()
    assert model(torch.zeros(0, 3, 16, 16)).shape == (*([2] if timesteps else []), 0, 10)
    if timesteps:
        assert model(torch.zeros(2, 0, 3, 16, 16)).shape == (2, 0, 10)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (20, 12), (4, 4)])
def test_sizes(size):
    assert resnet8(timesteps=1).eval()(torch.zeros(1, 3, *size)).shape == (1, 1, 10)
    assert resnet8().eval()(torch.zeros(1, 3, *size)).shape == (1, 10)


def test_every_parameter_of_the_student_learns():
    model = settled(resnet8(timesteps=2)).train()
    model(torch.randn(4, 3, 16, 16, dtype=torch.float64)).mean(0).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


# ---------------------------------------------------------------- messages


@pytest.mark.bad_input
def test_unknown_layer_names_the_near_ones():
    model = resnet8()
    with pytest.raises(ValueError, match=r"got 'stage4', which ResNet has not; near.*stage3"):
        layer(model, "stage4")
    with pytest.raises(ValueError, match=r"it has stem, .*stage1.*head"):
        layer(model, "qqqq")
    with pytest.raises(ValueError, match="got ''"):
        layer(model, "")
    with pytest.raises(ValueError, match="'haed'.*head"), record(model, "haed"):
        pass
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.bad_input
def test_one_unknown_name_among_good_ones_leaves_no_hook():
    model = resnet8()
    with pytest.raises(ValueError, match="stage4"), record(model, "stage3", "stage4"):
        pass
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (3, 8, 8), (2, 8), (1, 2, 3, 4, 8, 8)])
def test_bad_input_shape(shape):
    for timesteps, frames in ((None, ""), (2, r" or \[T, B, C, H, W\]")):
        message = rf"got shape \[{', '.join(map(str, shape))}\], wanted \[B, C, H, W\]{frames} "
        with pytest.raises(ValueError, match=message + "with C = 3"):
            resnet8(timesteps=timesteps)(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"wanted \[B, C, H, W\] with C = 3"):
        resnet8()(torch.zeros(2, 2, 3, 8, 8))  # frames over time are no input for a teacher


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: resnet8(timesteps=0), ValueError, "timesteps: got 0"),
        (lambda: resnet8(timesteps=1.5), TypeError, r"timesteps: got 1\.5"),
        (lambda: resnet8(0), ValueError, "classes: got 0, wanted at least 1"),
        (lambda: resnet8(in_channels=0), ValueError, "in_channels: got 0"),
        (lambda: resnet8(head_width=-1), ValueError, "head_width: got -1"),
        (lambda: resnet8(head_width=0), ValueError, "head_width: got 0"),
        (lambda: resnet8(relu_last=True), ValueError, "relu_last: a teacher"),
        (lambda: ResNet((1, 1), (16,)), ValueError, "got 2 and 1 stages"),
        (lambda: ResNet((), ()), ValueError, "got 0 and 0 stages"),
        (lambda: ResNet((1, 0), (16, 32)), ValueError, "blocks: got 0"),
        (lambda: ResNet((1, 1), (16, 0)), ValueError, "channels: got 0"),
    ],
)
def test_bad_network(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.bad_input
def test_timesteps_changed_to_nonsense():
    model = resnet8(timesteps=2)
    model.timesteps = 0
    with pytest.raises(ValueError, match="timesteps: got 0, wanted at least 1"):
        model(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("size", [1, 30, 31, 33])
def test_odd_sizes(size):
    x = torch.randn(2, 3, size, size)
    assert resnet8().eval()(x).shape == (2, 10)
    assert resnet8(timesteps=2).eval()(x).shape == (2, 2, 10)


def test_recorded_values_are_safe_from_the_next_layer():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True))
    with record(model, "0") as features:
        model(torch.randn(1, 1, 8, 8))
    assert features["0"].min() < 0


@pytest.mark.bad_input
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("timesteps", [None, 2])
def test_an_image_that_is_not_finite(bad, timesteps):
    model = resnet8(timesteps=timesteps)
    x = torch.randn(2, 3, 8, 8)
    x[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="input: got NaN or infinity, wanted finite numbers"):
        model(x)
    assert model.stem[1].running_mean.isfinite().all()
