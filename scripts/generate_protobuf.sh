#!/usr/bin/env bash
# Writes livepeer_pb2.py and its types from livepeer.proto. Uses an older compiler on purpose: generated code runs on
# its own protobuf version and later ones, never on earlier ones, so this sets the lower end of the users' range.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venvs/protobuf
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check 'grpcio-tools==1.76.0'
out=${1:-src/fourfold/protocol}
"$venv/bin/python" -m grpc_tools.protoc -Isrc/fourfold/protocol --python_out="$out" --pyi_out="$out" livepeer.proto
