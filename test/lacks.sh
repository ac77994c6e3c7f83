#!/usr/bin/env bash
# Says what this machine lacks of what tests need, and so is skipped: `go test` is silent
# about tests that are skipped. Where CUTBANK_REQUIRE asks for it they fail instead.
# "lacks.sh packages" prints the packages of Debian that are missing, and no more.
tools=()
for pair in fusermount3:fuse3 rsync:rsync setfattr:attr setfacl:acl setcap:libcap2-bin; do
	command -v "${pair%%:*}" >/dev/null || tools+=("$pair")
done
if [[ ${1:-} == packages ]]; then
	for pair in "${tools[@]}"; do echo "${pair##*:}"; done
	exit
fi
[[ $(id -u) == 0 ]] || echo "LEFT OUT: tests that mount, or set owners: they need root"
[[ -c /dev/fuse ]] || echo "LEFT OUT: tests that mount: there is no /dev/fuse"
for pair in "${tools[@]}"; do
	echo "LEFT OUT: tests that need ${pair%%:*} (apt-get install ${pair##*:})"
done
echo "LEFT OUT: what needs storage servers (make test-services), running systems (make test-systems), and what takes minutes (make slow)"
