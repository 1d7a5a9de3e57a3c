#!/usr/bin/env bash
# Every check and benchmark that waits for a GPU, meant for 9 minutes at the most; a table last, JSON beside.
# Needs Python with torch, torchvision, Triton and pandas. Where wheels/*.whl are beside it (mmdet, mmcv-lite, mmengine,
# pycocotools, shapely, terminaltables, addict, yapf, termcolor), mmdet's own modules are compared with too.
# Without a GPU it runs the parts that can run.
set -euo pipefail
cd "$(dirname "$0")/.."
# A machine without a GPU must not write over what was measured at full size.
out="${OUT:-$(mktemp -d)}"
mkdir -p "$out"
if compgen -G "wheels/*.whl" > /dev/null && ! python -c 'import mmdet' 2> /dev/null; then
  python -m pip install --quiet --no-deps --no-index wheels/*.whl
fi
status=0
python -m benchmarks.gpu_checks --out "$out" || status=1
if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  python -m benchmarks.losses --out "$out" --rounds 21 --budget 240 > /dev/null
else
  python -m benchmarks.losses --out "$out" --logits 1e5 1e6 --rounds 5 > /dev/null
fi
if python -c 'import mmdet' 2> /dev/null; then
  if python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    python -m benchmarks.speed --out "$out" > /dev/null || status=1
  else
    python -m benchmarks.speed --preset tiny --out "$out" > /dev/null || status=1
  fi
  cat "$out/training_speed.md"
fi
cat "$out"/losses_*.md "$out/gpu_checks.md"
exit "$status"
