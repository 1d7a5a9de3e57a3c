"""Laws of the norms: group norm is PyTorch's in value and all gradients, and a folded batch norm is the one before."""

import copy
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from mmcv.cnn import ConvModule
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from ghm.config import BACKBONES
from ghm.norms import GroupNorm, fold
from ghm.registry import MODELS

LAST = torch.channels_last
# From [B, C, H, W] to the same values in another layout.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "last": lambda x: x.to(memory_format=LAST),
    "first": lambda x: x.contiguous(),
    "every other column": lambda x: x.to(memory_format=LAST).repeat_interleave(2, 3)[..., ::2],
    "some of more channels": lambda x: torch.cat([x, x], 1).to(memory_format=LAST)[:, : x.shape[1]],
    "transposed": lambda x: x.transpose(2, 3).contiguous(memory_format=LAST).transpose(2, 3),
}


def pair(channels: int, groups: int, seed: int = 0) -> tuple[GroupNorm, nn.GroupNorm]:
    """Ours and PyTorch's, with the same parameters."""
    torch.manual_seed(seed)
    ours, theirs = GroupNorm(channels, groups), nn.GroupNorm(groups, channels)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def results(norm: nn.Module, x: Tensor, after: nn.Module | None = None) -> list[Tensor]:
    """The value, and the gradients by the input and the parameters, of a sum with random weights."""
    norm.zero_grad()
    x = x.detach().requires_grad_()
    value = after(norm(x)) if after else norm(x)
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).to(value.dtype)
    value.backward(upstream)
    gradients: list[Any] = [tensor.grad for tensor in (x, *norm.parameters())]
    return [value.detach(), *(gradient.clone() for gradient in gradients)]


def exact(norm: nn.GroupNorm, x: Tensor) -> list[Tensor]:
    """PyTorch's results in float64."""
    return [value.float() for value in results(copy.deepcopy(norm).double(), x.double().contiguous())]


