#!/usr/bin/env bash
# What runs on each worker of a TPU VM. `famjax launch --target tpu-vm` copies it there and calls it:
#
#     bash worker.sh setup [BUCKET]    installs pinned packages in an environment; mounts gs://BUCKET at /gcs/BUCKET
#     bash worker.sh start             starts famjax in the background, with the words in job/words; log: job/log
#     bash worker.sh follow [LINES]    prints the log from its last LINES lines on, until the job ends; see `follow`
#     bash worker.sh status            prints one line
#     bash worker.sh stop              sends SIGTERM: the step is finished and saved
#
# It runs in the folder of the job: famjax/, gin/, launch/, requirements, job/. Every verb can be repeated.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

# `follow` adds this to the job's exit code; lower codes are those of ssh and gcloud for a lost connection.
readonly ABOVE=100
readonly GONE=76

say() { printf '%s: %s\n' "$(hostname)" "$*"; }

running() { [[ -f job/pid ]] && kill -0 "$(<job/pid)" 2>/dev/null; }

apt_install() {
    sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq update
    sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq install "$@" >/dev/null
}

# Prints the first Python that famjax supports; images of TPU VMs may have only an older one.
find_python() {
    local name
    for name in python3.11 python3.12 python3.13; do
        if "$name" -c 'import ensurepip, venv' 2>/dev/null; then
            printf '%s' "$name"
            return
        fi
    done
    return 1
}

setup() {
    local bucket=${1:-} python
    if ! python=$(find_python); then
        apt_install python3.11 python3.11-venv
        python=$(find_python)
    fi
    [[ -x .venv/bin/python ]] || "$python" -m venv .venv
    local more=()
    [[ -f job/requirements.txt ]] && more=(-r job/requirements.txt)
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-tpu.txt "${more[@]}"
    if [[ -n $bucket ]]; then
        mount_bucket "$bucket"
    fi
    say "$(.venv/bin/python -m famjax --version), libtpu $(.venv/bin/python -c \
        'import importlib.metadata; print(importlib.metadata.version("libtpu"))'), $(.venv/bin/python --version)"
}

mount_bucket() {
    local bucket=$1 point=/gcs/$1
    if ! command -v gcsfuse >/dev/null; then
        local key=/usr/share/keyrings/cloud.google.asc
        curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
        printf 'deb [signed-by=%s] https://packages.cloud.google.com/apt gcsfuse-%s main\n' "$key" "$(lsb_release -cs)" |
            sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
        apt_install gcsfuse
    fi
    mountpoint -q "$point" && return
    sudo mkdir -p "$point"
    sudo chown "$(id -u):$(id -g)" "$point"
    # A checkpoint's folder is renamed when it is complete; a bucket renames every file of it separately.
    gcsfuse --implicit-dirs --rename-dir-limit=100000 "$bucket" "$point"
}

start() {
    if running; then
        say "already running (pid $(<job/pid))"
        return
    fi
    rm -f job/exit_code
    setsid nohup bash launch/tpu_vm/worker.sh run >>job/log 2>&1 </dev/null &
    printf '%s\n' $! >job/pid
    say "started (pid $!)"
}

# Runs the job, in the background. famjax handles a SIGTERM for the group; this shell ignores it and writes the code.
run() {
    local code=0 words=()
    mapfile -d '' -t words <job/words
    trap : TERM
    .venv/bin/python -m famjax "${words[@]}" || code=$?
    printf '%s\n' "$code" >job/exit_code.new
    mv job/exit_code.new job/exit_code
}

# Exits with 0 if the job did, else with 100 + the job's code, or 100 + 76 if the job left no code.
follow() {
    local lines=${1:-+1} code=$GONE
    [[ -f job/pid ]] || { say "nothing was started here"; exit $((ABOVE + GONE)); }
    touch job/log
    tail -n "$lines" --pid="$(<job/pid)" -F job/log 2>/dev/null || true
    if [[ -f job/exit_code ]]; then
        code=$(<job/exit_code)
    else
        say "the job ended without an exit code; was this VM restarted?"
    fi
    exit $((code ? ABOVE + code : 0))
}

status() {
    if running; then
        say "running (pid $(<job/pid)): $(tail -n 1 job/log)"
    elif [[ -f job/exit_code ]]; then
        say "ended with exit code $(<job/exit_code)"
    else
        say "not running"
    fi
}

stop() {
    if running; then
        kill -TERM -- "-$(<job/pid)" 2>/dev/null || kill -TERM "$(<job/pid)"  # before setsid has made it a group leader
        say "SIGTERM sent"
    else
        say "not running"
    fi
}

case ${1:-} in
    setup | start | run | follow | status | stop) "$@" ;;
    *)
        echo "usage: worker.sh setup|start|follow|status|stop" >&2
        exit 2
        ;;
esac
