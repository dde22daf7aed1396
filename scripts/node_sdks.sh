#!/usr/bin/env bash
# Installs Livepeer's JavaScript SDKs for tests/acceptance/sdk, each into a folder of its own below .venvs. Safe to repeat.
# Where Node is missing or too old it says so and goes on: the tests that need it then skip with the reason.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
  echo "node or npm is not here; the tests of Livepeer's JavaScript SDKs will be skipped" >&2
  exit 0
fi
if node -e 'process.exit(parseInt(process.versions.node) >= 18 ? 0 : 1)'; then :; else
  echo "node $(node --version) is too old, 18 is the least for Livepeer's JavaScript SDKs; their tests will be skipped" >&2
  exit 0
fi

# The one other package that either of them loads.
zod=4.6.7
for sdk in @livepeer/ai@0.6.2 livepeer@3.5.0; do
  name=${sdk%@*}
  folder=.venvs/npm-$(echo "$name" | tr -d @ | tr / -)
  wanted="$sdk zod@$zod"
  if [ "$(cat "$folder/installed" 2>/dev/null)" = "$wanted" ]; then
    continue
  fi
  echo "installing the SDK $sdk into $folder"
  rm -rf "$folder"
  mkdir -p "$folder/nothing"
  echo '{"name": "nothing", "version": "1.0.0"}' >"$folder/nothing/package.json"
  # Both name the tools of their own tests as what they need, 70 MB that no application loads; an empty package stands in.
  # Nothing is left for npm to choose, so there is no lock file.
  cat >"$folder/package.json" <<JSON
{
  "private": true,
  "dependencies": {"$name": "${sdk##*@}", "zod": "$zod"},
  "overrides": {"jest": "file:nothing", "jest-junit": "file:nothing", "ts-jest": "file:nothing"}
}
JSON
  npm install --prefix "$folder" --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error
  echo "$wanted" >"$folder/installed"
done
