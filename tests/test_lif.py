"""The neuron against snnTorch, SpikingJelly, a loop of plain Python numbers and hand derivations.

The peers fire at u >= 1 (SpikingJelly) or u > 1 (snnTorch, ours). Random inputs meet no tie, so
spikes can be compared exactly; ties are settled in a test of their own.
"""

import copy
import pickle
import socket
from functools import partial

import pytest
import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from snntorch import surrogate as snn_surrogate
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from ckdlite import lif as lif_module
from ckdlite.lif import LIF, SURROGATES, lif, repeat
from ckdlite.networks import ResNet, resnet8

SHAPE = (6, 64, 32)


def current(shape=SHAPE, dtype=torch.float32, seed=0):
    """Input and upstream gradient, both random: a gradient of ones would hide mixed-up steps."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64) * 0.8 + 0.4
    upstream = torch.randn(shape, generator=g, dtype=torch.float64)
    return x.to(dtype), upstream.to(dtype)


def run(neuron, x, upstream):
    x = x.detach().clone().requires_grad_()
    spikes = neuron(x)
    spikes.backward(upstream)
    return spikes.detach(), x.grad


def ours(**options):
    return lambda x: lif(x, **options)[0]


def snntorch_lif(spike_grad, decay=0.5, threshold=1.0, reset="zero"):
    leaky = snntorch.Leaky(
        beta=decay,
        threshold=threshold,
        reset_mechanism=reset,
        reset_delay=False,
        spike_grad=spike_grad,
    )

    def forward(x):
        leaky.to(x.dtype)  # its decay and threshold are float32 buffers
        membrane, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            s, membrane = leaky(x_t, membrane)
            spikes.append(s)
        return torch.stack(spikes)

    return forward


def spikingjelly_lif(surrogate, tau=2.0, threshold=1.0, v_reset=0.0, detach_reset=False):
    def forward(x):
        node = sj_neuron.LIFNode(
            tau=tau,
            decay_input=False,
            v_threshold=threshold,
            v_reset=v_reset,
            detach_reset=detach_reset,
            surrogate_function=surrogate,
            step_mode="m",
        )
        return node(x)

    return forward


def snn_triangle():
    return snn_surrogate.custom_surrogate(lambda x, g, s: g * (1 - x.abs()).clamp(min=0))


def sj_triangle():
    return sj_surrogate.PiecewiseQuadratic(alpha=1.0)


def same(a, b, exact=True):
    (spikes, grad), (peer_spikes, peer_grad) = a, b
    assert 0.05 < spikes.mean() < 0.95, "a comparison of silence with silence says nothing"
    assert grad.abs().max() > 0
    assert torch.equal(spikes, peer_spikes.to(spikes.dtype))
    if exact:
        assert torch.equal(grad, peer_grad)
    else:
        assert_close(grad, peer_grad)


# ---------------------------------------------------------------- against the peers


@pytest.mark.parametrize("seed", range(3))
def test_equals_snntorch_in_float32(seed):
    x, upstream = current(seed=seed)
    same(run(ours(), x, upstream), run(snntorch_lif(snn_triangle()), x, upstream))


def test_near_snntorch_in_float64():
    # Its surrogates return float32 spikes, so its gradient is not a float64 one.
    x, upstream = current(dtype=torch.float64)
    spikes, grad = run(ours(), x, upstream)
    peer_spikes, peer_grad = run(snntorch_lif(snn_triangle()), x, upstream)
    assert torch.equal(spikes, peer_spikes.double())
    assert (grad - peer_grad).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize(("tau", "decay"), [(2.0, 0.5), (4.0, 0.75), (10.0, 0.9)])
@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_equals_spikingjelly(dtype, detach_reset, reset, tau, decay, threshold):
    x, upstream = current(dtype=dtype)
    peer = spikingjelly_lif(
        sj_triangle(), tau, threshold, 0.0 if reset == "hard" else None, detach_reset
    )
    mine = ours(decay=decay, threshold=threshold, reset=reset, detach_reset=detach_reset)
    a, b = run(mine, x, upstream), run(peer, x, upstream)
    # The paper's neuron must agree to the last bit; elsewhere the order of operations may differ.
    same(a, b, exact=decay == 0.5 and reset == "hard" and threshold == 1.0)


def test_detached_reset_is_not_the_default():
    x, upstream = current()
    spikes, grad = run(ours(), x, upstream)
    spikes_detached, grad_detached = run(ours(detach_reset=True), x, upstream)
    assert torch.equal(spikes, spikes_detached)
    assert (grad - grad_detached).abs().max() > 0.5


@pytest.mark.parametrize("decay", [0.9, 0.3, 1.0])
@pytest.mark.parametrize("threshold", [1.0, 0.6])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_equals_snntorch_at_other_settings(decay, threshold, reset):
    x, upstream = current()
    # An input of at most the threshold keeps u below twice the threshold. Above that, snnTorch's
    # delay-free "subtract" subtracts again at the start of the next step, which is another neuron.
    x = (x - 0.3).clamp(max=threshold)
    peer = snntorch_lif(
        snn_triangle(), decay, threshold, {"hard": "zero", "soft": "subtract"}[reset]
    )
    mine = ours(decay=decay, threshold=threshold, reset=reset)
    same(run(mine, x, upstream), run(peer, x, upstream), exact=False)


PEER_SURROGATES = {
    "arctan-spikingjelly": ("arctan", lambda: spikingjelly_lif(sj_surrogate.ATan(alpha=2.0))),
    "arctan-snntorch": ("arctan", lambda: snntorch_lif(snn_surrogate.atan(alpha=2.0))),
    "sigmoid-spikingjelly": ("sigmoid", lambda: spikingjelly_lif(sj_surrogate.Sigmoid(alpha=4.0))),
    "sigmoid-snntorch": ("sigmoid", lambda: snntorch_lif(snn_surrogate.sigmoid(slope=4))),
    "fast_sigmoid-snntorch": (
        "fast_sigmoid",
        lambda: snntorch_lif(snn_surrogate.fast_sigmoid(slope=25)),
    ),
    "rectangle-spikingjelly": (
        "rectangle",
        lambda: spikingjelly_lif(sj_surrogate.Rect(alpha=1.0)),
    ),
}


@pytest.mark.parametrize("case", PEER_SURROGATES)
def test_surrogates_equal_the_peers(case):
    name, peer = PEER_SURROGATES[case]
    x, upstream = current()
    same(run(ours(surrogate=name), x, upstream), run(peer(), x, upstream), exact=False)


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_surrogate_widths_equal_spikingjelly(width):
    # Its alpha is the inverse width of the triangle and of the rectangle.
    x, upstream = current()
    for function, peer in (
        (lif_module.triangle, sj_surrogate.PiecewiseQuadratic(alpha=1 / width)),
        (lif_module.rectangle, sj_surrogate.Rect(alpha=1 / width)),
    ):
        mine = ours(surrogate=lambda v, function=function: function(v, width=width))
        same(run(mine, x, upstream), run(spikingjelly_lif(peer), x, upstream), exact=False)


@pytest.mark.parametrize("name", ["triangle", "rectangle", "arctan", "sigmoid"])
def test_surrogates_that_promise_area_one_have_it(name):
    v = torch.linspace(-2000, 2000, 4_000_001, dtype=torch.float64)
    area = torch.trapezoid(SURROGATES[name](v), v)
    assert_close(area, torch.ones((), dtype=torch.float64), atol=2e-3, rtol=0)


# ---------------------------------------------------------------- against plain numbers


def scalar_lif(currents, decay, threshold, reset, dtype=torch.float64):
    """The neuron on plain Python numbers, each result rounded to `dtype` as its arithmetic does."""

    def rounded(value):
        return float(torch.tensor(value, dtype=torch.float64).to(dtype))

    decay, threshold = rounded(decay), rounded(threshold)
    u, spikes, membrane = 0.0, [], []
    for x in currents:
        u = rounded(rounded(decay * u) + x)
        fires = u > threshold
        spikes.append(1.0 if fires else 0.0)
        membrane.append(u)
        if fires:
            u = 0.0 if reset == "hard" else rounded(u - threshold)
    return spikes, membrane


def test_hand_computed_membrane():
    # decay 1/2, threshold 1.  u: 0.8 | 0.4 + 0.8 = 1.2, fires
    #   hard: 0 -> 0.8 | 0.4 + 0.6 = 1.0, a tie: does not fire | 0.5 + 1.5 = 2.0, fires
    #   soft: 0.2 -> 0.1 + 0.8 = 0.9 | 0.45 + 0.6 = 1.05, fires -> 0.05 | 0.025 + 1.5 = 1.525, fires
    x = torch.tensor([0.8, 0.8, 0.8, 0.6, 1.5], dtype=torch.float64)
    spikes, membrane = lif(x)
    assert spikes.tolist() == [0, 1, 0, 0, 1]
    assert membrane.tolist() == pytest.approx([0.8, 1.2, 0.8, 1.0, 2.0])
    spikes, membrane = lif(x, reset="soft")
    assert spikes.tolist() == [0, 1, 0, 1, 1]
    assert membrane.tolist() == pytest.approx([0.8, 1.2, 0.9, 1.05, 1.525])


def test_a_potential_at_the_threshold_does_not_fire():
    spikes, _ = lif(torch.tensor([[1.0, 1.0 + 2**-23, 1.0 - 2**-24]]))
    assert spikes.tolist() == [[0, 1, 0]]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    timesteps=st.integers(1, 6),
    sizes=st.lists(st.integers(0, 3), max_size=3),
    reset=st.sampled_from(["hard", "soft"]),
    decay=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    threshold=st.sampled_from([0.5, 1.0, 1.5]),
    surrogate=st.sampled_from(list(SURROGATES)),
)
def test_any_shape_type_and_reset(
    data, dtype, timesteps, sizes, reset, decay, threshold, surrogate
):
    # Quarters make ties with the threshold likely; the other numbers are anything.
    number = st.one_of(st.integers(-8, 8).map(lambda n: n / 4), st.floats(-3, 3, width=16))
    x = torch.from_numpy(data.draw(hnp.arrays("float64", (timesteps, *sizes), elements=number)))
    x = x.to(dtype)
    options = {"decay": decay, "threshold": threshold, "reset": reset, "surrogate": surrogate}

    spikes, membrane = lif(x, **options)
    assert spikes.shape == membrane.shape == x.shape
    wide = torch.promote_types(dtype, torch.float32)
    assert spikes.dtype == dtype and membrane.dtype == wide
    assert bool(((spikes == 0) | (spikes == 1)).all())
    assert torch.equal(LIF(**options)(x), spikes)

    columns = x.double().flatten(1).T.tolist() if sizes else [x.double().tolist()]
    if x.numel():
        pairs = [scalar_lif(column, decay, threshold, reset, wide) for column in columns]
        want_spikes = torch.tensor([p[0] for p in pairs]).T.reshape(x.shape)
        want_membrane = torch.tensor([p[1] for p in pairs], dtype=torch.float64).T.reshape(x.shape)
        assert torch.equal(spikes.double(), want_spikes.double())
        assert torch.equal(membrane.double(), want_membrane)


def test_odd_decay_and_threshold_against_plain_numbers():
    x = current((7, 5))[0].double()
    spikes, membrane = lif(x, decay=0.9, threshold=0.7)
    for i in range(5):
        want_spikes, want_membrane = scalar_lif(x[:, i].tolist(), 0.9, 0.7, "hard")
        assert spikes[:, i].tolist() == want_spikes
        assert membrane[:, i].tolist() == want_membrane


@pytest.mark.parametrize(("dtype", "wrong"), [(torch.bfloat16, 1e-3), (torch.float16, 1e-4)])
def test_half_precision_needs_a_wide_membrane(dtype, wrong):
    # The same rounded input, once in exact arithmetic (float64), once as it is, once with the
    # potential itself rounded to half precision at every operation.
    x = current((16, 20_000))[0].to(dtype)
    exact, _ = lif(x.double(), decay=0.9, reset="soft")
    spikes, membrane = lif(x, decay=0.9, reset="soft")
    assert spikes.dtype == dtype and membrane.dtype == torch.float32
    assert (spikes.double() != exact).double().mean() < 1e-6

    u, narrow = torch.zeros_like(x[0]), []
    for x_t in x:
        u = 0.9 * u + x_t
        narrow.append((u > 1).to(dtype))
        u = u - narrow[-1]
    assert u.dtype == dtype
    assert (torch.stack(narrow).double() != exact).double().mean() > wrong


def test_half_precision_gradient_is_rounded_once():
    x, upstream = current((6, 5000), torch.bfloat16)
    _, exact = run(LIF(), x.double(), upstream.double())
    _, grad = run(LIF(), x, upstream)
    assert grad.dtype == torch.bfloat16
    # Half a step of bfloat16's eight bits.
    assert_close(grad.double(), exact, rtol=2**-8, atol=1e-6)


# ---------------------------------------------------------------- the chain rule by hand


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize(("x1", "x2"), [(1.3, 0.9), (0.7, 0.4), (1.3, 0.2), (0.7, 1.1)])
def test_gradient_of_two_steps_by_hand(reset, detach_reset, x1, x2):
    """Every path from two inputs to two spikes and two potentials, with a smooth surrogate g.

    u1 = x1, s1 = H(u1 - th), r1 = (1 - s1) u1 or u1 - th s1, u2 = d r1 + x2, s2 = H(u2 - th).
    With g1 = g(u1 - th), g2 = g(u2 - th) in place of H's slope:
      dr1/dx1 = (1 - s1) - u1 g1  (hard)   or   1 - th g1  (soft); without g1 where detached
      L = a s1 + b s2 + p u1 + q u2
      dL/dx2 = b g2 + q
      dL/dx1 = a g1 + p + (b g2 + q) d dr1/dx1
    """
    d, th = 0.6, 0.8
    a, b, p, q = 0.3, -1.1, 0.7, 1.9

    def g(v):
        return torch.exp(-(v**2)) * (1 + 0.5 * v)  # not even, so that a lost sign shows

    x = torch.tensor([x1, x2], dtype=torch.float64, requires_grad=True)
    s, u = lif(x, decay=d, threshold=th, reset=reset, detach_reset=detach_reset, surrogate=g)
    (a * s[0] + b * s[1] + p * u[0] + q * u[1]).backward()

    s1 = float(x1 > th)
    r1 = (1 - s1) * x1 if reset == "hard" else x1 - th * s1
    g1 = float(g(torch.tensor(x1 - th, dtype=torch.float64)))
    g2 = float(g(torch.tensor(d * r1 + x2 - th, dtype=torch.float64)))
    through_spike = 0.0 if detach_reset else g1
    if reset == "hard":
        dr1 = (1 - s1) - x1 * through_spike
    else:
        dr1 = 1 - th * through_spike
    assert x.grad[1].item() == pytest.approx(b * g2 + q, abs=1e-12)
    assert x.grad[0].item() == pytest.approx(a * g1 + p + (b * g2 + q) * d * dr1, abs=1e-12)


def test_membrane_gradient_by_finite_differences():
    # Below threshold nothing resets, so the potential is a smooth (linear) function of the input.
    x = (0.1 * torch.rand(4, 3, dtype=torch.float64)).requires_grad_()
    for reset in ("hard", "soft"):
        assert torch.autograd.gradcheck(
            lambda x, reset=reset: lif(x, reset=reset, surrogate=torch.zeros_like)[1], (x,)
        )
    # Away from ties a step's true slope is 0, and with that surrogate the reset is exact too.
    x = torch.tensor([[1.3, 0.4], [0.2, 0.9], [1.7, 0.1]], dtype=torch.float64, requires_grad=True)
    for reset in ("hard", "soft"):
        assert lif(x, reset=reset)[0].sum() >= 2
        assert torch.autograd.gradcheck(
            lambda x, reset=reset: lif(x, reset=reset, surrogate=torch.zeros_like)[1], (x,)
        )


# ---------------------------------------------------------------- shapes and layouts


def test_one_timestep_is_a_threshold():
    x, _ = current((1, 5, 7))
    spikes, membrane = lif(x)
    assert torch.equal(spikes, (x > 1).float())
    assert torch.equal(membrane, x)


@pytest.mark.parametrize("shape", [(3, 0), (3, 0, 4, 2, 2), (3, 2, 4, 0, 2), (1, 0)])
def test_empty_batch(shape):
    x = torch.zeros(shape, requires_grad=True)
    spikes, membrane = lif(x)
    assert spikes.shape == membrane.shape == shape
    spikes.sum().backward()
    assert x.grad.shape == shape
    assert LIF()(torch.zeros(shape)).shape == shape


def test_time_alone():
    assert lif(torch.tensor([2.0, 0.5]))[0].tolist() == [1, 0]


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "time last in memory": lambda x: x.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "offset": lambda x: torch.cat([x, x], 1)[:, x.shape[1] :],
    "channels last": lambda x: (
        x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 2, 4, 5, 6), (3, 2, 1, 5, 6), (1, 2, 4, 1, 1)])
def test_layout_changes_no_value(layout, shape):
    x, upstream = current(shape)
    laid = LAYOUTS[layout](x)
    assert torch.equal(laid, x)
    want = [lif(x)[0], lif(x)[1], run(ours(), x, upstream)[1]]

    spikes, membrane = lif(laid)
    leaf = laid.detach().requires_grad_()
    lif(leaf)[0].backward(upstream)
    for got, expected in zip((spikes, membrane, leaf.grad), want, strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(LIF()(laid), want[0])


def test_channels_last_stays_channels_last():
    x, _ = current((3, 2, 4, 5, 6))
    x = LAYOUTS["channels last"](x)
    strides = (2 * 4 * 5 * 6, 4 * 5 * 6, 1, 6 * 4, 4)
    assert x.stride() == strides
    spikes, membrane = lif(x)
    for out in (spikes, membrane, LIF()(x)):
        assert out.stride() == strides
        frames = out.flatten(0, 1)
        assert frames.data_ptr() == out.data_ptr(), "the next convolution must not pay for a copy"
        assert frames.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("axes", [(0, 1, 3, 2), (0, 3, 1, 2), (0, 2, 3, 1)])
def test_any_layout_within_a_step_is_kept(axes):
    x = torch.randn(3, 4, 5, 6).permute(axes)
    assert x.stride(0) == 4 * 5 * 6
    spikes, membrane = lif(x)
    assert spikes.stride() == membrane.stride() == LIF()(x).stride() == x.stride()


def test_repeated_channels_last_image_gives_channels_last_spikes():
    image = torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last)
    spikes = LIF()(repeat(image, 3))
    assert spikes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(spikes, LIF()(torch.stack([image] * 3)))


def test_expanded_time_sums_its_gradient():
    image, _ = current((4, 5))
    a, b = image.clone().requires_grad_(), image.clone().requires_grad_()
    expanded, stacked = repeat(a, 5), torch.stack([b] * 5)
    assert expanded.stride(0) == 0
    (s, u), (s_copy, u_copy) = lif(expanded), lif(stacked)
    assert torch.equal(s, s_copy)
    assert torch.equal(u, u_copy)
    upstream = torch.randn(5, 4, 5)
    s.backward(upstream)
    s_copy.backward(upstream)
    assert_close(a.grad, b.grad)


def test_input_is_not_changed():
    x, upstream = current()
    kept = x.clone()
    run(ours(), x, upstream)
    with torch.no_grad():
        lif(x)
    assert torch.equal(x, kept)


def test_module_starts_from_rest_at_every_call():
    x, _ = current()
    layer = LIF()
    assert torch.equal(layer(x), layer(x))
    assert not list(layer.parameters()) and not layer.state_dict()


def test_module_says_what_it_is():
    text = repr(LIF(decay=0.25, reset="soft", surrogate="arctan"))
    assert "decay=0.25" in text and "reset=soft" in text and "surrogate=arctan" in text


@pytest.mark.parametrize("timesteps", [1, 4])
def test_repeat_copies_nothing(timesteps):
    image = torch.randn(2, 3, 4, 4)
    shown = repeat(image, timesteps)
    assert shown.shape == (timesteps, 2, 3, 4, 4)
    assert shown.data_ptr() == image.data_ptr()
    assert shown.stride()[1:] == image.stride()
    assert timesteps == 1 or shown.stride(0) == 0
    assert all(torch.equal(step, image) for step in shown)


def test_repeat_gives_its_gradient_the_layout_of_the_image():
    # Batch norm before it falls back to a loop that is ten times slower where the layouts differ.
    g = torch.randn(3, 2, 4, 5, 6)
    for image in (torch.randn(2, 4, 5, 6), torch.randn(2, 6, 5, 4).transpose(1, 3)):
        leaf = image.requires_grad_()
        between = leaf * 1
        seen = []
        between.register_hook(seen.append)
        shown = repeat(between, 3)
        spikes = LIF()(shown)
        (grad,) = torch.autograd.grad(spikes, leaf, g)
        assert seen[0].stride() == image.stride()
        assert_close(grad, torch.autograd.grad(LIF()(torch.stack([leaf] * 3)), leaf, g)[0])


# ---------------------------------------------------------------- compiled


def exact(a, b):
    assert torch.equal(a, b)


def compare_with_plain(x, upstream, compare=exact, **options):
    """Spikes, gradient and memory layout of the compiled layer against the plain one's."""
    results = []
    for compiled in (False, True):
        leaf = x.detach().requires_grad_()
        spikes = LIF(**options, compiled=compiled)(leaf)
        spikes.backward(upstream)
        results.append((spikes.detach(), leaf.grad))
    (spikes, grad), (compiled_spikes, compiled_grad) = results
    assert torch.equal(compiled_spikes, spikes)
    assert compiled_spikes.stride() == spikes.stride()
    assert compiled_grad.dtype == grad.dtype
    compare(compiled_grad, grad)
    return spikes, grad


