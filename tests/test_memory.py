"""What autograd keeps, counted against hand counts, and the reuse of freed memory."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from ckdlite import memory
from ckdlite.lif import LIF
from ckdlite.networks import resnet8


def kept_by(function, x):
    with memory.saved() as kept:
        result = function(x)
    assert result.requires_grad
    return kept.bytes  # while the result is alive


def test_saved_counts_each_piece_once():
    x = torch.randn(100, requires_grad=True)
    assert kept_by(lambda x: x.exp(), x) == 400  # its result
    assert kept_by(lambda x: x * x, x) == 400  # one tensor, saved twice
    assert kept_by(lambda x: x.exp() * x.sin(), x) == 3 * 400  # x, exp(x) and sin(x)
    assert kept_by(lambda x: x + 1, x) == 0
    assert kept_by(lambda x: x[:10].square(), x) == 400  # a view keeps the whole alive


def test_saved_forgets_what_nobody_can_go_back_through():
    x = torch.randn(100, requires_grad=True)
    with memory.saved() as kept:
        result = x.exp()
        x.sin()  # dropped at once
    assert kept.bytes == 400
    result.sum().backward()
    assert kept.bytes == 0 and torch.equal(x.grad, result)


def test_saved_leaves_out_parameters_and_what_needs_no_gradient():
    layer, x = nn.Linear(8, 8, bias=False), torch.randn(4, 8)
    assert kept_by(layer, x) == x.nbytes
    with memory.saved() as kept, torch.no_grad():
        layer(x)
    assert kept.bytes == 0


@pytest.mark.parametrize(
    ("options", "plain"),
    [({}, 13.0), ({"detach_reset": True}, 7.0), ({"reset": "soft"}, 4.0)],
    ids=["hard", "hard, detached", "soft"],
)
def test_bytes_that_a_neuron_keeps(compiles, options, plain):
    # The plain loop, hard reset, keeps v at each of four steps, and at three of them u, 1 - s and
    # their product; the compiled one its input alone.
    x = torch.randn(4, 1000, requires_grad=True)
    assert kept_by(LIF(**options), x) / x.numel() == plain
    assert kept_by(LIF(**options, compiled=True), x) / x.numel() == 4.0
    assert kept_by(LIF(**options, compiled=True), x.bfloat16()) / x.numel() == 2.0


@pytest.mark.slow
def test_long_runs_keep_one_potential_for_each_part(compiles):
    x = torch.randn(24, 1000, requires_grad=True)
    assert kept_by(LIF(compiled=True), x) == x.nbytes + 3 * 1000 * 4


def test_inference_keeps_nothing(compiles):
    student = resnet8(timesteps=4, neuron=partial(LIF, compiled=True)).eval()
    with memory.saved() as kept, torch.no_grad():
        student(torch.randn(2, 3, 32, 32))
    assert kept.bytes == 0


FAULTS = """
import resource, sys, torch
from ckdlite import memory
if sys.argv[1] == "reuse":
    assert memory.reuse()
for i in range(40):
    if i == 20:  # the heap has found its size
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has mallopt")
def test_reuse_touches_no_new_pages():
    faults = {}
    for how in ("as it is", "reuse"):
        command = [sys.executable, "-c", FAULTS, how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        faults[how] = int(done.stdout)
    assert faults["reuse"] < faults["as it is"] / 10


def test_reuse_says_where_it_cannot(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _name: object())
    assert memory.reuse() is False


def test_reuse_asks_nothing_of_other_systems(monkeypatch):
    def windows(_name):
        raise TypeError("a library's name was wanted")

    monkeypatch.setattr(memory.ctypes, "CDLL", windows)
    monkeypatch.setattr(memory.sys, "platform", "win32")
    assert memory.reuse() is False
