package s3

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A server that never comes to an end of one page does not fill the memory.
func TestEndlessPage(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	sent := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := w.Write([]byte("<ListBucketResult>"))
		for part := bytes.Repeat([]byte("<Other>x</Other>"), 1<<12); err == nil && sent < 4*most; sent += len(part) {
			_, err = w.Write(part)
		}
	}))
	defer srv.Close()
	b, err := Open(strings.Replace(srv.URL, "http://", "s3+http://", 1)+"/bucket", Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = nil
	for _, e := range b.List(t.Context(), "") {
		err = e
	}
	if srv.Close(); err == nil || sent > 2*most {
		t.Errorf("after %d bytes: %v", sent, err)
	}
}
