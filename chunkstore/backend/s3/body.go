package s3

import (
	"errors"
	"io"
	"net/http"
	"sync"
)

// lent is what a Put sends. A transport may go on reading a body after it has
// answered; the caller gets its bytes back at the end.
type lent struct {
	mu    sync.Mutex
	p     []byte
	ended bool // p is given back
}

// lentKey finds it in a request's context.
type lentKey struct{}

func (l *lent) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.p, l.ended = nil, true
}

func (l *lent) reader() io.Reader { return &lentReader{l: l} }

type lentReader struct {
	l   *lent
	off int
}

var errEnded = errors.New("the request has ended")

// Read implements io.Reader.
func (r *lentReader) Read(p []byte) (int, error) {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	switch {
	case r.l.ended:
		return 0, errEnded
	case r.off >= len(r.l.p):
		return 0, io.EOF
	}
	n := copy(p, r.l.p[r.off:])
	r.off += n
	return n, nil
}

// sender lets a Put be sent on another connection when the one it was given
// turns out to be closed before a byte was written: otherwise every pause would
// cost one.
type sender struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (s sender) RoundTrip(req *http.Request) (*http.Response, error) {
	if body, ok := req.Context().Value(lentKey{}).(*lent); ok && req.Body != nil && req.GetBody == nil {
		req = req.WithContext(req.Context()) // it is the caller's
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(body.reader()), nil }
	}
	return s.RoundTripper.RoundTrip(req)
}
