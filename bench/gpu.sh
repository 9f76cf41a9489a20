#!/bin/sh
# Measures the speech engines of this machine in at most 8 minutes; see bench/gpu.py.
# Usage: bench/gpu.sh [PYTHON [OPTIONS]]; PYTHON is that of the environment with the engine.
cd "$(dirname "$0")/.." || exit 1
python=${1:-python3}
[ $# -gt 0 ] && shift
PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" exec timeout 480 "$python" -m bench.gpu "$@"
