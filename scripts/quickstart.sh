#!/usr/bin/env bash
# One command on a fresh CPU machine: a real PACED run inside verl's trainer, and a uniform one (12 minutes on 2 cores when measured).
#   scripts/quickstart.sh [--recipe two_stage|self_distillation] [--steps N] [--seed N] [--no-compare] [--fresh] [--keep-going]
# See scripts/quickstart.py for what it does; --help for the options.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PACED_STARTED=${PACED_STARTED:-$(date +%s)}
python=$("$root/scripts/setup_cpu.sh" "${PACED_VENV:-$root/.venv}")
export VERL_PLATFORM=cpu HF_HUB_OFFLINE=1
exec "$python" "$root/scripts/quickstart.py" "$@"
