package test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
)

// line is the network between clients and a server that speaks S3. To a part of
// the requests it does what networks and servers do now and then.
type line struct {
	server http.Handler
	faults []fault
	part   float64       // of the requests that something happens to
	slow   time.Duration // how late what is late is, at most

	mu     sync.Mutex
	random *rand.Rand
	counts map[string]int

	delayed sync.WaitGroup
	packs   atomic.Int64 // bytes of packs that the server has stored
}

// fault is one thing that happens to a request.
type fault struct {
	name string
	do   func(c *call)
}

// call is a request that something happens to.
type call struct {
	*line
	w    http.ResponseWriter
	r    *http.Request
	body []byte
	luck float64 // 0 to 1
}

// newLine serves a server behind a bad line, and returns the line's URL.
func newLine(t *testing.T, server http.Handler, part float64, slow time.Duration, faults ...fault) (*line, string) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	l := &line{server: server, faults: faults, part: part, slow: slow, random: rand.New(rand.NewPCG(seed, 0)), counts: map[string]int{}}
	srv := httptest.NewServer(l)
	t.Cleanup(func() {
		srv.CloseClientConnections() // whoever hangs
		srv.Close()
		l.delayed.Wait()
	})
	return l, srv.URL
}

// quiet lets nothing happen any more, and waits for what is under way.
func (l *line) quiet() {
	l.mu.Lock()
	l.part = 0
	l.mu.Unlock()
	l.delayed.Wait()
}

// ServeHTTP implements http.Handler.
func (l *line) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{line: l, w: w, r: r}
	l.mu.Lock()
	var f *fault
	if l.random.Float64() < l.part {
		f = &l.faults[l.random.IntN(len(l.faults))]
		l.counts[f.name]++
	}
	c.luck = l.random.Float64()
	l.mu.Unlock()
	var err error
	if c.body, err = io.ReadAll(r.Body); err != nil {
		panic(http.ErrAbortHandler) // the client is gone
	}
	if f != nil {
		f.do(c)
		return
	}
	c.answer(c.deliver())
}

// deliver lets the server have the request, and returns its answer.
func (c *call) deliver() *httptest.ResponseRecorder {
	r := c.r.Clone(context.WithoutCancel(c.r.Context()))
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(c.body)), int64(len(c.body))
	rec := httptest.NewRecorder()
	c.server.ServeHTTP(rec, r)
	if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/packs/") && rec.Code == http.StatusOK {
		c.packs.Add(int64(len(c.body)))
	}
	return rec
}

func (c *call) head(rec *httptest.ResponseRecorder) {
	for k, v := range rec.Header() {
		c.w.Header()[k] = slices.Clone(v)
	}
}

func (c *call) answer(rec *httptest.ResponseRecorder) {
	c.head(rec)
	c.w.WriteHeader(rec.Code)
	_, _ = c.w.Write(rec.Body.Bytes()) // a client that is gone needs no answer
}

func (c *call) abort() { panic(http.ErrAbortHandler) }

// changes reports whether the request is a write.
func (c *call) changes() bool { return c.r.Method == http.MethodPut || c.r.Method == http.MethodDelete }

// later delivers the request when the client has long been told something else.
func (c *call) later() {
	// The server behind may end the connection's request with it.
	r := c.r.Clone(context.WithoutCancel(c.r.Context()))
	late := &call{line: c.line, r: r, body: c.body}
	c.delayed.Add(1)
	time.AfterFunc(time.Duration(c.luck*float64(c.slow)), func() {
		defer c.delayed.Done()
		late.deliver()
	})
}

// trickle writes in ten pieces.
func (c *call) trickle(rec *httptest.ResponseRecorder) {
	c.head(rec)
	c.w.WriteHeader(rec.Code)
	p := rec.Body.Bytes()
	for part := range slices.Chunk(p, len(p)/10+1) {
		time.Sleep(c.slow / 40)
		if _, err := c.w.Write(part); err != nil {
			return
		}
		_ = http.NewResponseController(c.w).Flush()
	}
}

// cut sends a part of the answer's body, with a length of its own.
func (c *call) cut(rec *httptest.ResponseRecorder, length func(n, sent int) int) {
	p := rec.Body.Bytes()
	sent := int(c.luck * float64(len(p)))
	c.head(rec)
	c.w.Header().Set("Content-Length", strconv.Itoa(length(len(p), sent)))
	c.w.WriteHeader(rec.Code)
	_, _ = c.w.Write(p[:sent])
	_ = http.NewResponseController(c.w).Flush()
	if length(len(p), sent) > sent {
		c.abort()
	}
}

// refused answers that nothing was done. What is asked of the client while it
// waits is a server's to choose.
func (c *call) refused(status int, code, after string) {
	if after != "" {
		c.w.Header().Set("Retry-After", after)
	}
	backendtest.S3Error(c.w, status, code)
}

// faults are all there are, but hanging, which takes a client that gives up soon.
var faults = []fault{
	{"request lost", func(c *call) { c.abort() }},
	{"answer lost", func(c *call) { c.deliver(); c.abort() }},
	{"server error", func(c *call) { c.refused(http.StatusInternalServerError, "InternalError", "") }},
	{"busy", func(c *call) { c.refused(http.StatusServiceUnavailable, "SlowDown", "") }},
	{"busy, come back", func(c *call) {
		c.refused(http.StatusServiceUnavailable, "SlowDown", []string{"0", "soon", "-5", "Thu, 01 Jan 1970 00:00:00 GMT"}[int(c.luck*4)])
	}},
	{"done, and a proxy gives up", func(c *call) { c.deliver(); c.w.WriteHeader(http.StatusBadGateway) }},
	{"a proxy's page", func(c *call) {
		c.deliver()
		c.w.Header().Set("Content-Type", "text/html")
		c.w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(c.w, "<html>try again</html>")
	}},
	{"slow request", func(c *call) { time.Sleep(c.slow / 4); c.answer(c.deliver()) }},
	{"slow answer", func(c *call) { c.trickle(c.deliver()) }},
	{"answer broken off", func(c *call) { c.cut(c.deliver(), func(n, _ int) int { return n + 1 }) }},
	{"length too small", func(c *call) {
		if c.r.Method != http.MethodGet {
			c.answer(c.deliver())
			return
		}
		c.cut(c.deliver(), func(_, sent int) int { return sent })
	}},
	{"request repeated", func(c *call) { c.deliver(); c.answer(c.deliver()) }},
	{"request repeated later", func(c *call) {
		if c.changes() {
			c.later()
		}
		c.answer(c.deliver())
	}},
	{"late write", func(c *call) {
		if c.changes() {
			c.later()
		}
		c.refused(http.StatusInternalServerError, "InternalError", "")
	}},
}

// hangs accepts and never answers.
var hangs = fault{"no answer", func(c *call) {
	if len(c.body) > 4<<10 { // the more was sent, the longer a client waits
		c.answer(c.deliver())
		return
	}
	if c.luck < 0.5 {
		c.deliver()
	}
	<-c.r.Context().Done()
	c.abort()
}}
