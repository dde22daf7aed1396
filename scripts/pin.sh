#!/usr/bin/env bash
# Writes constraints.txt anew: the newest versions that fit pyproject.toml today. Run the tests before committing it.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --upgrade pip
# A build of torch for the CPU only, where pip can find one; its mark must not be pinned, as others have other builds.
"$scratch/venv/bin/pip" install torch==2.13.0
"$scratch/venv/bin/pip" install '.[diffusion,heic,jxl]' hatchling editables --group dev
"$scratch/venv/bin/pip" install --no-deps spandrel einops # as scripts/install.sh does
{
  echo "# The versions that the tests run with; users' ranges stand in pyproject.toml. Written by scripts/pin.sh."
  "$scratch/venv/bin/pip" freeze --all --exclude fourfold | sed 's/^\(torch==[^+]*\)+.*/\1/' | LC_ALL=C sort --ignore-case
} >constraints.txt
