package backendtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// S3 serves a Mem as the only bucket of a server that speaks S3, as far as a
// backend needs it: PUT, GET with ranges, HEAD, DELETE and listings in short
// pages. It checks no signatures. Keys must be names of objects.
type S3 struct {
	Mem    *backend.Mem
	Bucket string

	// Archive keeps the objects instead of Mem, if it is not nil: in versions,
	// and locked.
	Archive *Archive

	// Unconditional lets it ignore If-None-Match, as some stores do.
	Unconditional bool

	// Fault, if not nil, is asked before each request, and may answer it: then
	// it returns true.
	Fault func(w http.ResponseWriter, r *http.Request) bool

	requests atomic.Int64
}

// s3Page is how many keys a listing returns at once.
const s3Page = 7

// Requests returns how many requests there were.
func (s *S3) Requests() int { return int(s.requests.Load()) }

// ServeHTTP implements http.Handler.
func (s *S3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	if s.Fault != nil && s.Fault(w, r) {
		return
	}
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case bucket != s.Bucket:
		S3Error(w, http.StatusNotFound, "NoSuchBucket")
	case s.Archive != nil:
		s.Archive.serve(w, r, key)
	case key == "" && r.Method == http.MethodGet:
		s.list(w, r)
	case r.Method == http.MethodPut:
		s.put(w, r, key)
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		s.get(w, r, key)
	case r.Method == http.MethodDelete:
		if err := s.Mem.Remove(r.Context(), key); err != nil {
			S3Error(w, http.StatusInternalServerError, "InternalError")
			return
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		S3Error(w, http.StatusNotImplemented, "NotImplemented")
	}
}

// S3Error answers as S3 does.
func S3Error(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>said the test's server</Message></Error>", code)
}

func (s *S3) put(w http.ResponseWriter, r *http.Request, key string) {
	p, err := io.ReadAll(r.Body)
	if sum := sha256.Sum256(p); err != nil || r.Header.Get("X-Amz-Content-Sha256") != hex.EncodeToString(sum[:]) {
		S3Error(w, http.StatusBadRequest, "XAmzContentSHA256Mismatch")
		return
	}
	for {
		err := s.Mem.Put(r.Context(), key, p)
		switch {
		case err == nil:
			return
		case !errors.Is(err, fs.ErrExist):
			S3Error(w, http.StatusInternalServerError, "InternalError")
			return
		case r.Header.Get("If-None-Match") == "*" && !s.Unconditional:
			S3Error(w, http.StatusPreconditionFailed, "PreconditionFailed")
			return
		}
		if err := s.Mem.Remove(r.Context(), key); err != nil {
			S3Error(w, http.StatusInternalServerError, "InternalError")
			return
		}
	}
}

func (s *S3) get(w http.ResponseWriter, r *http.Request, key string) {
	p, err := s.Mem.Get(r.Context(), key, 0, -1)
	if err != nil {
		S3Error(w, http.StatusNotFound, "NoSuchKey")
		return
	}
	s3Bytes(w, r, p)
}

// s3Bytes answers with an object or a range of it.
func s3Bytes(w http.ResponseWriter, r *http.Request, p []byte) {
	w.Header().Set("Last-Modified", time.Unix(0, 0).UTC().Format(http.TimeFormat))
	Bytes(w, r, p, r.Header.Get("Range"), func() { S3Error(w, http.StatusRequestedRangeNotSatisfiable, "InvalidRange") })
}

// Bytes answers a request with p, or with the range of it that spec names, the
// value of a Range header. refuse answers what lies behind the end.
func Bytes(w http.ResponseWriter, r *http.Request, p []byte, spec string, refuse func()) {
	status, size := http.StatusOK, len(p)
	if spec, ok := strings.CutPrefix(spec, "bytes="); ok {
		from, to, _ := strings.Cut(spec, "-")
		first, err := strconv.Atoi(from)
		last, lerr := strconv.Atoi(to)
		if to == "" || lerr == nil && last >= size {
			last, lerr = size-1, nil
		}
		if err != nil || lerr != nil || first >= size || last < first {
			refuse()
			return
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, size))
		status, p = http.StatusPartialContent, p[first:last+1]
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(p)))
	w.WriteHeader(status)
	if r.Method == http.MethodGet {
		_, _ = w.Write(p) // a client that is gone needs no answer
	}
}

type s3Listing struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	IsTruncated           bool
	NextContinuationToken string `xml:",omitempty"`
	Contents              []s3Key
}

type s3Key struct {
	Key          string
	Size         int64
	LastModified time.Time
}

func (s *S3) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Has("location") {
		fmt.Fprint(w, "<LocationConstraint></LocationConstraint>")
		return
	}
	after := max(q.Get("start-after"), q.Get("continuation-token"))
	all, err := s.keys(r.Context(), q.Get("prefix"), after)
	if err != nil {
		S3Error(w, http.StatusInternalServerError, "InternalError")
		return
	}
	s3List(w, all)
}

func s3List(w http.ResponseWriter, all []s3Key) {
	l := s3Listing{Contents: all}
	if len(all) > s3Page {
		l.Contents, l.IsTruncated, l.NextContinuationToken = all[:s3Page], true, all[s3Page-1].Key
	}
	w.Header().Set("Content-Type", "application/xml")
	_ = xml.NewEncoder(w).Encode(&l) // a client that is gone needs no answer
}

func (s *S3) keys(ctx context.Context, prefix, after string) ([]s3Key, error) {
	var all []s3Key
	for info, err := range s.Mem.List(ctx, prefix) {
		if err != nil {
			return nil, err
		}
		if info.Name > after {
			all = append(all, s3Key{info.Name, info.Size, info.ModTime})
		}
	}
	slices.SortFunc(all, func(a, b s3Key) int { return strings.Compare(a.Key, b.Key) })
	return all, nil
}
