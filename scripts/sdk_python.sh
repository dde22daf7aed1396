#!/usr/bin/env bash
# Installs Livepeer's Python SDKs for tests/acceptance/sdk, each into an environment of its own below .venvs, as they want
# different versions of the same packages. Safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
for pins in tests/acceptance/sdk/*.txt; do
  sdk=$(basename "$pins" .txt)
  scripts/python.sh ".venvs/$sdk"
  echo "installing the SDK $sdk into .venvs/$sdk"
  ".venvs/$sdk/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --root-user-action ignore \
    --requirement "$pins"
done
