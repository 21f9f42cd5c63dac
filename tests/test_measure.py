"""Measures against hand-written hooks, brute-force counting and typed arithmetic."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.testing import assert_close

from ckdlite.lif import LIF
from ckdlite.measure import (
    PICOJOULES_AC,
    PICOJOULES_MAC,
    Cost,
    LayerCost,
    accuracy,
    entropy,
    firing_rates,
    operations,
    predict,
)
from ckdlite.networks import resnet8


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def firing(model):
    """An untrained student's deep layers are silent; this lets them fire, each step its own."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.constant_(m.bias, 0.5)
    return model


# ---------------------------------------------------------------- predictions


@pytest.mark.parametrize("timesteps", [None, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 250])
def test_batches_equal_one_pass(timesteps, batch_size):
    model = firing(resnet8(timesteps=timesteps)).double()
    images = torch.randn(7, 3, 8, 8, dtype=torch.float64)
    got = predict(model, images, batch_size)
    with torch.no_grad():
        want = model.eval()(images)
    want = want if timesteps is None else sum(want) / 3
    assert got.shape == (7, 10)
    assert_close(got, want)
    assert not got.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_statistics_are_left_alone(training):
    model = resnet8().train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    predict(model, torch.randn(5, 3, 8, 8), 2)
    assert all(m.training == training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_mode_is_put_back_after_an_error():
    model = resnet8().train()
    with pytest.raises(ValueError, match="C = 3"):
        predict(model, torch.randn(2, 1, 8, 8))
    assert model.training
    assert torch.is_grad_enabled()


def test_layers_frozen_by_hand_stay_frozen():
    model = resnet8().train()
    model.stage1.eval()
    predict(model, torch.randn(2, 3, 8, 8))
    assert model.training and model.stage2.training
    assert not any(m.training for m in model.stage1.modules())


def test_accuracy_by_hand():
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.4], [-1.0, -2.0]])
    assert accuracy(logits, torch.tensor([1, 0, 0, 0])) == 0.75
    assert accuracy(logits, torch.tensor([0, 1, 0, 1])) == 0.0


# ---------------------------------------------------------------- entropy


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 4, 6)])
def test_entropy_equals_torch_distributions(shape, tau):
    z = 3 * torch.randn(shape, dtype=torch.float64)
    got = entropy(z, tau)
    assert got.shape == shape[:-1]
    assert_close(got, Categorical(logits=z / tau).entropy())
    assert bool((got >= 0).all()) and bool((got <= math.log(6) + 1e-12).all())


def test_entropy_at_its_bounds():
    assert entropy(torch.zeros(2, 8)).tolist() == pytest.approx([math.log(8)] * 2)
    assert entropy(torch.tensor([1e4, 0.0, 0.0])).item() == 0
    assert entropy(torch.zeros(3, 1)).tolist() == [0, 0, 0]
    # [3/4, 1/4]: 3/4 ln(4/3) + 1/4 ln 4 = 0.215762 + 0.346574
    assert entropy(torch.tensor([math.log(3), 0.0])).item() == pytest.approx(0.562335, abs=1e-6)


# ---------------------------------------------------------------- firing rates


def test_firing_rates_equal_a_hook_by_hand():
    model = firing(resnet8(timesteps=3)).eval()
    images = torch.randn(4, 3, 16, 16)
    fired, neurons = {}, {}

    def count(name):
        def hook(_module, _inputs, out):
            fired[name] = sum(1 for s in out.flatten().tolist() if s == 1)
            neurons[name] = out.numel()

        return hook

    lifs = {n: m for n, m in model.named_modules() if isinstance(m, LIF)}
    hooks = [m.register_forward_hook(count(n)) for n, m in lifs.items()]
    model(images)
    for hook in hooks:
        hook.remove()
    rates = firing_rates(model, images)
    assert list(rates) == list(lifs), "in the order of the network"
    assert neurons["stem_act"] == 3 * 4 * 16 * 16 * 16
    for name, rate in rates.items():
        assert rate == pytest.approx(fired[name] / neurons[name])
        assert 0 <= rate <= 1
    assert all(rate > 0 for rate in rates.values())
    assert not any(m._forward_hooks for m in model.modules())


def test_firing_rates_by_hand():
    # Decay 0.5, threshold 1. Input 0.6: u = 0.6, 0.9, 1.05 fires, 0.6: 1 of 4. Input 2: always.
    model = nn.Sequential(LIF())
    x = torch.tensor([0.6, 2.0]).expand(4, 2)
    assert firing_rates(model, x) == {"0": 5 / 8}


# ---------------------------------------------------------------- operations


