# MinIO, in a module of its own: its dependencies and versitygw's do not fit together.
# AGPL-3.0: it is only ever run as a process.
minio() {
	keep minio "$services/minio/go.sum" minio_build
	mkdir "$dir/minio"
	MINIO_ROOT_USER=$AWS_ACCESS_KEY_ID MINIO_ROOT_PASSWORD=$AWS_SECRET_ACCESS_KEY MINIO_UPDATE=off MINIO_BROWSER=off \
		serve minio "$kept/minio" server --address 127.0.0.1:PORT --quiet "$dir/minio"
	s3_buckets
}

minio_build() { (cd "$services/minio" && "$go" build -o "$1/minio" github.com/minio/minio); }
