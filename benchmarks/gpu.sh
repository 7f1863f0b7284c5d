#!/usr/bin/env bash
# All that is to be measured on a CUDA GPU, in one call of at most ten minutes:
#
#   benchmarks/gpu.sh [FOLDER]
#
# First the kernels' tests on the device: without them no time means anything. Then `kaconv bench` in bfloat16,
# channels_last, 256 images at a time: the backends and the peers, then the compiled models. Last a short search for the
# kernels' tile sizes: kaconv/ops/tiles/sm_XY.json, which the kernels read from then on, and which is to be committed.
# What was measured by the time a step's limit ends is in FOLDER (default benchmarks/results/gpu), as JSON and as text.
# It installs nothing: it takes .venv where there is one, else PYTHON or python3, which must have torch and pytest.
set -uo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"
    exit
fi
if [[ ${1:-} == -* || $# -gt 1 ]]; then
    echo "gpu.sh: takes one folder or --help, not: $*" >&2
    exit 2
fi
cd "$(dirname "$0")/.." || exit 1
folder=${1:-benchmarks/results/gpu}
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && python=.venv/bin/python
export PYTHONPATH=$PWD

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "gpu.sh: $python finds no CUDA device, so nothing was measured" >&2
    exit 1
fi
mkdir -p "$folder" || exit 1

echo "The kernels' tests on the device"
if ! timeout 150 "$python" -m pytest -q tests/ops/test_triton_taps.py 2>&1 | tee "$folder/tests.txt"; then
    echo "gpu.sh: the kernels' tests failed or took longer than 150 s, so nothing was timed; see $folder/tests.txt" >&2
    exit 1
fi

status=0
measure() {  # NAME SECONDS OPTIONS...: one result
    local name=$1 seconds=$2
    shift 2
    timeout "$seconds" "$python" -m kaconv.cli bench --device cuda --dtype bfloat16 --channels-last --rounds 3 "$@" \
        --out "$folder/$name.json" | tee "$folder/$name.txt"
    if [ "${PIPESTATUS[0]}" -ne 0 ]; then
        echo "gpu.sh: $name was not measured within $seconds s" >&2
        status=1
    fi
}
# A model at a time: what is done by then is kept.
for model in ka_resnet50_l ka_resnext50_32x4d_l ka_mobilenetv2_100_l; do
    measure "$model" 70 --models "$model"
done
for model in ka_resnet50_l ka_mobilenetv2_100_l; do
    measure "$model-compiled" 85 --models "$model" --variants fused fused-compiled
done
echo "Tile sizes"
if ! timeout 65 "$python" -m kaconv.bench.tuning --seconds 40 | tee "$folder/tiles.txt"; then
    echo "gpu.sh: the tile sizes were not measured" >&2
    status=1
fi
echo "Results: $folder"
exit $status
