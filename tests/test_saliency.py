"""Maps against Captum, SciPy, plain loops and cases small enough to work out by hand."""

import math

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from scipy import stats
from scipy.spatial import distance
from torch import nn
from torch.testing import assert_close
from torchvision import models

from ckdlite.networks import record, resnet8
from ckdlite.saliency import (
    cam,
    grad_cam,
    map_divergence,
    mask_overlap,
    pointing_game,
    rank_correlation,
    spike_map,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    nets = {
        "resnet8": resnet8(),
        "resnet18": models.resnet18(num_classes=10),
        "squeezenet": models.squeezenet1_1(num_classes=10),
        "mobilenet": models.mobilenet_v2(num_classes=10),
    }
    for net in nets.values():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.running_mean, -0.2, 0.2)
                nn.init.uniform_(m.weight, 0.6, 1.4)
        net.eval()
    return nets


# ---------------------------------------------------------------- Grad-CAM

LAYERS = [
    ("resnet8", "stem"),
    ("resnet8", "stage1"),
    ("resnet8", "stage2.0.conv1"),
    ("resnet8", "stage3"),
    ("resnet18", "conv1"),
    ("resnet18", "layer1.0.conv2"),
    ("resnet18", "layer2"),
    ("resnet18", "layer4"),
    # torchvision writes over what these return: `out += identity`, `ReLU(inplace=True)`.
    ("resnet18", "bn1"),
    ("resnet18", "layer4.1.bn2"),
    ("squeezenet", "features.3"),
    ("squeezenet", "features.12"),
    ("squeezenet", "features.4.expand3x3"),
    ("mobilenet", "features.5"),
    ("mobilenet", "features.18"),
]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("name", "where"), LAYERS)
def test_grad_cam_equals_captum(networks, name, where, relu):
    model = networks[name]
    images = torch.randn(3, 3, 64, 64)
    peer = LayerGradCam(model, model.get_submodule(where))
    plain = model(images).detach()
    for target in (torch.tensor([0, 7, 3]), None):
        maps, logits = grad_cam(model, where, images, target, relu=relu)
        chosen = plain.argmax(1) if target is None else target
        want = peer.attribute(images, chosen, relu_attributions=relu)[:, 0].detach()
        assert torch.equal(logits, plain)
        # Small numbers: compare relative to the map's size before ReLU, which may leave nothing.
        size = peer.attribute(images, chosen).detach().abs().max()
        assert size > 0
        assert_close(maps / size, want / size, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("name", "where", "head"), [("resnet8", "stage3", "head"), ("resnet18", "layer4", "fc")]
)
def test_cam_is_grad_cam_times_the_area(networks, name, where, head, relu):
    # After global pooling and one linear layer, dy_k/dA[c,h,w] = weight[k,c] / (H W).
    model = networks[name]
    images, target = torch.randn(3, 3, 64, 64), torch.tensor([1, 9, 4])
    maps, _ = grad_cam(model, where, images, target, relu=relu)
    with torch.no_grad(), record(model, where) as features:
        model(images)
    plain = cam(features[where], model.get_submodule(head).weight, target, relu=relu).detach()
    assert_close(maps * maps[0].numel(), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relu", [True, False])
def test_cam_equals_plain_loops(relu):
    features, weight, target = torch.randn(2, 3, 2, 4), torch.randn(5, 3), torch.tensor([4, 0])
    want = np.zeros((2, 2, 4))
    for b in range(2):
        for h in range(2):
            for w in range(4):
                total = sum(float(weight[target[b], c] * features[b, c, h, w]) for c in range(3))
                want[b, h, w] = max(total, 0.0) if relu else total
    assert_close(cam(features, weight, target, relu=relu).double(), torch.from_numpy(want))


def test_cam_lets_the_gradient_through():
    features = torch.randn(2, 3, 2, 4, requires_grad=True)
    cam(features, torch.randn(5, 3), torch.tensor([4, 0])).sum().backward()
    assert features.grad.abs().sum() > 0


@pytest.mark.parametrize("target", [None, torch.tensor([1, 2])])
def test_one_forward_pass_and_no_gradient_left(networks, target):
    model = resnet8().eval()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    maps, logits = grad_cam(model, "stage2", images, target)
    assert len(calls) == 1
    assert all(p.grad is None for p in model.parameters()) and images.grad is None
    assert all(p.requires_grad for p in model.parameters())
    assert not maps.requires_grad and not logits.requires_grad
    assert maps.shape == (2, 8, 8) and logits.shape == (2, 10)
    assert not any(m._forward_hooks for m in model.stage2.modules())


def test_frozen_parameters_make_no_difference(networks):
    images, target = torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    model = resnet8().eval()
    want, _ = grad_cam(model, "stage2", images, target)
    got, _ = grad_cam(model.requires_grad_(False), "stage2", images, target)
    assert torch.equal(got, want)


@pytest.mark.parametrize("grad", [True, False])
def test_grad_mode_is_the_callers(grad):
    model = resnet8().eval()
    images = torch.randn(2, 3, 16, 16)
    want, _ = grad_cam(model, "stage3", images)
    with torch.set_grad_enabled(grad):
        got, _ = grad_cam(model, "stage3", images)
        assert torch.is_grad_enabled() == grad
        for bad in (
            lambda: grad_cam(model, "head", images),
            lambda: grad_cam(model, "stage3", images, torch.tensor([0, 10])),
            lambda: grad_cam(model, "stage3", images[:, :2]),
        ):
            with pytest.raises(ValueError):
                bad()
            assert torch.is_grad_enabled() == grad
            assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(got, want) and got.abs().sum() > 0


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_the_callers(training):
    model = resnet8().train(training)
    before = model.stem[1].running_mean.clone()
    grad_cam(model, "stage3", torch.randn(2, 3, 16, 16))
    assert all(m.training == training for m in model.modules())
    assert torch.equal(before, model.stem[1].running_mean) != training


def test_grad_cam_of_an_empty_batch():
    maps, logits = grad_cam(resnet8().eval(), "stage2", torch.zeros(0, 3, 16, 16))
    assert maps.shape == (0, 8, 8) and logits.shape == (0, 10)


def test_maps_enter_a_loss():
    # A tensor made in inference mode could not; these must.
    maps, _ = grad_cam(resnet8().eval(), "stage3", torch.randn(2, 3, 16, 16))
    weight = torch.ones(1, requires_grad=True)
    (weight * maps).sum().backward()
    assert torch.equal(weight.grad, maps.sum()[None])


# ---------------------------------------------------------------- the spike map


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_spike_map_equals_plain_loops(reduce):
    spikes = (torch.rand(3, 2, 4, 2, 5) < 0.3).float()
    whole, steps = np.zeros((2, 2, 5)), np.zeros((3, 2, 2, 5))
    for t, b, c, h, w in np.ndindex(3, 2, 4, 2, 5):
        whole[b, h, w] += spikes[t, b, c, h, w]
        steps[t, b, h, w] += spikes[t, b, c, h, w]
    if reduce == "mean":
        whole, steps = whole / (3 * 4), steps / 4
    got, per_step = (
        spike_map(spikes, reduce=reduce),
        spike_map(spikes, reduce=reduce, per_step=True),
    )
    assert_close(got.double(), torch.from_numpy(whole))
    assert_close(per_step.double(), torch.from_numpy(steps))
    together = per_step.sum(0) if reduce == "sum" else per_step.mean(0)
    assert_close(together, got)


@pytest.mark.parametrize(("dtype", "count"), [(torch.bfloat16, 512), (torch.float16, 4096)])
def test_half_precision_counts_every_spike(dtype, count):
    # 257 is not a bfloat16 and 2,049 not a float16: a sum kept in them would stand still.
    spikes = torch.ones(1, 1, count + 1, 1, 1, dtype=dtype)
    assert spike_map(spikes).item() == count + 1
    assert spike_map(spikes).dtype == torch.float32
    assert spike_map(spikes, per_step=True).item() == count + 1
    assert spike_map(spikes, reduce="mean").item() == 1
    assert spike_map(spikes.double()).dtype == torch.float64


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_gradient_reaches_the_spikes(reduce, per_step):
    spikes = torch.rand(2, 2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    maps = spike_map(spikes, reduce=reduce, per_step=per_step)
    upstream = torch.randn_like(maps)
    maps.backward(upstream)
    want = (upstream[:, :, None] if per_step else upstream[None, :, None]).expand_as(spikes)
    if reduce == "mean":
        want = want / (3 if per_step else 6)
    assert_close(spikes.grad, want)


def test_student_map_from_a_student():
    model = resnet8(timesteps=2).eval()
    with record(model, "stage3") as features:
        model(torch.randn(2, 3, 16, 16))
    maps = spike_map(features["stage3"])
    assert maps.shape == (2, 4, 4)
    assert maps.requires_grad and maps.max() <= 2 * 64 and bool((maps == maps.round()).all())


# ---------------------------------------------------------------- scores


def left_half(batch, height, width):
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    mask[:, :, : width // 2] = True
    return mask


def test_pointing_game_by_hand():
    maps = torch.tensor(
        [
            [[0.1, 0.2], [0.9, 0.3]],  # highest at the left: a hit
            [[0.1, 0.9], [0.2, 0.3]],  # at the right: a miss
            [[0.9, 0.9], [0.9, 0.1]],  # three tie, two of them on the left
            [[-3.0, -2.0], [-1.0, -2.0]],  # the highest may be negative
            [[0.0, 0.0], [0.0, 0.0]],  # flat: the mask's area
        ]
    )
    score = pointing_game(maps, left_half(5, 2, 2))
    assert_close(score, torch.tensor([1, 0, 2 / 3, 1, 1 / 2]))
    assert pointing_game(maps[:1], torch.zeros(1, 2, 2, dtype=torch.bool)).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [4, 9])
def test_half_precision_maps_are_scored_in_float32(dtype, size):
    maps, mask = torch.rand(6, 4, 4).to(dtype), torch.rand(6, size, size) < 0.5
    for score in (pointing_game, mask_overlap):
        assert torch.equal(score(maps, mask), score(maps.float(), mask))


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 1 / 3, -0.7, 1e-12, 1e6])
@pytest.mark.parametrize(("small", "large"), [(7, 28), (8, 28), (5, 28), (7, 7), (4, 32)])
def test_a_flat_map_scores_the_area(small, large, value):
    # Interpolating a constant rounds: without care, some of the equal positions win by one bit.
    mask = torch.rand(2, large, large) < 0.3
    flat = torch.full((2, small, small), value)
    area = mask.float().mean((1, 2))
    assert_close(pointing_game(flat, mask), area)
    if value >= 0:
        assert_close(mask_overlap(flat, mask), area)


