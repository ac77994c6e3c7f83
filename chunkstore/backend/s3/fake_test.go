package s3

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
)

// fake opens a bucket of the test's own server, below a prefix.
func fake(t *testing.T, s *backendtest.S3) *Bucket {
	t.Helper()
	s.Mem, s.Bucket = backend.NewMem(), "bucket"
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
	b, err := Open("s3+"+srv.URL+"/bucket/some/prefix", Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The contract without a real server, keys of 200 characters and a prefix apart:
// the test's server keeps objects, whose names are shorter.
func TestFake(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		b := fake(t, &backendtest.S3{})
		b.prefix = ""
		return b
	})
}

func TestFenced(t *testing.T) {
	names := []string{"tmp/1", "tmp/2"}
	if err := backend.Fenced(t.Context(), fake(t, &backendtest.S3{}), names); err != nil {
		t.Error(err)
	}
	s := &backendtest.S3{Unconditional: true}
	b := fake(t, s)
	if err := backend.Fenced(t.Context(), b, names); !errors.Is(err, backend.ErrUnfenced) {
		t.Errorf("a store without conditions: got %v", err)
	}
	for info := range s.Mem.List(t.Context(), "") {
		t.Errorf("%s is left", info.Name)
	}
	l := backend.LookFirst(b)
	if err := l.Put(t.Context(), "config/1", []byte("a")); err != nil {
		t.Error(err)
	}
	if err := l.Put(t.Context(), "config/1", []byte("b")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("put again: %v", err)
	}
}

// What a server says, and what it comes to.
func TestAnswers(t *testing.T) {
	var status atomic.Int32
	var code atomic.Value
	s := &backendtest.S3{Fault: func(w http.ResponseWriter, r *http.Request) bool {
		if status.Load() == 0 {
			return false
		}
		if code.Load() == "" { // a proxy in between
			w.WriteHeader(int(status.Load()))
			return true
		}
		backendtest.S3Error(w, int(status.Load()), code.Load().(string))
		return true
	}}
	b := fake(t, s)
	for _, tt := range []struct {
		status    int
		code      string
		is        error
		transient bool
	}{
		{503, "SlowDown", backend.ErrNotDone, true},
		{429, "", backend.ErrNotDone, true},
		{503, "", nil, true},
		{500, "InternalError", nil, true},
		{502, "", nil, true},
		{403, "AccessDenied", fs.ErrPermission, false},
		{403, "", fs.ErrPermission, false},
		{403, "SignatureDoesNotMatch", fs.ErrPermission, false},
		{404, "XAdminUserNotFound", fs.ErrPermission, false},
		{400, "AuthorizationHeaderMalformed", fs.ErrInvalid, false},
		{400, "BadDigest", backend.ErrNotDone, true},
		{408, "RequestTimeout", nil, true},
		{409, "ConditionalRequestConflict", backend.ErrNotDone, true},
		{301, "PermanentRedirect", fs.ErrInvalid, false},
		{412, "", fs.ErrExist, false},
		{501, "NotImplemented", errors.ErrUnsupported, false},
	} {
		before := s.Requests()
		status.Store(int32(tt.status))
		code.Store(tt.code)
		err := b.Put(t.Context(), "packs/aa/x", []byte("x"))
		if err == nil || tt.is != nil && !errors.Is(err, tt.is) || backend.Transient(err) != tt.transient || tt.is == nil && errors.Is(err, backend.ErrNotDone) {
			t.Errorf("%d %s: got %v, transient %v", tt.status, tt.code, err, backend.Transient(err))
		}
		if n := s.Requests() - before; n != 1 && tt.status != 409 {
			t.Errorf("%d %s: %d requests for a Put, want one", tt.status, tt.code, n)
		}
	}
	if _, err := b.c.GetCreds(); err != nil {
		t.Error(err)
	}
}

