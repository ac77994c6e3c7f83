# s3rver, from npm, ignores If-None-Match: the store that init must refuse. MIT.
s3rver() {
	keep npm "$services/package-lock.json" npm_install
	mkdir "$dir/s3rver"
	serve s3rver node "$kept/node_modules/s3rver/bin/s3rver.js" --directory "$dir/s3rver" --address 127.0.0.1 --port PORT --silent --configure-bucket test
	export CUTBANK_TEST_S3_UNFENCED=s3+http://127.0.0.1:$port/test
}

# npm_install installs what package.json names, without running anything of it.
npm_install() {
	cp "$services"/package{,-lock}.json "$1"
	npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund --silent
}