def bilinear(values, size):
    """Bilinear, corners not aligned, on a list of numbers, written out in plain Python."""
    n, out = len(values), []
    for i in range(size):
        at = max((i + 0.5) * n / size - 0.5, 0.0)
        low = int(at)
        high = min(low + 1, n - 1)
        out.append(values[low] * (1 - (at - low)) + values[high] * (at - low))
    return out


def test_maps_are_resampled_to_the_mask():
    # 2 values to 4: at -0.25 -> 0 (edge), 0.25, 0.75, 1.25 -> 1 (edge).
    assert bilinear([0.0, 1.0], 4) == [0.0, 0.25, 0.75, 1.0]
    row = [0.2, 0.9, 0.4]
    maps = torch.tensor([[row]])  # one row of three
    wide = bilinear(row, 9)
    for i in range(9):
        mask = torch.zeros(1, 1, 9, dtype=torch.bool)
        mask[0, 0, i] = True
        assert mask_overlap(maps, mask).item() == pytest.approx(wide[i] / sum(wide), rel=1e-5)
        assert pointing_game(maps, mask).item() == float(wide[i] == max(wide))


def test_resampling_in_two_directions():
    maps = torch.rand(1, 3, 4, dtype=torch.float64)
    rows = [bilinear(row, 10) for row in maps[0].tolist()]
    want = torch.tensor([bilinear(list(c), 7) for c in zip(*rows, strict=True)]).double().T
    mask = torch.rand(1, 7, 10) < 0.4
    assert_close(mask_overlap(maps, mask)[0], want[mask[0]].sum() / want.sum(), rtol=1e-5, atol=0)


