package s3

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
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

// endless answers listings with pages of one-letter names, the last of them, or all
// of them, for ever.
func endless(pages []string, all bool) *backendtest.S3 {
	asked := 0
	return &backendtest.S3{Fault: func(w http.ResponseWriter, r *http.Request) bool {
		list, entry, next := "ListBucketResult", "Contents", "NextContinuationToken"
		if r.URL.Query().Has("versions") {
			list, entry, next = "ListVersionsResult", "Version", "NextKeyMarker"
		} else if !r.URL.Query().Has("list-type") {
			return false
		}
		page := pages[min(asked, len(pages)-1)]
		if all {
			page = pages[asked%len(pages)]
		}
		asked++
		fmt.Fprintf(w, "<%s>", list)
		for _, k := range page {
			fmt.Fprintf(w, "<%s><Key>some/prefix/packs/%c</Key><VersionId>1</VersionId><Size>1</Size><LastModified>2026-03-01T12:00:00Z</LastModified></%s>", entry, k, entry)
		}
		fmt.Fprintf(w, "<IsTruncated>true</IsTruncated><%s>%d</%s></%s>", next, asked, next, list)
		return true
	}}
}

// A server that repeats pages of a listing for ever, or sends empty ones, is not
// followed.
func TestEndlessPages(t *testing.T) {
	for _, tt := range []struct {
		pages []string
		all   bool
	}{
		{[]string{"ab"}, false},
		{[]string{"a"}, false},
		{[]string{"ab", "cd", "ef"}, true},
		{[]string{"ab", "cd", "ef", "ef"}, false},
		{[]string{"a", "b", "c", "c"}, false},
		{[]string{"ab", ""}, false},
		{[]string{""}, false},
	} {
		b := fake(t, endless(tt.pages, tt.all))
		b.quiet = 20
		n := 0
		var err error
		for _, err = range b.List(t.Context(), "packs/") {
			n++
		}
		if !errors.Is(err, errors.ErrUnsupported) || backend.Transient(err) || n > 30 {
			t.Errorf("%q: %d names, %v", tt.pages, n, err)
		}
		b = fake(t, endless(tt.pages, tt.all))
		b.quiet, n = 20, 0
		for _, err = range b.ListVersions(t.Context(), "packs/", "") {
			n++
		}
		if !errors.Is(err, errors.ErrUnsupported) || backend.Transient(err) || n > 30 {
			t.Errorf("%q: %d versions, %v", tt.pages, n, err)
		}
	}
}

// Empty pages between others are passed over.
func TestEmptyPages(t *testing.T) {
	pages := []string{"", "", "ab", "", "", "", "c", "", ""}
	s := endless(pages, false)
	next, asked := s.Fault, 0
	s.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if asked++; asked > len(pages) {
			fmt.Fprint(w, "<ListBucketResult></ListBucketResult>")
			return true
		}
		return next(w, r)
	}
	b := fake(t, s)
	b.quiet = 4
	names := ""
	for info, err := range b.List(t.Context(), "packs/") {
		if err != nil {
			t.Fatal(err)
		}
		names += info.Name[len("packs/"):]
	}
	if names != "abc" {
		t.Errorf("got %q", names)
	}
}
