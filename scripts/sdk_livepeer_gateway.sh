#!/usr/bin/env bash
# Installs PyPI livepeer-gateway, the one packaged peer of the orchestrator protocol, into an environment of its own for
# tests/integration/orchestrator/test_livepeer_gateway.py. It asks for Python 3.12 and runs on 3.11; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venvs/livepeer-gateway
wanted='1.0.0 grpcio==1.85.1 protobuf==7.36.2 aiohttp==3.14.5 av==18.1.0'
if [ "$(cat "$venv/installed" 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi
scripts/python.sh "$venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
# shellcheck disable=SC2086  # one word for each requirement
"$venv/bin/python" -m pip install --quiet ${wanted#* }
"$venv/bin/python" -m pip install --quiet --ignore-requires-python --no-deps "livepeer-gateway==${wanted%% *}"
echo "$wanted" >"$venv/installed"
