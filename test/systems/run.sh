#!/usr/bin/env bash
# Runs the tests of running systems against real servers, which they start on this
# machine, on loopback and sockets of their own, and stop. What is not installed is left
# out, and said; CUTBANK_REQUIRE=systems makes that an error.
set -euo pipefail
cd "$(dirname "$0")/../.."
go=${GO:-go}
lack() {
	case ,${CUTBANK_REQUIRE:-}, in
	*,systems,*) echo "$1 is not installed, and CUTBANK_REQUIRE names systems: apt-get install $2"; exit 1 ;;
	esac
	echo "LEFT OUT: $1, which is not installed (Debian: $2)"
}
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || lack PostgreSQL postgresql
command -v etcd >/dev/null && command -v etcdctl >/dev/null || lack etcd "etcd-server etcd-client"
unset CUTBANK_CONSUL CUTBANK_CONSUL_NEXT
. test/systems/consul.sh
# FeatureBase is built once: it is a tool of a module of its own, for it takes minutes.
# The name says what from.
keep=${CUTBANK_SERVICES:-${XDG_CACHE_HOME:-$HOME/.cache}/cutbank-services}
featurebase=$keep/featurebase-$(cat test/systems/featurebase/go.mod test/systems/featurebase/go.sum | sha256sum | cut -c1-16)/featurebase
if [[ ! -x $featurebase ]]; then
	mkdir -p "${featurebase%/*}"
	(cd test/systems/featurebase && "$go" build -ldflags "-X github.com/featurebasedb/featurebase/v3.Version=v3.35.0" -o "$featurebase.$$" github.com/featurebasedb/featurebase/v3/cmd/featurebase)
	mv "$featurebase.$$" "$featurebase"
fi
export CUTBANK_TEST_FEATUREBASE=$featurebase
# The tests must not talk to servers that the caller means.
for v in $(compgen -e | grep -E '^(PG|ETCDCTL_|ETCD_|PILOSA_)' || true); do unset "$v"; done

export CUTBANK_TEST_SYSTEMS=1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$go" test -count 1 -timeout 15m -v -run '^TestSystems$' ./cmd/cutbank >"$log" 2>&1 || { cat "$log"; exit 1; }
grep -aE '^ *--- |LEFT OUT|^ok' "$log"
if [[ -n ${CUTBANK_CONSUL_NEXT:-} ]]; then
	export CUTBANK_CONSUL=$CUTBANK_CONSUL_NEXT
	"$go" test -count 1 -timeout 15m -v -run '^TestSystems$/^consul' ./cmd/cutbank >"$log" 2>&1 || { cat "$log"; exit 1; }
	grep -aE '^ *--- |LEFT OUT|^ok' "$log"
fi
