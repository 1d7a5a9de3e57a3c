"""Laws of the Triton kernels, in its interpreter, and that they compile for CUDA. Shapes: N examples, C classes."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings

from ghm.losses import GHMC, density, kernels, ops, slots, vectorised
from ghm.losses import kernel_parts as parts
from ghm.losses.checks import Reduction

K, L = 30, 4
SIZES = [70, 0, 9, 1]


@triton.jit
def _regions_kernel(norm, out, size, K: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    region = parts.region(tl.load(norm + place, mask=place < size, other=0.0), K, EXACT)
    tl.store(out + place, region, mask=place < size)


def regions(norm: torch.Tensor, bins: int, exact: bool) -> torch.Tensor:
    found = torch.full(norm.shape, -1, dtype=torch.int32)
    _regions_kernel[(triton.cdiv(len(norm), 512),)](norm, found, len(norm), K=bins, EXACT=exact, BLOCK=512)
    return found.long()


@pytest.mark.parametrize("bins", [1, 2, 7, 10, 20, 30, 49, 101, 1000])
def test_a_region_is_that_of_the_definition_on_every_edge_and_beside_it(interpreter: None, bins: int) -> None:
    edge_E = torch.arange(bins + 1) / bins
    norm = torch.cat([edge_E, torch.nextafter(edge_E, torch.tensor(2.0)), torch.nextafter(edge_E, torch.tensor(-1.0))])
    norm = torch.cat([norm[(norm >= 0) & (norm <= 1)], torch.rand(500)])
    expected = density.region_index(norm, norm == norm, edge_E=density.region_edges(bins, end=slots.CLASSIFICATION_END))
    for exact in {False, slots.product_is_exact(bins)}:
        assert torch.equal(regions(norm, bins, exact), expected)
        assert 0 <= regions(torch.full((1,), torch.nan), bins, exact) < bins  # it will be looked up


@pytest.mark.parametrize("bins", [*range(1, 130), 999, 1000, 30_000, slots.MOST_BINS])
def test_the_corrected_product_with_one_over_k_is_the_rounded_quotient(bins: int) -> None:
    """What `quotient` does where it is compiled: float64 holds what its fused products have before they are rounded."""
    k = np.arange(bins, dtype=np.float64)
    inverse = np.float64(np.float32(1 / bins))
    near = (k * inverse).astype(np.float32).astype(np.float64)
    rest = (k - near * bins).astype(np.float32).astype(np.float64)
    assert np.array_equal((near + rest * inverse).astype(np.float32), (k / bins).astype(np.float32))


def step(classes: int, dtype: torch.dtype, rows: int = sum(SIZES)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and weights; the first of a few rows are sure negatives, which a count need not look at."""
    torch.manual_seed(classes)
    logit = torch.randn(rows, classes) * 3 - 1
    logit[: rows // 4] -= 9
    label = torch.randint(-1, classes + 1, (rows,))
    label[: rows // 5] = classes
    return logit.to(dtype), label, torch.tensor([0.0, 1.0, 0.5])[torch.randint(0, 3, (rows,))]


def assert_passes_agree(name: str, inputs: tuple) -> None:
    """The one pass of the kernels is their two, and is what plain PyTorch makes."""
    loss, gradient = getattr(kernels, f"{name}_loss_and_gradient")(*inputs)
    assert torch.equal(getattr(kernels, f"{name}_loss")(*inputs), loss)
    assert torch.equal(getattr(kernels, f"{name}_gradient")(*inputs), gradient)
    assert gradient.dtype == inputs[0].dtype and loss.dtype == torch.float32
    torch.testing.assert_close((loss, gradient), getattr(vectorised, f"{name}_loss_and_gradient")(*inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [1, 2, 5, 17, 20])
def test_kernels_are_what_plain_pytorch_is(
    interpreter: None, monkeypatch: pytest.MonkeyPatch, classes: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(kernels, "PROGRAMS", 2)  # several tiles to a program
    logit, label, weight = step(classes, dtype)
    for bins in (1, K, 40):
        count_LK, slot = vectorised.ghm_c_count(logit, label, weight, SIZES, bins)
        assert torch.equal(kernels.ghm_c_count(logit, label, weight, SIZES, bins)[0], count_LK)
        assert count_LK.sum() == (weight > 0).sum() * classes
        assert_passes_agree("ghm_c", (logit, label, weight, slot, SIZES, torch.rand(L, bins)))
    for gamma in (2.0, 1.5, 0.0):
        assert_passes_agree("focal", (logit, label, weight, gamma, 0.25, torch.tensor(0.3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("coordinates", [1, 4, 5])
def test_kernels_of_boxes_are_what_plain_pytorch_is(interpreter: None, coordinates: int, dtype: torch.dtype) -> None:
    torch.manual_seed(coordinates)
    pred, target = (torch.randn(sum(SIZES), coordinates).mul(0.03).to(dtype) for _ in range(2))
    weight = torch.tensor([0.0, 1.0, 0.5])[torch.randint(0, 3, pred.shape)]
    for bins in (1, 10, 40):
        count_LK, slot = vectorised.ghm_r_count(pred, target, weight, SIZES, bins, 0.02)
        assert torch.equal(kernels.ghm_r_count(pred, target, weight, SIZES, bins, 0.02)[0], count_LK)
        assert_passes_agree("ghm_r", (pred, target, weight, slot, SIZES, torch.rand(L, bins), 0.02))


@pytest.mark.parametrize("classes", [80, 81, 1203])
def test_kernels_of_many_classes_are_what_plain_pytorch_is(interpreter: None, classes: int) -> None:
    sizes = [20, 0, 3, 1]
    logit, label, weight = step(classes, torch.bfloat16, sum(sizes))
    count_LK, slot = vectorised.ghm_c_count(logit, label, weight, sizes, K)
    assert torch.equal(kernels.ghm_c_count(logit, label, weight, sizes, K)[0], count_LK)
    assert_passes_agree("ghm_c", (logit, label, weight, slot, sizes, torch.rand(L, K)))


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
            self.arg_names: list[str] = []

        def __getitem__(self, _grid: tuple) -> "Spy":
            return self

        def __call__(self, first: torch.Tensor, *_arguments: object, **constants: Any) -> None:
            assert [id(tensor) for tensor in entered] == [id(first)], self.name
            started.append((self.name, int(constants.get("PASS", 0))))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    names = [name for name in vars(kernels) if name.endswith("_kernel")]
    for name in names:
        monkeypatch.setattr(kernels, name, Spy(name))
    logit, label, weight = step(4, torch.float32)
    factor_LK, slot = torch.rand(L, K), torch.empty(0)
    kernels.ghm_c_count(logit, label, weight, SIZES, K)
    kernels.ghm_c_loss(logit, label, weight, slot, SIZES, factor_LK)
    kernels.ghm_c_gradient(logit, label, weight, slot, SIZES, factor_LK)
    kernels.ghm_c_loss_and_gradient(logit, label, weight, slot, SIZES, factor_LK)
    kernels.multiply(logit, torch.ones(L), SIZES)
    for name in ("loss", "gradient", "loss_and_gradient"):
        getattr(kernels, f"focal_{name}")(logit, label, weight, 2.0, 0.25, torch.ones(()))
    box = (logit, torch.zeros_like(logit), torch.ones_like(logit))
    kernels.ghm_r_count(*box, SIZES, K, 0.02)
    for name in ("loss", "gradient", "loss_and_gradient"):
        getattr(kernels, f"ghm_r_{name}")(*box, slot, SIZES, factor_LK, 0.02)
    passes = {(name, which) for name in names[:3] for which in range(4)} - {("_focal_kernel", int(kernels.COUNT))}
    assert sorted(started) == sorted(passes | {("_multiply_kernel", 0)})


WIDTHS = {1: 1, 2: 2, 3: 4, 10: 4, 17: 4, 20: 4, 64: 64, 80: 16, 81: 32, 91: 32, 1203: 64}


@pytest.mark.parametrize(("columns", "width"), WIDTHS.items())
def test_a_tile_leaves_few_lanes_idle(columns: int, width: int) -> None:
    assert kernels._width(columns) == width


def test_more_populations_than_the_kernels_take_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes must name at most 8 populations, got 9"):
        kernels.ghm_c_count(torch.zeros(9, 2), torch.zeros(9, dtype=torch.long), torch.ones(9), [1] * 9, 10)


COMPILE = """
import json
from benchmarks import kernels

wanted = [(loss, which) for loss in kernels.KERNELS for which in range(loss == "Focal Loss", 4)]
print(json.dumps([kernels.measured(*each, dtype, 90) for each in wanted for dtype in ("fp32", "bf16")]))
"""


def test_every_kernel_compiles_for_cuda_without_conversions_and_in_few_instructions() -> None:
    """Ahead of time and without a GPU, down to the binary for compute capability 9.0."""
    command = ["env", "-u", "TRITON_INTERPRET", sys.executable, "-W", "ignore", "-c", COMPILE]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(rows) == 22
    assert not any(row["spills"] or row["shared"] or row["barriers"] for row in rows)
    for dtype in ("float32", "bfloat16"):
        step = {row["pass"]: row["instructions"] for row in rows if (row["loss"], row["dtype"]) == ("GHM-C", dtype)}
        assert 60 < step["count"] + step["loss and gradient"] <= 105


@settings(max_examples=60)
@given(
    count=st.lists(st.lists(st.integers(0, 3) | st.integers(0, 2**40), min_size=7, max_size=7), min_size=1, max_size=5),
    total=st.none() | st.lists(st.floats(0, 1e9, width=32) | st.just(math.nan), min_size=5, max_size=5),
    options=st.fixed_dictionaries(
        {
            "momentum": st.sampled_from([0, 0.5, 0.75]),
            "bias_correction": st.booleans(),
            "normalizer": st.sampled_from(["valid_bins", "bins"]),
            "smoothing": st.sampled_from([0.0, 0.1, 100.0, "positives"]),
            "loss_weight": st.sampled_from([1.0, 0.3]),
        }
    ),
    reduction=st.sampled_from(["mean", "sum"]),
    positives=st.floats(0, 1e9, width=32),
)
def test_the_statistics_of_one_kernel_are_those_of_the_operators_to_the_bit(
    count: list[list[int]], total: list[float] | None, options: dict[str, Any], reduction: Reduction, positives: float
) -> None:
    number = torch.tensor(positives) if options["smoothing"] == "positives" else None
    options["bias_correction"] &= options["momentum"] > 0
    ours, theirs = GHMC(7, **options), GHMC(7, **options)
    count_LK, total_L = torch.tensor(count), None if total is None else torch.tensor(total[: len(count)])
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
            patch.setattr(ops, "uses_kernels", lambda _tensor: True)
            found = ours.factors(count_LK, total_L, reduction, number)
        result = found, dict(ours.named_buffers())
        expected = theirs.factors(count_LK, total_L, reduction, number), dict(theirs.named_buffers())
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
