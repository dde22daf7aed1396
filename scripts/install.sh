#!/usr/bin/env bash
# Installs Fourfold into .venv, in the versions that its tests ran with (constraints.txt): the command and what it needs;
# with --dev also what checks and tests need. Safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/python.sh .venv

# Also holds for the build environments that pip makes; a relative path, as pip splits this variable at spaces.
export PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
pip() { .venv/bin/python -m pip "$@"; }

# The pip that comes with Python 3.11 knows no dependency groups.
pip install --upgrade pip
if [ "${1:-}" = --dev ]; then
  echo "installing what checks and tests need into .venv"
  pip install --editable '.[diffusion,heic,jxl]' --group dev
  # Without torchvision, which spandrel asks for: there is no build of it for every torch, and what we use of spandrel
  # does not need it (src/fourfold/engine/network_torch.py).
  pip install --no-deps spandrel einops
else
  echo "installing Fourfold into .venv: about 210 MB to download the first time"
  pip install --editable .
fi
