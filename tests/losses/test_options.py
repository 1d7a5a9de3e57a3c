"""Laws of the options that mmdet's losses do not have. Shapes: N examples, L populations, K unit regions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.losses.kinds import CLASSES, CLASSIFICATION, Kind, assert_is_oracle, levels, run


def test_the_papers_normaliser_is_the_papers_formula(kind: Kind, passes: str) -> None:
    pred, target = kind.inside_regions(0, 6, 30)
    step = (pred, target, torch.ones_like(pred))
    assert_is_oracle(kind, kind.ours(bins=30, normalizer="bins"), step, occupied_only=False)
    reference, papers = run(kind.ours(bins=30), *step)[0], run(kind.ours(bins=30, normalizer="bins"), *step)[0]
    assert papers < reference * 0.8, "regions must be empty for this test to mean much"


def test_a_pseudo_count_is_added_to_every_occupied_region(kind: Kind, passes: str) -> None:
    average = None
    module = kind.ours(bins=10, momentum=0.7, smoothing=3.5)
    for seed in range(5):
        pred, target = kind.inside_regions(seed, 20, 10)
        average = assert_is_oracle(kind, module, (pred, target, torch.ones_like(pred)), average=average, smoothing=3.5)


def test_the_pseudo_count_is_the_number_of_positives_of_the_call(kind: Kind, passes: str) -> None:
    found = set()
    for step in kind.steps(7, 20):
        module = kind.ours(bins=10, smoothing="positives")
        weight = step[2].clamp(0, 1).ceil()  # the oracle's N counts
        found.add(positives(kind, *step[1:]))
        assert_is_oracle(kind, module, (*step[:2], weight), smoothing=float(positives(kind, *step[1:])))
    assert 1 in found and max(found) > 10, "numbers must differ for this test to mean much"


def positives(kind: Kind, target: Tensor, weight: Tensor) -> int:
    """Labels of a class that are not ignored, or rows with a coordinate that is not; at least 1."""
    if kind is CLASSIFICATION:
        pairs = zip(target.tolist(), weight.tolist(), strict=True)
        return max(1, sum(label in range(CLASSES) and w > 0 for label, w in pairs))
    return max(1, sum(any(w > 0 for w in row) for row in weight.tolist()))


def test_positives_of_all_populations_are_counted_whichever_form_the_targets_have(kind: Kind, passes: str) -> None:
    (pred, target, weight), sizes = levels(kind, 3)
    number = float(positives(kind, target, weight))
    by_rule, by_number = kind.ours(smoothing="positives"), kind.ours(smoothing=number)
    step = (pred, target, weight)
    for options in ({"sizes": sizes}, {"sizes": sizes, "reduction_override": "sum"}):
        torch.testing.assert_close(run(by_rule, *step, **options), run(by_number, *step, **options), rtol=0, atol=0)
    if kind is CLASSIFICATION:
        target = (target[:, None] == torch.arange(CLASSES)).float()
        weight = weight[:, None].expand_as(pred)
    step = (pred, target, weight)
    loss, expected = (run(module, *step, reduction_override="none") for module in (by_rule, by_number))
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", [float, torch.tensor])
def test_a_caller_that_knows_the_positives_is_believed_and_keeps_its_number(kind: Kind, form: Any) -> None:
    """As mmdet's heads do, which call a loss level by level with the number of all levels."""
    step, known = next(kind.steps(4, 1)), form(37.0)
    found = run(kind.ours(smoothing="positives", sync=True), *step, avg_factor=known)
    torch.testing.assert_close(found, run(kind.ours(smoothing=37.0), *step), rtol=0, atol=0)
    assert known == 37
    few = run(kind.ours(smoothing="positives"), *step, avg_factor=form(0.0))
    torch.testing.assert_close(few, run(kind.ours(smoothing=1.0), *step), rtol=0, atol=0)


@pytest.mark.parametrize("statistics", ["level", "batch"])
@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_by_positives_the_loss_stays_where_every_example_is_there_twice(
    kind: Kind, passes: str, momentum: float, statistics: Any
) -> None:
    step, sizes = levels(kind, 3)
    options: dict[str, Any] = {"momentum": momentum, "statistics": statistics}
    twice = [torch.cat([torch.cat([part, part]) for part in tensor.split(sizes)]) for tensor in step]
    doubled = [2 * size for size in sizes]

    def both(smoothing: Any) -> tuple[Tensor, Tensor]:
        once, again = kind.ours(smoothing=smoothing, **options), kind.ours(smoothing=smoothing, **options)
        for _ in range(2):  # the average has a past then
            run(once, *step, sizes=sizes)
            run(again, *twice, sizes=doubled)
        return run(once, *step, sizes=sizes)[0], run(again, *twice, sizes=doubled)[0]

    torch.testing.assert_close(*both("positives"), rtol=2e-6, atol=1e-9)
    loss, other = both(100.0)
    assert not torch.allclose(loss, other, rtol=1e-2), "a constant must matter for this test to mean much"


def test_no_pseudo_count_is_the_published_loss_and_a_large_one_weighs_all_regions_alike(kind: Kind) -> None:
    pred, target = kind.inside_regions(3, 40, 10)
    step = (pred, target, torch.ones_like(pred))
    published, plain = run(kind.ours(), *step), run(kind.ours(bins=1), *step)
    assert all(map(torch.equal, run(kind.ours(smoothing=0.0), *step), published))
    smooth = run(kind.ours(smoothing=1e9), *step)
    torch.testing.assert_close(smooth[1] / smooth[0], plain[1] / plain[0], rtol=1e-4, atol=1e-9)
    assert not torch.allclose(published[1] / published[0], plain[1] / plain[0])


def test_bias_correction_weighs_the_first_step_as_if_there_were_no_average(kind: Kind, passes: str) -> None:
    step = next(kind.steps(4, 1))
    alone, _ = run(kind.ours(bins=10), *step)
    biased, _ = run(kind.ours(bins=10, momentum=0.9), *step)
    corrected, _ = run(kind.ours(bins=10, momentum=0.9, bias_correction=True), *step)
    torch.testing.assert_close(biased, alone * 10, rtol=1e-5, atol=0)
    torch.testing.assert_close(corrected, alone, rtol=1e-5, atol=0)


def test_bias_correction_fades_and_counts_each_region_by_itself() -> None:
    module = CLASSIFICATION.ours(bins=2, momentum=0.5, bias_correction=True)
    easy, hard = torch.full((8, 1), -3.0), torch.full((2, 1), 3.0)
    for _ in range(3):
        module(easy, torch.ones(8), torch.ones(8))
    module(torch.cat([easy, hard]), torch.ones(10), torch.ones(10))
    torch.testing.assert_close(module.acc_mass, torch.tensor([1 - 0.5**4, 0.5]))
    torch.testing.assert_close(module.acc_sum / module.acc_mass, torch.tensor([8.0, 2.0]))


def test_statistics_of_the_batch_are_those_of_one_population(kind: Kind, passes: str) -> None:
    step, sizes = levels(kind, 3)
    batch, whole = kind.ours(momentum=0.5, statistics="batch"), kind.ours(momentum=0.5)
    loss, gradient = run(batch, *step, sizes=sizes)
    expected, expected_gradient = run(whole, *step)
    assert loss.shape == (1,)
    torch.testing.assert_close((loss[0], gradient), (expected, expected_gradient))
    assert not torch.allclose(gradient, run(kind.ours(momentum=0.5), *step, sizes=sizes)[1])
