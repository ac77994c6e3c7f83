#!/bin/sh
# Runs every fuzz target of the module for FUZZTIME each. Counted runs end by
# themselves; when a time runs out in the middle of one, the go command may call
# that a failure ("context deadline exceeded").
set -eu
GO=${GO:-go}
$GO list ./... | while read -r pkg; do
	for target in $($GO test -list '^Fuzz' "$pkg" 2>/dev/null | grep '^Fuzz' || true); do
		echo "== $pkg $target"
		$GO test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-50000x}" "$pkg"
	done
done
