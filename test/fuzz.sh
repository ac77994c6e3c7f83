#!/bin/sh
# Runs every fuzz target of the module for FUZZTIME each.
set -eu
GO=${GO:-go}
$GO list ./... | while read -r pkg; do
	for target in $($GO test -list '^Fuzz' "$pkg" 2>/dev/null | grep '^Fuzz' || true); do
		echo "== $pkg $target"
		$GO test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-10s}" "$pkg"
	done
done