def test_mask_overlap_by_hand():
    maps = torch.tensor(
        [
            [[1.0, 2.0], [3.0, 4.0]],  # left column: (1 + 3) / 10
            [[0.0, 2.0], [0.0, 4.0]],  # nothing on the left
            [[5.0, 0.0], [0.1, 0.0]],  # all of it
            [[0.0, 0.0], [0.0, 0.0]],  # nothing anywhere counts as even
        ]
    )
    assert_close(mask_overlap(maps, left_half(4, 2, 2)), torch.tensor([0.4, 0.0, 1.0, 0.5]))


def test_map_divergence_equals_scipy():
    a = torch.rand(4, 5, 6, dtype=torch.float64) ** 4
    b = torch.rand(4, 5, 6, dtype=torch.float64) ** 4
    a[0, 0], b[0, :, 1] = 0, 0  # zeros: 0 log 0 = 0
    want = [
        distance.jensenshannon(p.ravel(), q.ravel(), base=math.e) ** 2
        for p, q in zip(a.numpy(), b.numpy(), strict=True)
    ]
    assert_close(map_divergence(a, b), torch.tensor(want).double())
    assert_close(map_divergence(b, a), map_divergence(a, b))
    assert_close(map_divergence(7 * a, b), map_divergence(a, b))