def bump(v):
    return torch.where(v > 0, 0.3, 0.6) / (1 + v * v)


# Every surrogate, reset and detach; one function of the user's; numbers that are no powers of two.
COMPILED = {
    "default": {},
    "rectangle": {"reset": "soft", "detach_reset": True, "decay": 0.9},
    "arctan": {"detach_reset": True, "threshold": 0.7},
    "fast_sigmoid": {"reset": "soft", "decay": 0.3, "threshold": 0.6},
    "sigmoid": {"decay": 0.9},
    "own": {"surrogate": bump, "reset": "soft", "decay": 0.77, "threshold": 1.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_equals_plain(compiles, name):
    options = ({"surrogate": name} if name in SURROGATES else {}) | COMPILED[name]

    def near(a, b):
        # Only the sigmoid is not exact: the exponential of a full vector and that of the rest may
        # differ in the last bit. The largest difference seen is 2.4e-7, in gradients of up to 5.
        assert_close(a, b, atol=1e-6, rtol=0)

    compare = near if name == "sigmoid" else exact
    spikes, grad = compare_with_plain(*current((3, 64, 33)), compare, **options)
    assert 0.05 < spikes.mean() < 0.95
    assert grad.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_compiled_equals_plain_in_other_types(compiles, dtype):
    compare_with_plain(*current((3, 64, 33), dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 2, 4, 5, 6), (3, 2, 1, 5, 6)])
def test_compiled_keeps_the_layout(compiles, layout, shape):
    x, upstream = current(shape)
    compare_with_plain(LAYOUTS[layout](x), upstream)


def test_compiled_channels_last_stays_channels_last(compiles):
    x = LAYOUTS["channels last"](current((3, 2, 4, 5, 6))[0]).requires_grad_()
    spikes = LIF(compiled=True)(x)
    assert spikes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(spikes, x, torch.ones_like(spikes))
    assert grad.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_compiled_repeated_image(compiles):
    image, upstream = current((2, 4, 5, 6))
    for x in (image, image.to(memory_format=torch.channels_last), image[..., ::2]):
        grads = []
        for compiled in (False, True):
            leaf = x.detach().requires_grad_()
            shown = repeat(leaf, 2)
            assert shown.stride(0) == 0
            spikes = LIF(compiled=compiled)(shown)
            spikes.backward(torch.stack([upstream, -3 * upstream])[..., : x.shape[-1]])
            grads.append(leaf.grad)
            assert torch.equal(spikes, LIF()(torch.stack([x] * 2)))
        assert torch.equal(*grads)


@pytest.mark.parametrize("shape", [(3, 0), (3, 2, 0, 4), (3,), (3, 1), (3, 2), (3, 3)])
def test_compiled_on_few_neurons(compiles, shape):
    compare_with_plain(*current(shape))


@pytest.mark.slow
def test_shapes_share_one_compilation_and_timesteps_have_their_own(needs_compiler, monkeypatch):
    monkeypatch.setattr(lif_module, "_LOOPS", {})
    stats = torch._dynamo.utils.counters["stats"]
    before = stats["unique_graphs"]
    # To compile one loop a second time would be an error, and so a warning, and so a failed test.
    with torch._dynamo.config.patch(error_on_recompile=True):
        for timesteps in (1, 2, 4):
            for n in range(12):
                x, upstream = current((timesteps, 2 + n, 3, 1 + 5 * n % 7, 4), seed=n)
                compare_with_plain(LAYOUTS["channels last"](x), upstream)
    assert len(lif_module._LOOPS) == 6  # forward and backward of three T
    assert stats["unique_graphs"] - before == 6


@pytest.mark.slow
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_many_timesteps_are_compiled_in_parts(needs_compiler, reset, monkeypatch):
    monkeypatch.setattr(lif_module, "_LOOPS", {})
    with torch._dynamo.config.patch(error_on_recompile=True):
        for timesteps in (16, 24, 40):  # parts of eight steps each
            for shape in ((7, 5), (3, 2, 4)):
                x, upstream = current((timesteps, *shape))
                compare_with_plain(x, upstream, decay=0.8, reset=reset)
    # The first part of a tensor and those in its middle, forward and backward, whatever T is.
    assert len(lif_module._LOOPS) == 4
    compare_with_plain(*current((11, 40)), decay=0.8, reset=reset)  # 6 and 5 steps


def test_compiled_on_a_piece_of_a_tensor(needs_compiler):
    x, upstream = current((5, 40))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for first in (0, 1, 2):
            compare_with_plain(x[first : first + 3], upstream[first : first + 3])


@pytest.mark.slow
def test_no_number_of_neurons_is_too_many(needs_compiler, monkeypatch):
    # torch.compile gives up at 8 variants of one function; here each neuron has its own.
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: compile(f, backend="eager"))
    monkeypatch.setattr(lif_module, "_LOOPS", {})
    with torch._dynamo.config.patch(error_on_recompile=True):
        for i in range(10):
            compare_with_plain(*current((1 + i % 3, 40)), decay=i / 10)
    assert len(lif_module._LOOPS) == 20


