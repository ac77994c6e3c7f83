#!/bin/sh
# The main job on real files: a repository, two snapshots, a mount to look into,
# one file restored. Everything happens in a temporary folder.
set -eu
cutbank=$(realpath "$1")
tree=${2:-$(dirname "$0")/..}
dir=$(mktemp -d)
trap '"$cutbank" umount "$dir/mnt" >/dev/null 2>&1 || true; rm -rf "$dir"' EXIT
export CUTBANK_REPO="$dir/repo" CUTBANK_PASSWORD=demo CUTBANK_CACHE_DIR="$dir/cache" XDG_STATE_HOME="$dir/state"
tree=$(realpath "$tree")
run() { echo; echo "\$ cutbank $*"; "$cutbank" "$@"; }

mkdir "$dir/mnt" "$dir/files"
cp -R "$tree/." "$dir/files"
run init
run snapshot --name demo "$dir/files"
echo 'one more line' >> "$dir/files/README.md"
run snapshot --name demo "$dir/files"
run snapshots
run mount "$dir/mnt" --daemon
echo; echo "\$ ls $dir/mnt/demo"; ls "$dir/mnt/demo"
echo; echo "\$ ls $dir/mnt/demo/latest$dir/files"; ls "$dir/mnt/demo/latest$dir/files"
tail -n 1 "$dir/mnt/demo/latest$dir/files/README.md"
run umount "$dir/mnt"
run restore "demo/latest:$dir/files/README.md" "$dir/restored"
cmp "$dir/files/README.md" "$dir/restored/README.md"
run verify --read-data
