"""Laws of the operators: what PyTorch asks of a custom one (schema, derivative, shapes without data), by its own check.

Shapes: N examples, C classes, L populations, K unit regions.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

from ghm.losses import ops

SIZES, BINS = [6, 0, 4], 5


def arguments() -> dict[str, tuple[Any, tuple]]:
    """Each operator with inputs: name -> (operator, arguments)."""
    torch.manual_seed(0)
    logit, label, weight = torch.randn(10, 3), torch.randint(0, 4, (10,)), torch.ones(10)
    box = (torch.randn(10, 4), torch.randn(10, 4), torch.ones(10, 4))
    factor_LK, factor = torch.rand(3, BINS), torch.tensor(0.5)
    slot = ops.ghm_c_count(logit, label, weight, SIZES, BINS)[1]
    box_slot = ops.ghm_r_count(*box, SIZES, BINS, 0.02)[1]
    calls = {
        "ghm_c": ((logit, label, weight, slot, SIZES, factor_LK), ops.ghm_c),
        "focal": ((logit, label, weight, 2.0, 0.25, factor), ops.focal),
        "ghm_r": ((*box, box_slot, SIZES, factor_LK, 0.02), ops.ghm_r),
    }
    every: dict[str, Any] = {
        "ghm_c_count": (ops.ghm_c_count, (logit, label, weight, SIZES, BINS)),
        "ghm_r_count": (ops.ghm_r_count, (*box, SIZES, BINS, 0.02)),
        "multiply": (ops.multiply, (logit.clone(), torch.rand(3), SIZES)),
    }
    for name, (inputs, passes) in calls.items():
        wanted = (inputs[0].clone().requires_grad_(), *inputs[1:])
        every[f"{name}_loss"] = (passes.loss, wanted)
        every[f"{name}_gradient"] = (passes.gradient, inputs)
        every[f"{name}_loss_and_gradient"] = (passes.both, wanted)
    return every


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which torch itself still imports
@pytest.mark.parametrize("name", arguments())
def test_pytorchs_own_check_of_an_operator_passes(passes: str, name: str) -> None:
    operator, inputs = arguments()[name]
    results = torch.library.opcheck(operator.operator, inputs)
    assert set(results.values()) == {"SUCCESS"}


def test_tests_see_no_gpu() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and torch.cuda.device_count() == 0


class OnCuda:
    """What takes the place of a tensor on CUDA."""

    is_cuda = True


@pytest.mark.parametrize("compiler", [None, "icc"])
def test_without_compiler_or_headers_the_losses_run_in_plain_pytorch_and_one_warning_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, compiler: str | None
) -> None:
    tensor: Any = OnCuda()
    monkeypatch.delenv("CC", raising=False)
    if compiler:
        monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_paths", lambda *_: {"include": str(tmp_path)})
    monkeypatch.setattr(ops, "LACKING", ops.lacking())
    assert not any(ops.uses_kernels(tensor) for _ in range(3))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"Triton does not find a C compiler ({compiler or 'gcc or clang'}) or the headers of Python "
        f"({tmp_path / 'Python.h'}): the losses run in plain PyTorch on CUDA, which is slower"
    )
    (tmp_path / "Python.h").touch()
    (tmp_path / (compiler or "clang")).touch(mode=0o755)
    monkeypatch.setattr(ops, "LACKING", ops.lacking())
    assert ops.uses_kernels(tensor) is ops.TRITON


ALONE = """
import sys
from ghm import losses
print(*sys.modules)
import torch

logit, label = torch.randn(20, 3, requires_grad=True), torch.randint(0, 4, (20,))
one_hot = torch.nn.functional.one_hot(label, 4)[:, :3]
box, weight = torch.randn(20, 4, requires_grad=True), torch.ones(20)
steps = {
    "GHMC": [(logit, label, weight), (logit, one_hot, torch.ones(20, 3))],
    "FocalLoss": [(logit, label), (logit, one_hot)],
    "OHEMLoss": [(logit, label)],
    "GHMR": [(box, torch.zeros(20, 4), torch.ones(20, 4))],
    "SmoothL1Loss": [(box, torch.zeros(20, 4))],
}
assert steps.keys() == set(losses.__all__)
for name, every in steps.items():
    for step in every:
        loss = getattr(losses, name)()(*step)
        (gradient,) = torch.autograd.grad(loss, step[0])
        assert loss > 0 and gradient.isfinite().all() and gradient.any(), name
print(*sys.modules)
"""


def test_the_losses_load_torch_and_what_torch_brings_alone() -> None:
    lines = (Path(__file__).parents[2] / "requirements.txt").read_text().splitlines()
    others = {line.split("==")[0].replace("-", "_") for line in lines if "==" in line} | {"mmcv", "cv2", "sklearn"}
    others -= {"torch", "triton", "numpy", "filelock", "tqdm"}  # torch imports these where they are
    assert {"mmdet", "mmengine", "torchvision"} < others
    command, environment = [sys.executable, "-W", "ignore", "-c", ALONE], {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    imported, used = (set(line.split()) for line in done.stdout.splitlines())
    assert not others & imported
    assert not others & used


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["ghm_c", "ghm_r", "focal"])
def test_backward_gives_the_gradient_times_what_arrives_as_often_as_it_is_asked(
    passes: str, name: str, dtype: torch.dtype
) -> None:
    operator, inputs = arguments()[f"{name}_gradient"]
    loss = getattr(ops, name)
    pred = inputs[0].to(dtype).requires_grad_()
    sizes = [len(pred)] if name == "focal" else SIZES
    plain = operator(pred.detach(), *inputs[1:]).float()
    tolerance: dict[str, Any] = {"rtol": 1e-6, "atol": 0.0} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-6}
    for upstream in (torch.ones(len(sizes)), torch.tensor([0.3, 1.0, 2.0])[: len(sizes)], torch.zeros(len(sizes))):
        upstream = upstream[0] if name == "focal" else upstream
        value = loss(pred, *inputs[1:])
        row_N1 = upstream.reshape(-1).repeat_interleave(torch.tensor(sizes))[:, None]
        (first,) = torch.autograd.grad(value, pred, upstream, retain_graph=True)
        before = first.clone()
        (second,) = torch.autograd.grad(value, pred, 2 * upstream)
        assert torch.equal(first, before) and first.dtype == dtype
        torch.testing.assert_close(first.float(), row_N1 * plain, **tolerance)
        torch.testing.assert_close(second.float(), 2 * row_N1 * plain, **tolerance)


def test_where_no_gradient_is_wanted_the_loss_pass_runs_alone(passes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, inputs = arguments()["ghm_c_loss_and_gradient"]
    expected = ops.ghm_c(*inputs).detach()
    monkeypatch.delattr(ops.ghm_c, "both")
    with torch.no_grad():
        torch.testing.assert_close(ops.ghm_c(*inputs), expected)
    torch.testing.assert_close(ops.ghm_c(inputs[0].detach(), *inputs[1:]), expected)


def test_a_gradient_that_shall_be_differentiated_is_refused(passes: str) -> None:
    _, inputs = arguments()["ghm_c_loss_and_gradient"]
    (gradient,) = torch.autograd.grad(ops.ghm_c(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()