def brute_force(conv, x):
    """Operations of one convolution, one tap at a time; x holds how often each input counts."""
    kh, kw = conv.kernel_size
    (sh, sw), (ph, pw), (dh, dw) = conv.stride, conv.padding, conv.dilation
    frames, inputs, height, width = x.shape
    out_h = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    out_w = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    per_group_in, per_group_out = inputs // conv.groups, conv.out_channels // conv.groups
    total = 0
    for f, o, i, j in itertools.product(
        range(frames), range(conv.out_channels), range(out_h), range(out_w)
    ):
        group = o // per_group_out
        for c, a, b in itertools.product(range(per_group_in), range(kh), range(kw)):
            row, col = i * sh - ph + a * dh, j * sw - pw + b * dw
            if 0 <= row < height and 0 <= col < width:
                total += int(x[f, group * per_group_in + c, row, col])
    return total


CONVS = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "uneven": {"kernel_size": (1, 3), "padding": (0, 2), "stride": (2, 1)},
    "dilated": {"kernel_size": 2, "dilation": 2, "padding": 1},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "pointwise": {"kernel_size": 1, "stride": 2},
}


@pytest.mark.parametrize("case", CONVS)
def test_convolution_equals_brute_force(case):
    conv = nn.Conv2d(4, 6, **CONVS[case])
    spikes = (torch.rand(2, 4, 5, 6) < 0.4).float()
    (cost,) = operations(nn.Sequential(conv), spikes).layers
    assert cost == LayerCost("0", 0.0, brute_force(conv, spikes) / 2)
    dense = brute_force(conv, torch.ones(2, 4, 5, 6)) / 2
    # Real numbers cost every tap, zeros included.
    real = torch.randn(2, 4, 5, 6) * spikes
    assert operations(nn.Sequential(conv), real).layers == [LayerCost("0", dense, 0.0)]
    # Spikes everywhere cost exactly what real numbers cost, as accumulates.
    everywhere = operations(nn.Sequential(conv), torch.ones(2, 4, 5, 6))
    assert everywhere.layers == [LayerCost("0", 0.0, dense)]


def test_dense_convolution_by_formula():
    # No padding: every output takes a full kernel, 9 * 4 weights; 6 channels of 3x4 outputs.
    cost = operations(nn.Sequential(nn.Conv2d(4, 6, 3)), torch.randn(3, 4, 5, 6))
    assert cost.macs == 9 * 4 * 6 * 3 * 4 and cost.acs == 0
    # 3x3 with padding 1 on 5x6: rows meet 2, 3, 3, 3, 2 taps, columns 2, 3, 3, 3, 3, 2.
    cost = operations(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)), torch.randn(3, 1, 5, 6))
    assert cost.macs == (2 + 3 * 3 + 2) * (2 + 3 * 4 + 2)


@pytest.mark.parametrize("front", [(2,), (3, 2)])
def test_linear_by_hand(front):
    layer = nn.Linear(7, 5)
    spikes = (torch.rand(*front, 7) < 0.5).float()
    model = nn.Sequential(layer)
    if len(front) == 2:  # images first, as everywhere: time is inside
        model = nn.Sequential(_TimeFirst(), layer)
        spikes = spikes.transpose(0, 1)
    (cost,) = operations(model, spikes).layers
    assert cost.macs == 0
    assert cost.acs == sum(spikes.flatten().tolist()) * 5 / 2
    (cost,) = operations(model, torch.randn_like(spikes)).layers
    assert cost.macs == math.prod(front) * 7 * 5 / 2 and cost.acs == 0


class _TimeFirst(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1)


