package web

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
)

// Body is what a Put sends. A transport may go on reading a body after it has
// answered; Body gives the caller its bytes back at the end.
type Body struct {
	mu    sync.Mutex
	p     []byte
	ended bool // p is given back
}

// Lend returns a Body of p, which must not change until End.
func Lend(p []byte) *Body { return &Body{p: p} }

// End takes the bytes back: no reader touches them any more.
func (b *Body) End() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.p, b.ended = nil, true
}

// Reader reads the bytes from the start on. Each reader is for one goroutine at
// a time.
func (b *Body) Reader() io.ReadSeekCloser { return &bodyReader{b: b} }

type bodyReader struct {
	b   *Body
	off int64
}

var errEnded = errors.New("the request has ended")

// Read implements io.Reader.
func (r *bodyReader) Read(p []byte) (int, error) {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	switch {
	case r.b.ended:
		return 0, errEnded
	case r.off >= int64(len(r.b.p)):
		return 0, io.EOF
	}
	n := copy(p, r.b.p[r.off:])
	r.off += int64(n)
	return n, nil
}

// Seek implements io.Seeker.
func (r *bodyReader) Seek(off int64, whence int) (int64, error) {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		off += r.off
	case io.SeekEnd:
		off += int64(len(r.b.p))
	}
	if r.b.ended {
		return 0, errEnded
	}
	if off < 0 {
		return 0, errors.New("seek before the start")
	}
	r.off = off
	return off, nil
}

// Close implements io.Closer: nothing is to do.
func (r *bodyReader) Close() error { return nil }

// bodyKey finds a Body in a request's context.
type bodyKey struct{}

// With returns a context by which a Sender knows the request's body.
func (b *Body) With(ctx context.Context) context.Context {
	return context.WithValue(ctx, bodyKey{}, b)
}

// Sender lets a Put be sent on another connection when the one it was given
// turns out to be closed before a byte was written: otherwise every pause would
// cost one.
type Sender struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (s Sender) RoundTrip(req *http.Request) (*http.Response, error) {
	if body, ok := req.Context().Value(bodyKey{}).(*Body); ok && req.Body != nil {
		req = req.WithContext(req.Context()) // it is the caller's
		req.GetBody = func() (io.ReadCloser, error) { return body.Reader(), nil }
	}
	return s.RoundTripper.RoundTrip(req)
}
