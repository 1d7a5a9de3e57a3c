"""Instructions of the Triton kernels, compiled ahead of time: a measure of their speed that needs no GPU.

    python -m benchmarks.kernels [--out DIR]

The passes are bound by how many instructions a GPU issues, not by memory. Each is compiled as it is launched, for every
compute capability of CAPABILITIES, and its machine code (SASS) taken apart by the tools that come with Triton.

How it is counted: the innermost loop goes through a tile, TILE / 32 values a thread. Its instructions on the longest
way through it, divided by those values, are the instructions a value; `fewest` is the shortest way, which is another
for the count of GHM-C alone, where it is a tile of nothing but sure negatives. Predicated instructions count. Blocks
that call a subroutine do not: they are for what a fast division cannot do, such as denormal numbers. A loop that the
compiler unrolled would hold more exponentials or square roots than values, which is an error here. Also given:
registers, and in that loop barriers and accesses of shared memory (loads, stores, atomics); spills in all of the code.
"""

import argparse
import json
import re
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import triton
from tqdm import tqdm
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from ghm.losses import kernels

CAPABILITIES = (75, 80, 89, 90, 100, 120)
CLASSES, BINS, LEVELS = 80, 30, 5
PASSES = ("count", "loss", "gradient", "loss and gradient")  # as numbered in `ghm.losses.kernels`
KERNELS = {"GHM-C": "_ghm_c_kernel", "GHM-R": "_ghm_r_kernel", "Focal Loss": "_focal_kernel"}
# One of these for each value: the exponential of a sigmoid, the square root of ASL1.
ONCE = {"GHM-C": "MUFU.EX2", "GHM-R": "MUFU.RSQ", "Focal Loss": "MUFU.EX2"}
SHARED = ("LDS", "STS", "LDSM", "STSM", "ATOMS")
Instruction = tuple[int, str]  # address, text


def compiled(loss: str, which: int, dtype: str, capability: int, classes: int, bins: int) -> CompiledKernel:
    """A kernel for a compute capability, with what its launch would fix."""
    kernel, pointer = getattr(kernels, KERNELS[loss]), f"*{dtype}"
    types = dict.fromkeys(("logit", "pred", "target", "out"), pointer) | dict.fromkeys(
        ("weight", "table", "scale"), "*fp32"
    )
    types |= {"label": "*i64", "total": "*fp64" if which else "*i64", "block": "i32"}
    types |= dict.fromkeys(kernels.SIZES, "i32")
    constants = {"PASS": which, "L": LEVELS if loss != "Focal Loss" else 1, "C": classes, "TILE": kernels.TILE}
    constants |= kernels._logits(bins) | {"WIDTH": kernels._width(classes), "SQUARE": True}
    signature = {name: types.get(name, "constexpr" if name in constants else "fp32") for name in kernel.arg_names}
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={(i,): constants[name] for i, name in enumerate(kernel.arg_names) if name in constants},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if signature[name].startswith("*")},
    )
    options = {"num_warps": 1, "enable_fp_fusion": loss != "GHM-R"}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def disassembled(kernel: CompiledKernel) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of a kernel, and what it uses of registers, stack and shared memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", text, re.MULTILINE)
    use = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|SHARED):(\d+)", text)}
    # What follows & and ? says when it is issued.
    return [(int(address, 16), re.sub(r"\s+([&?].*)?", " ", text).strip()) for address, text in found], use


def name(text: str) -> str:
    """The name of an instruction, without its predicate."""
    return re.sub(r"^@!?U?P\w+ ", "", text).split()[0]


def target(text: str) -> int | None:
    """Where an instruction branches to; None if it does not, or only in a warp whose threads have parted."""
    branches = name(text).startswith("BRA") and name(text) != "BRA.DIV"
    found = re.search(r"(0x[0-9a-f]+)$", text) if branches else None
    return int(found[1], 16) if found else None


def inner_loop(code: list[Instruction]) -> list[Instruction]:
    """The longest of the loops that hold no other; code behind the exit is for a warp whose threads have parted."""
    leaves = next(at for at, text in code if name(text) == "EXIT" and not text.startswith("@"))
    spans = [(end, at) for at, text in code if at < leaves and (end := target(text)) is not None and end < at]
    inner = [span for span in spans if not any(span != o and span[0] <= o[0] and o[1] <= span[1] for o in spans)]
    start, end = max(inner, key=lambda span: span[1] - span[0])
    return [(at, text) for at, text in code if start <= at <= end]


