"""What several data sets say together: the mean of their differences, each data set weighing the same."""

from collections.abc import Sequence

import numpy as np

from ghm.evaluation.bootstrap import LEVEL, Difference, Error, together


def pool(differences: Sequence[Difference]) -> Difference:
    """The mean of differences, in the same metric, that were measured on different images with different trainings.

    So their errors are independent: its standard error is the root of the sum of their squares, over their number D.
    It is about these data sets: that others might have been taken is not in it. As in `bootstrap.interval`, a part of
    its variance is due to the images and a part to the seeds. A part is a sum over the data sets, v_1 + ... + v_D, each
    known with f_d degrees of freedom; the sum is known with (sum v_d)^2 / sum(v_d^2 / f_d), after Satterthwaite
    (Biometrics Bulletin 2, 1946), rounded down. The pooled error says how many images and seeds have as many.

    Returns:
        The mean with its interval, inside [-1, 1]; judged for itself.
    """
    errors = [each.error for each in differences]
    of_seeds_D = np.array([error.standard**2 * error.of_seeds for error in errors])
    of_images_D = np.array([error.standard**2 for error in errors]) - of_seeds_D
    variance = float((of_images_D + of_seeds_D).sum())
    error = Error(
        float(np.sqrt(variance)) / len(errors),
        float(of_seeds_D.sum()) / variance if variance else 0.0,
        images=1 + _freedom(of_images_D, [error.images for error in errors]),
        seeds=1 + _freedom(of_seeds_D, [error.seeds for error in errors]),
    )
    estimate, half = float(np.mean([each.estimate for each in differences])), error.margin(1 - LEVEL)
    return together({"": Difference(estimate, max(-1.0, estimate - half), min(1.0, estimate + half), error)})[""]


def _freedom(variance_D: np.ndarray, numbers: Sequence[int]) -> int:
    """Degrees of freedom of the sum of variances; all there are where the sum is 0 and so has no say."""
    free_D = np.array(numbers) - 1
    if not variance_D.any():
        return int(free_D.sum())
    share_D = variance_D / variance_D.max()
    return int(share_D.sum() ** 2 / (share_D**2 / np.maximum(free_D, 1)).sum() + 1e-6)
