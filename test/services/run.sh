#!/usr/bin/env bash
# Starts storage servers on this machine, runs the tests that need them, and stops them.
# "run.sh get" only gets the servers, which takes minutes the first time.
#
# Each server has a file here, NAME.sh, with a function NAME that gets it (keep), starts
# it (serve) and exports where the tests find it.
set -euo pipefail
cd "$(dirname "$0")/../.."
services=$PWD/test/services
go=${GO:-go}
. test/keep.sh
dir=$(mktemp -d)
pids=()
stop() {
	local pid
	for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
	for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
	rm -rf "$dir"
}
trap stop EXIT

# serve NAME COMMAND...: starts a server, for an hour at most, with a free port in the
# place of PORT; it is $port. A port may be taken between looking and starting: then
# another is tried.
serve() {
	local name=$1 pid
	shift
	for _ in 1 2 3 4 5; do
		port=$((20000 + RANDOM % 12000))
		if answers; then continue; fi
		timeout 1h "${@//PORT/$port}" >"$dir/$name.log" 2>&1 &
		pid=$!
		pids+=("$pid")
		for _ in $(seq 300); do
			if ! kill -0 "$pid" 2>/dev/null; then break; fi
			if answers; then return; fi
			sleep 0.1
		done
		kill "$pid" 2>/dev/null || true
	done
	cat "$dir/$name.log"
	echo "$name does not start"
	exit 1
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; }

# bucket URL [HEADER...]: makes a bucket. The keys reach curl through its standard input.
bucket() {
	local url=$1 h headers=()
	shift
	for h; do headers+=(-H "$h"); done
	curl -sS --fail-with-body --max-time 60 --retry 10 --retry-all-errors --retry-delay 1 -o "$dir/curl.log" --aws-sigv4 "aws:amz:$AWS_REGION:s3" \
		-H "x-amz-content-sha256: UNSIGNED-PAYLOAD" "${headers[@]}" -X PUT -K - "$url" <<<"user = \"$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY\"" || { cat "$dir/curl.log"; exit 1; }
}

for f in "$services"/*.sh; do
	[[ $f == "$services/run.sh" ]] || . "$f"
done

if [[ ${1:-} == get ]]; then
	keep npm "$services/package-lock.json" npm_install
	keep versitygw "$services/go.sum" versitygw_build
	keep minio "$services/minio/go.sum" minio_build
	keep azurite "$services/azurite/package-lock.json" azurite_install
	exit
fi

export AWS_ACCESS_KEY_ID=cutbank AWS_SECRET_ACCESS_KEY=for-tests-on-loopback AWS_REGION=us-east-1
unset AWS_PROFILE AWS_SESSION_TOKEN AWS_ENDPOINT_URL AWS_ENDPOINT_URL_S3
export CUTBANK_REQUIRE=${CUTBANK_REQUIRE:+$CUTBANK_REQUIRE,}s3,unfenced

s3rver
for s3 in versitygw minio; do
	"$s3"
	echo "with $s3"
	"$go" test -count 1 -timeout 10m ./chunkstore/backend/s3
	"$go" test -count 1 -timeout 10m -run TestServices ./cmd/cutbank ./test
done

mkdir "$dir/folder"
echo "with a folder"
CUTBANK_TEST_FOLDERS=$dir/folder "$go" test -count 1 -timeout 10m -run TestPlace ./chunkstore/backend/local

azurite
export CUTBANK_REQUIRE=$CUTBANK_REQUIRE,azure
echo "with azurite"
"$go" test -count 1 -timeout 10m ./chunkstore/backend/azure
"$go" test -count 1 -timeout 10m -run TestServices/azure ./cmd/cutbank
