"""What the start of the moving average does: GHM-C with and without bias correction on a small case.

    python -m benchmarks.momentum

A small network learns, by SGD, to find 1 in 500 of 20,000 anchors by 64 features; it starts, as RetinaNet does, at a
probability of 1 %. Without correction the first weights are 1 / (1 - momentum) times too large: at 0.9 as if the first
steps had ten times the learning rate. The table shows the gradient norm of step 1, the largest of 200 steps, and the
average precision of the ranking at the end (nan: the network is lost). Writes `benchmarks/results/momentum.json`.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sklearn.metrics import average_precision_score
from torch import nn

from ghm.losses import GHMC

RESULT = Path(__file__).parent / "results" / "momentum.json"
ANCHORS, FEATURES, STEPS = 20_000, 64, 200


def main() -> None:
    rows = []
    for lr in (0.05, 0.2):
        rows.append(train(0.0, False, lr))
        rows += [train(momentum, correct, lr) for momentum in (0.5, 0.75, 0.9) for correct in (False, True)]
    RESULT.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(pd.DataFrame(rows).to_markdown(index=False))


def train(momentum: float, correct: bool, lr: float) -> dict[str, Any]:
    """200 steps of one setting."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    with torch.no_grad():
        network[-1].bias.fill_(-4.6)  # type: ignore[union-attr, operator]
    direction = torch.randn(FEATURES)
    loss = GHMC(bins=10, momentum=momentum, bias_correction=correct)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    norms = []
    for _ in range(STEPS):
        features, label = sample(direction)
        optimizer.zero_grad()
        loss(network(features), label, torch.ones(ANCHORS)).backward()
        norms.append(float(nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])))
        optimizer.step()
    features, label = sample(direction)
    score = network(features).detach().squeeze(1)
    found = average_precision_score(label == 0, score) if score.isfinite().all() else float("nan")
    return {
        "lr": lr,
        "momentum": momentum,
        "bias correction": correct,
        "gradient norm, step 1": round(norms[0], 3),
        "largest": round(max(norms), 3) if all(norm < float("inf") for norm in norms) else float("nan"),
        "average precision": round(float(found), 3),
    }


def sample(direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels, 0 for an object and 1 for background; objects lie off along `direction`."""
    features = torch.randn(ANCHORS, FEATURES)
    label = torch.ones(ANCHORS, dtype=torch.long)
    label[:: ANCHORS // 40] = 0
    features[label == 0] += 0.5 * direction
    return features, label


if __name__ == "__main__":
    main()