// An answer that breaks off may pass, whatever was asked.
func TestBrokenOff(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 100\r\n\r\n<Err")
			c.Close()
		}
	}()
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_REGION", "us-east-1")
	b, err := Open("s3+http://"+l.Addr().String()+"/bucket", Options{Transport: &http.Transport{}})
	if err != nil {
		t.Fatal(err)
	}
	for verb, f := range map[string]func() error{
		"put":    func() error { return b.Put(t.Context(), "config/1", []byte("x")) },
		"remove": func() error { return b.Remove(t.Context(), "config/1") },
		"get":    func() error { _, err := b.Get(t.Context(), "config/1", 0, -1); return err },
		"list": func() (err error) {
			for _, err = range b.List(t.Context(), "config/") {
				_ = err
			}
			return err
		},
	} {
		if err := f(); !backend.Transient(err) || errors.Is(err, backend.ErrNotDone) {
			t.Errorf("%s: got %v, which is taken for a fact", verb, err)
		}
	}
}

// Answers to Get that lie about what they are.
func TestLies(t *testing.T) {
	p := bytes.Repeat([]byte("0123456789"), 100)
	for name, fault := range map[string]func(w http.ResponseWriter) bool{
		"cut short": func(w http.ResponseWriter) bool {
			w.Header().Set("Content-Length", "100")
			w.Header().Set("Content-Range", "bytes 10-109/1000")
			w.WriteHeader(http.StatusPartialContent)
			io.WriteString(w, "0123456789")
			return true
		},
		"another range": func(w http.ResponseWriter) bool {
			w.Header().Set("Content-Range", "bytes 0-99/1000")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(p[:100])
			return true
		},
		"another length": func(w http.ResponseWriter) bool {
			w.Header().Set("Content-Range", "bytes 10-109/1000")
			w.Header().Set("Content-Length", "50")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(p[:50])
			return true
		},
		"no range": func(w http.ResponseWriter) bool {
			w.Write(p)
			return true
		},
		"a terabyte": func(w http.ResponseWriter) bool {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 10-%d/%d", 1<<40-1, 1<<40))
			w.Header().Set("Content-Length", fmt.Sprint(1<<40-10))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(p)
			return true
		},
	} {
		s := &backendtest.S3{Fault: func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Last-Modified", time.Unix(0, 0).UTC().Format(http.TimeFormat))
			return fault(w)
		}}
		b := fake(t, s)
		n := int64(100)
		if name == "a terabyte" {
			n = -1
		}
		got, err := b.Get(t.Context(), "x", 10, n)
		if err == nil || got != nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %d bytes, %v", name, len(got), err)
		}
	}
}

// A server that is busy, and says for how long, is left alone for so long.
func TestBusy(t *testing.T) {
	var last time.Time
	s := &backendtest.S3{Fault: func(w http.ResponseWriter, r *http.Request) bool {
		if !last.IsZero() {
			if d := time.Since(last); d < 900*time.Millisecond {
				t.Errorf("asked again after %s, want a second", d)
			}
			return false
		}
		last = time.Now()
		w.Header().Set("Retry-After", "1")
		backendtest.S3Error(w, http.StatusServiceUnavailable, "SlowDown")
		return true
	}}
	b := backend.Retry(fake(t, s), func(n int, _ error) (time.Duration, bool) { return 0, n < 3 }, nil)
	if err := b.Put(t.Context(), "packs/aa/x", []byte("x")); err != nil {
		t.Error(err)
	}
	if last.IsZero() {
		t.Error("nothing was asked of the server")
	}
}

// An answer to Get that ends too early, and says that it is whole.
func TestCutShort(t *testing.T) {
	s := &backendtest.S3{}
	cut := true
	s.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if !cut || r.Method != http.MethodGet {
			return false
		}
		cut = false
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Length", "4")
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes()[:4])
		return true
	}
	b := fake(t, s)
	if err := b.Put(t.Context(), "x", []byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Get(t.Context(), "x", 0, -1); err == nil || !backend.Transient(err) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := b.Get(t.Context(), "x", 0, -1); err != nil || string(got) != "0123456789" {
		t.Errorf("got %q, %v", got, err)
	}
}
