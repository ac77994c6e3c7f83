#!/usr/bin/env bash
# Builds the storage servers of this folder's module, starts them on this machine on free
# ports, runs the tests that need them, and stops them.
set -euo pipefail
cd "$(dirname "$0")/../.."
go=${GO:-go}
bin=${CUTBANK_SERVICES:-${XDG_CACHE_HOME:-$HOME/.cache}/cutbank-services}
dir=$(mktemp -d)
pids=()
stop() {
	for pid in "${pids[@]}"; do
		kill "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	rm -rf "$dir"
}
trap stop EXIT

mkdir -p "$bin"
(cd test/services && "$go" build -o "$bin/versitygw" github.com/versity/versitygw/cmd/versitygw)

export AWS_ACCESS_KEY_ID=cutbank AWS_SECRET_ACCESS_KEY=for-tests-on-loopback AWS_REGION=us-east-1
unset AWS_PROFILE AWS_SESSION_TOKEN AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3
mkdir "$dir/data" "$dir/data/test" "$dir/versions" "$dir/sidecar"
sidecar=()
setfattr -n user.cutbank -v x "$dir/data" 2>/dev/null || sidecar=(--sidecar "$dir/sidecar")
for try in 1 2 3 4 5; do
	port=$((20000 + RANDOM % 20000))
	"$bin/versitygw" --port "127.0.0.1:$port" --access "$AWS_ACCESS_KEY_ID" --secret "$AWS_SECRET_ACCESS_KEY" --quiet --health /health \
		posix "${sidecar[@]}" --versioning-dir "$dir/versions" "$dir/data" >"$dir/log" 2>&1 &
	pid=$!
	for _ in $(seq 100); do
		if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && kill -0 "$pid" 2>/dev/null; then
			pids+=("$pid")
			break 2
		fi
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.1
	done
	kill "$pid" 2>/dev/null || true
	wait "$pid" 2>/dev/null || true
done
((${#pids[@]})) || { cat "$dir/log"; echo "versitygw does not start"; exit 1; }

export CUTBANK_TEST_S3=s3+http://127.0.0.1:$port/test CUTBANK_REQUIRE=${CUTBANK_REQUIRE:+$CUTBANK_REQUIRE,}s3
"$go" test -count 1 -timeout 10m ./chunkstore/backend/s3
"$go" test -count 1 -timeout 10m -run 'TestServices' ./cmd/cutbank
