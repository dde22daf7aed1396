#!/usr/bin/env bash
# Writes constraints.txt anew: the newest versions that fit pyproject.toml today. Run the tests before committing it.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --upgrade pip
"$scratch/venv/bin/pip" install . hatchling editables --group dev
{
  echo "# The versions that the tests run with; users' ranges stand in pyproject.toml. Written by scripts/pin.sh."
  # torch is an extra of models to come; without a pin, pip would take a build with gigabytes of CUDA.
  { "$scratch/venv/bin/pip" freeze --all --exclude fourfold; echo "torch==2.13.0"; } | LC_ALL=C sort --ignore-case
} >constraints.txt
