#!/usr/bin/env bash
# Installs the system packages that tests need and this machine lacks. Without root or apt-get it says so and goes on: the
# tests that need them then skip with the reason.
set -euo pipefail
missing=()
command -v curl >/dev/null || missing+=(curl)
# For Livepeer's JavaScript SDKs (scripts/node_sdks.sh).
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing what the tests need of the system: ${missing[*]}"
  apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"
else
  echo "not here, and not installable without root and apt-get: ${missing[*]}; tests that need it will be skipped" >&2
fi