@pytest.mark.slow
def test_compiled_network_equals_the_plain_one(compiles):
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([1, 5, 0, 7])
    images = images.to(memory_format=torch.channels_last)
    plain = resnet8(timesteps=2).to(memory_format=torch.channels_last)
    compiled = resnet8(timesteps=2, neuron=partial(LIF, compiled=True))
    compiled = compiled.to(memory_format=torch.channels_last)
    compiled.load_state_dict(plain.state_dict())
    losses = []
    for model in (plain, compiled):
        loss = torch.nn.functional.cross_entropy(model(images).mean(0), labels)
        loss.backward()
        losses.append(loss)
    assert_close(*losses)
    weights = dict(plain.named_parameters())
    assert weights["stem.0.weight"].grad.abs().max() > 0
    for name, weight in compiled.named_parameters():
        assert_close(weight.grad, weights[name].grad)


def test_compiled_without_a_graph(compiles):
    x, _ = current((3, 40))
    want = LIF()(x)
    layer = LIF(compiled=True)
    with torch.no_grad():
        spikes = layer(x.clone().requires_grad_())
    assert torch.equal(spikes, want)
    assert spikes.grad_fn is None
    assert not layer(x).requires_grad


def test_compiled_under_autocast(compiles):
    x, upstream = current((3, 40))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compare_with_plain(x, upstream)


