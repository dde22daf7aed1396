#!/usr/bin/env bash
# Installs Livepeer's Python SDK into an environment of its own for tests/acceptance/sdk. Safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/python.sh .venvs/livepeer-ai
echo "installing the SDK livepeer-ai into .venvs/livepeer-ai"
.venvs/livepeer-ai/bin/python -m pip install --disable-pip-version-check --no-input --root-user-action ignore \
  --requirement tests/acceptance/sdk/livepeer-ai.txt
