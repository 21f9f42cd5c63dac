"""The losses against torch.distributions, NumPy, typed numbers and their own stated properties."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from ckdlite.distill import attention_transfer, ckd, feature_mse, kd, nld, normalise_maps, samd

SCALINGS = ["none", "sample", "batch", "zscore"]
MIXES = ["logits", "probabilities"]
SPREADS = ["std", "variance"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def logits(batch=4, classes=7, dtype=torch.float64, scale=2.0):
    return scale * torch.randn(batch, classes, dtype=dtype)


def maps(batch=3, height=4, width=5, dtype=torch.float64):
    return 3 * torch.rand(batch, height, width, dtype=dtype)


def kl(p, q):
    """KL between rows of probabilities, mean over the batch."""
    return kl_divergence(Categorical(probs=p), Categorical(probs=q)).mean()


def gradient(loss, x):
    (g,) = torch.autograd.grad(loss, x, retain_graph=True)
    return g


# ---------------------------------------------------------------- KD


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0, 4.0])
def test_kd_equals_torch_distributions(tau):
    s, t = logits(), logits()
    want = tau**2 * kl_divergence(Categorical(logits=t / tau), Categorical(logits=s / tau)).mean()
    assert_close(kd(s, t, temperature=tau), want)
    if tau == 2.0:
        assert_close(kd(s, t), want)


def test_kd_by_hand():
    # tau = 1; softmax of [ln 3, 0] is [3/4, 1/4], of [0, 0] is [1/2, 1/2].
    # KL([3/4, 1/4] || [1/2, 1/2]) = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.304099 - 0.173287 = 0.130812
    s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    assert kd(s, t, temperature=1.0).item() == pytest.approx(0.130812, abs=1e-6)
    # The other way round: 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3) = 0.143841. The teacher is P.
    assert kd(t, s, temperature=1.0).item() == pytest.approx(0.143841, abs=1e-6)


def test_kd_gradient_is_tau_times_the_gap():
    # d/ds of tau^2 KL = tau (softmax(s / tau) - softmax(t / tau)), divided by the batch.
    s, t, tau = logits().requires_grad_(), logits(), 3.0
    want = tau * ((s / tau).softmax(1) - (t / tau).softmax(1)) / len(s)
    assert_close(gradient(kd(s, t, temperature=tau), s), want.detach())


def test_kd_is_zero_where_the_distributions_agree():
    s = logits().requires_grad_()
    loss = kd(s, s.detach() + 5.0)  # a softmax ignores a shift
    assert abs(loss.item()) < 1e-12
    assert gradient(loss, s).abs().max() < 1e-12
    assert kd(logits(), logits()) > 0


def test_kd_far_apart_stays_finite():
    s = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    loss = kd(s, -s.detach())
    assert loss.item() == pytest.approx(2**2 * 300.0, rel=1e-3)
    assert gradient(loss, s).isfinite().all()


# ---------------------------------------------------------------- scaling of maps


def scaled(m, how):
    """The scalings in NumPy."""
    out = np.empty_like(m)
    if how == "batch":
        return (m - m.min()) / (m.max() - m.min() + 1e-3)
    for i, x in enumerate(m):
        if how == "none":
            out[i] = x
        elif how == "sample":
            out[i] = (x - x.min()) / (x.max() - x.min())
        else:
            out[i] = (x - x.mean()) / x.std()
    return out


def as_distribution(m, tau):
    e = np.exp(m.reshape(len(m), -1) / tau)
    return torch.from_numpy(e / e.sum(1, keepdims=True))


@pytest.mark.parametrize("how", SCALINGS)
def test_normalise_equals_numpy(how):
    m = maps()
    assert_close(normalise_maps(m, how), torch.from_numpy(scaled(m.numpy(), how)))
    assert_close(normalise_maps(m), torch.from_numpy(scaled(m.numpy(), "sample")))


@pytest.mark.parametrize("how", ["sample", "zscore"])
@pytest.mark.parametrize("value", [0.0, 4.0, 0.1, 1 / 3, -0.7, 1e6 / 7])
def test_flat_maps_become_zero(how, value):
    # The mean of equal numbers may differ from them by rounding; that must not be blown up.
    for size in (7, 8, 5):
        m = maps(2, size, size, torch.float32)
        m[1] = value
        out = normalise_maps(m, how)
        assert out[1].abs().max() < 1e-6 * max(1.0, abs(value))
        assert out[0].std() > 0.2


def test_batch_scaling_adds_a_thousandth():
    # Range 0 to 0.001: (m - 0) / (0.001 - 0 + 0.001) is 0 to 1/2, over the batch, not the map.
    m = torch.tensor([[[0.0, 0.0005]], [[0.001, 0.001]]], dtype=torch.float64)
    want = torch.tensor([[[0.0, 0.25]], [[0.5, 0.5]]], dtype=torch.float64)
    assert_close(normalise_maps(m, "batch"), want)
    assert torch.equal(normalise_maps(torch.full((2, 3, 3), 0.3), "batch"), torch.zeros(2, 3, 3))


# ---------------------------------------------------------------- SAMD


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("tau", [0.7, 2.0])
@pytest.mark.parametrize("how", SCALINGS)
def test_samd_equals_torch_distributions(how, tau, square):
    s, t = maps(), maps() ** 2
    p, q = (as_distribution(scaled(m.numpy(), how), tau) for m in (t, s))
    want = kl(p, q) * (tau**2 if square else 1)
    assert_close(samd(s, t, temperature=tau, normalise=how, square=square), want)


def test_samd_defaults():
    s, t = maps(), maps() ** 2
    want = samd(s, t, temperature=2.0, normalise="sample", square=True)
    assert torch.equal(samd(s, t), want)


def test_samd_by_hand():
    # Two positions. Teacher [0, 5], student [7, 3]; min-max: [0, 1] and [1, 0]; temperature 2.
    # P = softmax([0, 1/2]) = [0.377541, 0.622459], Q = softmax([1/2, 0]) = [0.622459, 0.377541].
    # KL = sum P ln(P/Q); ln(P/Q) = [-1/2, 1/2]: (0.622459 - 0.377541) / 2 = 0.122459; times 4.
    s, t = torch.tensor([[[7.0], [3.0]]]), torch.tensor([[[0.0], [5.0]]])
    assert samd(s, t).item() == pytest.approx(0.489837, abs=1e-6)
    assert samd(s, t, square=False).item() == pytest.approx(0.122459, abs=1e-6)
    # As they are: P = softmax([0, 2.5]) = [0.075858, 0.924142], Q = softmax([3.5, 1.5]) =
    # [0.880797, 0.119203]; 0.075858 ln(0.086124) + 0.924142 ln(7.752674) = -0.186010 + 1.892694.
    assert samd(s, t, normalise="none").item() == pytest.approx(4 * 1.706684, abs=1e-4)
    # z-scores of two positions are -1 and 1: P = softmax([-1/2, 1/2]) = [0.268941, 0.731059],
    # Q the reverse; ln(P/Q) = [-1, 1]: 0.731059 - 0.268941 = 0.462117; times 4.
    assert samd(s, t, normalise="zscore").item() == pytest.approx(1.848469, abs=1e-5)


def test_released_samd_is_small():
    # In [0, 1] at temperature 2 on 8x8 maps the worst case is about 0.12.
    worst = 0.0
    for hot in range(1, 64):
        t = torch.zeros(64, dtype=torch.float64)
        t[:hot] = 1
        s = 1 - t
        worst = max(worst, samd(s.view(1, 8, 8), t.view(1, 8, 8), square=False).item())
    assert 0.11 < worst < 0.125


@pytest.mark.parametrize(
    ("how", "change"),
    [
        ("none", lambda m: m + 4.0),
        ("sample", lambda m: 3 * m + 4.0),
        ("zscore", lambda m: 3 * m + 4.0),
        # The 1e-3 makes it nearly, not exactly, blind to scale.
        ("batch", lambda m: m + 4.0),
    ],
)
def test_samd_is_zero_where_maps_differ_by_what_the_scaling_removes(how, change):
    s = maps().requires_grad_()
    loss = samd(s, change(s.detach()), normalise=how)
    assert abs(loss.item()) < 1e-12
    assert gradient(loss, s).abs().max() < 1e-12
    assert samd(s, s.detach() ** 2, normalise=how) > 1e-4


@pytest.mark.parametrize(
    ("how", "alone"), [("none", True), ("sample", True), ("zscore", True), ("batch", False)]
)
def test_only_batch_scaling_looks_at_the_neighbours(how, alone):
    s, t = maps().requires_grad_(), maps()
    each = torch.stack([samd(s[i : i + 1], t[i : i + 1], normalise=how) for i in range(len(s))])
    whole = samd(s, t, normalise=how)
    if alone:
        assert_close(whole, each.mean())
    else:
        assert (whole - each.mean()).abs() > 1e-4
    # One map's gradient, with its neighbours changed.
    changed = torch.cat([s[:1], 10 * s[1:]])
    other = gradient(samd(changed, torch.cat([t[:1], 10 * t[1:]]), normalise=how), s)[0]
    assert torch.allclose(gradient(whole, s)[0], other) == alone


@pytest.mark.parametrize("how", SCALINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_flat_and_silent_maps_give_finite_gradients(how, dtype):
    t = maps(5, 7, 7, torch.float32).to(dtype)
    t[3:] = 0
    s = maps(5, 7, 7, torch.float32).to(dtype)
    s[0], s[1], s[3] = 0, 0.1, 0  # silent, flat, silent against a silent teacher
    s.requires_grad_()
    for student, teacher in ((s, t), (s * 0, t), (s, t * 0), (s * 0, t * 0)):
        loss = samd(student, teacher, normalise=how)
        g = gradient(loss, s)
        assert loss.isfinite() and loss >= -1e-6
        # The softmax's own gradient is below T; only the scaling could make it larger.
        assert g.isfinite().all() and g.abs().max() < 2e3
    assert gradient(samd(s, t, normalise=how), s)[1].abs().max() < 10


# ---------------------------------------------------------------- NLD


def nld_reference(s, t, noise, strength, tau, spread, mix):
    """Sample by sample in NumPy, the divergence by torch.distributions."""
    z = s.numpy()
    std = np.sqrt(((z - z.mean(1, keepdims=True)) ** 2).sum(1, keepdims=True) / (z.shape[1] - 1))
    e = z.mean(1, keepdims=True) + (std if spread == "std" else std**2) * noise.numpy()

    def softmax(a):
        a = np.exp(a / tau)
        return a / a.sum(1, keepdims=True)

    if mix == "logits":
        q = softmax(z + strength * e)
    else:
        q = (1 - strength) * softmax(z) + strength * softmax(e)
    return tau**2 * kl(torch.from_numpy(softmax(t.numpy())), torch.from_numpy(q))


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("strength", "tau"), [(0.1, 2.0), (0.5, 1.0), (1.0, 3.0)])
def test_nld_equals_torch_distributions(mix, spread, strength, tau):
    s, t, noise = logits(), logits(), torch.randn(4, 7, dtype=torch.float64)
    want = nld_reference(s, t, noise, strength, tau, spread, mix)
    got = nld(s, t, noise=noise, strength=strength, temperature=tau, spread=spread, mix=mix)
    assert_close(got, want)


def test_nld_defaults():
    s, t, noise = logits(), logits(), torch.randn(4, 7, dtype=torch.float64)
    assert_close(nld(s, t, noise=noise), nld_reference(s, t, noise, 0.1, 2.0, "std", "logits"))


def test_nld_by_hand():
    # z = [1, 3]: mean 2, std sqrt(2); n = [1, -1]: e = [2 + 1.414214, 2 - 1.414214].
    # lambda 1/2: z_soft = [1 + 1.707107, 3 + 0.292893] = [2.707107, 3.292893]; tau 1.
    # Q = sigmoid(-+0.585786) = [0.357602, 0.642398]; teacher [0, 0]: P = [1/2, 1/2].
    # KL = ln(1/2) - (ln 0.357602 + ln 0.642398) / 2 = -0.693147 + (1.028335 + 0.442547) / 2
    s, t, n = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2), torch.tensor([[1.0, -1.0]])
    loss = nld(s, t, noise=n, strength=0.5, temperature=1.0)
    assert loss.item() == pytest.approx(0.042294, abs=1e-5)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("spread", SPREADS)
def test_nld_without_noise_is_kd(mix, spread):
    s, t = logits().requires_grad_(), logits()
    loss = nld(s, t, strength=0.0, mix=mix, spread=spread, temperature=3.0)
    assert_close(loss, kd(s, t, temperature=3.0))
    assert_close(gradient(loss, s), gradient(kd(s, t, temperature=3.0), s))


def test_probabilities_far_apart_keep_their_divergence():
    s = torch.tensor([[400.0, 0.0, 1.0]], requires_grad=True)
    loss = nld(s, -s.detach(), strength=0.0, mix="probabilities")
    assert_close(loss, kd(s, -s.detach()))
    assert_close(gradient(loss, s), gradient(kd(s, -s.detach()), s))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("detach", [True, False])
def test_a_shift_of_the_noise_changes_nothing(spread, detach):
    s, t, noise = logits().requires_grad_(), logits(), torch.randn(4, 7, dtype=torch.float64)
    options = {"spread": spread, "detach_statistics": detach, "strength": 0.4}
    loss = nld(s, t, noise=noise, **options)
    moved = nld(s, t, noise=noise + torch.randn(4, 1, dtype=torch.float64), **options)
    assert_close(moved, loss)
    if detach:
        assert_close(gradient(moved, s), gradient(loss, s))


@pytest.mark.parametrize("detach", [True, False])
def test_the_mean_of_the_noise_is_without_effect(detach):
    # The same smoothing with any other number in place of mean(z), in value and in gradient.
    s, t, noise = logits().requires_grad_(), logits(), torch.randn(4, 7, dtype=torch.float64)
    loss = nld(s, t, noise=noise, strength=0.4, detach_statistics=detach)
    std = s.std(1, keepdim=True)
    for mean in (0.0, 123.0):
        e = mean + (std.detach() if detach else std) * noise
        q = Categorical(logits=(s + 0.4 * e) / 2)
        other = 4 * kl_divergence(Categorical(logits=t / 2), q).mean()
        assert_close(other, loss)
        assert_close(gradient(other, s), gradient(loss, s))


@pytest.mark.parametrize("mix", MIXES)
def test_detached_statistics_change_the_gradient_only(mix):
    s, t, noise = logits().requires_grad_(), logits(), torch.randn(4, 7, dtype=torch.float64)
    options = {"noise": noise, "mix": mix, "strength": 0.5}
    on, off = (nld(s, t, detach_statistics=d, **options) for d in (True, False))
    assert torch.equal(on, off)
    assert (gradient(on, s) - gradient(off, s)).abs().max() > 1e-3
    assert torch.equal(gradient(nld(s, t, **options), s), gradient(on, s)), "True is the default"


@pytest.mark.parametrize("mix", MIXES)
def test_several_draws_are_the_mean_of_single_ones(mix):
    s, t = logits().requires_grad_(), logits()
    noise = torch.randn(5, 4, 7, dtype=torch.float64)
    together = nld(s, t, noise=noise, mix=mix)
    single = torch.stack([nld(s, t, noise=n, mix=mix) for n in noise]).mean()
    assert_close(together, single)
    assert_close(gradient(together, s), gradient(single, s))
    assert nld(s, t, noise=noise[0], mix=mix) != nld(s, t, noise=noise[1], mix=mix)


def test_draws_come_from_the_generator():
    s, t = logits(), logits()

    def draw(seed, draws=1):
        return nld(s, t, strength=0.5, draws=draws, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert draw(1) != draw(2)
    state = torch.get_rng_state()
    draw(1)
    assert torch.equal(torch.get_rng_state(), state), "a generator of its own leaves others alone"
    noise = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_close(draw(1, 3), nld(s, t, strength=0.5, noise=noise))
    assert nld(s, t) != nld(s, t), "without one, every call draws anew"


def test_noise_is_standard_normal_times_the_spread():
    # Large batch, so the mean loss settles: many draws of one sample against the reference's.
    s, t = logits(1), logits(1)
    got = nld(s, t, strength=0.5, draws=20_000)
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.standard_normal((20_000, 7)))
    want = nld_reference(
        s.expand(20_000, -1), t.expand(20_000, -1), noise, 0.5, 2.0, "std", "logits"
    )
    assert_close(got, want, rtol=0.05, atol=0)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("detach", [True, False])
def test_flat_logits_give_finite_gradients(spread, mix, detach):
    # A silent student has equal logits: the standard deviation's slope at 0 is infinite.
    s = torch.zeros(3, 5, requires_grad=True)
    loss = nld(s, torch.randn(3, 5), spread=spread, mix=mix, detach_statistics=detach)
    assert loss.isfinite() and gradient(loss, s).isfinite().all()


# ---------------------------------------------------------------- what all of them share

LOSSES = {
    "kd": (logits, kd),
    **{f"samd-{h}": (maps, lambda s, t, h=h: samd(s, t, normalise=h)) for h in SCALINGS},
    **{
        f"nld-{m}-{w}-{d}": (
            logits,
            lambda s, t, m=m, w=w, d=d: nld(
                s,
                t,
                mix=m,
                spread=w,
                detach_statistics=d,
                strength=0.3,
                noise=torch.linspace(-1.5, 1.5, s.numel()).sin().view_as(s),
            ),
        )
        for m in MIXES
        for w in SPREADS
        for d in (True, False)
    },
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_finite_differences(name):
    make, loss = LOSSES[name]
    s, t = make().requires_grad_(), make()
    if name.endswith("-True"):
        # Statistics kept out of the graph are constants: hold them, as finite differences cannot.
        mix, spread = name.split("-")[1:3]
        noise = torch.linspace(-1.5, 1.5, s.numel()).sin().view_as(s).double()
        std = s.detach().std(1, keepdim=True) ** (1 if spread == "std" else 2)
        e = s.detach().mean(1, keepdim=True) + std * noise

        def held(z):
            if mix == "logits":
                q = ((z + 0.3 * e) / 2).softmax(1)
            else:
                q = 0.7 * (z / 2).softmax(1) + 0.3 * (e / 2).softmax(1)
            return 4 * kl((t / 2).softmax(1), q)

        assert gradcheck(held, (s,))
        assert_close(gradient(loss(s, t), s), gradient(held(s), s), rtol=1e-5, atol=1e-8)
    else:
        assert gradcheck(lambda z: loss(z, t), (s,))


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_the_student_only(name):
    make, loss = LOSSES[name]
    s, t = make().requires_grad_(), make().requires_grad_()
    value = loss(s, t)
    assert value.shape == () and value.dtype == torch.float64
    value.backward()
    assert s.grad.abs().sum() > 0
    assert t.grad is None


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(name, dtype):
    make, loss = LOSSES[name]
    s, t = make().to(dtype).requires_grad_(), make().to(dtype)
    value = loss(s, t)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(s.float(), t.float()))
    assert gradient(value, s).dtype == dtype


@pytest.mark.parametrize("name", LOSSES)
def test_values_are_never_negative(name):
    make, loss = LOSSES[name]
    for _ in range(5):
        s = make()
        assert loss(s, make()) >= 0
        assert loss(s, s) >= -1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_one_sample_is_enough(name):
    make, loss = LOSSES[name]
    assert loss(make(1), make(1)).isfinite()


# ---------------------------------------------------------------- the total


def test_total_is_the_weighted_sum():
    zs, zt, ms, mt = logits(), logits(), maps(4), maps(4)
    labels, noise = torch.tensor([0, 6, 3, 2]), torch.randn(4, 7, dtype=torch.float64)
    options = {"samd_options": {"normalise": "zscore"}, "nld_options": {"noise": noise}}
    out = ckd(zs, ms, zt, mt, labels, beta=0.7, gamma=2.5, **options)
    log_p = zs.log_softmax(1)
    assert_close(out.ce, -sum(log_p[i, label] for i, label in enumerate(labels.tolist())) / 4)
    assert_close(out.samd, samd(ms, mt, normalise="zscore"))
    assert_close(out.nld, nld_reference(zs, zt, noise, 0.1, 2.0, "std", "logits"))
    assert_close(out.total, out.ce + 0.7 * out.samd + 2.5 * out.nld)
    total, ce, by_map, by_logits = ckd(zs, ms, zt, mt, labels, **options)
    assert_close(total, ce + by_map + by_logits)
    off = ckd(zs, ms, zt, mt, labels, beta=0.0, gamma=0.0, **options)
    assert_close(off.total, F.cross_entropy(zs, labels))


def test_total_reaches_the_student_only():
    zs, ms = logits().requires_grad_(), maps(4).requires_grad_()
    zt, mt = logits().requires_grad_(), maps(4).requires_grad_()
    ckd(zs, ms, zt, mt, torch.tensor([0, 6, 3, 2])).total.backward()
    assert zs.grad.abs().sum() > 0 and ms.grad.abs().sum() > 0
    assert zt.grad is None and mt.grad is None


def test_total_in_mixed_precision():
    zs, ms = logits(dtype=torch.float32).bfloat16(), maps(4, dtype=torch.float32)
    zt, mt = logits(dtype=torch.float32), maps(4, dtype=torch.float32).half()
    out = ckd(zs, ms, zt, mt, torch.tensor([0, 6, 3, 2]))
    assert all(term.dtype == torch.float32 and term.isfinite() for term in out)


# ---------------------------------------------------------------- messages

PAIRS = {
    "kd": kd,
    "nld": nld,
    "ckd": lambda s, t: ckd(s, maps(2), t, maps(2), torch.zeros(2, dtype=torch.long)),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", PAIRS)
def test_bad_logits(name):
    loss, s = PAIRS[name], torch.randn(2, 5)
    with pytest.raises(ValueError, match=r"\[4, 2, 5\].*wanted \[B, K\].*logits\.mean\(0\)"):
        loss(torch.randn(4, 2, 5), s)
    with pytest.raises(ValueError, match=r"student \[2, 5\] and teacher \[2, 6\]"):
        loss(s, torch.randn(2, 6))
    with pytest.raises(ValueError, match=r"student \[2, 5\] and teacher \[3, 5\]"):
        loss(s, torch.randn(3, 5))
    with pytest.raises(ValueError, match=r"student \[2, 5\] and teacher \[4, 2, 5\]"):
        loss(s, torch.randn(4, 2, 5))
    with pytest.raises(ValueError, match=r"student \[5\]"):
        loss(s[0], s[0])
    with pytest.raises(ValueError, match="nothing empty"):
        loss(s[:0], s[:0])
    with pytest.raises(ValueError, match="nothing empty"):
        loss(s[:, :0], s[:, :0])
    with pytest.raises(TypeError, match=r"student logits: got torch\.int64"):
        loss(s.long(), s)
    with pytest.raises(TypeError, match=r"teacher logits: got torch\.int64"):
        loss(s, s.long())


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["kd", "nld", "samd"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_input_that_is_not_finite_is_named(name, bad):
    loss = {"samd": samd, **PAIRS}[name]
    for scaling in SCALINGS if name == "samd" else [None]:
        options = {"normalise": scaling} if scaling else {}
        good = maps() if name == "samd" else logits()
        broken = good.clone()
        broken.flatten()[3] = bad
        with pytest.raises(ValueError, match="student held NaN or infinity, wanted finite"):
            loss(broken, good, **options)
        with pytest.raises(ValueError, match="teacher held NaN or infinity, wanted finite"):
            loss(good, broken, **options)
        with pytest.raises(ValueError, match="student and teacher held"):
            loss(broken, broken, **options)


@pytest.mark.bad_input
@pytest.mark.parametrize("loss", [kd, nld, samd], ids=lambda f: f.__name__)
@pytest.mark.parametrize("tau", [0, 0.0, -1.0, float("nan"), float("inf")])
def test_bad_temperature(loss, tau):
    x = maps() if loss is samd else logits()
    with pytest.raises(ValueError, match=f"temperature: got {tau}, wanted a finite number above 0"):
        loss(x, x, temperature=tau)


@pytest.mark.bad_input
def test_bad_maps():
    m = maps()
    with pytest.raises(ValueError, match=r"student \[3, 4, 5\], teacher \[3, 4, 4\].*interpolate"):
        samd(m, maps(3, 4, 4))
    with pytest.raises(ValueError, match=r"student \[3, 4, 5\], teacher \[2, 4, 5\]"):
        samd(m, maps(2))
    with pytest.raises(ValueError, match=r"student \[2, 3, 4, 5\].*wanted \[B, H, W\]"):
        samd(torch.stack([m, m]), m)
    with pytest.raises(ValueError, match="nothing empty"):
        samd(m[:0], m[:0])
    with pytest.raises(TypeError, match=r"teacher: got torch\.int64"):
        samd(m, m.long())
    for call in (lambda: normalise_maps(m, "x"), lambda: samd(m, m, normalise="x")):
        with pytest.raises(ValueError, match="got 'x', wanted 'none', 'sample', 'batch' or 'zsc"):
            call()
    with pytest.raises(ValueError, match="nothing empty"):
        normalise_maps(m[:0])


@pytest.mark.bad_input
def test_bad_nld():
    s = torch.randn(2, 5)
    for strength in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"strength: got {strength}, wanted a number from 0"):
            nld(s, s, strength=strength)
    with pytest.raises(ValueError, match=r"strength: got 1\.5, wanted a number from 0 to 1"):
        nld(s, s, strength=1.5, mix="probabilities")
    assert nld(s, s, strength=1.5).isfinite()  # as logits it may be as strong as it likes
    with pytest.raises(ValueError, match="got 1 class, wanted at least 2"):
        nld(s[:, :1], s[:, :1])
    with pytest.raises(ValueError, match="spread: got 'x', wanted 'std' or 'variance'"):
        nld(s, s, spread="x")
    with pytest.raises(ValueError, match="mix: got 'x', wanted 'logits' or 'probabilities'"):
        nld(s, s, mix="x")
    with pytest.raises(ValueError, match="draws: got 0, wanted a whole number of at least 1"):
        nld(s, s, draws=0)
    for shape in ((2, 4), (1, 5), (5,), (3, 1, 5), (1, 1, 2, 5)):
        with pytest.raises(ValueError, match=r"noise: got shape .*wanted \[2, 5\] or \[N, B, K\]"):
            nld(s, s, noise=torch.zeros(shape))
    with pytest.raises(ValueError, match="noise held NaN or infinity"):
        nld(s, s, noise=torch.full((2, 5), float("nan")))


@pytest.mark.bad_input
def test_maps_and_logits_of_different_batches():
    z, m = torch.randn(2, 5), maps(3)
    with pytest.raises(ValueError, match="maps.*3.*logits.*2"):
        ckd(z, m, z, m, torch.tensor([0, 4]))


@pytest.mark.bad_input
def test_bad_total():
    z, m, labels = torch.randn(2, 5), maps(2), torch.tensor([0, 4])
    for name in ("beta", "gamma"):
        for weight in (-1.0, float("nan")):
            with pytest.raises(ValueError, match=f"{name}: got {weight}, wanted a finite weight"):
                ckd(z, m, z, m, labels, **{name: weight})
    with pytest.raises(ValueError, match="labels: got values from 0 to 5, wanted 0 to 4"):
        ckd(z, m, z, m, torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="labels: got values from -100 to 0, wanted 0 to 4"):
        ckd(z, m, z, m, torch.tensor([-100, 0]))
    with pytest.raises(ValueError, match=r"labels: got shape \[3\], wanted \[2\]"):
        ckd(z, m, z, m, torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match=r"labels: got torch\.float32, wanted whole numbers"):
        ckd(z, m, z, m, torch.tensor([0.0, 1.0]))
    with pytest.raises(TypeError, match=r"labels: got torch\.bool"):
        ckd(z, m, z, m, torch.tensor([True, False]))


@pytest.mark.bad_input
def test_maps_to_scale_that_are_not_finite():
    with pytest.raises(ValueError, match="maps: got NaN or infinity"):
        normalise_maps(torch.full((1, 2, 2), float("inf")))


def test_zscore_of_a_tiny_map():
    m = torch.rand(2, 4, 4)
    assert_close(normalise_maps(1e-23 * m, "zscore"), normalise_maps(m, "zscore"))


def test_labels_of_any_whole_kind():
    z, m = logits(), maps()
    labels = torch.arange(len(z)) % z.shape[1]
    if len(m) == len(z):
        wanted = ckd(z, m, z, m, labels, nld_options={"strength": 0}).total
        for kind in (torch.uint8, torch.int16, torch.int32):
            got = ckd(z, m, z, m, labels.to(kind), nld_options={"strength": 0}).total
            assert_close(got, wanted)


# ---------------------------------------------------------------- features


def features(batch=3, channels=4, side=5, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, side, side, generator=draw, dtype=dtype)


def test_feature_mse_number_by_number():
    s, t = features(seed=1).requires_grad_(), features(seed=2).requires_grad_()
    loss = feature_mse(s, t)
    assert loss.item() == pytest.approx(((s - t) ** 2).sum().item() / s.numel())
    loss.backward()
    assert torch.allclose(s.grad, 2 * (s - t).detach() / s.numel()) and t.grad is None


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_attention_transfer_by_hand(power):
    s, t = features(channels=4, seed=1).requires_grad_(), features(channels=7, seed=2)
    want = 0.0
    for one, other in zip(s, t, strict=True):
        maps = []
        for x in (one, other):
            q = sum(channel.abs() ** power for channel in x).flatten()
            maps.append(q / (q**2).sum() ** 0.5)
        want += ((maps[0] - maps[1]) ** 2).sum() ** 0.5 / len(s)
    loss = attention_transfer(s, t, power=power)
    assert loss.item() == pytest.approx(want.item())
    (own,) = torch.autograd.grad(loss, s, retain_graph=True)
    (by_hand,) = torch.autograd.grad(want, s)
    assert torch.allclose(own, by_hand)


def test_attention_transfer_does_not_see_scale_or_which_channel():
    s, t = features(seed=1), features(seed=2)
    loss = attention_transfer(s, t)
    assert torch.allclose(attention_transfer(5 * s, t), loss)
    assert torch.allclose(attention_transfer(s.flip(1), t), loss)
    assert attention_transfer(s, 3 * s).item() == pytest.approx(0, abs=1e-12)


def test_a_silent_student_and_the_goal_itself_have_finite_gradients():
    for s in (torch.zeros(2, 4, 5, 5), features(2, dtype=torch.float32)):
        s.requires_grad_()
        attention_transfer(s, features(2, dtype=torch.float32)).backward()
        assert s.grad.isfinite().all()


@pytest.mark.bad_input
@pytest.mark.parametrize("loss", [feature_mse, attention_transfer])
def test_features_that_do_not_fit(loss):
    good = features()
    for bad in (features(side=4), features(batch=2), good[0], torch.zeros(0, 4, 5, 5)):
        with pytest.raises(ValueError, match=r"features: got student .*, wanted \[B"):
            loss(good, bad)
    with pytest.raises(ValueError, match=r"average spikes over time first"):
        loss(good[None], good)
    with pytest.raises(TypeError, match="student features: got torch.int64"):
        loss(good.long(), good)
    with pytest.raises(ValueError, match="teacher held NaN or infinity"):
        loss(good, good / 0)
    if loss is feature_mse:
        with pytest.raises(ValueError, match=r"wanted \[B C H W\]"):
            loss(good, features(channels=7))
    else:
        with pytest.raises(ValueError, match="power: got -1"):
            loss(good, good, power=-1)
