# Read by run.sh: builds Consul's servers, a tool each of the modules consul-1.16 and
# consul-1.22 beside this file, which takes minutes, once. They are kept in the user's
# cache. CUTBANK_CONSUL is the first; the scripts run again with CUTBANK_CONSUL_NEXT.
consul_dir=${CUTBANK_SYSTEMS:-${XDG_CACHE_HOME:-$HOME/.cache}/cutbank-systems}
mkdir -p "$consul_dir"
for v in 1.16 1.22; do
	# Which files made the program: nothing is built again unless they change.
	key=$(cat "test/systems/consul-$v/go.mod" "test/systems/consul-$v/go.sum" | sha256sum | cut -c1-16)
	bin=$consul_dir/consul-$v-$key
	if [[ ! -x $bin ]]; then
		echo "building Consul $v, which takes some minutes"
		rm -f "$consul_dir/consul-$v-"*
		if ! (cd "test/systems/consul-$v" && "$go" build -o "$bin.new" github.com/hashicorp/consul && mv "$bin.new" "$bin"); then
			case ,${CUTBANK_REQUIRE:-}, in *,systems,*) exit 1 ;; esac
			echo "LEFT OUT: Consul $v, which could not be built"
			continue
		fi
	fi
	if [[ -z ${CUTBANK_CONSUL:-} ]]; then export CUTBANK_CONSUL=$bin; else CUTBANK_CONSUL_NEXT=$bin; fi
done
for v in $(compgen -e | grep -E '^CONSUL_' || true); do unset "$v"; done