def test_student_against_a_count_by_hand():
    """Which layers take spikes, and how the steps add up, in a whole network."""
    T, B = 3, 2
    model = firing(resnet8(timesteps=T)).eval()
    images = torch.randn(B, 3, 8, 8)
    seen = {}

    def keep(name):
        return lambda _m, inputs, _out: seen.__setitem__(name, inputs[0].clone())

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [
        m.register_forward_hook(keep(n)) for n, m in model.named_modules() if isinstance(m, kinds)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    cost = operations(model, images)
    assert sorted(layer.layer for layer in cost.layers) == sorted(seen)
    # The stem reads the image, once; shortcuts of stages 2 and 3 read averages; the head too.
    real = {layer.layer for layer in cost.layers if layer.macs}
    assert real == {"stem.0", "stage2.0.shortcut.1", "stage3.0.shortcut.1", "head"}
    for layer in cost.layers:
        x, module = seen[layer.layer], model.get_submodule(layer.layer)
        used = torch.ones_like(x) if layer.layer in real else x
        if isinstance(module, nn.Linear):
            want = used.sum().item() * module.out_features / B
        else:
            # Each input is worth the taps that it meets: the gradient of all outputs to it,
            # with every weight at 1.
            leaf = torch.zeros_like(x, requires_grad=True)
            ones = torch.ones_like(module.weight)
            nn.functional.conv2d(leaf, ones, None, module.stride, module.padding).sum().backward()
            want = (leaf.grad * used).sum().item() / B
        assert layer.macs + layer.acs == pytest.approx(want, rel=1e-9)
        assert (layer.macs > 0) == (layer.layer in real)
    head = next(layer for layer in cost.layers if layer.layer == "head")
    assert head.macs == T * 64 * 10
    assert not any(m._forward_hooks for m in model.modules())


def test_teacher_takes_no_spikes():
    model = resnet8().eval()
    cost = operations(model, torch.randn(2, 3, 8, 8))
    assert cost.acs == 0 and cost.macs > 0
    # The mean over images of one count is that count: padding and zeros change nothing.
    assert cost == operations(model, torch.randn(5, 3, 8, 8))


def test_energy_by_hand():
    assert (PICOJOULES_MAC, PICOJOULES_AC) == (4.6, 0.9)
    cost = Cost([LayerCost("a", 1_000_000.0, 0.0), LayerCost("b", 0.0, 2_000_000.0)])
    assert cost.macs == 1_000_000 and cost.acs == 2_000_000
    # 4.6 pJ * 1e6 = 4.6 uJ, 0.9 pJ * 2e6 = 1.8 uJ.
    assert cost.microjoules == pytest.approx(6.4)


# ---------------------------------------------------------------- messages


@pytest.mark.bad_input
def test_bad_measures():
    images = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="got 0 images and batch size 250, wanted at least 1"):
        predict(resnet8(), images[:0])
    with pytest.raises(ValueError, match="got 2 images and batch size 0"):
        predict(resnet8(), images, 0)
    with pytest.raises(ValueError, match=r"got \[2, 3\] and \[3\], wanted \[N, K\] and \[N\]"):
        accuracy(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"got \[4, 2, 3\] and \[4\]"):
        accuracy(torch.zeros(4, 2, 3), torch.zeros(4))
    for tau in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"temperature: got {tau}, wanted a number above 0"):
            entropy(torch.zeros(2, 3), tau)
    with pytest.raises(ValueError, match="ResNet has no LIF layer"):
        firing_rates(resnet8(), images)
    with pytest.raises(ValueError, match="wanted a batch of at least one"):
        operations(resnet8(), images[:0])


def test_looking_at_a_network_does_not_change_it():
    model = resnet8(timesteps=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(4, 3, 32, 32)
    firing_rates(model, x)
    operations(model, x)
    predict(model, x)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_input_of_zeros_counts_as_numbers():
    layer = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False))
    silent = operations(layer, torch.zeros(1, 1, 5, 5))
    assert silent.acs == 0 and silent.macs == 9 * 9 * 2


def test_entropy_of_an_impossible_class():
    assert entropy(torch.tensor([0.0, 0.0, -torch.inf])).item() == pytest.approx(math.log(2))


@pytest.mark.bad_input
def test_accuracy_of_nan_and_of_nothing():
    with pytest.raises(ValueError, match="NaN"):
        accuracy(torch.full((2, 3), float("nan")), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="nothing empty"):
        accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    for measure in (firing_rates, operations):
        with pytest.raises(ValueError, match="wanted a batch of at least one"):
            measure(resnet8(timesteps=2), torch.zeros(0, 3, 32, 32))


def test_event_frames_are_counted_by_image():
    model, x = resnet8(timesteps=4).eval(), torch.randn(6, 3, 16, 16)
    frames = x.expand(4, 6, 3, 16, 16)
    assert_close(predict(model, frames, batch_size=4), predict(model, x))
    # The stem sees every frame, where it sees a still image once: the rest costs the same.
    still, moving = operations(model, x), operations(model, frames)
    for one, other in zip(still.layers[1:], moving.layers[1:], strict=True):
        assert (one.macs, one.acs) == (other.macs, other.acs)
    assert moving.layers[0].macs == 4 * still.layers[0].macs


def test_a_silent_student_costs_no_more_than_a_firing_one():
    x = torch.randn(2, 3, 16, 16)
    firing = resnet8(timesteps=2, neuron=lambda: LIF(threshold=0.1)).eval()
    silent = resnet8(timesteps=2, neuron=lambda: LIF(threshold=1e6)).eval()
    assert operations(silent, x).microjoules < operations(firing, x).microjoules
    assert operations(silent, x).acs == 0


def test_a_layer_that_is_used_twice_counts_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = LIF()

        def forward(self, x):
            return self.neuron(x) + self.neuron(0 * x)

    assert firing_rates(Twice(), torch.full((1, 4), 2.0)) == {"neuron": 0.5}


@pytest.mark.bad_input
def test_labels_that_are_no_labels():
    with pytest.raises(ValueError, match="labels: got values from -1 to 9, wanted 0 to 2"):
        accuracy(torch.zeros(2, 3), torch.tensor([-1, 9]))
    with pytest.raises(TypeError, match="wanted whole numbers"):
        accuracy(torch.zeros(2, 3), torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="logits: got NaN"):
        entropy(torch.full((2, 3), float("nan")))
