#!/usr/bin/env bash
# Runs the tests of running systems against real servers, which they start on this
# machine, on loopback and sockets of their own, and stop. What cannot be had is left
# out, and said; CUTBANK_REQUIRE=systems makes that an error. "run.sh get" only builds
# the servers that no package has, which takes minutes the first time.
set -euo pipefail
cd "$(dirname "$0")/../.."
systems=$PWD/test/systems
go=${GO:-go}
. test/keep.sh

# lack SYSTEM HOW: it is not there, and that is how to get it.
lack() {
	case ,${CUTBANK_REQUIRE:-}, in
	*,systems,*) echo "$1 is missing, and CUTBANK_REQUIRE names systems: $2"; exit 1 ;;
	esac
	echo "LEFT OUT: $1, which is missing: $2"
}

consul_1.16() { (cd "$systems/consul_1.16" && "$go" build -o "$1/consul" github.com/hashicorp/consul); }
consul_1.22() { (cd "$systems/consul_1.22" && "$go" build -o "$1/consul" github.com/hashicorp/consul); }
featurebase() {
	(cd "$systems/featurebase" && "$go" build -o "$1/featurebase" -ldflags "-X github.com/featurebasedb/featurebase/v3.Version=v3.35.0" github.com/featurebasedb/featurebase/v3/cmd/featurebase)
}

# have NAME: $kept is the folder of a server that is built here, empty if it cannot be.
have() { keep "$1" "$systems/$1/go.sum" "$1" || { kept= && lack "$1" "see above why it was not built"; }; }

have featurebase
export CUTBANK_TEST_FEATUREBASE=${kept:+$kept/featurebase}
consuls=()
for v in consul_1.16 consul_1.22; do
	have "$v"
	consuls+=(${kept:+"$kept/consul"})
done
if [[ ${1:-} == get ]]; then exit; fi

compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || lack PostgreSQL "apt-get install postgresql"
command -v etcd >/dev/null && command -v etcdctl >/dev/null || lack etcd "apt-get install etcd-server etcd-client"
# The tests must not talk to servers that the caller means.
for v in $(compgen -e | grep -E '^(PG|ETCDCTL_|ETCD_|PILOSA_|CONSUL_)' || true); do unset "$v"; done

export CUTBANK_TEST_SYSTEMS=1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() {
	"$go" test -count 1 -timeout 15m -v -run "$1" ./cmd/cutbank >"$log" 2>&1 || { cat "$log"; exit 1; }
	grep -aE '^ *--- |LEFT OUT|^ok' "$log" | grep -av '> \[!'
}
CUTBANK_TEST_CONSUL=${consuls[0]:-} run '^TestSystems$'
if ((${#consuls[@]} > 1)); then
	CUTBANK_TEST_CONSUL=${consuls[1]} run '^TestSystems$/^consul'
fi
