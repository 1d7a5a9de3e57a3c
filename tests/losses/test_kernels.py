"""Laws of the Triton kernels, in its interpreter, and that they compile for CUDA. Shapes: N examples, C classes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from ghm.losses import density, kernels, vectorised
from ghm.losses import kernel_parts as parts

K, L = 30, 4
SIZES = [700, 0, 40, 1]


@triton.jit
def _regions_kernel(norm, out, size, K: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    region = parts.region(tl.load(norm + place, mask=place < size, other=0.0), K, EXACT)
    tl.store(out + place, region, mask=place < size)


@pytest.mark.parametrize("bins", [1, 2, 7, 10, 20, 30, 49, 101, 1000])
def test_a_region_is_that_of_the_definition_on_every_edge_and_beside_it(interpreter: None, bins: int) -> None:
    edge_E = torch.arange(bins + 1) / bins
    norm = torch.cat([edge_E, torch.nextafter(edge_E, torch.tensor(2.0)), torch.nextafter(edge_E, torch.tensor(-1.0))])
    norm = torch.cat([norm[(norm >= 0) & (norm <= 1)], torch.rand(500), torch.tensor([float("nan")])])
    expected = density.region_index(
        norm, norm == norm, edge_E=density.region_edges(bins, end=vectorised.CLASSIFICATION_END)
    )
    for exact in {False, vectorised.product_is_exact(bins)}:
        found = torch.full(norm.shape, -1, dtype=torch.int32)
        _regions_kernel[(triton.cdiv(len(norm), 512),)](norm, found, len(norm), K=bins, EXACT=exact, BLOCK=512)
        assert torch.equal(found.long(), expected)


def step(classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(classes)
    logit = (torch.randn(sum(SIZES), classes) * 3 - 1).to(dtype)
    label = torch.randint(-1, classes + 1, (sum(SIZES),))
    return logit, label, torch.tensor([0.0, 1.0, 0.5])[torch.randint(0, 3, (sum(SIZES),))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("classes", [1, 2, 5, 10, 17])
def test_kernels_are_what_plain_pytorch_is(interpreter: None, classes: int, dtype: torch.dtype) -> None:
    logit, label, weight = step(classes, dtype)
    count_LK, slot = vectorised.ghm_c_count(logit, label, weight, SIZES, K)
    assert torch.equal(kernels.ghm_c_count(logit, label, weight, SIZES, K)[0], count_LK)
    assert count_LK.sum() == (weight > 0).sum() * classes
    inputs = (logit, label, weight, slot, SIZES, torch.rand(L, K))
    torch.testing.assert_close(kernels.ghm_c_loss(*inputs), vectorised.ghm_c_loss(*inputs))
    torch.testing.assert_close(kernels.ghm_c_gradient(*inputs), vectorised.ghm_c_gradient(*inputs))
    for gamma in (2.0, 1.5, 0.0):
        focal = (logit, label, weight, gamma, 0.25, torch.tensor(0.3))
        torch.testing.assert_close(kernels.focal_loss(*focal), vectorised.focal_loss(*focal))
        torch.testing.assert_close(kernels.focal_gradient(*focal), vectorised.focal_gradient(*focal))


def test_every_kernel_starts_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.Tensor] = []  # whose device is the current one
    started: list[tuple[str, int]] = []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        entered.append(tensor)
        yield
        entered.pop()

    class Spy:
        """What takes the place of a kernel and looks where it is started."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, _grid: tuple) -> "Spy":
            return self

        def __call__(self, first: torch.Tensor, *_arguments: object, **constants: Any) -> None:
            assert [id(tensor) for tensor in entered] == [id(first)], self.name
            started.append((self.name, int(constants["PASS"])))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    names = [name for name in vars(kernels) if name.endswith("_kernel")]
    for name in names:
        monkeypatch.setattr(kernels, name, Spy(name))
    logit, label, weight = step(4, torch.float32)
    factor_LK, slot = torch.rand(L, K), torch.empty(0)
    kernels.ghm_c_count(logit, label, weight, SIZES, K)
    kernels.ghm_c_loss(logit, label, weight, slot, SIZES, factor_LK)
    kernels.ghm_c_gradient(logit, label, weight, slot, SIZES, factor_LK)
    kernels.focal_loss(logit, label, weight, 2.0, 0.25, torch.ones(()))
    kernels.focal_gradient(logit, label, weight, 2.0, 0.25, torch.ones(()))
    box = (logit, torch.zeros_like(logit), torch.ones_like(logit))
    kernels.ghm_r_count(*box, SIZES, K, 0.02)
    kernels.ghm_r_loss(*box, SIZES, factor_LK, 0.02)
    kernels.ghm_r_gradient(*box, SIZES, factor_LK, 0.02)
    passes = [(name, which) for name in names for which in range(3)]
    assert sorted(started) == sorted(set(passes) - {("_focal_kernel", int(kernels.COUNT))})


@pytest.mark.parametrize(("columns", "width"), [(1, 1), (2, 2), (3, 4), (10, 4), (17, 4), (20, 4), (64, 64), (80, 16)])
def test_a_tile_leaves_few_lanes_idle(columns: int, width: int) -> None:
    assert kernels._width(columns) == width


def test_more_populations_than_the_kernels_take_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes must name at most 8 populations, got 9"):
        kernels.ghm_c_count(torch.zeros(9, 2), torch.zeros(9, dtype=torch.long), torch.ones(9), [1] * 9, 10)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ghm.losses import kernels

constants = dict(L=5, C=80, K=30, EXACT=True, SLOTS=32, ROWS=512, TILE=1024, WIDTH=16, SQUARE=False)
for dtype in ("*fp32", "*bf16"):
    names = [name for name in vars(kernels) if name.endswith("_kernel")]
    passes = [(name, which) for name in names for which in range(name == "_focal_kernel", 3)]
    assert len(passes) == 8, passes
    for kernel, which in ((getattr(kernels, name), which) for name, which in passes):
        types = dict.fromkeys(("logit", "pred", "target"), dtype) | dict.fromkeys(("weight", "table", "scale"), "*fp32")
        types |= {"label": "*i64", "out": ("*i64", "*fp64", dtype)[which]}
        signature, fixed = {}, {}
        for place, name in enumerate(kernel.arg_names):
            if name in constants or name == "PASS":
                signature[name], fixed[(place,)] = "constexpr", constants.get(name, which)
            else:
                signature[name] = types.get(name, "i32" if name.startswith("size") else "fp32")
        source = ASTSource(kernel, signature=signature, constexprs=fixed, attrs={})
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert "ld.local" not in compiled.asm["ptx"], f"{kernel} spills"
print("compiled")
"""


def test_every_kernel_compiles_for_cuda() -> None:
    """Ahead of time and without a GPU, down to the binary for compute capability 9.0."""
    run = subprocess.run(
        ["env", "-u", "TRITON_INTERPRET", sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == "compiled", run.stderr
