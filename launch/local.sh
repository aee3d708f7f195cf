#!/usr/bin/env bash
# Installs the CPU environment, if need be, and runs the demo: bash launch/local.sh [options of `rlhf-dist demo`]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/launch/install.sh"
export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
exec "$root/.venv/bin/rlhf-dist" demo "$@"
