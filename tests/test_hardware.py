"""To hardware: batch norm folded, the graph and its file, the same spikes in other simulators."""

import contextlib
import importlib
import io
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ckdlite import data
from ckdlite.lif import LIF, lif
from ckdlite.networks import ResNet, pretrained, record, resnet8, resnet20

nir = pytest.importorskip("nir")

from ckdlite import hardware  # noqa: E402

STUDENTS = ("label-only", "samd", "nld", "distilled")


def layers(student):
    """The names of the LIF layers."""
    return [name for name, m in student.named_modules() if isinstance(m, LIF)]


def images(count=100):
    return data.normalise(data.cluttered("test", count).images)


def trained(network):
    """A network whose batch norm has something to fold."""
    draw = torch.Generator().manual_seed(0)
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2, generator=draw)
            m.running_var.uniform_(0.05, 2, generator=draw)
            m.weight.data.uniform_(0.5, 3, generator=draw)
            m.bias.data.normal_(0.3, 0.3, generator=draw)
    return network.eval()


@torch.no_grad()
def run(network, x):
    """Spikes of each LIF layer, and the logits of each step."""
    with record(network, *layers(network)) as spikes:
        logits = network(x)
    return spikes, logits


# ---------------------------------------------------------------- batch norm folded


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_folding_keeps_every_spike_in_float64(name):
    student, x = pretrained(name).double(), images(50).double()
    (before, logits), (after, folded) = run(student, x), run(hardware.fold(student), x)
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert torch.allclose(logits, folded, rtol=1e-10)
    assert before["stage3.0.act2"].any()


@pytest.mark.parametrize("name", STUDENTS)
def test_folding_moves_few_spikes_in_float32(name):
    """Rounding takes a current over the threshold here and there; what follows it changes too."""
    student, x = pretrained(name), images()
    (before, logits), (after, folded) = run(student, x), run(hardware.fold(student), x)
    moved = {n: int((before[n] != after[n]).sum()) for n in before}
    total = sum(s.numel() for s in before.values())
    print(name, sum(moved.values()), "of", total, moved)
    assert sum(moved.values()) < 1e-3 * total
    same = logits.mean(0).argmax(1) == folded.mean(0).argmax(1)
    assert same.float().mean() >= 0.97


def test_folded_weights_are_those_of_the_equation():
    student = trained(resnet8(timesteps=2))
    folded = hardware.fold(student)
    conv, norm = student.stage2[0].shortcut[1:]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = norm.bias.double() - scale * norm.running_mean.double()
    assert torch.equal(folded.stage2[0].shortcut[1].weight, weight.float())
    assert torch.equal(folded.stage2[0].shortcut[1].bias, bias.float())


def test_folding_leaves_the_network_alone():
    student = trained(resnet8(timesteps=2))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    folded = hardware.fold(student)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    now = student.state_dict()
    assert before.keys() == now.keys()
    assert all(torch.equal(before[name], now[name]) for name in before)
    assert folded.stem[0].weight.dtype == torch.float32


