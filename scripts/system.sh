#!/usr/bin/env bash
# Installs the system packages that tests need and this machine lacks. Without root or apt-get it says so and goes on: the
# tests that need them then skip with the reason.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=()
command -v curl >/dev/null || missing+=(curl)
# For Livepeer's JavaScript SDKs (scripts/node_sdks.sh).
command -v node >/dev/null || missing+=(nodejs)
command -v npm >/dev/null || missing+=(npm)
# For the container's stand-in (tests/acceptance/container).
command -v ip >/dev/null || missing+=(iproute2)
command -v nsenter >/dev/null || missing+=(util-linux)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing what the tests need of the system: ${missing[*]}"
    apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"
  else
    echo "not here, and not installable without root and apt-get: ${missing[*]}; tests that need it will be skipped" >&2
  fi
fi

# Prometheus is unpacked and not installed: Debian's package would make a user and start a service that listens.
if ! command -v promtool >/dev/null && [ ! -x .venvs/prometheus/usr/bin/promtool ]; then
  if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    echo "unpacking Debian's prometheus into .venvs/prometheus"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    chmod 755 "$scratch" # apt-get downloads as a user of its own
    (cd "$scratch" && (apt-get download prometheus || { apt-get update && apt-get download prometheus; }))
    mkdir -p .venvs
    dpkg-deb -x "$scratch"/prometheus_*.deb "$scratch/prometheus"
    mv "$scratch/prometheus" .venvs/prometheus
  else
    echo "promtool is not here, and without apt-get it is not fetched; tests that need it will be skipped" >&2
  fi
fi