def test_map_divergence_bounds():
    a, b = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
    a[0, 0, 0], b[0, 1, 1] = 2, 5  # disjoint
    a[1], b[1] = torch.rand(2, 2), 0
    b[1] = 3 * a[1]  # equal shares
    b[2] = 1  # nothing against even: nothing counts as even
    assert_close(map_divergence(a, b), torch.tensor([math.log(2), 0, 0]), atol=1e-6, rtol=1e-6)
    assert map_divergence(a, b).min() >= 0


def test_rank_correlation_equals_scipy():
    a, b = torch.randn(5, 4, 5, dtype=torch.float64), torch.randn(5, 4, 5, dtype=torch.float64)
    a[1], b[1] = a[1].round(), b[1].round()  # many ties
    b[2] = a[2] ** 3  # the same order
    b[3] = -a[3]
    a[4] = (a[4] > 0).double()  # two values only
    want = [
        stats.spearmanr(p.ravel(), q.ravel()).statistic
        for p, q in zip(a.numpy(), b.numpy(), strict=True)
    ]
    got = rank_correlation(a, b)
    assert_close(got, torch.tensor(want).double())
    assert_close(got[2:4], torch.tensor([1.0, -1.0]).double())


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_flat_map_has_no_rank_correlation(value):
    a, b = torch.full((2, 3, 3), value), torch.rand(2, 3, 3)
    a[1] = torch.rand(3, 3)
    got = rank_correlation(a, b)
    assert got[0].isnan() and got[1].isfinite()


def test_scores_take_maps_in_any_layout():
    a, b = torch.rand(2, 6, 4).transpose(1, 2), torch.rand(2, 4, 12)[..., ::2]
    c, d = a.contiguous(), b.contiguous()
    assert torch.equal(rank_correlation(a, b), rank_correlation(c, d))
    assert_close(map_divergence(a, b), map_divergence(c, d))
    mask = torch.rand(2, 4, 6) < 0.5
    assert torch.equal(pointing_game(a, mask), pointing_game(c, mask))


# ---------------------------------------------------------------- messages


