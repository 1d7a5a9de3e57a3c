"""Laws of the passes in C: they are plain PyTorch, bit for bit in all that weights depend on.

Shapes: N examples, C classes, D coordinates, L populations, K unit regions.
"""

import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ghm.losses import GHMC, GHMR, host, vectorised
from tests.losses.kinds import CLASSIFICATION, REGRESSION, Kind, run

HARD = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 88.8, -104.0, 1e-30, 3e38])
BINS = (1, 2, 3, 5, 7, 10, 20, 30, 49, 100, 126, 127)  # with 127 slots have 16 bits, and plain PyTorch takes over
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is compiled, before and after."""
    host.library.cache_clear()
    yield
    monkeypatch.undo()
    host.library.cache_clear()


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Bit for bit, but for the bits of NaN."""
    return ours.dtype == theirs.dtype and bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())


def drawn(seed: int, rows: int, columns: int, dtype: torch.dtype, scale: float) -> tuple[Tensor, Tensor, Tensor, list]:
    """Predictions, some of them hard; integers from -1 to two past the columns; weights; sizes of populations."""
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randn(rows, columns, generator=generator) * scale
    hard = torch.rand(pred.shape, generator=generator) < 0.02
    pred[hard] = HARD[torch.randint(0, len(HARD), (int(hard.sum()),), generator=generator)]
    label = torch.randint(-1, columns + 2, (rows,), generator=generator)
    weight = torch.tensor([0.0, 1.0, 0.5, -1.0, torch.nan])[torch.randint(0, 5, (rows,), generator=generator)]
    first = seed % (rows + 1)
    return pred.to(dtype), label, weight, [first, 0, rows - first]


@settings(max_examples=300)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(0, 700),
    columns=st.integers(1, 90),
    bins=st.sampled_from(BINS),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([0.1, 2.0, 30.0]),
    chunk=st.sampled_from([1, 1600, vectorised.CHUNK]),
)
@example(seed=0, rows=0, columns=3, bins=30, dtype=torch.float32, scale=1.0, chunk=1)
def test_slots_counts_and_gradients_are_those_of_plain_pytorch(
    seed: int, rows: int, columns: int, bins: int, dtype: torch.dtype, scale: float, chunk: int
) -> None:
    pred, label, weight, sizes = drawn(seed, rows, columns, dtype, scale)
    factor_LK = torch.rand(len(sizes), bins)
    target, weight_ND = torch.randn(pred.shape).mul(scale), weight[:, None].expand(pred.shape)
    both = (
        ("ghm_c", (pred, label, weight), ()),
        ("ghm_r", (pred, target, weight_ND), (0.02,)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectorised, "CHUNK", chunk)
        for name, inputs, rest in both:
            count, step = (getattr(host, f"{name}_{end}") for end in ("count", "loss_and_gradient"))
            plain_count, plain_step = (getattr(vectorised, f"{name}_{end}") for end in ("count", "loss_and_gradient"))
            count_LK, slot = count(*inputs, sizes, bins, *rest)
            plain_LK, plain_slot = plain_count(*inputs, sizes, bins, *rest)
            assert torch.equal(count_LK, plain_LK) and torch.equal(slot, plain_slot)
            expected, plain_gradient = plain_step(*inputs, plain_slot, sizes, factor_LK, *rest)
            for slots in (slot, plain_slot):  # with what the count has kept, and without
                loss, gradient = step(*inputs, slots, sizes, factor_LK, *rest)
                assert same(gradient, plain_gradient)
                torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-30, equal_nan=True)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10_000),
    bins=st.sampled_from(BINS),
    kind=st.sampled_from([GHMC, GHMR]),
    momentum=st.sampled_from([0, 0.5, 0.75]),
    corrected=st.booleans(),
    normalizer=st.sampled_from(["valid_bins", "bins"]),
    smoothing=st.sampled_from([0, 0.0, 3, 100.0, "positives"]),
    reduction=st.sampled_from(["mean", "sum"]),
    summed=st.booleans(),
)
def test_factors_and_averages_are_those_of_plain_pytorch(
    seed: int, bins: int, kind: type, momentum: float, corrected: bool, reduction: str, summed: bool, **options: object
) -> None:
    options |= {"bins": bins, "momentum": momentum, "loss_weight": 0.3}
    options |= {"bias_correction": corrected and momentum > 0}
    ours, plain = kind(**options), kind(**options)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(4):
        count_LK = torch.randint(-50, 100, (3, bins), generator=generator).clamp_(min=0) * (1 + seed % 2 * (10**9 + 7))
        total_L = torch.rand(3, generator=generator) * 9 if summed else None
        positives = torch.tensor(17.3) if options["smoothing"] == "positives" else None
        found = ours.factors(count_LK, total_L, reduction, positives)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host, "library", lambda: None)
            expected = plain.factors(count_LK, total_L, reduction, positives)
        assert torch.equal(found, expected)
        assert all(map(torch.equal, ours.buffers(), plain.buffers()))


