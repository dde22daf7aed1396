#!/usr/bin/env bash
# Makes the virtual environment named by the first argument, unless it is there, with a Python that is new enough.
# PYTHON=/path/to/python chooses one; else the first of the usual names that will do is taken.
set -euo pipefail
venv=$1

is_new_enough() {
  command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

if [ -x "$venv/bin/python" ] && is_new_enough "$venv/bin/python"; then
  exit 0
fi

python=
for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14; do
  if is_new_enough "$candidate"; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  found=$(python3 --version 2>/dev/null || echo none)
  echo "error: Fourfold needs Python 3.11 or newer; python3 here is: $found. Install one, or name it: make PYTHON=/path/to/python3.11" >&2
  exit 1
fi

echo "making $venv with $("$python" --version)"
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  # Debian splits these two from its python3.
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update && apt-get install -y --no-install-recommends python3-venv
  else
    echo "error: $python lacks the modules venv and ensurepip; on Debian or Ubuntu: apt-get install python3-venv" >&2
    exit 1
  fi
fi
"$python" -m venv --clear "$venv"
