#!/usr/bin/env bash
# Submits a run to a running Ray cluster, shows its output, and ends with its exit code.
#
#   bash launch/ray_job.sh rl configs/rl.yaml --set policy=/shared/sft        any command of rlhf-dist
#
# What to change:
#   RAY_ADDRESS=http://HEAD:8265     the cluster's dashboard (default: this machine's)
#   RLHF_TOKEN_FILE=FILE             the token that the cluster was started with
#   RLHF_PYTHON=python               Python on the cluster, e.g. /shared/rlhf_dist/.venv/bin/python
#   RLHF_JOB_ID=NAME                 a name of your own for the job
# Packages must be installed on every node (launch/Dockerfile, or a shared .venv); this folder's code goes along.
# Paths in the config are those of the cluster: models, prompts and run_dir on storage that every node sees.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/cluster_env.sh
source "$root/launch/cluster_env.sh"

(($#)) || fail "nothing to run; expected a command of rlhf-dist, e.g.: bash launch/ray_job.sh rl configs/rl.yaml"
[[ -x "$root/.venv/bin/ray" ]] && PATH="$root/.venv/bin:$PATH"
need ray python curl
share_token
: "${RAY_ADDRESS:=http://127.0.0.1:8265}" "${RLHF_JOB_ID:=rlhf-$(date +%Y%m%d-%H%M%S)}"
ask() { curl -sf -H "Authorization: Bearer $(<"$RLHF_TOKEN_FILE")" "$RAY_ADDRESS$1"; }
ask /api/version >/dev/null ||
    fail "no Ray dashboard answers at $RAY_ADDRESS with the token of $RLHF_TOKEN_FILE; start the cluster with --include-dashboard=true, or set RAY_ADDRESS"

# Only code goes along: no environment, no runs, no history.
working_dir="$(mktemp -d)"
trap 'rm -rf "$working_dir"' EXIT
cp -r "$root/rlhf_dist" "$root/configs" "$root/pyproject.toml" "$working_dir"
environment='{"env_vars": {"PYTHONPATH": ".", "TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}}'

say "submitting $RLHF_JOB_ID to $RAY_ADDRESS; stop it with: ray job stop $RLHF_JOB_ID"
ray job submit --address "$RAY_ADDRESS" --submission-id "$RLHF_JOB_ID" --working-dir "$working_dir" \
    --runtime-env-json "$environment" -- "${RLHF_PYTHON:-python}" -m rlhf_dist.cli "$@" --address auto && exit
# Ray's client ends with 1 whatever the run ended with: 2 is a mistake in config or data, 1 a run that failed.
code="$(ask "/api/jobs/$RLHF_JOB_ID" | python -c 'import json, sys; print(json.load(sys.stdin).get("driver_exit_code") or 1)')"
exit "${code:-1}"
