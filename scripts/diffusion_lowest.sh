#!/usr/bin/env bash
# Makes .venvs/diffusion-lowest: the packages of constraints-lowest.txt, and from .venv everything else, torch included,
# so that it costs some 60 MB. Needs `make dev`; safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venvs/diffusion-lowest
if cmp --silent constraints-lowest.txt "$venv/installed"; then
  exit 0
fi
echo "installing the oldest versions of the extra [diffusion] into $venv"
.venv/bin/python -m venv --clear --without-pip "$venv"
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
shared=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# At the end of sys.path: what is installed here comes first.
echo "import site; site.addsitedir('$shared')" >"$packages/shared.pth"
.venv/bin/python -m pip install --disable-pip-version-check --no-input --root-user-action ignore --quiet \
  --no-deps --target "$packages" --requirement constraints-lowest.txt
cp constraints-lowest.txt "$venv/installed"
