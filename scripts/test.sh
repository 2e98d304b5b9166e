#!/usr/bin/env bash
# Makes the environment if needed and runs everything: lint, types, the fast suite, then verl for real.
#   scripts/test.sh            all of it (an hour on 2 cores, its environment included)
#   scripts/test.sh fast       lint, types and the fast suite (some eight minutes on 2 cores, its environment aside)
#   scripts/test.sh e2e        only the runs of verl's real trainer
set -euo pipefail
what=${1:-all}
case $what in all | fast | e2e) ;; *) echo "scripts/test.sh $what: expected all, fast or e2e" >&2; exit 2 ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
python=$("$root/scripts/setup_cpu.sh" "${PACED_VENV:-$root/.venv}")
export VERL_PLATFORM=cpu HF_HUB_OFFLINE=1
cd "$root"

# Pages are looked at in Debian's chromium. Where it cannot be installed those tests are skipped, and say so.
install_chromium() {
  command -v chromium > /dev/null && return
  local apt=(apt-get)
  [ "$(id -u)" = 0 ] || apt=(sudo -n apt-get)
  if command -v "${apt[0]}" > /dev/null && command -v apt-get > /dev/null; then
    { "${apt[@]}" -qq update && "${apt[@]}" -qq install -y --no-install-recommends chromium; } > /dev/null && return
  fi
  echo "No chromium here, and apt-get could not install it: pages are not tested in a browser." >&2
}

if [ "$what" != e2e ]; then
  "$python" -m ruff format --check .
  "$python" -m ruff check .
  "$python" -m mypy
  "$python" -m scripts.experiments.predicted --check
  "$python" -m scripts.experiments.when_drawn --check
  "$python" -m scripts.experiments.aligned --check
  "$python" -m scripts.experiments.evidence page --check
  "$python" -m scripts.experiments.capability page --check
  "$python" -m scripts.experiments.worlds --check
  install_chromium
  "$python" -m pytest -m "not e2e" -n 2 --dist loadfile
  # The GPU kernels, in Triton's interpreter and compiled for GPUs. Not in the locked set: it is 1 GB that only this needs.
  triton=$(dirname "$(dirname "$python")")/triton
  [ -d "$triton" ] || "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$triton" triton==3.9.0
  TRITON_INTERPRET=1 PYTHONPATH=$triton "$python" -m pytest tests/divergence/test_fused.py
  PYTHONPATH=$triton "$python" -m pytest tests/divergence/test_fused_compiled.py
fi
if [ "$what" != fast ]; then
  rm -f outputs/e2e/launches.jsonl
  # Two at a time: a start-up keeps one core busy and waits for the other. About 5 GB of memory each.
  "$python" -m pytest -m e2e -n 2 --dist worksteal --durations=0
  "$python" scripts/support.py --check
fi
