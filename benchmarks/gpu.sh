#!/bin/sh
# Training steps of every method on this machine's GPU, as one table, in under 8 minutes: see gpu.py.
cd "$(dirname "$0")/.." && PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
