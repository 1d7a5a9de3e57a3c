"""GHM's weights and the gradients of Figure 3 of the paper, from counted gradient norms.

Legend: `B` bins of the counted histogram, `K` unit regions, `G` points. Gradient norms are in [0, 1].
"""

import numpy as np
import torch
from numpy.typing import NDArray

from ghm.losses.density import region_weights

Array = NDArray[np.floating]


def unit_regions(count_B: Array, regions: int) -> Array:
    """Regroup a histogram over uniform bins of [0, 1] into `regions` unit regions, [K].

    Exact where `regions` divides the number of bins, which holds for the paper's 5 to 40 of 120; a bin that lies
    across an edge is split in proportion.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(count_B)])
    return np.diff(np.interp(np.linspace(0, 1, regions + 1), np.linspace(0, 1, len(count_B) + 1), cumulative))


def weights(count_K: Array, smoothing: float = 0.0) -> Array:
    """Return the weight that GHM gives to an example of each unit region, [K]; nan where there are no examples.

    Without smoothing the weights of all examples have mean 1, and every occupied region gets the same total.
    """
    count = torch.from_numpy(count_K)
    return np.where(count_K > 0, region_weights(count, count, count.sum(), smoothing=smoothing).numpy(), np.nan)


def focal_gradient(norm_G: Array, gamma: float) -> Array:
    """Return |d FL / d logit| where cross entropy has the gradient norm `norm_G` in [0, 1], without alpha, [G].

    With p_t = 1 - g: g^gamma (g - gamma (1 - g) log(1 - g)), for positive and negative examples alike.
    """
    rest_G = 1 - norm_G
    log_G = np.log(np.where(rest_G > 0, rest_G, 1.0))  # (1 - g) log(1 - g) is 0 at g = 1
    return norm_G**gamma * (norm_G - gamma * rest_G * log_G)
