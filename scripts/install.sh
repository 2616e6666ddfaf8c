#!/usr/bin/env bash
# usage: scripts/install.sh VENV EXTRAS [VERSION]
# Makes VENV if it is not there and installs this checkout with EXTRAS, every version pinned.
# Uses uv when it is on the path (several times faster), else venv and pip.
set -euo pipefail
venv=$1 extras=$2 version=${3:-}

use_uv() { command -v uv >/dev/null 2>&1; }

if [[ ! -x $venv/bin/python ]]; then
  python=$(scripts/find-python ${version:+"$version"})
  echo "making $venv with $python"
  if use_uv; then uv venv --quiet --python "$python" "$venv"; else "$python" -m venv "$venv"; fi
fi

minor=$("$venv/bin/python" -c "import sys; print(sys.version_info.minor)")
if ((minor <= 11)); then constraints=constraints/py311.txt; else constraints=constraints/py312.txt; fi
echo "installing apt-jax[$extras] into $venv, versions from $constraints"

if use_uv; then
  # uv has settings of its own and does not read pip's; the two that matter are handed on.
  options=()
  for place in ${PIP_FIND_LINKS:-}; do options+=(--find-links "$place"); done
  if [[ -n ${PIP_INDEX_URL:-} ]]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}; fi
  uv pip install --quiet --python "$venv/bin/python" "${options[@]}" -c "$constraints" -e ".[$extras]"
else
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$constraints" -e ".[$extras]"
fi