def test_compiled_with_a_kept_graph_and_with_a_checkpoint(compiles):
    x, upstream = current((3, 40))
    _, want = run(LIF(), x, upstream)
    x.requires_grad_()
    layer = LIF(compiled=True)
    spikes = layer(x)
    for _ in range(2):
        (grad,) = torch.autograd.grad(spikes, x, upstream, retain_graph=True)
        assert torch.equal(grad, want)
    checkpoint(layer, x, use_reentrant=False).backward(upstream)
    assert torch.equal(x.grad, want)


def test_compiled_inside_a_compiled_network(needs_compiler):
    layer, known = LIF(compiled=True), len(lif_module._LOOPS)
    network = torch.compile(lambda x: layer(2 * x), backend="eager", fullgraph=True)
    x, _ = current((5, 7))
    assert torch.equal(network(x), LIF()(2 * x))
    assert len(lif_module._LOOPS) == known  # the plain loop, for the outer compiler to fuse


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_in_a_network_compiled_as_a_whole_and_under_autocast(needs_compiler, precision):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 8)
    network = ResNet((1,), (8,), timesteps=3, neuron=partial(LIF, compiled=True))
    results = []
    for model in (network, torch.compile(network)):
        network.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = model(images).float().square().mean()
        loss.backward()
        results.append((loss.detach(), network.stem[0].weight.grad))
    near = {} if precision == torch.float32 else {"rtol": 0.1, "atol": 0.01}
    assert_close(results[0], results[1], **near)
    assert results[0][1].abs().max() > 0


