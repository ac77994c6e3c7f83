# Read by the run.sh of services and systems: programs of others that tests run are got
# once, which takes minutes, and kept in $cache.
cache=${CUTBANK_SERVICES:-${XDG_CACHE_HOME:-$HOME/.cache}/cutbank-services}

# keep NAME LOCKFILE MAKE: $kept is a folder that "MAKE FOLDER" has filled, once for each
# content of LOCKFILE. What nobody has used for a month goes.
keep() {
	local sum new
	sum=$(sha256sum <"$2")
	kept=$cache/$1-${sum:0:16}
	mkdir -p "$cache"
	if [[ ! -d $kept ]]; then
		new=$(mktemp -d "$cache/new-XXXXXX")
		echo "getting $1"
		"$3" "$new" || { rm -rf "$new"; return 1; }
		mv -T "$new" "$kept" 2>/dev/null || rm -rf "$new" # somebody else was faster
	fi
	touch "$kept"
	find "$cache" -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} +
}
