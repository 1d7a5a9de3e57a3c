"""Laws of the options that mmdet's losses do not have. Shapes: N examples, L populations, K unit regions."""

import torch

from tests.losses.kinds import CLASSIFICATION, Kind, assert_is_oracle, levels, run


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