def train_on_one_of_two(rank, port, found):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    network = DistributedDataParallel(small_student())
    loss_of(network, rank).backward()
    found.put((rank, [p.grad.numpy() for p in network.parameters()]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def small_student():
    torch.manual_seed(0)
    return ResNet((1,), (8,), timesteps=2, neuron=partial(LIF, compiled=True))


def loss_of(network, part):
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(part))
    return network(images).square().mean()


@pytest.mark.slow
def test_compiled_under_distributed_data_parallel(needs_compiler):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    found = context.Queue()
    ranks = [context.Process(target=train_on_one_of_two, args=(r, port, found)) for r in range(2)]
    for process in ranks:
        process.start()
    try:
        grads = dict(found.get(timeout=240) for _ in ranks)
        for process in ranks:
            process.join(60)
            assert process.exitcode == 0
    finally:
        for process in ranks:
            process.kill()

    alone = []
    for part in range(2):
        network = small_student()
        loss_of(network, part).backward()
        alone.append([p.grad for p in network.parameters()])
    for i, (a, b) in enumerate(zip(*alone, strict=True)):
        for rank in range(2):
            assert_close(torch.from_numpy(grads[rank][i]), (a + b) / 2)


def test_compiled_module_is_copied_and_pickled(compiles):
    x, _ = current((3, 40))
    layer = LIF(reset="hard", compiled=True)
    want = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.compiled
        assert torch.equal(other(x), want)
    assert not layer.state_dict()
    assert "compiled=True" in repr(layer)
    assert "compiled" not in repr(LIF())


class Raises(Exception):
    pass


def test_a_surrogate_that_cannot_be_compiled_runs_plainly(needs_compiler):
    def talks(v):
        heard.append(len(v))
        print("a surrogate that prints cannot be traced")
        return (1 - v.abs()).clamp(min=0)

    heard = []
    x, upstream = current((3, 40))
    want = run(LIF(), x, upstream)
    layer = LIF(surrogate=talks, compiled=True)
    with pytest.warns(UserWarning, match="runs as plain PyTorch.*Unsupported.*that it can trace"):
        got = run(layer, x, upstream)
    for result in (got, run(layer, x, upstream)):  # the second time without a word
        assert torch.equal(result[0], want[0])
        assert torch.equal(result[1], want[1])
    assert heard


@pytest.mark.bad_input
def test_a_surrogate_raises_its_own_error(compiles):
    def broken(v):
        raise Raises("mine")

    x = current((3, 40))[0].requires_grad_()
    with pytest.raises(Raises, match="mine"):
        LIF(surrogate=broken, compiled=True)(x).sum().backward()


@pytest.fixture
def no_compiler(monkeypatch):
    """As on a machine without a compiler: the error comes at the first call."""

    def compile(function, **_options):
        def fail(*_tensors):
            raise error

        return fail

    error = RuntimeError("InductorError: ...")
    error.inner_exception = FileNotFoundError("No working C++ compiler found\nand a long trace")
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(lif_module, "_LOOPS", {})
    lif_module._say_plain.cache_clear()
    yield
    lif_module._say_plain.cache_clear()


def test_without_a_compiler_it_says_so_once_and_runs_plainly(no_compiler):
    x, upstream = current((3, 40))
    with pytest.warns(UserWarning) as caught:
        compare_with_plain(x, upstream)
    (warning,) = caught
    text = str(warning.message)
    assert "FileNotFoundError: No working C++ compiler found)" in text
    assert "C++ compiler" in text and "Triton" in text and "long trace" not in text
    compare_with_plain(x, upstream)
    compare_with_plain(x[:2], upstream[:2], reset="soft")  # another neuron, and still no word


# ---------------------------------------------------------------- messages


@pytest.mark.bad_input
@pytest.mark.parametrize("make", [lambda **o: lif(torch.ones(2, 3), **o), LIF], ids=["lif", "LIF"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay": 1.5}, ["decay", "1.5", "0", "1"]),
        ({"decay": -0.1}, ["decay", "-0.1"]),
        ({"decay": float("nan")}, ["decay", "nan"]),
        ({"threshold": 0.0}, ["threshold", "0.0", "above 0"]),
        ({"threshold": -1.0}, ["threshold", "-1.0"]),
        ({"threshold": float("nan")}, ["threshold", "nan"]),
        ({"reset": "x"}, ["reset", "'x'", "hard", "soft"]),
        ({"surrogate": "x"}, ["surrogate", "'x'", *SURROGATES, "function"]),
    ],
    ids=str,
)
def test_bad_neuron(make, options, words):
    with pytest.raises(ValueError) as error:
        make(**options)
    for word in words:
        assert word in str(error.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("call", [lif, LIF()], ids=["lif", "LIF"])
def test_bad_current(call):
    with pytest.raises(ValueError, match=r"got shape \[0, 3\].*at least one timestep"):
        call(torch.ones(0, 3))
    with pytest.raises(ValueError, match=r"got shape \[\].*\[T, \.\.\.\]"):
        call(torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"torch\.int64.*floating-point"):
        call(torch.ones(2, 3, dtype=torch.long))


@pytest.mark.bad_input
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_current_that_is_not_finite(bad):
    x = torch.ones(2, 3)
    x[1, 2] = bad
    with pytest.raises(ValueError, match="input current.*NaN or infinity.*finite"):
        lif(x)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("timesteps", "kind", "message"),
    [
        (0, ValueError, "timesteps: got 0, wanted at least 1"),
        (-2, ValueError, "timesteps: got -2"),
        (1.5, TypeError, r"timesteps: got 1\.5, wanted a whole number"),
        (True, TypeError, "timesteps: got True, wanted a whole number"),
        ("4", TypeError, "timesteps: got '4'"),
    ],
)
def test_bad_timesteps(timesteps, kind, message):
    with pytest.raises(kind, match=message):
        repeat(torch.ones(2, 3), timesteps)


def test_the_surrogate_can_be_changed_later():
    layer = LIF()
    layer.surrogate = "arctan"
    x = torch.full((1, 1), 3.0, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.item() > 0  # the triangle has no slope this far from the threshold


@pytest.mark.bad_input
def test_an_infinite_threshold_is_refused():
    with pytest.raises(ValueError, match="threshold: got inf, wanted a finite number above 0"):
        lif(torch.ones(2, 1), threshold=float("inf"))


# ---------------------------------------------------------------- on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("timesteps", [1, 2, 4, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compiled_equals_plain_on_a_gpu(dtype, timesteps):
    x, upstream = (t.cuda() for t in current(shape=(timesteps, 64, 33), dtype=dtype))
    same(run(LIF(), x, upstream), run(LIF(compiled=True), x, upstream))
