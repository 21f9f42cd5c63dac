"""What the neuron, a training step and distillation cost, as ratios in one run.

    python benchmarks/speed.py                    # all, about twenty minutes on two CPU cores
    python benchmarks/speed.py --device cuda      # the same on a GPU
    python benchmarks/speed.py neuron step        # some of it

Cases of one group run in turn, round after round, so that a busy moment of the machine hits all of
them; a ratio is taken within a round, and its median and quartiles over the rounds are kept. Each
group is a process of its own and replaces its rows in `ckdlite/assets/speed-cpu.csv` (or
`speed-cuda.csv`), which the book's page on speed shows.
"""

import argparse
import csv
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from peers import NEURONS, Neuron
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import to_pil_image

from ckdlite import data, memory
from ckdlite.datamodules import FolderData
from ckdlite.networks import ResNet
from ckdlite.training import KD, NLD, SAMD, Distil

COLUMNS = [
    *("group", "case", "timesteps", "batch", "width", "precision", "layout"),
    *("unit", "median", "low", "high", "against", "ratio", "ratio_low", "ratio_high", "rounds"),
    *("device", "threads", "torch", "snntorch", "spikingjelly", "date"),
]
BATCH = 128
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Case = dict[str, Any]  # its columns; `run` is what is timed


def _seconds(function: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(cases: list[Case], rounds: int, device: str) -> list[Case]:
    """Time all cases in turn; the case that another one's `against` names is its ratio's base.

    `against` may name several cases, joined by " + ".
    """
    for _ in range(5):  # compile, and let the heap find its size
        for case in cases:
            case["run"]()
    if device == "cuda":
        torch.cuda.synchronize()
    times: dict[str, list[float]] = {case["case"]: [] for case in cases}
    if len(times) < len(cases):
        raise ValueError("two cases have one name")
    for _ in range(rounds):
        for case in cases:
            times[case["case"]].append(_seconds(case["run"], device))
    rows = []
    for case in cases:
        row = {k: v for k, v in case.items() if k != "run"} | {"unit": "ms", "rounds": rounds}
        mine = times[case["case"]]
        row |= _spread("", [1000 * t for t in mine])
        if case.get("against"):
            bases = [times[name] for name in case["against"].split(" + ")]
            base = [sum(ts) for ts in zip(*bases, strict=True)]
            ratios = [t / b for t, b in zip(mine, base, strict=True)]
            row |= _spread("ratio", ratios)
        rows.append(row)
    return rows


def _spread(name: str, values: list[float]) -> Case:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    keys = [name, f"{name}_low", f"{name}_high"] if name else ["median", "low", "high"]
    return {k: float(f"{v:.5g}") for k, v in zip(keys, (middle, low, high), strict=True)}


# ---------------------------------------------------------------- the groups


def neuron(device: str, rounds: int) -> list[Case]:
    """Forward and backward of the neuron against a copy of the bytes that it must move.

    Forward reads x and writes s; backward reads x and the gradient of s and writes that of x: five
    tensors, so two and a half copies, each of which reads one and writes one.
    """
    rows = []
    for precision, dtype in PRECISIONS.items():
        for size in (2**20, 2**22):
            x = torch.randn(4, size, device=device, dtype=dtype).requires_grad_()
            grad = torch.randn_like(x)
            ready = [torch.zeros_like(grad), torch.zeros_like(grad), torch.zeros_like(grad[:2])]

            def copies(x: Any = x, grad: Any = grad, ready: Any = ready) -> None:
                x = x.detach()
                ready[0].copy_(x)
                ready[1].copy_(grad)
                ready[2].copy_(x[:2])

            def both(function: Any, x: Any = x, grad: Any = grad) -> None:
                x.grad = None
                function(x).backward(grad)

            shared = {"timesteps": 4, "batch": size, "precision": precision}
            cases = [{"case": "copy", "run": copies, **shared}]
            # In bfloat16 the peers keep their potential in bfloat16: not the same neuron.
            names = NEURONS if dtype == torch.float32 else ["ckdlite compiled", "ckdlite plain"]
            for name in names:
                run = partial(both, NEURONS[name])
                cases.append({"case": name, "run": run, "against": "copy", **shared})
            rows += measure(cases, rounds, device)
    return rows


def saved(device: str, rounds: int) -> list[Case]:
    """What autograd keeps for the backward pass: of the neuron alone, and of a whole ResNet-20."""
    rows = []
    for timesteps in (1, 2, 4, 8, 16):
        x = torch.randn(timesteps, 10_000, device=device, requires_grad=True)
        for name, function in NEURONS.items():
            with memory.saved() as kept:
                spikes = function(x)
            row = {"case": name, "timesteps": timesteps, "unit": "bytes a neuron and step"}
            rows.append({**row, "precision": "float32", "median": kept.bytes / spikes.numel()})
    images = torch.randn(BATCH, 3, 32, 32, device=device)
    base = 0
    for name, timesteps in [("ANN", None), *((n, t) for n in NEURONS for t in (2, 4))]:
        model = _network(name, timesteps).to(device)
        with memory.saved() as kept:
            logits = model(images)
        base = base or kept.bytes
        row = {"case": f"ResNet-20, {name}", "timesteps": timesteps, "unit": "MB", "batch": BATCH}
        row |= {"median": round(kept.bytes / 1e6, 1), "precision": "float32"}
        rows.append({**row, "against": "ANN", "ratio": round(kept.bytes / base, 3)})
        del logits
    return rows


def _network(neuron: str, timesteps: int | None, width: int = 1, blocks: int = 3) -> ResNet:
    """ResNet-20 or, with one block a stage, the chapters' ResNet-8."""
    make = {} if timesteps is None else {"neuron": partial(Neuron, neuron)}
    channels = [width * c for c in (16, 32, 64)]
    return ResNet([blocks] * 3, channels, timesteps=timesteps, **make)


def _step(
    device: str,
    neuron: str,
    timesteps: int | None,
    *,
    batch: int | None = None,
    width: int = 1,
    blocks: int = 3,
    precision: str = "float32",
    layout: str = "channels last",
    whole: bool = False,
) -> Case:
    """A training step: forward, cross-entropy, backward, SGD."""
    torch.manual_seed(0)
    batch = batch or BATCH
    memory_format = torch.channels_last if layout == "channels last" else torch.contiguous_format
    model = _network(neuron, timesteps, width, blocks).to(device, memory_format=memory_format)
    images = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=memory_format)
    labels = torch.randint(10, (batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    forward = torch.compile(model) if whole else model

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, PRECISIONS[precision], enabled=precision != "float32"):
            logits = forward(images)
        logits = logits.float() if timesteps is None else logits.float().mean(0)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()

    name = "ANN" if timesteps is None else f"{neuron}, T = {timesteps}"
    columns = {"case": name, "timesteps": timesteps, "batch": batch, "width": width}
    columns |= {"precision": precision, "layout": layout, "run": run}
    return columns if timesteps is None else {**columns, "against": "ANN"}


def step(device: str, rounds: int) -> list[Case]:
    """Training step of ResNet-20 students against the same network with ReLU."""
    make = partial(_step, device)
    ours = "ckdlite compiled"
    rows = measure(
        [make("", None), *(make(ours, timesteps) for timesteps in (1, 2, 4, 8))], rounds, device
    )
    for options in ({"layout": "contiguous"}, {"precision": "bfloat16"}):
        cases = [make(ours, timesteps, **options) for timesteps in (None, 2, 4)]
        rows += measure(cases, rounds, device)
    return rows


def unused(device: str, rounds: int) -> list[Case]:
    """The same as the first part of `step`, with memory given back to the system when freed."""
    cases = [_step(device, "ckdlite compiled", timesteps) for timesteps in (None, 1, 2, 4, 8)]
    return measure(cases, rounds, device)


def frames(device: str, rounds: int) -> list[Case]:
    """The student against an ANN that sees as many frames: what is due to the larger batch."""
    cases = []
    for timesteps in (2, 4):
        ann = _step(device, "", None, batch=BATCH * timesteps)
        student = _step(device, "ckdlite compiled", timesteps)
        ann["case"] = f"ANN, {BATCH * timesteps} frames"
        student["against"] = ann["case"]
        cases += [ann, student]
    return measure(cases, rounds, device)


def libraries(device: str, rounds: int) -> list[Case]:
    """The same ResNet-20 with each library's neuron; the compiled ones in both layouts."""
    rows = []
    for layout in ("channels last", "contiguous"):
        names = [n for n in NEURONS if layout == "channels last" or "compiled" in n]
        make = partial(_step, device, layout=layout)
        cases = [make("", None), *(make(name, t) for t in (2, 4) for name in names)]
        rows += measure(cases, max(3, rounds // 2), device)
    return rows


def whole(device: str, rounds: int) -> list[Case]:
    """Teacher and student each compiled as a whole, against both as they are."""
    rows = []
    for precision in PRECISIONS:
        cases = []
        for timesteps in (None, 2):
            for compiled in (False, True):
                case = _step(
                    device, "ckdlite compiled", timesteps, precision=precision, whole=compiled
                )
                case["case"] += ", whole network compiled" if compiled else ""
                case["against"] = "ANN" if compiled or timesteps else ""
                cases.append(case)
        rows += measure(cases, max(3, rounds // 2), device)
    return rows


def distil(device: str, rounds: int) -> list[Case]:
    """The engine's step with each loss, against the student's own step and a teacher's forward."""
    rows = []
    images = torch.randn(BATCH, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    batch = [images, torch.randint(10, (BATCH,), device=device)]
    terms = {
        "label-only": {},
        "kd": {"kd": KD(1.0)},
        "samd": {"samd": SAMD(1.0)},
        "nld": {"nld": NLD(1.0)},
        "samd and nld": {"samd": SAMD(1.0), "nld": NLD(1.0)},
    }
    for timesteps in (2, 4):
        teacher = _network("", None).to(device)
        cases = []
        for name, options in terms.items():
            run = _distilling(teacher, timesteps, options, batch, device)
            cases.append({"case": name, "run": run, "against": "label-only + teacher forward"})

        def forward(teacher: nn.Module = teacher) -> None:
            with torch.no_grad():
                teacher(images)

        cases[0]["against"] = ""
        cases.append({"case": "teacher forward", "run": forward, "against": "label-only"})
        shared = {"timesteps": timesteps, "batch": BATCH, "layout": "channels last"}
        rows += measure(
            [case | shared | {"precision": "float32"} for case in cases], rounds, device
        )
    return rows


def _distilling(
    teacher: nn.Module, timesteps: int, options: Case, batch: list[Any], device: str
) -> Callable[[], None]:
    """A step of the engine with these terms."""
    module = Distil(
        _network("ckdlite compiled", timesteps).to(device),
        teacher,
        channels_last=True,
        gradient_norms_every=0,
        **options,
    )
    module.log = module.log_dict = lambda *_args, **_options: None
    optimizer = torch.optim.SGD(module.student.parameters(), 0.01, 0.9)
    return partial(_distil_step, module, optimizer, batch)


def _distil_step(module: Distil, optimizer: torch.optim.Optimizer, batch: list[Any]) -> None:
    optimizer.zero_grad()
    module.training_step(batch, 0).backward()
    optimizer.step()


def loading(device: str, rounds: int) -> list[Case]:
    """A batch from files to tensors by one process, and the steps of the engine that wait for it.

    The files are the shipped scenes as JPEG of quality 95, the augmentation that of the recipes for
    CIFAR, or of their overlay `short`. ResNet-20, T = 2.
    """
    short = [v2.RandomCrop(32, 4), v2.RandomHorizontalFlip()]
    recipe = [*short, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)]
    recipe += [v2.RandomErasing(scale=(0.02, 0.2), value=121)]
    images = torch.randn(BATCH, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    batch = [images, torch.randint(10, (BATCH,), device=device)]
    terms = {
        "label-only": {},
        "kd": {"kd": KD(1.0)},
        "paper": {"samd": SAMD(1.0), "nld": NLD(1.0)},
    }
    cases = []
    for name, options in terms.items():
        run = _distilling(_network("", None).to(device), 2, options, batch, device)
        cases.append({"case": name, "run": run, "against": "label-only"})
    cases[0]["against"] = ""
    with TemporaryDirectory() as root:
        scenes = data.cluttered("train", 200)
        for i, (image, label) in enumerate(zip(scenes.images, scenes.labels, strict=True)):
            for part in ("train", "test"):
                file = Path(root) / part / str(label.item()) / f"{i}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                to_pil_image(image).save(file, quality=95)
        for name, steps, held in (
            ("recipe from JPEG files", recipe, False),
            ("recipe from memory", recipe, True),
            ("short from memory", short, True),
        ):
            module = FolderData(root, batch_size=BATCH, augment=steps, memory=held)
            run = partial(_first_batch, module.train_dataloader())
            cases.append({"case": name, "run": run, "against": "label-only"})
        shared = {"timesteps": 2, "batch": BATCH, "precision": "float32"}
        return measure([case | shared for case in cases], rounds, device)


def _first_batch(loader: DataLoader) -> None:
    next(iter(loader))


def growth(device: str, rounds: int) -> list[Case]:
    """ResNet-8: growth with T, batch and width, each against the ANN of that batch and width."""
    make = partial(_step, device, blocks=1)
    ours = "ckdlite compiled"
    rows = measure(
        [make(ours, timesteps, batch=64) for timesteps in (None, 1, 2, 4, 8, 16)], rounds, device
    )
    for options in ({"batch": 32}, {"batch": 256}, {"width": 2}, {"width": 4, "batch": 64}):
        cases = [make(ours, timesteps, **options) for timesteps in (None, 2)]
        rows += measure(cases, rounds, device)
    return rows


def peak(device: str, rounds: int) -> list[Case]:
    """Largest memory of a process in two training steps of ResNet-20, above what it held before.

    On a CPU each case is a process of its own, without `memory.reuse` unless it says so.
    """
    cases = [("ANN", None, ""), *((name, 4, "") for name in NEURONS)]
    cases.append(("ckdlite compiled", 4, "reuse"))
    rows = []
    for name, timesteps, how in cases:
        argument = f"{name}|{timesteps or ''}|{how}"
        found = _child("--peak", argument, "--device", device)
        row = {"case": name + (", memory reused" if how else ""), "timesteps": timesteps}
        row |= {"unit": "MB", "median": float(found), "batch": BATCH, "layout": "channels last"}
        rows.append(row | {"precision": "float32"})
    for row in rows[1:]:
        row |= {"against": "ANN", "ratio": round(row["median"] / rows[0]["median"], 3)}
    return rows


def _peak(argument: str, device: str) -> None:
    name, timesteps, how = argument.split("|")
    if how:
        memory.reuse()
    # Compiled before, on little: the compiler's own memory is not the network's.
    _step(device, name, int(timesteps) if timesteps else None, batch=2)["run"]()
    run = _step(device, name, int(timesteps) if timesteps else None)["run"]
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    run()
    run()
    if device == "cuda":
        after = torch.cuda.max_memory_allocated()
    else:
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(round((after - before) / 1e6, 1))


def imports(device: str, rounds: int) -> list[Case]:
    """Time to import, each in a new process."""
    del device
    modules = ["torch", "ckdlite.lif", "ckdlite.distill", "ckdlite.training", "snntorch"]
    modules.append("spikingjelly.activation_based.neuron")
    cases: list[Case] = []
    for module in modules:
        run = partial(subprocess.run, [sys.executable, "-c", f"import {module}"], check=True)
        cases.append({"case": module, "run": run, "against": "" if module == "torch" else "torch"})
    return measure(cases, rounds, "cpu")


GROUPS = {
    f.__name__: f
    for f in (
        *(neuron, saved, step, unused, frames, libraries, whole, distil, loading, growth, peak),
        imports,
    )
}


# ---------------------------------------------------------------- the file


def _child(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def write(path: Path, group: str, rows: list[Case], device: str) -> None:
    """Put the rows in place of the group's earlier ones."""
    old = []
    if path.exists():
        with path.open(newline="") as file:
            old = [row for row in csv.DictReader(file) if row["group"] != group]
    about = {
        "group": group,
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "snntorch": version("snntorch"),
        "spikingjelly": version("spikingjelly"),
        "date": date.today().isoformat(),
    }
    order = list(GROUPS)
    new = sorted([*old, *(row | about for row in rows)], key=lambda row: order.index(row["group"]))
    beside = path.with_suffix(".part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in new)
    beside.replace(path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else "CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=9, help="3 at least")
    parser.add_argument("--out", type=Path, help="the CSV file")
    parser.add_argument("--alone", action="store_true", help="run the groups in this process")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.groups) - set(GROUPS)
    if unknown or options.rounds < 3:
        parser.error(
            f"got {unknown or options.rounds}, wanted groups of {', '.join(GROUPS)}, "
            "and at least 3 rounds"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU here")
    if options.peak:
        _peak(options.peak, options.device)
        return
    assets = Path(__file__).parents[1] / "ckdlite" / "assets"
    out = options.out or assets / f"speed-{options.device}.csv"
    for group in options.groups or GROUPS:
        start = time.perf_counter()
        if not options.alone:
            arguments = ["--device", options.device, "--rounds", str(options.rounds)]
            _child(group, "--alone", "--out", str(out), *arguments)
        else:
            if group != "unused":
                memory.reuse()
            torch._dynamo.config.recompile_limit = 64  # the peers compile once a shape
            write(out, group, GROUPS[group](options.device, options.rounds), options.device)
        if not options.alone:
            print(f"{group}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