def is_own(norm: nn.Module, x: Tensor) -> bool:
    """Whether the kernel is ours."""
    return "ChannelsLast" in type(norm(x.detach().requires_grad_()).grad_fn).__name__


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32),
    images=st.integers(0, 3),
    groups=st.integers(1, 6),
    depth=st.integers(1, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    layout=st.sampled_from([*LAYOUTS]),
    spread=st.sampled_from([0.1, 1.0, 50.0]),
)
def test_value_and_gradients_are_pytorchs(
    seed: int, images: int, groups: int, depth: int, height: int, width: int, layout: str, spread: float
):
    assume(images != 1 or depth * height * width > 1)  # PyTorch refuses what would be constant
    ours, theirs = pair(groups * depth, groups, seed)
    x = LAYOUTS[layout]((torch.randn(images, groups * depth, height, width) + 1) * spread)
    if not is_own(ours, x):
        torch.testing.assert_close(results(ours, x), results(theirs, x), rtol=0, atol=0)
        return
    # Where the values of a group lie close together, the gradient is the small difference of large numbers.
    values = x.double().reshape(images * groups, depth * height * width)
    atol = 1e-4 * max([1.0, *((group.var(correction=0) + ours.eps).rsqrt().item() for group in values)])
    for found, expected in zip(results(ours, x), exact(theirs, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


def test_far_from_zero_it_is_closer_to_float64_than_pytorchs():
    ours, theirs = pair(64, 16)
    x = LAYOUTS["last"](torch.randn(2, 64, 16, 16) + 100)
    truth = exact(theirs, x)
    errors = [
        [float((one - two).abs().max()) for one, two in zip(results(norm, x), truth, strict=True)]
        for norm in (ours, theirs)
    ]
    assert is_own(ours, x)
    assert all(own < 1e-2 * other for own, other in zip(errors[0][:3], errors[1], strict=False))  # all but the bias


def test_what_is_not_float32_with_channels_last_is_left_to_pytorch_bit_for_bit():
    ours, theirs = pair(12, 3)
    x = torch.randn(2, 12, 5, 7)
    assert is_own(ours, LAYOUTS["last"](x))
    for other in (x, x[:, :, 0], x[..., 0, 0], LAYOUTS["every other column"](x), LAYOUTS["some of more channels"](x)):
        assert not is_own(ours, other)
        torch.testing.assert_close(results(ours, other), results(theirs, other), rtol=0, atol=0)
    x = LAYOUTS["last"](x).double()
    for norm in (ours, theirs):
        norm.double()
    assert not is_own(ours, x)
    torch.testing.assert_close(results(ours, x), results(theirs, x), rtol=0, atol=0)


def test_autocast_computes_in_float32_as_it_does_with_pytorchs():
    ours, theirs = pair(12, 3)
    x = LAYOUTS["last"](torch.randn(2, 12, 5, 7)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(results(ours, x), results(theirs, x), rtol=0, atol=0)


def test_its_value_may_be_changed_in_place():
    norm, _ = pair(12, 3)
    x = LAYOUTS["last"](torch.randn(2, 12, 5, 7))
    changed = results(norm, x, nn.ReLU(inplace=True))
    torch.testing.assert_close(changed, results(norm, x, nn.ReLU()), rtol=0, atol=0)


def test_its_value_has_its_layout_and_needs_no_gradient():
    norm, _ = pair(12, 3)
    x = LAYOUTS["last"](torch.randn(2, 12, 5, 7))
    expected, before = norm(x), x.clone()
    assert expected.is_contiguous(memory_format=LAST)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = norm(x)
        assert torch.equal(found, expected) and not found.requires_grad
    assert torch.equal(x, before)


def test_frozen_parameters_and_an_input_without_gradient_get_none():
    norm, _ = pair(12, 3)
    x = LAYOUTS["last"](torch.randn(2, 12, 5, 7)).requires_grad_()
    norm.requires_grad_(False)
    norm(x).sum().backward()
    assert x.grad is not None and norm.weight.grad is None and norm.bias.grad is None
    norm.requires_grad_(True)
    norm(x.detach()).sum().backward()
    assert norm.weight.grad is not None and norm.bias.grad is not None


def test_a_second_derivative_is_refused_and_not_wrong():
    norm, _ = pair(12, 3)
    x = LAYOUTS["last"](torch.randn(2, 12, 5, 7)).requires_grad_()
    (gradient,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_mmdets_layers_are_built_with_it_and_share_state_dicts_with_those_of_pytorch():
    with DefaultScope.overwrite_default_scope("mmdet"):
        ours, theirs = (
            ConvModule(8, 32, 3, norm_cfg=dict(type=kind, num_groups=16, requires_grad=True))
            for kind in ("ghm.GroupNorm", "GN")
        )
    assert type(ours.gn) is GroupNorm and type(theirs.gn) is nn.GroupNorm
    assert (ours.gn.num_groups, ours.gn.num_channels, ours.gn.eps) == (16, 32, theirs.gn.eps)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = LAYOUTS["last"](torch.randn(2, 8, 6, 6))
    assert is_own(ours.gn, LAYOUTS["last"](torch.randn(2, 32, 6, 6)))
    torch.testing.assert_close(ours(x), theirs(x))


def test_other_groups_than_divide_the_channels_are_refused_as_by_pytorch():
    with pytest.raises(ValueError, match="divisible"):
        GroupNorm(10, 3)


def backbone(name: str, **changes: Any) -> Any:
    """In float64, with statistics and parameters of norms as training might leave them."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        built = MODELS.build({**BACKBONES[name], "norm_eval": True, "frozen_stages": 1, "init_cfg": None, **changes})
    torch.manual_seed(0)
    norms: list[Any] = [module for module in built.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        for tensor in (norm.weight, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
        for tensor in (norm.bias, norm.running_mean):
            nn.init.normal_(tensor)
    return built.double()


def learnt(module: nn.Module) -> list[Any]:
    """Feature maps of an image and the gradient of every parameter."""
    module.zero_grad()
    maps = module(torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    torch.stack([(level * level).sum() for level in maps]).sum().backward()
    gradients: list[Any] = [weight.grad for weight in module.parameters() if weight.requires_grad]
    return [*(level.detach() for level in maps), *(gradient.clone() for gradient in gradients)]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext101_32x4d"])
def test_a_folded_backbone_is_the_one_before(name: str) -> None:
    module = backbone(name)
    module.train()
    state, expected = copy.deepcopy(module.state_dict()), learnt(module)
    fold(module)
    called: list[int] = []
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_hook(lambda _module, inputs, output: called.append(inputs[0] is output))
    torch.testing.assert_close(learnt(module), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(module.state_dict(), state, rtol=0, atol=0)
    assert called and all(called)


def test_a_folded_norm_that_takes_statistics_is_as_before_and_copies_are_apart() -> None:
    module = backbone("resnet18", norm_eval=False, frozen_stages=-1)
    module.train()
    expected = learnt(copy.deepcopy(module))
    fold(module)
    other = copy.deepcopy(module)
    other.eval()
    torch.testing.assert_close(learnt(module), expected)
    before = learnt(other)
    nn.init.zeros_(module.conv1.weight)
    nn.init.zeros_(module.bn1.weight)
    torch.testing.assert_close(learnt(other), before, rtol=0, atol=0)
