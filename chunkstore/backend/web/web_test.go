package web

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

func client(t *testing.T, opt Options) *http.Client {
	t.Helper()
	tr, err := Transport(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// Both limits hold over all connections together.
func TestLimits(t *testing.T) {
	const size = 256 << 10
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n, _ := io.Copy(io.Discard, r.Body); n == 0 {
			w.Write(make([]byte, size))
		}
	}))
	defer srv.Close()
	for _, tt := range []struct {
		name string
		opt  Options
		body []byte
	}{{"upload", Options{Upload: 1 << 20}, make([]byte, size)}, {"download", Options{Download: 1 << 20}, nil}} {
		c := client(t, tt.opt)
		start := time.Now()
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() {
				resp, err := c.Post(srv.URL, "", bytes.NewReader(tt.body))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if n, err := io.Copy(io.Discard, resp.Body); err != nil || tt.body == nil && n != size {
					t.Errorf("%d bytes, %v", n, err)
				}
			})
		}
		group.Wait()
		// 512 KiB at 1 MiB/s; the first tenth of a second is free.
		if d := time.Since(start); d < 350*time.Millisecond {
			t.Errorf("%s took only %s", tt.name, d)
		}
	}
}

// A server that stops in the middle is given up; one that takes a long upload
// slowly is not.
func TestStall(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			buf := make([]byte, 1<<20)
			for {
				if _, err := io.ReadFull(r.Body, buf); err != nil {
					return
				}
				time.Sleep(60 * time.Millisecond)
			}
		}
		w.Header().Set("Content-Length", "10")
		w.Write([]byte("12345"))
		w.(http.Flusher).Flush()
		<-release
	}))
	defer srv.Close()
	defer close(release)
	c := client(t, Options{Stall: 300 * time.Millisecond})
	resp, err := c.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if ne, ok := err.(net.Error); !ok || !ne.Timeout() || string(p) != "12345" {
		t.Errorf("got %q, %v", p, err)
	}
	req, err := http.NewRequest(http.MethodPut, srv.URL, bytes.NewReader(make([]byte, 24<<20)))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	resp, err = c.Do(req)
	if err != nil {
		t.Fatalf("after %s: %v", time.Since(start), err)
	}
	resp.Body.Close()
}

func TestCACert(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if resp, err := client(t, Options{CACert: file}).Get(srv.URL); err != nil {
		t.Error(err)
	} else {
		resp.Body.Close()
	}
	if _, err := client(t, Options{}).Get(srv.URL); err == nil {
		t.Error("a stranger's certificate is trusted")
	}
	_, err := client(t, Options{CACert: file}).Get(strings.Replace(srv.URL, "127.0.0.1", "localhost", 1))
	if err = Unanswered(err, "s3+http://"); !errors.Is(err, fs.ErrInvalid) || strings.Contains(err.Error(), "--ca-cert") {
		t.Errorf("a certificate of another name: %v", err)
	}
	if err := os.WriteFile(file, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, file + "x"} {
		if _, err := Transport(Options{CACert: name}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// What servers say of how long they are to be left alone.
func TestBusy(t *testing.T) {
	const date = "Sun, 06 Nov 1994 08:49:37 GMT"
	for _, tt := range []struct {
		status int
		after  string
		want   time.Duration
	}{
		{503, "3", 3 * time.Second}, {429, "3", 3 * time.Second}, {500, "3", 0}, {200, "3", 0}, {503, "", 0}, {503, "soon", 0}, {503, "-3", 0}, {503, "99999999999999", 0},
		{503, "100000", longest}, {503, "Sun, 06 Nov 1994 08:49:47 GMT", 10 * time.Second}, {503, date, 0}, {503, "Sun, 06 Nov 1994 08:49:30 GMT", 0}, {503, "Sun, 06 Nov 2094 08:49:37 GMT", longest},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", date)
			w.Header().Set("Retry-After", tt.after)
			w.WriteHeader(tt.status)
		}))
		b := &Busy{RoundTripper: http.DefaultTransport}
		resp, err := (&http.Client{Transport: b}).Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := b.Left(); got > tt.want || got < tt.want-2*time.Second {
			t.Errorf("%d, %q: %s are left, want %s", tt.status, tt.after, got, tt.want)
		}
		srv.Close()
	}
}

// A transport that reads on after the request has ended gets nothing more, and
// every reader begins at the start.
func TestBody(t *testing.T) {
	b := Lend([]byte("0123456789"))
	r, again := b.Reader(), b.Reader()
	buf := make([]byte, 4)
	if n, err := io.ReadFull(r, buf); n != 4 || err != nil || string(buf) != "0123" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	if n, err := r.Seek(0, io.SeekEnd); n != 10 || err != nil {
		t.Errorf("seek to the end: %d, %v", n, err)
	}
	if _, err := r.Seek(-11, io.SeekCurrent); err == nil {
		t.Error("sought before the start")
	}
	if p, err := io.ReadAll(again); string(p) != "0123456789" || err != nil {
		t.Errorf("another reader got %q, %v", p, err)
	}
	b.End()
	if _, err := r.Seek(0, io.SeekStart); err == nil {
		t.Error("sought after the end")
	}
	if n, err := r.Read(buf); n != 0 || err == nil || err == io.EOF {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
}

// A transport that has to send again gets the whole body again.
func TestSender(t *testing.T) {
	body := Lend([]byte("0123456789"))
	var tries int
	s := Sender{roundTripper(func(req *http.Request) (*http.Response, error) {
		for tries = 1; tries <= 2; tries++ {
			r, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			if p, err := io.ReadAll(r); string(p) != "0123456789" || err != nil {
				t.Errorf("try %d: sent %q, %v", tries, p, err)
			}
		}
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	})}
	req, err := http.NewRequestWithContext(body.With(t.Context()), http.MethodPut, "http://localhost", body.Reader())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.RoundTrip(req); err != nil || tries != 3 {
		t.Errorf("%d tries, %v", tries-1, err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// What was never connected has done nothing, a proxy on the way that is not there
// included.
func TestNotConnected(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + l.Addr().String()
	l.Close()
	proxy, err := url.Parse(nobody)
	if err != nil {
		t.Fatal(err)
	}
	for name, tr := range map[string]*http.Transport{"server": {}, "proxy": {Proxy: http.ProxyURL(proxy)}} {
		_, err := (&http.Client{Transport: tr}).Get(nobody)
		if err = Unanswered(err, "s3+http://"); !errors.Is(err, backend.ErrNotDone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// When nobody waits any more, a server that says nothing is given up soon: by who
// was waiting for it already, and by who asks afterwards.
func TestHurry(t *testing.T) {
	release := make(chan struct{})
	asked := make(chan struct{}, 2)
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-release
	}))
	defer srv.Close()
	defer close(release)
	ending, end := context.WithCancel(t.Context())
	c := client(t, Options{Stall: time.Hour, Ending: ending, Hurry: 200 * time.Millisecond})
	failed := make(chan error)
	get := func() {
		_, err := c.Get(srv.URL)
		failed <- err
	}
	go get()
	<-asked
	select {
	case err := <-failed:
		t.Fatalf("before its end: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	end()
	for range 2 {
		if ne, ok := (<-failed).(net.Error); !ok || !ne.Timeout() {
			t.Errorf("%v is no timeout", ne)
		}
		go get()
	}
	<-failed
}
