# shellcheck shell=bash
# Sourced by every launcher in this folder: the environment that each Ray process of a cluster shares.
#
# RLHF_TOKEN_FILE   Ray's token, on storage that every node sees; made here on first use. Whoever has it can run code on the
#                   cluster, so only its owner may read it.

say() { printf '[rlhf-dist] %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

need() {
    local command
    for command in "$@"; do
        command -v "$command" >/dev/null || fail "there is no \`$command\` on the PATH of $(hostname); install it or load its module"
    done
}

share_token() {
    : "${RLHF_TOKEN_FILE:=$HOME/.ray/rlhf_dist_token}"
    if [[ ! -s "$RLHF_TOKEN_FILE" ]]; then
        mkdir -p "$(dirname "$RLHF_TOKEN_FILE")"
        (umask 077 && head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n' >"$RLHF_TOKEN_FILE")
        say "made a token for Ray: $RLHF_TOKEN_FILE"
    fi
    [[ "$(stat -c %a "$RLHF_TOKEN_FILE")" == ?00 ]] || fail "$RLHF_TOKEN_FILE can be read by others; run: chmod 600 $RLHF_TOKEN_FILE"
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$RLHF_TOKEN_FILE"
}

export RAY_USAGE_STATS_ENABLED=0 VLLM_NO_USAGE_STATS=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
# Ray starts workers at niceness 15: anything else on a node would starve them.
export RAY_worker_niceness=0
# Not set here: RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper. With it Ray's processes ignore SIGCHLD, and then
# the supervisor of `ray job submit` takes every job that fails for one that succeeded (Ray 2.60).
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
# By default Ray's head remembers 100,000 calls, and the names of a million before them: it would grow for hours.
export RAY_task_events_max_num_task_in_gcs=1000 RAY_task_events_max_dropped_task_attempts_tracked_per_job_in_gcs=1000
