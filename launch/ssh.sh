#!/usr/bin/env bash
# A Ray cluster over plain machines, by ssh; then a run on it, if a command is given.
#
#   bash launch/ssh.sh hosts.txt                                   start the cluster; the first host is the head
#   bash launch/ssh.sh hosts.txt rl configs/rl.yaml --run-dir D  start it, run, and stop it again
#   bash launch/ssh.sh hosts.txt --stop                            stop it, and any other Ray of yours on these hosts
#
# hosts.txt: one host a line, as ssh knows it (keys, no passwords); empty lines and # comments are skipped.
# What to change:
#   RLHF_DIR=DIR      the project's folder on every host (default: this folder's path), with its .venv, models and runs
#   RLHF_PORT=6379    port of Ray's head
# Hosts must reach each other on all ports; keep them behind a firewall: Ray's token is sent unencrypted.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=launch/cluster_env.sh
source "$root/launch/cluster_env.sh"

(($#)) || fail "no list of hosts; expected: bash launch/ssh.sh hosts.txt [COMMAND...]"
[[ -r "$1" ]] || fail "$1: no such list of hosts; expected a file with one host a line"
mapfile -t hosts < <(sed -e 's/#.*//' -e 's/[[:space:]]//g' "$1" | grep .) || true
((${#hosts[@]})) || fail "$1: no host in it; expected one a line"
shift
need ssh
share_token
dir="${RLHF_DIR:-$root}" port="${RLHF_PORT:-6379}"
run_on() { ssh -o BatchMode=yes -o ConnectTimeout=10 "$1" bash -s; }

# The token and the environment travel inside the encrypted session, never on a command line.
prelude() {
    cat <<REMOTE
set -euo pipefail
cd '$dir' 2>/dev/null || { echo "error: no folder $dir on \$(hostname); put the project there, or set RLHF_DIR" >&2; exit 1; }
[[ -x .venv/bin/ray ]] || { echo "error: no .venv in $dir on \$(hostname); run bash launch/install.sh there" >&2; exit 1; }
export RLHF_TOKEN_FILE=\$HOME/.ray/rlhf_dist_token
mkdir -p \$HOME/.ray && (umask 077 && printf %s '$(<"$RLHF_TOKEN_FILE")' >\$RLHF_TOKEN_FILE)
export PATH=$dir/.venv/bin:\$PATH
# shellcheck source=launch/cluster_env.sh
source launch/cluster_env.sh && share_token
REMOTE
}
stop_on() {
    local host
    for host in "$@"; do
        { prelude; echo 'ray stop --grace-period 10'; } | run_on "$host" >/dev/null || say "could not stop Ray on $host"
    done
}

if [[ "${1:-}" == --stop ]]; then
    stop_on "${hosts[@]}"
    exit
fi
# Where our connection arrived: /etc/hosts may know the host by a loopback address.
read -r _ _ address _ < <(echo 'printenv SSH_CONNECTION' | run_on "${hosts[0]}") || fail "cannot reach ${hosts[0]} by ssh"
[[ "$address" != 127.* && "$address" != ::1 ]] || ((${#hosts[@]} == 1)) ||
    fail "${hosts[0]} leads to this machine's loopback; name it in the list as the other hosts know it"
# Only what this call starts is stopped with it. `ray stop` stops every Ray of ours on a host, so none may be there before.
alone() {
    cat <<REMOTE
if pgrep -u "\$(id -u)" -x 'raylet|gcs_server' >/dev/null; then
    echo "error: a Ray of yours is running on \$(hostname) already; stop it (bash launch/ssh.sh hosts.txt --stop), or use it: --address" >&2
    exit 1
fi
REMOTE
}
started=()
(($#)) && trap 'stop_on "${started[@]}"' EXIT
for host in "${hosts[@]}"; do
    role="--address=$address:$port"
    [[ "$host" == "${hosts[0]}" ]] && role="--head --port=$port --node-ip-address=$address --dashboard-host=127.0.0.1"
    { prelude; alone; } | run_on "$host" >/dev/null || fail "Ray was not started on $host"
    started+=("$host")
    { prelude; echo "ray start $role"; } | run_on "$host" >/dev/null || fail "Ray did not start on $host"
    say "$host has joined"
done
say "the cluster is up: $address:$port, ${#hosts[@]} nodes. Its dashboard: ssh -L 8265:127.0.0.1:8265 ${hosts[0]}"
if (($#)); then
    { prelude; printf '%q ' exec rlhf-dist "$@" --address "$address:$port"; } | run_on "${hosts[0]}"
fi
