"""Time and memory of the losses, ours beside mmdet's, torchvision's and PyTorch's, in one process.

    python -m benchmarks.losses                     # `make bench`: the device at hand
    python -m benchmarks.losses --logits 1e5 1e6    # fewer sizes

Each figure is forward + backward: of the classification losses on N = logits / 80 anchors of 80 classes, one in 500
positive and one in 37 ignored, labels as integers; of the box losses on as many coordinates, all of them valid.
`binary_cross_entropy_with_logits` and torchvision's Focal Loss get ready one-hot targets, which they need. In each
round all implementations run, in random order, so that a slow moment of the machine hits all of them: on a CPU a block
of calls that takes 20 ms, or one call where that takes longer. The first call of a block, shown where there are more,
finds caches full of what ran before it, as a training step leaves them. Peak memory is what is allocated on top of the
inputs, the gradient included, in sizes of the input. The floor is the time to move what must be moved, by the copy
bandwidth of the same device: GHM reads all twice (weights depend on all of it) and writes the gradient, the others read
once. Of boxes targets are read too, and weights but by PyTorch's Smooth L1. On CUDA the graph column is the time of a
captured graph's replay, which is the device's work without the host's; mmdet's GHM waits for the device and cannot be
captured.

Results go to `benchmarks/results/losses_<device>.json`, a table to `.md`, a figure to `.png`.
"""

import argparse
import gc
import importlib.util
import json
import platform
import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from ghm import losses

ROOT = Path(__file__).parents[1]
CLASSES = 80
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIZES = (1e5, 1e6, 1.2e7, 1e8)
BLOCK = 0.02  # seconds of calls of one implementation, on a CPU
SECONDS = 3.0  # an implementation that needs longer for one step is timed once, and its memory not measured
Call = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logits", type=float, nargs="+", default=list(SIZES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no size is begun")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    started, rows = time.monotonic(), []
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"losses_{torch.device(arguments.device).type}"
    bandwidth = copy_bandwidth(arguments.device)
    result = {**context(arguments.device), "copy_bandwidth_gb_s": round(bandwidth / 1e9, 1), "rows": rows}
    for dtype in DTYPES:
        for logits in map(int, arguments.logits):
            if time.monotonic() - started > arguments.budget:
                print(f"out of time: {dtype}, {logits:,} logits not measured", file=sys.stderr)
                continue
            for make in (classification, regression):
                rows += measure(make, logits, dtype, arguments.device, arguments.rounds, bandwidth)
            # After each size: what runs out of time keeps what it has.
            path.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            path.with_suffix(".md").write_text(table(result) + "\n", encoding="utf-8")
    draw(result).savefig(path.with_suffix(".png"), dpi=120)
    print(table(result))


def context(device: str) -> dict[str, Any]:
    """The device and the versions of what is timed."""
    name = (
        torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"{processor()}, {torch.get_num_threads()} threads"
    )
    found = ("torch", "torchvision", "triton", "mmdet")
    versions = {each: importlib.import_module(each).__version__ for each in found if importlib.util.find_spec(each)}
    return {"device": name, "versions": {"python": platform.python_version(), **versions}}