class Twice(nn.Module):
    """A layer that runs twice, one that never runs and one whose output leads nowhere."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.once = nn.Conv2d(3, 3, 1)
        self.unused = nn.Conv2d(3, 3, 1)
        self.aside = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        self.aside(x)
        return self.once(self.conv(self.conv(x))).mean((2, 3))


@pytest.mark.bad_input
def test_bad_grad_cam():
    model, images = resnet8().eval(), torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"'stage33'.*near.*stage3"):
        grad_cam(model, "stage33", images)
    with pytest.raises(ValueError, match=r"'head' gave \[2, 10\].*wanted \[B, C, H, W\]"):
        grad_cam(model, "head", images)
    with pytest.raises(ValueError, match=r"from 0 to 10, wanted 0 to 9"):
        grad_cam(model, "stage3", images, torch.tensor([0, 10]))
    with pytest.raises(ValueError, match=r"from -1 to 0, wanted 0 to 9"):
        grad_cam(model, "stage3", images, torch.tensor([0, -1]))
    with pytest.raises(ValueError, match=r"labels: got shape \[3\], wanted \[2\]"):
        grad_cam(model, "stage3", images, torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match=r"labels: got torch\.float32, wanted whole numbers"):
        grad_cam(model, "stage3", images, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"'stage3' gave \[2, 2, 64, 4, 4\].*spike_map"):
        grad_cam(resnet8(timesteps=2).eval(), "stage3", images)


@pytest.mark.bad_input
def test_layers_that_have_no_grad_cam():
    model, images = Twice(), torch.randn(2, 3, 4, 4)
    grad_cam(model, "once", images)
    with pytest.raises(ValueError, match="'conv' ran 2 times in one forward pass, wanted once"):
        grad_cam(model, "conv", images)
    with pytest.raises(ValueError, match="'unused' ran 0 times"):
        grad_cam(model, "unused", images)
    with pytest.raises(ValueError, match="logits do not depend on layer 'aside'"):
        grad_cam(model, "aside", images)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.bad_input
def test_grad_cam_of_a_layer_that_gives_a_tuple():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)[0].mean((2, 3))

    with pytest.raises(ValueError, match="'pair' gave a tuple, wanted one tensor"):
        grad_cam(Net(), "pair", torch.randn(2, 3, 4, 4))


@pytest.mark.bad_input
def test_grad_cam_in_inference_mode():
    model = resnet8().eval()
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode; wanted no_grad"):
        grad_cam(model, "stage3", torch.randn(1, 3, 16, 16))
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.bad_input
def test_bad_cam():
    features, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"got \[2, 3, 4, 4\] and \[5, 4\].*one C"):
        cam(features, torch.randn(5, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"\[3, 4, 4\] and \[5, 3\]"):
        cam(features[0], weight, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="from 0 to 5, wanted 0 to 4"):
        cam(features, weight, torch.tensor([0, 5]))


@pytest.mark.bad_input
def test_bad_spikes():
    with pytest.raises(ValueError, match=r"got shape \[2, 3, 4, 4\], wanted \[T, B, C, H, W\]"):
        spike_map(torch.ones(2, 3, 4, 4))
    with pytest.raises(ValueError, match="T >= 1"):
        spike_map(torch.ones(0, 2, 3, 4, 4))
    with pytest.raises(ValueError, match="reduce: got 'max', wanted 'sum' or 'mean'"):
        spike_map(torch.ones(1, 2, 3, 4, 4), reduce="max")


@pytest.mark.bad_input
@pytest.mark.parametrize("score", [pointing_game, mask_overlap])
def test_bad_maps_and_masks(score):
    maps, masks = torch.rand(2, 3, 3), torch.ones(2, 6, 6, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"masks: got shape \[3, 6, 6\], wanted \[2, H, W\]"):
        score(maps, torch.ones(3, 6, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"masks: got shape \[6, 6\]"):
        score(maps, masks[0])
    with pytest.raises(TypeError, match=r"masks: got torch\.float32, wanted torch\.bool"):
        score(maps, masks.float())
    with pytest.raises(ValueError, match=r"got maps \[2, 1, 3, 3\], wanted \[B, H, W\]"):
        score(maps[:, None], masks)
    with pytest.raises(ValueError, match="nothing empty"):
        score(maps[:0], masks[:0])
    with pytest.raises(TypeError, match=r"torch\.int64.*floating-point"):
        score(maps.long(), masks)
    for bad in (float("nan"), float("inf")):
        broken = maps.clone()
        broken[1, 0, 0] = bad
        with pytest.raises(ValueError, match="NaN or infinity, wanted finite"):
            score(broken, masks)


@pytest.mark.bad_input
def test_negative_maps_have_no_overlap():
    maps = torch.rand(1, 3, 3)
    maps[0, 1, 1] = -0.25
    with pytest.raises(ValueError, match=r"got a value of -0\.25, wanted none below 0"):
        mask_overlap(maps, torch.ones(1, 3, 3, dtype=torch.bool))


@pytest.mark.bad_input
@pytest.mark.parametrize("score", [map_divergence, rank_correlation])
def test_bad_pairs_of_maps(score):
    a = torch.rand(2, 3, 3)
    with pytest.raises(ValueError, match=r"a \[2, 3, 3\], b \[2, 4, 4\].*interpolate"):
        score(a, torch.rand(2, 4, 4))
    with pytest.raises(ValueError, match="nothing empty"):
        score(a[:0], a[:0])
    with pytest.raises(TypeError, match=r"b: got torch\.int64"):
        score(a, a.long())
    broken = a.clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="map b: .*finite"):
        score(a, broken)


@pytest.mark.bad_input
def test_divergence_of_negative_maps():
    a = torch.rand(2, 3, 3)
    with pytest.raises(ValueError, match="map b: wanted finite numbers, none below 0"):
        map_divergence(a, a - 0.5)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_whole_kind(kind):
    weight, features = torch.arange(6.0).view(3, 2), torch.ones(3, 2, 1, 1)
    assert cam(features, weight, torch.tensor([1, 1, 2], dtype=kind)).flatten().tolist() == [
        5,
        5,
        9,
    ]
    model, x = resnet8().eval(), torch.randn(2, 3, 16, 16)
    maps, _ = grad_cam(model, "stage3", x, torch.tensor([1, 2], dtype=kind))
    assert torch.equal(maps, grad_cam(model, "stage3", x, torch.tensor([1, 2]))[0])


def test_grad_cam_under_autocast_is_summed_in_float32():
    model, x, y = resnet8().eval(), torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        maps, _ = grad_cam(model, "stage3", x, y)
    assert maps.dtype == torch.float32


@pytest.mark.bad_input
def test_maps_of_values_that_are_not_finite():
    nan, y = float("nan"), torch.tensor([0])
    with pytest.raises(ValueError, match="cam: got NaN or infinity"):
        cam(torch.full((1, 2, 3, 3), nan), torch.ones(2, 2), y)
    with pytest.raises(ValueError, match="spikes: got NaN or infinity"):
        spike_map(torch.full((1, 1, 2, 3, 3), nan))
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="grad_cam: got NaN or infinity"):
        grad_cam(model, "0", torch.full((1, 1, 3, 3), nan), y)
