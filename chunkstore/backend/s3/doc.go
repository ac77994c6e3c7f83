// Package s3 is the Backend in a bucket of Amazon S3 or of anything that speaks
// like it.
//
// An object's key is the URL's prefix, a slash, and its name. An object is put in
// one request with If-None-Match: *, so that one of several clients wins and the
// others are told; with its SHA-256, which is signed, so that the server refuses
// what was cut short or changed on the way. Put sends nothing twice, unless the
// server has said that it did nothing: whether to try again is the caller's to
// decide, who knows what the name stands for. A bucket's listing shows what was
// put before: Lag is zero.
//
// A store that ignores If-None-Match lets every client win. Nothing in its
// answers tells: backend.Fenced finds out.
//
// A bucket that was made with Object Lock is a backend.Vault: objects are locked in
// COMPLIANCE mode, which nobody can shorten or take back. How long one is locked, the
// answer to HEAD tells; whatever a store answers when it refuses to remove a version,
// that is asked.
//
// URLs are
//
//	s3://BUCKET/PREFIX              Amazon, or what AWS_ENDPOINT_URL names
//	s3+https://HOST:PORT/BUCKET/PREFIX
//	s3+http://HOST:PORT/BUCKET/PREFIX
//
// and hold no secrets. Credentials come from AWS_ACCESS_KEY_ID and
// AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), else from the profile AWS_PROFILE
// of the shared files ~/.aws/config and ~/.aws/credentials (AWS_CONFIG_FILE,
// AWS_SHARED_CREDENTIALS_FILE), else from the machine's or container's role. The
// region comes from AWS_REGION or AWS_DEFAULT_REGION, else from the profile, else
// the bucket is asked.
package s3