def processor() -> str:
    """The processor's name, from Linux where there is one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def copy_bandwidth(device: str) -> float:
    """Bytes a second that a copy reads and writes, the best of several."""
    source = torch.randn(50_000_000, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), device) for _ in range(10))


def classification(logits: int, dtype: str, device: str) -> tuple[Tensor, dict[str, Call]]:
    """The prediction that gets the gradient, and every classification loss on it."""
    torch.manual_seed(0)
    anchors = logits // CLASSES
    pred = (torch.randn(anchors, CLASSES, device=device) * 1.5 - 4).to(DTYPES[dtype]).requires_grad_()
    label = torch.full((anchors,), CLASSES, device=device)
    label[::500] = torch.randint(0, CLASSES, (len(label[::500]),), device=device)
    weight = torch.ones(anchors, device=device)
    weight[::37] = 0
    one_hot = torch.zeros_like(pred)
    rows = torch.arange(0, anchors, 500, device=device)
    one_hot[rows, label[rows]] = 1
    positives = float(len(rows))
    ghm, focal = losses.GHMC(30, 0.75).to(device), losses.FocalLoss()
    calls: dict[str, Call] = {
        "GHM-C, ours": lambda: ghm(pred, label, weight),
        "BCE, PyTorch": lambda: functional.binary_cross_entropy_with_logits(pred, one_hot),
        "Focal Loss, ours": lambda: focal(pred, label, weight, avg_factor=positives),
        "Focal Loss, torchvision": lambda: torchvision_focal(pred, one_hot) / positives,
    }
    if importlib.util.find_spec("mmdet"):
        peer_ghm, peer_focal = (
            peer("GHMC", bins=30, momentum=0.75).to(device),
            peer("FocalLoss", use_sigmoid=True).to(device),
        )
        calls["GHM-C, mmdet"] = lambda: peer_ghm(pred, label, weight)
        calls["Focal Loss, mmdet"] = lambda: peer_focal(pred, label, weight, avg_factor=positives)
    return pred, calls


def torchvision_focal(pred: Tensor, one_hot: Tensor) -> Tensor:
    """torchvision's operator, which is many of PyTorch's."""
    from torchvision.ops import sigmoid_focal_loss

    return sigmoid_focal_loss(pred, one_hot, reduction="sum")


def regression(coordinates: int, dtype: str, device: str) -> tuple[Tensor, dict[str, Call]]:
    """The prediction that gets the gradient, and every box loss on it."""
    torch.manual_seed(0)
    pred = (torch.randn(coordinates // 4, 4, device=device) * 0.1).to(DTYPES[dtype]).requires_grad_()
    target, weight = torch.randn_like(pred) * 0.1, torch.ones_like(pred)
    anchors = float(len(pred))
    ghm, smooth = losses.GHMR(0.02, 10, 0.7).to(device), losses.SmoothL1Loss(0.11)
    calls: dict[str, Call] = {
        "GHM-R, ours": lambda: ghm(pred, target, weight),
        "Smooth L1, ours": lambda: smooth(pred, target, weight, avg_factor=anchors),
        "Smooth L1, PyTorch": lambda: functional.smooth_l1_loss(pred, target, beta=0.11),
    }
    if importlib.util.find_spec("mmdet"):
        peer_ghm, peer_smooth = peer("GHMR", bins=10, momentum=0.7).to(device), peer("SmoothL1Loss", beta=0.11)
        calls["GHM-R, mmdet"] = lambda: peer_ghm(pred, target, weight)
        calls["Smooth L1, mmdet"] = lambda: peer_smooth(pred, target, weight, avg_factor=anchors)
    return pred, calls


def peer(name: str, **arguments: object) -> torch.nn.Module:
    """mmdet's module."""
    from ghm.registry import MODELS

    return MODELS.build({"type": f"mmdet.{name}", **arguments})


def measure(
    make: Callable[[int, str, str], tuple[Tensor, dict[str, Call]]],
    logits: int,
    dtype: str,
    device: str,
    rounds: int,
    bandwidth: float,
) -> list[dict[str, Any]]:
    """Time every loss of `make` in turns, and measure its memory once."""
    pred, calls = make(logits, dtype, device)

    def step(call: Call) -> Callable[[], None]:
        def run() -> None:
            pred.grad = None
            call().backward()

        return run

    steps = {name: step(call) for name, call in calls.items()}
    first, rows = {}, []
    for name in list(steps):
        try:
            first[name] = seconds(steps[name], device)  # also compiles and warms up
        except RuntimeError as error:  # of a peer that does not take this dtype
            reason = str(error).splitlines()[0]
            rows.append({"loss": name, "logits": pred.numel(), "dtype": dtype, "fails": reason})
            del steps[name]
    again = {name: seconds(run, device) if first[name] <= SECONDS else first[name] for name, run in steps.items()}
    sizes = {name: max(1, int(BLOCK / value)) if device == "cpu" else 1 for name, value in again.items()}
    times: dict[str, list[float]] = {name: [value] if value > SECONDS else [] for name, value in first.items()}
    colds: dict[str, list[float]] = {name: [] for name in steps}
    turns = random.Random(0)
    for _ in range(rounds):
        for name in turns.sample([*steps], len(steps)):
            if first[name] <= SECONDS and sum(times[name]) * sizes[name] < 2 * SECONDS:
                block = [seconds(steps[name], device) for _ in range(sizes[name])]
                times[name].append(sum(block) / len(block))
                colds[name].append(block[0])
    for name, run in steps.items():
        p20, p50, p80 = np.percentile(times[name], [20, 50, 80]) * 1e3
        row = {"loss": name, "logits": pred.numel(), "dtype": dtype, "p20_ms": p20, "p50_ms": p50, "p80_ms": p80}
        if sizes[name] > 1:
            row["first_ms"] = median(colds[name]) * 1e3
        pred.grad = None
        memory = peak_bytes(run, device) / pred.nbytes if first[name] <= SECONDS or device != "cpu" else None
        row |= {"floor_ms": moved(name) * pred.nbytes / bandwidth * 1e3, "memory": memory}
        if device.startswith("cuda") and "mmdet" not in name:
            row["graph_ms"] = graph_seconds(calls[name], pred) * 1e3
        rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        print(f"{dtype} {pred.numel():>11,} {name:25s} {p50:10.2f} ms, memory {memory}", file=sys.stderr)
    pred.grad = None
    gc.collect()
    return rows


