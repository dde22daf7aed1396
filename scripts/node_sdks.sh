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

# The packages as they are, unpacked side by side: both SDKs name the tools of their own tests as what they need, 70 MB that no
# application loads, and npm cannot leave those out. All that either of them does load is zod.
for sdk in @livepeer/ai@0.6.2 livepeer@3.5.0; do
  folder=.venvs/npm-$(echo "${sdk%@*}" | tr -d @ | tr / -)
  wanted="$sdk zod@4.6.7"
  if [ "$(cat "$folder/installed" 2>/dev/null)" = "$wanted" ]; then
    continue
  fi
  echo "installing the SDK $sdk into $folder"
  rm -rf "$folder"
  for package in $wanted; do
    inside="$folder/node_modules/${package%@*}"
    mkdir -p "$inside"
    archive=$(npm pack --silent --pack-destination "$folder" "$package")
    tar --extract --gzip --file "$folder/$archive" --directory "$inside" --strip-components 1 --no-same-owner
    rm "$folder/$archive"
  done
  echo "$wanted" >"$folder/installed"
done
