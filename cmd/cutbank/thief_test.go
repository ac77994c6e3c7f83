package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/rogpeppe/go-internal/testscript"
)

// steal is what somebody does who has the credentials of the bucket, and all
// rights: overwrite every object below a URL with garbage, remove every object,
// overwrite half of them again, and try to remove every version for good. It fails
// if less than three quarters of the versions that were there withstand that.
func steal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: thief URL")
	}
	c, bucket, prefix, err := bucketOf(args[0], ts.Getenv)
	ts.Check(err)
	if prefix != "" {
		prefix += "/"
	}
	ctx := context.Background()
	var all []minio.ObjectInfo
	for o := range c.ListObjectsIter(ctx, bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true, WithVersions: true}) {
		ts.Check(o.Err)
		all = append(all, o)
	}
	core := minio.Core{Client: c}
	garbage := bytes.Repeat([]byte("garbage"), 1000)
	sum := sha256.Sum256(garbage)
	overwrite := func(o minio.ObjectInfo) {
		_, err := core.PutObject(ctx, bucket, o.Key, bytes.NewReader(garbage), int64(len(garbage)), "", hex.EncodeToString(sum[:]), minio.PutObjectOptions{DisableContentSha256: true})
		ts.Check(err)
	}
	withstood := 0
	for i, o := range all {
		overwrite(o)
		ts.Check(c.RemoveObject(ctx, bucket, o.Key, minio.RemoveObjectOptions{}))
		if i%2 == 0 {
			overwrite(o)
		}
		if c.RemoveObject(ctx, bucket, o.Key, minio.RemoveObjectOptions{VersionID: o.VersionID, GovernanceBypass: true}) != nil {
			withstood++
		}
	}
	ts.Logf("%d of %d versions withstood", withstood, len(all))
	if len(all) < 5 || withstood*4 < len(all)*3 {
		ts.Fatalf("only %d of %d versions withstood", withstood, len(all))
	}
}

// bucketOf returns a client for the bucket of a URL.
func bucketOf(raw string, getenv func(string) string) (c *minio.Client, bucket, prefix string, err error) {
	u, err := url.Parse(strings.TrimPrefix(raw, "s3+"))
	if err != nil {
		return nil, "", "", err
	}
	bucket, prefix, _ = strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	c, err = minio.New(u.Host, &minio.Options{Creds: credentials.NewStaticV4(getenv("AWS_ACCESS_KEY_ID"), getenv("AWS_SECRET_ACCESS_KEY"), ""), Secure: u.Scheme == "https", Region: "us-east-1"})
	return c, bucket, prefix, err
}

// makeLocked makes the bucket of a URL, with Object Lock, unless it is there.
func makeLocked(t *testing.T, url string) {
	t.Helper()
	c, bucket, _, err := bucketOf(url, os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	if there, err := c.BucketExists(t.Context(), bucket); err != nil {
		t.Fatal(err)
	} else if !there {
		if err := c.MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{ObjectLocking: true}); err != nil {
			t.Fatal(err)
		}
	}
}