@pytest.mark.parametrize("kind", [CLASSIFICATION, REGRESSION], ids=lambda kind: kind.name)
def test_a_pass_goes_on_with_what_its_own_count_has_left_alone(kind: Kind) -> None:
    """Counts and passes of several predictions in any order are those of each by itself."""
    name, rest = ("ghm_c", ()) if kind is CLASSIFICATION else ("ghm_r", (0.02,))
    count, both = (getattr(host, f"{name}_{end}") for end in ("count", "loss_and_gradient"))
    torch.manual_seed(0)
    target = torch.randint(0, 5, (50,)) if kind is CLASSIFICATION else torch.randn(50, 4) * 0.03
    weight, factor_LK = torch.ones(target.shape), torch.rand(1, 10)
    preds = [torch.randn(50, 4) * scale for scale in (0.03, 1.0, 3.0)]

    def counted(pred: Tensor) -> Tensor:
        return count(pred, target, weight, [50], 10, *rest)[1]

    def passed(pred: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        return both(pred, target, weight, slot, [50], factor_LK, *rest)

    slots = [counted(pred) for pred in preds]
    alone = [passed(pred, slot) for pred, slot in zip(preds, slots, strict=True)]  # the last count's is kept
    for pred, expected in zip(preds, alone, strict=True):
        slot = counted(pred)
        for _ in range(2):
            assert all(map(torch.equal, passed(pred, slot), expected))
    slot = counted(preds[0])
    other = passed(preds[1], slot)
    assert not torch.allclose(other[0], alone[0][0])
    assert all(map(torch.equal, other, passed(preds[1], slot)))


def test_labels_and_weights_of_any_dtype_and_stride_are_read_as_they_are() -> None:
    pred, label, _, sizes = drawn(3, 60, 5, torch.float32, 2.0)
    pred, weight = pred.nan_to_num(0, 9, -9), torch.arange(60) % 3 > 0
    expected = run(GHMC(), pred, label, weight.float(), sizes=sizes)
    for labels in (label.int(), label.float(), label.repeat_interleave(2)[::2]):
        for weights in (weight, weight.half(), weight.double(), weight.float().repeat_interleave(3)[::3]):
            assert all(map(torch.equal, run(GHMC(), pred, labels, weights, sizes=sizes), expected))


def test_an_argument_on_another_device_is_refused_and_not_read() -> None:
    with pytest.raises(ValueError, match=r"on the device of pred, cpu, got one on meta"):
        GHMC()(torch.zeros(4, 3), torch.zeros(4, device="meta"), torch.ones(4))


def test_a_loss_with_statistics_of_its_own_keeps_them() -> None:
    class Constant(GHMC):
        def _beta(self, count_LK: Tensor, total_L: Tensor, positives: Tensor | None = None) -> Tensor:
            return torch.full(count_LK.shape, 7.0)

    class Further(Constant):
        pass

    for kind in (Constant, Further):
        assert (kind().factors(torch.ones(1, 10, dtype=torch.int64), None, "sum") == 7).all()
    assert not GHMC.own_statistics and not GHMR.own_statistics


def test_averages_elsewhere_or_of_another_length_are_refused_and_not_written_to() -> None:
    step = next(CLASSIFICATION.steps(4, 1))
    with pytest.raises(ValueError, match="on the device of pred, cpu, got one on meta"):
        run(GHMC(momentum=0.5).to("meta"), *step)
    module = GHMC(bins=10, momentum=0.5)
    module.bins = 30
    with pytest.raises(ValueError, match="bins must not change after the first step with momentum, got 30"):
        run(module, *step)


def test_averages_of_another_dtype_move_as_well() -> None:
    modules = [GHMC(momentum=0.5, bias_correction=True) for _ in range(2)]
    for name, buffer in [*modules[0].named_buffers()]:
        setattr(modules[0], name, buffer.double())
    for step in CLASSIFICATION.steps(4, 5):
        wide, own = (run(module, *step) for module in modules)
        assert all(map(torch.equal, wide, own))
    for wide, own in zip(*(module.buffers() for module in modules), strict=True):
        assert wide.dtype == torch.float64 and torch.equal(wide.float(), own)


def test_without_a_compiler_the_losses_are_those_with_it(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [*CLASSIFICATION.steps(3, 8)]
    expected = [run(GHMC(), *step) for step in steps]
    assert host.library()
    host.library.cache_clear()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert host.library() is None
    for step, (loss, gradient) in zip(steps, expected, strict=True):
        plain_loss, plain_gradient = run(GHMC(), *step)
        assert torch.equal(plain_gradient, gradient)
        torch.testing.assert_close(plain_loss, loss, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("script", ["echo broken >&2; exit 3", "exit 0"])
def test_a_compiler_that_fails_is_said_once_and_the_losses_go_on(
    script: str, fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says why, or leaves nothing behind."""
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(compiler))
    step = next(CLASSIFICATION.steps(4, 1))
    with caplog.at_level(logging.WARNING):
        run(GHMC(), *step)
        run(GHMC(), *step)
    (said,) = caplog.messages
    assert said.startswith(f"{compiler} does not compile {host.SOURCE}, so that the losses are slower: ")
    assert "broken" in said or "host.so" in said


def test_a_compiler_that_does_not_know_this_machine_is_asked_for_any(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *native*) exit 1;; esac\nPATH=/usr/bin:/bin:$PATH exec cc "$@"\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(compiler))
    step = next(CLASSIFICATION.steps(4, 1))
    found = run(GHMC(), *step)
    assert host.library() and not caplog.messages
    monkeypatch.setattr(host, "library", lambda: None)
    torch.testing.assert_close(found, run(GHMC(), *step))


def test_nothing_is_left_on_the_disk(tmp_path: Path) -> None:
    code = "from ghm.losses import host; assert host.library()"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert not [*tmp_path.iterdir()]