def test_folding_twice_is_folding_once():
    once = hardware.fold(trained(resnet8(timesteps=2)))
    twice = hardware.fold(once)
    assert twice is not once
    pairs = zip(once.parameters(), twice.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_teacher_can_be_folded_too():
    teacher, x = pretrained("teacher"), images(4)
    with torch.no_grad():
        assert torch.allclose(teacher(x), hardware.fold(teacher)(x), atol=1e-4)


# ---------------------------------------------------------------- the graph


@pytest.fixture(scope="module")
def graph():
    return hardware.to_nir(pretrained("distilled"), (32, 32))


def test_residual_sums_are_two_edges_and_all_else_is_a_chain(graph):
    into = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    assert into["stage1.0.act2"] == ["stage1.0.conv2", "stem_act"]
    assert into["stage2.0.act2"] == ["stage2.0.conv2", "stage2.0.shortcut"]
    assert into["stage2.0.pool"] == into["stage2.0.conv1"] == ["stage1.0.act2"]
    assert into["stage3.0.act2"] == ["stage3.0.conv2", "stage3.0.shortcut"]
    sums = {name for name, sources in into.items() if len(sources) == 2}
    assert sums == {f"stage{i}.0.act2" for i in (1, 2, 3)}
    assert all(len(into[name]) == 1 for name in set(into) - sums - {"input"})
    assert into["input"] == [] and into["output"] == ["head"]


def test_nodes_are_of_kinds_that_a_reader_knows(graph):
    kinds = {name: type(node) for name, node in graph.nodes.items()}
    assert [n for n, kind in kinds.items() if kind is nir.LIF] == layers(pretrained("distilled"))
    assert list(kinds.values()).count(nir.Conv2d) == 9
    pools = ["stage2.0.pool", "stage3.0.pool", "pool"]
    assert [n for n, kind in kinds.items() if kind is nir.AvgPool2d] == pools
    assert len(kinds) == 7 + 9 + 3 + len(["input", "flatten", "head", "output"])
    assert list(graph.nodes["stage3.0.act2"].v_threshold.shape) == [64, 8, 8]
    assert list(graph.nodes["output"].output_type["output"]) == [10]


def test_parameters_are_the_folded_ones(graph):
    folded = hardware.fold(pretrained("distilled"))
    conv, node = folded.stage3[0].conv1[0], graph.nodes["stage3.0.conv1"]
    assert torch.equal(torch.from_numpy(node.weight), conv.weight)
    assert torch.equal(torch.from_numpy(node.bias), conv.bias)
    assert (node.stride, node.padding) == ((2, 2), (1, 1))
    assert torch.equal(torch.from_numpy(graph.nodes["head"].weight), folded.head.weight)
    assert node.weight.dtype == np.float32


def euler(node, x, dt):
    """NIR's equation of the LIF, one step of dt after another."""
    spikes, v = [], np.zeros_like(x[0])
    for current in x:
        v = v + dt / node.tau * (node.v_leak - v + node.r * current)
        s = v > node.v_threshold
        v = np.where(s, node.v_reset, v)
        spikes.append(s)
    return np.stack(spikes)


@pytest.mark.parametrize("dt", [1e-4, 1e-3, 1.0])
@pytest.mark.parametrize(("decay", "threshold"), [(0.5, 1.0), (0.9, 0.7), (0.0, 1.0)])
def test_an_euler_step_of_the_node_is_our_neuron(decay, threshold, dt):
    student = resnet8(timesteps=2, neuron=lambda: LIF(decay=decay, threshold=threshold)).eval()
    node = hardware.to_nir(student, (8, 8), dt).nodes["stem_act"]
    x = torch.randn(50, 16, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    spikes, _ = lif(x, decay=decay, threshold=threshold)
    assert np.array_equal(euler(node, x.numpy(), dt), spikes.numpy() > 0)
    assert 0.01 < spikes.mean() < 0.99


def test_a_decay_of_a_half_is_exact(graph):
    node = graph.nodes["stem_act"]
    assert set((node.tau / hardware.DT).flat) == {2.0} and set(node.r.flat) == {2.0}
    assert not node.v_leak.any() and not node.v_reset.any()


def test_what_the_graph_leaves_out_is_said(graph):
    assert graph.metadata == {"timesteps": 4, "dt": hardware.DT}


def test_a_file_brings_everything_back(graph, tmp_path):
    path = tmp_path / "student.nir"
    hardware.write(path, graph)
    back = nir.read(path)
    assert sorted(back.edges) == sorted(graph.edges)
    assert back.nodes.keys() == graph.nodes.keys() and back.metadata == graph.metadata
    for name, node in graph.nodes.items():
        assert type(back.nodes[name]) is type(node)
        for key, value in vars(node).items():
            if isinstance(value, np.ndarray):
                again = getattr(back.nodes[name], key)
                assert again.dtype == value.dtype and np.array_equal(again, value), (name, key)


# ---------------------------------------------------------------- other simulators


def from_snntorch(graph):
    from snntorch.import_nir import import_from_nir

    with contextlib.redirect_stdout(io.StringIO()):  # it says what it looks for
        return import_from_nir(graph), lambda output: output


def from_spikingjelly(graph):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, at import
        from spikingjelly.activation_based import nir_exchange

    return nir_exchange.import_from_nir(graph, dt=hardware.DT), lambda output: output[0]


def above(graph):
    """SpikingJelly fires at the threshold, NIR and we above it: give it the next number."""
    for node in graph.nodes.values():
        if isinstance(node, nir.LIF):
            threshold = node.v_threshold.astype(np.float32)
            node.v_threshold = np.nextafter(threshold, np.float32(np.inf)).astype(np.float64)
    return graph


@torch.no_grad()
def elsewhere(reader, graph, steps):
    """Every layer's spikes and the logits of each step, as another simulator has them."""
    simulator, spikes_of = reader(graph)
    kept = {name: [] for name, node in graph.nodes.items() if isinstance(node, nir.LIF)}
    for name, spikes in kept.items():
        layer = simulator.get_submodule(name.replace(".", "_"))
        layer.register_forward_hook(
            lambda _m, _i, output, spikes=spikes: spikes.append(spikes_of(output))
        )
    state, logits = None, []
    for step in steps:
        output, state = simulator(step, state)
        logits.append(output)
    return {name: torch.stack(s) for name, s in kept.items()}, torch.stack(logits)


def same(ours, theirs):
    """Assert that every layer's spikes are equal, and the logits to rounding."""
    (spikes, logits), (others, answers) = ours, theirs
    assert spikes.keys() == others.keys()
    differ = {name: int((spikes[name] != others[name]).sum()) for name in spikes}
    assert not any(differ.values()), differ
    assert all(s.any() for s in spikes.values())
    assert torch.allclose(logits, answers, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_spikes_are_equal_in_two_simulators(name, tmp_path):
    """The shipped students, 100 test images, T = 4: from a file, layer by layer."""
    pytest.importorskip("nirtorch")
    pytest.importorskip("spikingjelly")
    student, x = pretrained(name), images()
    hardware.write(tmp_path / "student.nir", hardware.to_nir(student, x.shape[-2:]))
    ours = run(hardware.fold(student), x)
    steps = x.expand(student.timesteps, *x.shape)
    graph = nir.read(tmp_path / "student.nir")
    same(ours, elsewhere(from_snntorch, graph, steps))
    same(ours, elsewhere(from_spikingjelly, above(graph), steps))


@pytest.mark.parametrize(
    "student",
    [
        lambda: resnet20(timesteps=3, head_width=12),
        lambda: ResNet((2, 1), (6, 10), 5, timesteps=3, in_channels=2),
    ],
    ids=["resnet20 with two heads", "event frames"],
)
def test_other_networks_are_read_too(student):
    pytest.importorskip("nirtorch")
    torch.manual_seed(0)
    student = trained(student())
    steps = 2 * torch.randn(3, 4, student.in_channels, 8, 12)
    graph = hardware.to_nir(student, (8, 12))
    same(run(hardware.fold(student), steps), elsewhere(from_snntorch, graph, steps))


def test_at_the_threshold_only_spikingjelly_fires():
    """Why its thresholds are moved by one number: a current of 1 makes a potential of 1."""
    pytest.importorskip("spikingjelly")
    node = hardware._lif("layer", LIF(), (1,), hardware.DT)
    x = torch.tensor([[[1.0]], [[0.5]], [[0.25]]])

    def spikes(reader, change=lambda graph: graph):
        graph = nir.NIRGraph.from_list(nir.Input({"input": np.array([1])}), node)
        nodes = {**graph.nodes, "output": nir.Output({"output": np.array([1])})}
        edges = [("input", "lif"), ("lif", "output")]
        found, _ = elsewhere(reader, change(nir.NIRGraph(nodes, edges)), x)
        return found["lif"].flatten().tolist()

    assert lif(x)[0].flatten().tolist() == [0, 0, 0]
    assert spikes(from_snntorch) == [0, 0, 0]
    assert spikes(from_spikingjelly) == [1, 0, 0]
    assert spikes(from_spikingjelly, above) == [0, 0, 0]


# ---------------------------------------------------------------- what is refused


@pytest.mark.bad_input
@pytest.mark.parametrize("call", [hardware.fold, lambda net: hardware.to_nir(net, (8, 8))])
def test_networks_that_cannot_be_folded(call):
    with pytest.raises(ValueError, match=r"train mode; call network.eval\(\)"):
        call(resnet8(timesteps=2).train())
    with pytest.raises(TypeError, match="got a Linear, wanted a ResNet of ckdlite.networks"):
        call(nn.Linear(2, 2))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"got a teacher \(timesteps=None\), wanted a student"),
        ({"timesteps": 2, "relu_last": True}, r"stage3.0.act2: got ReLU \(relu_last\), wanted"),
        ({"timesteps": 2, "neuron": nn.Tanh}, "stem_act: got Tanh, wanted ckdlite.lif.LIF"),
        ({"timesteps": 2, "neuron": lambda: LIF(reset="soft")}, "stem_act: got a soft reset"),
        ({"timesteps": 2, "neuron": lambda: LIF(decay=1.0)}, "got decay 1, wanted less"),
    ],
)
def test_students_that_nir_cannot_hold(options, message):
    with pytest.raises(ValueError, match=message):
        hardware.to_nir(resnet8(**options).eval(), (8, 8))


