#!/usr/bin/env bash
# Makes .venv from the lock, or finds it up to date. Shared by launch/local.sh and launch/test.sh.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
LOCK="$ROOT/launch/requirements-cpu.txt"
VENV="$ROOT/.venv"
# Not on PyPI as wheels.
SOURCES="^(deepspeed|rouge-score)=="
# PyPI's torch is the CUDA build, several GB larger; the CPU build lives here.
TORCH_CPU_INDEX="${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}"

say() { printf '[%3d s] %s\n' "$SECONDS" "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# 3.11 first: the lock is resolved with it.
find_python() {
    local name without_venv=""
    for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
        "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null || continue
        "$name" -c 'import ensurepip, venv' 2>/dev/null && { echo "$name"; return; }
        without_venv="$name"
    done
    [[ -z "$without_venv" ]] ||
        fail "$without_venv has no venv module; install it (Debian, Ubuntu: apt-get install $without_venv-venv) and run again"
    fail "no Python from 3.11 to 3.14 on the PATH (found: $(python3 -V 2>&1 || true)); install one and run again"
}

fingerprint() {
    { echo "$ROOT"; "$VENV/bin/python" -VV 2>&1 || true; cat "$LOCK" pyproject.toml; } | sha256sum
}

# A venv holds absolute paths, and dies with the Python that made it.
venv_works() {
    grep -qF -- "$VENV" "$VENV/pyvenv.cfg" 2>/dev/null && "$VENV/bin/python" -m pip --version >/dev/null 2>&1
}

pip_install() {
    "$VENV/bin/python" -I -m pip install -qq --disable-pip-version-check --no-input --no-deps --no-compile "$@"
}

install_torch() {
    local torch
    torch="$(grep '^torch==' "$LOCK")"
    say "installing $torch"
    pip_install "$torch" 2>/dev/null && return
    say "not in the configured indexes; taking it from PyTorch's CPU index"
    pip_install --extra-index-url "$TORCH_CPU_INDEX" "$torch"
}

fill_venv() {
    local info
    # pip writes INSTALLER after a package's last file: a package without it was interrupted.
    for info in "$VENV"/lib/python3*/site-packages/*.dist-info; do
        [[ -f "$info/INSTALLER" ]] || rm -rf "$info"
    done
    install_torch
    say "installing the lock: $(grep -c '==' "$LOCK") packages, about two minutes and 4 GB"
    pip_install --only-binary :all: -r <(grep -vE "$SOURCES" "$LOCK")
    say "building deepspeed and linking rlhf_dist"
    DS_BUILD_OPS=0 pip_install --no-build-isolation -r <(grep -E "$SOURCES" "$LOCK") -e .
    # pip would compile one file after the other, for a minute and a half. Some packages ship files that are no Python: 1.
    "$VENV/bin/python" -m compileall -qq -j 0 "$VENV"/lib/python3*/site-packages >/dev/null 2>&1 || true
}

install() {
    cd "$ROOT"
    [[ "$(uname -sm)" == "Linux x86_64" ]] ||
        fail "the lock is for Linux on x86_64, this is $(uname -sm); install by hand: pip install -e '.[cpu,dev]'"
    exec 9<launch && { flock 9 2>/dev/null || true; } # two launches at once: the second waits for the first
    if [[ "$(cat "$VENV/stamp" 2>/dev/null)" == "$(fingerprint)" ]]; then
        say ".venv is up to date"
        return
    fi
    if ! venv_works; then
        local python
        python="$(find_python)"
        say "making .venv with $("$python" -V)"
        "$python" -m venv --clear "$VENV"
    fi
    rm -f "$VENV/stamp"
    trap 'echo "error: the install stopped; run again to resume it" >&2' EXIT
    fill_venv
    trap - EXIT
    fingerprint >"$VENV/stamp"
    say ".venv is ready"
}

[[ "${BASH_SOURCE[0]}" != "$0" ]] || install