def moved(loss: str) -> int:
    """How often the size of the prediction must be moved at least: all that is read, and the gradient."""
    read = {"GHM-R": 3, "Smooth L1": 2 if "PyTorch" in loss else 3}.get(loss.split(",")[0], 1)
    return read * (2 if loss.startswith("GHM") else 1) + 1


def seconds(run: Callable[[], object], device: str) -> float:
    """How long one call takes, the device's work included."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def graph_seconds(call: Call, pred: Tensor, replays: int = 20) -> float:
    """How long the device takes for forward and backward: a captured graph, replayed back to back."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            torch.autograd.grad(call(), pred)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gradient = torch.autograd.grad(call(), pred)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    del gradient
    return start.elapsed_time(end) / 1e3 / replays


def peak_bytes(run: Callable[[], None], device: str) -> int:
    """The most that is allocated at once during a call, on top of what was there. No gradient may be left of before."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's word that it keeps the events of one cycle only
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
    held = most = 0
    results: Any = getattr(profiler.profiler, "kineto_results")  # noqa: B009  (typed as if it had no memory events)
    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def table(result: dict[str, Any]) -> str:
    """A Markdown table, a row for each loss and size: times, ratio to plain BCE or Smooth L1, share of the floor."""
    rows = result["rows"]
    plain = {(row["dtype"], row["logits"], row["loss"].split(",")[0]): row for row in rows if "PyTorch" in row["loss"]}
    graphs = any("graph_ms" in row for row in rows)
    more = " graph ms | floor of the graph |" if graphs else " first call ms | times |"
    lines = ["| dtype | logits | loss | p20 / p50 / p80 ms | times BCE or Smooth L1 | floor | memory |" + more]
    # By hand: a bare machine with a GPU may lack tabulate.
    lines.append("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        if "fails" in row:
            empty = " - |" * 5
            lines.append(f"| {row['dtype']} | {row['logits']:,} | {row['loss']} | fails: {row['fails']} |{empty}")
            continue
        kind = "Smooth L1" if row["loss"].startswith(("GHM-R", "Smooth")) else "BCE"
        times = " / ".join(f"{row[key]:.3g}" for key in ("p20_ms", "p50_ms", "p80_ms"))
        ratio = row["p50_ms"] / plain[row["dtype"], row["logits"], kind]["p50_ms"]
        memory = f"{row['memory']:.2f}" if row["memory"] else "-"
        cells = (row["dtype"], f"{row['logits']:,}", row["loss"], times, f"{ratio:.2f}")
        line = f"| {' | '.join(cells)} | {row['floor_ms'] / row['p50_ms']:.0%} | {memory} |"
        if graphs:
            graph = row.get("graph_ms")
            line += f" {graph:.3g} | {row['floor_ms'] / graph:.0%} |" if graph else " - | - |"
        else:
            first, other = row.get("first_ms"), plain[row["dtype"], row["logits"], kind].get("first_ms")
            line += f" {first:.3g} | {first / other:.2f} |" if first and other else " - | - |"
        lines.append(line)
    return "\n".join(lines)


def draw(result: dict[str, Any]) -> Figure:
    """Time against size in float32, both on logarithmic scales: classification to the left, boxes to the right."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    colours = {"ours": "#0072B2", "PyTorch": "#000000", "torchvision": "#E69F00", "mmdet": "#D55E00"}
    lines = {"GHM-C": "-", "GHM-R": "-", "BCE": ":", "Focal Loss": "--", "Smooth L1": "--"}
    table = pd.DataFrame(result["rows"]).query("dtype == 'float32' and p50_ms > 0")
    for ax, kinds in zip(figure.subplots(1, 2), (("GHM-C", "BCE", "Focal"), ("GHM-R", "Smooth")), strict=True):
        for name, own in table.groupby("loss", sort=False):
            loss, maker = str(name).split(", ")
            if loss.startswith(kinds):
                ax.plot(own["logits"], own["p50_ms"], lines[loss], color=colours[maker], marker="o", ms=3, label=name)
        ax.set(xscale="log", yscale="log", xlabel="logits or coordinates", ylabel="forward + backward, ms")
        ax.grid(color="#E4E4E4")
        ax.legend(fontsize=8, frameon=False)
    figure.suptitle(result["device"], fontsize=9)
    return figure


if __name__ == "__main__":
    main()
