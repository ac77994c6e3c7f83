package web

import (
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Busy notes how long a server that is busy asks to be left alone: the header
// Retry-After of its answers 429 and 503. It is safe for concurrent use.
type Busy struct {
	http.RoundTripper // what asks the server

	mu    sync.Mutex
	until time.Time
}

// RoundTrip implements http.RoundTripper.
func (b *Busy) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(req)
	if err == nil && (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable) {
		until := time.Now().Add(retryAfter(resp.Header))
		b.mu.Lock()
		defer b.mu.Unlock()
		if until.After(b.until) {
			b.until = until
		}
	}
	return resp, err
}

// Left returns how long the server still asks to be left alone: zero if it does
// not, two minutes at most.
func (b *Busy) Left() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(0, time.Until(b.until))
}

// longest is what is believed of a server that asks for more.
const longest = 2 * time.Minute

// retryAfter reads the header, which holds seconds or a time by the server's
// clock. What cannot be read is zero.
func retryAfter(h http.Header) time.Duration {
	s := h.Get("Retry-After")
	if n, err := strconv.ParseInt(s, 10, 32); err == nil {
		return min(max(0, time.Duration(n)*time.Second), longest)
	}
	at, err := http.ParseTime(s)
	now, nerr := http.ParseTime(h.Get("Date"))
	if err != nil || nerr != nil {
		return 0
	}
	return min(max(0, at.Sub(now)), longest)
}