def ways(loop: list[Instruction]) -> tuple[int, int]:
    """How many instructions the shortest and the longest way through a loop have, without blocks that call."""
    leaders = {target(text) for _, text in loop} | {loop[0][0]}
    leaders |= {after[0] for (_, text), after in pairwise(loop) if target(text) is not None}
    blocks: list[list[Instruction]] = []
    for at, text in loop:
        if at in leaders:
            blocks.append([])
        blocks[-1].append((at, text))
    place = {block[0][0]: i for i, block in enumerate(blocks) if i}  # to the first is once around
    best: dict[int, tuple[float, float]] = {len(blocks): (0, 0)}
    for i in range(len(blocks) - 1, -1, -1):
        last, end = blocks[i][-1][1], target(blocks[i][-1][1])
        goals = [] if end is None else [place.get(end, len(blocks))]
        if end is None or last.startswith("@") or "," in last:
            goals.append(i + 1)
        length = float("inf") if any(text.startswith("CALL") for _, text in blocks[i]) else len(blocks[i])
        after = [best[goal] for goal in goals if best[goal][0] < float("inf")] or [(float("inf"), float("inf"))]
        best[i] = (length + min(low for low, _ in after), length + max(high for _, high in after))
    return int(best[0][0]), int(best[0][1])


def measured(loss: str, which: int, dtype: str, capability: int, classes: int = CLASSES, bins: int = BINS) -> dict:
    """The row of a pass.

    Raises:
        AssertionError: the loop was unrolled.
    """
    code, use = disassembled(compiled(loss, which, dtype, capability, classes, bins))
    loop, values = inner_loop(code), kernels.TILE // 32
    names = [name(text) for _, text in loop]
    assert sum(each.startswith(ONCE[loss]) for each in names) == values, f"{loss}, {PASSES[which]}: unrolled"
    fewest, most = ways(loop)
    return {
        "capability": capability / 10,
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[dtype],
        "loss": loss,
        "pass": PASSES[which],
        "classes": classes,
        "bins": bins,
        "instructions": round(most / values, 1),
        "fewest": round(fewest / values, 1),
        "registers": use["REG"],
        "barriers": sum(each.startswith("BAR") for each in names),
        "shared": sum(each.partition(".")[0] in SHARED for each in names),
        "spills": sum(name(text).startswith(("LDL", "STL")) for _, text in code),
    }


def steps(rows: list[dict]) -> list[dict]:
    """What a step of training issues for a value: the count, then loss and gradient."""
    keys, total = ("capability", "dtype", "loss", "classes", "bins"), dict[tuple, float]()
    for row in rows:
        if row["pass"] in ("count", "loss and gradient"):
            key = tuple(row[key] for key in keys)
            total[key] = total.get(key, 0) + row["instructions"]
    return [{**dict(zip(keys, key, strict=True)), "instructions": round(number, 1)} for key, number in total.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    out = parser.parse_args().out
    wanted: list[tuple[Any, ...]] = [
        (loss, which, dtype, capability)
        for capability in CAPABILITIES
        for dtype in ("fp32", "bf16")
        for loss in KERNELS
        for which in range(loss == "Focal Loss", 4)
    ]
    others = [(classes, BINS) for classes in (1, 20, 81, 91, 1203)] + [(CLASSES, 40)]
    wanted += [("GHM-C", which, dtype, 90, *o) for o in others for dtype in ("fp32", "bf16") for which in (0, 3)]
    rows = [measured(*each) for each in tqdm(wanted, unit="kernel", disable=None)]
    result = {"triton": triton.__version__, "rows": rows, "steps": steps(rows)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "kernels.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    hopper = pd.DataFrame(rows).query(f"capability == 9 and classes == {CLASSES} and bins == {BINS}")
    print(hopper.drop(columns=["capability", "classes", "bins"]).to_markdown(index=False))
    print(pd.DataFrame(result["steps"]).to_markdown(index=False))


if __name__ == "__main__":
    main()
