#!/usr/bin/env bash
# All that needs a GPU, in one command under nine minutes: see benchmarks/gpu.py.
#   benchmarks/gpu.sh [--device cpu] [--out FOLDER] [--wheels FOLDER] [--seconds N]
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "$@"
