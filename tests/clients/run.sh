#!/usr/bin/env bash
# Runs real client libraries against the built server: run.sh LSERVE MODEL_DIR WORK_DIR.
# Status 77, with the reason, where npm or the network is missing: ctest shows it as skipped.
set -euo pipefail
lserve="$(realpath "$1")" model="$(realpath "$2")" work="$3"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

skip() {
  echo "SKIPPED: $*"
  exit 77
}
command -v npm >/dev/null || skip "no npm; the clients come from npm (apt-get install npm)"
mkdir -p "$work"
cp "$here"/package.json "$here"/package-lock.json "$here"/*.mjs "$work"
cd "$work"
if ! cmp -s package-lock.json node_modules/.installed; then
  timeout 300 npm ci --no-audit --no-fund --silent || skip "npm ci failed; is there a network?"
  cp package-lock.json node_modules/.installed
fi

: > server.log  # the address of an earlier run must not be read
"$lserve" serve "$model" --port 0 --threads 1 --max-model-len 32k --kv-cache-bytes 256M 2>server.log &
server=$!
trap 'kill -KILL "$server" 2>/dev/null || true' EXIT
url=""
for _ in $(seq 300); do
  url="$(sed -n 's/^lserve: listening at //p' server.log)"
  [[ -z "$url" ]] || break
  sleep 0.1
done
[[ -n "$url" ]] || { cat server.log; exit 1; }

for client in *_client.mjs; do
  echo "== $client"
  LSERVE_URL="$url" timeout 120 node_modules/.bin/node "$client" || { tail -20 server.log; exit 1; }
done
kill -TERM "$server"
wait "$server"
