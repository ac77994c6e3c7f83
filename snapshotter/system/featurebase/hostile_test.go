package featurebase

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// TestStalled: a node that sends, or takes, nothing any more is given up.
func TestStalled(t *testing.T) {
	stop := make(chan struct{})
	c, n := answering(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			// All is there, and takes a while to be taken in.
			_, _ = io.Copy(io.Discard, r.Body)
			time.Sleep(600 * time.Millisecond)
			return
		}
		if r.Method == http.MethodGet {
			_, _ = w.Write([]byte("the beginning"))
			w.(http.Flusher).Flush()
		}
		<-stop
	})
	defer close(stop)
	c.stall, c.period = 200*time.Millisecond, 0
	if p, err := c.get(context.Background(), n.base(), "/x"); !errors.Is(err, errStalled) || !passing(err) {
		t.Errorf("%q %v", p, err)
	}
	// More than the buffers between take.
	const size = 64 << 20
	err := c.send(context.Background(), http.MethodPost, n.base(), "/x", size, func() io.Reader { return io.LimitReader(zeros{}, size) })
	if !errors.Is(err, errStalled) {
		t.Errorf("upload: %v", err)
	}
	if err := c.send(context.Background(), http.MethodPost, n.base(), "/slow", 5, bytesBody([]byte("12345"))); err != nil {
		t.Errorf("a node that is slow with what it has: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := c.get(ctx, n.base(), "/x"); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestSaid: what a node says does nothing to a terminal, and tells no token.
func TestSaid(t *testing.T) {
	c, n := answering(t, func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "\x1b[2Jwho is "+r.Header.Get("Authorization")+"?", http.StatusBadRequest)
	})
	_, err := c.get(context.Background(), n.base(), "/x")
	if err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\x1b") || !strings.Contains(err.Error(), "who is") {
		t.Errorf("%q", err)
	}
}

// TestProven: an address at which another node answers is not that of the node, and the
// token goes to none that does not encrypt where the others do.
func TestProven(t *testing.T) {
	c, n := answering(t, func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(`{"localID":"other"}`)) })
	n.ID, c.base = "mine", "http://elsewhere:1"
	cl := &cluster{Nodes: []*node{n}}
	if err := c.proven(context.Background(), cl); !errors.Is(err, system.ErrRefused) || !strings.Contains(err.Error(), "node other") {
		t.Errorf("%v", err)
	}
	n.ID = "other"
	if err := c.proven(context.Background(), cl); err != nil {
		t.Error(err)
	}
	c.base = "https://elsewhere:1"
	if err := c.proven(context.Background(), cl); !errors.Is(err, system.ErrRefused) || !strings.Contains(err.Error(), "does not encrypt") {
		t.Errorf("%v", err)
	}
	c.base = "http://elsewhere:1"
	for _, host := range []string{"", "a b", "a/b", "u@h", "a\x1b[2J"} {
		n.URI.Host = host
		if err := c.proven(context.Background(), cl); !errors.Is(err, system.ErrRefused) || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q: %v", host, err)
		}
	}
	n.URI.Host, n.State = "[::1]", "DOWN"
	if err := c.proven(context.Background(), cl); err != nil || n.base() != "http://[::1]:"+n.base()[len("http://[::1]:"):] {
		t.Errorf("%s: %v", n.base(), err)
	}
}
