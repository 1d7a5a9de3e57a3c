#!/usr/bin/env bash
# Every check and benchmark that waits for a GPU, what matters most first. Each part has a limit of its own, all together
# less than 8 minutes, and prints what it found when it ends, however it ends. Exit code 0: all passed, on a GPU.
#
#     bash benchmarks/gpu_checks.sh                 # PYTHON and OUT name another interpreter, and a folder for results
#
# Needs Python with torch, torchvision, Triton, OpenCV, scikit-learn, pandas, Matplotlib, tabulate and requests. What
# gpu_wheels.txt names beside these is taken from wheels/*.whl where there are any, and left as it is elsewhere.
# Without a GPU each part runs what can run, small.
set -u
cd "$(dirname "$0")/.." || exit
python="${PYTHON:-python3}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
# A machine without a GPU must not write over what was measured at full size.
out="${OUT:-$(mktemp -d)}"
mkdir -p "$out"
failed=()

# part NAME SECONDS FILE COMMAND...: run the command, then print FILE of the results, or what it said where it failed.
part() {
  local name="$1" limit="$2" file="$3" code=0
  shift 3
  printf '\n== %s (%s s at most)\n' "$name" "$limit"
  timeout --kill-after=10 "$limit" "$@" > "$scratch/said" 2>&1 || code=$?
  if [ "$code" -ne 0 ]; then
    failed+=("$name")
    tail -n 20 "$scratch/said"
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then echo "FAILED: out of time"; else echo "FAILED: exit code $code"; fi
  fi
  if [ -f "$out/$file" ]; then cat "$out/$file"; elif [ "$code" -eq 0 ]; then cat "$scratch/said"; fi
}

if compgen -G "wheels/*.whl" > /dev/null; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$scratch/site" wheels/*.whl \
    || failed+=("wheels")
  export PYTHONPATH="$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
fi
if said="$("$python" -c 'import torch; torch.cuda.init(); print(torch.cuda.get_device_name())' 2>&1)"; then
  echo "GPU: $said"
  device=cuda step=step rounds=5 training=() losses=(--rounds 11 --budget 28)
else
  echo "no GPU: ${said##*$'\n'}"
  failed+=("no GPU")
  device=cpu step=step_cpu rounds=1 training=(--preset tiny) losses=(--logits 1e5 --rounds 3)
fi
part "checks" 105 gpu_checks.md "$python" -m benchmarks.gpu_checks --out "$out"
part "step at COCO's size" 150 "$step.md" "$python" -m benchmarks.step --out "$out" --rounds "$rounds"
part "losses" 45 "losses_$device.md" "$python" -m benchmarks.losses --out "$out" "${losses[@]}"
part "AP of the default, killed on its way" 175 default_ap.md "$python" -m benchmarks.default_ap --out "$out" "${training[@]}"
# 8 files are left: what a lent machine may give back. The figure can be drawn again, and the table has been printed.
rm -f "$out/losses_$device.png"

echo
if [ "${#failed[@]}" -eq 0 ]; then
  echo "all passed; results are in $out"
else
  printf -v names '%s, ' "${failed[@]}"
  echo "not passed: ${names%, }; results are in $out"
  exit 1
fi
