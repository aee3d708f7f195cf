#!/usr/bin/env bash
# Installs the CPU environment, if need be, then lint, types and tests.
#
#   bash launch/test.sh [options of pytest]            everything that CI runs; `-k NAME` runs a part
#   bash launch/test.sh --quick [options of pytest]    what starts no cluster and no engine: for the inner loop
#   bash launch/test.sh --soak [options of pytest]     only what takes many minutes; its outcome goes to benchmarks/results/soak.json
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/install.sh
export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
case "${1:-}" in
--soak) shift && exec .venv/bin/pytest -m soak --results=benchmarks/results/soak.json "$@" ;;
--quick) shift && tests=(--ignore=tests/integration) ;;
*) tests=() ;;
esac
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two at a time, each file in one process: while one test waits for processes to start or end, the other computes.
exec .venv/bin/pytest -m "not soak" --numprocesses=2 --dist=loadfile --no-loadscope-reorder "${tests[@]}" "$@"