@pytest.mark.bad_input
@pytest.mark.parametrize("size", [32, (32,), (32, 32, 3), (0, 32), (8.0, 8.0), "ab"])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match="wanted height and width in pixels"):
        hardware.to_nir(pretrained("samd"), size)


@pytest.mark.bad_input
def test_a_size_that_would_be_rounded_up_is_refused():
    with pytest.raises(ValueError, match=r"got \(32, 30\), wanted multiples of 4"):
        hardware.to_nir(pretrained("samd"), (32, 30))


@pytest.mark.bad_input
@pytest.mark.parametrize("dt", [0.0, -1e-4, float("nan"), float("inf")])
def test_a_timestep_takes_time(dt):
    with pytest.raises(ValueError, match=r"dt: got .+, wanted seconds above 0"):
        hardware.to_nir(pretrained("samd"), (32, 32), dt)


@pytest.mark.bad_input
def test_no_file_is_written_over(graph, tmp_path):
    path = tmp_path / "student.nir"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"student.nir exists: give another name"):
        hardware.write(path, graph)
    assert path.read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        hardware.write(tmp_path / "nowhere" / "student.nir", graph)


def test_without_nir_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    monkeypatch.delitem(sys.modules, "ckdlite.hardware")
    with pytest.raises(ImportError, match=r"pip install 'ckdlite\[hardware\]'"):
        importlib.import_module("ckdlite.hardware")
