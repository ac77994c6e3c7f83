# versitygw keeps S3's buckets in a folder. Apache-2.0.
versitygw() {
	keep versitygw "$services/go.sum" versitygw_build
	local data=$dir/versitygw sidecar=()
	mkdir -p "$data"/{data,versions,sidecar}
	setfattr -n user.cutbank -v x "$data/data" 2>/dev/null || sidecar=(--sidecar "$data/sidecar")
	serve versitygw "$kept/versitygw" --port 127.0.0.1:PORT --access "$AWS_ACCESS_KEY_ID" --secret "$AWS_SECRET_ACCESS_KEY" --quiet --health /health \
		posix "${sidecar[@]}" --versioning-dir "$data/versions" "$data/data"
	s3_buckets
}

versitygw_build() { (cd "$services" && "$go" build -o "$1/versitygw" github.com/versity/versitygw/cmd/versitygw); }

# s3_buckets makes a bucket, and one with Object Lock and so with versions, on the server
# at $port.
s3_buckets() {
	bucket "http://127.0.0.1:$port/test"
	bucket "http://127.0.0.1:$port/lock" "x-amz-bucket-object-lock-enabled: true"
	export CUTBANK_TEST_S3=s3+http://127.0.0.1:$port/test CUTBANK_TEST_S3_LOCK=s3+http://127.0.0.1:$port/lock
}
