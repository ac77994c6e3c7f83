package test

import (
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/backend/s3"
	"github.com/cutbankfs/cutbank/chunkstore/backend/web"
)

// The SDK pauses after each failure, whether it tries again or not.
func init() { minio.DefaultRetryUnit = time.Millisecond }

// bucket is a place for a repository on a server that speaks S3.
type bucket struct {
	t       *testing.T
	handler http.Handler
	path    string // of the repository: /bucket/prefix
	direct  string // URL of the repository, with no line between
}

// newBucket is on a server of the test's own.
func newBucket(t *testing.T) *bucket {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
	m := backend.NewMem()
	s := &backendtest.S3{Mem: m, Bucket: "bucket"}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return &bucket{t, s, "/bucket/r", "s3+" + srv.URL + "/bucket/r"}
}

// realBucket is on the server that CUTBANK_TEST_S3 names.
func realBucket(t *testing.T) *bucket {
	t.Helper()
	place := os.Getenv("CUTBANK_TEST_S3")
	if place == "" {
		missing(t, "s3", "CUTBANK_TEST_S3 names no bucket; `make test-services` starts a server and runs this")
	}
	place += "/" + strings.ToLower(rand.Text())
	u, err := url.Parse(strings.TrimPrefix(place, "s3+"))
	if err != nil {
		t.Fatal(err)
	}
	server := &url.URL{Scheme: u.Scheme, Host: u.Host}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(server)
		r.Out.Host = r.In.Host // it is signed
	}}
	return &bucket{t, proxy, u.Path, place}
}

// fresh is a bucket like b with nothing in it. The environment stays.
func (b *bucket) fresh() *bucket {
	c := *b
	name := strings.ToLower(rand.Text())
	c.path, c.direct = b.path+"/"+name, b.direct+"/"+name
	return &c
}

// open opens a place by its URL, giving up a server that is silent for so long.
// It tries everything once.
func (b *bucket) open(place string, stall time.Duration) backend.Backend {
	b.t.Helper()
	tr, err := web.Transport(web.Options{Stall: stall})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(tr.CloseIdleConnections)
	s, err := s3.Open(place, s3.Options{Transport: tr})
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}
