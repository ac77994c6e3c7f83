package main

import (
	"encoding/json"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// traffic is what went through a proxy. It is written as JSON with these names.
type traffic struct {
	Requests int            `json:"requests"`
	Kinds    map[string]int `json:"kinds"`      // LIST, or the method
	Errors   int            `json:"errors"`     // of the requests, those answered by 400 and above
	Up       int64          `json:"up_bytes"`   // bodies of requests
	Down     int64          `json:"down_bytes"` // bodies of answers
}

// since returns what came after an earlier state.
func (t traffic) since(before traffic) traffic {
	d := traffic{Requests: t.Requests - before.Requests, Kinds: map[string]int{}, Errors: t.Errors - before.Errors, Up: t.Up - before.Up, Down: t.Down - before.Down}
	for kind, n := range t.Kinds {
		if n -= before.Kinds[kind]; n > 0 {
			d.Kinds[kind] = n
		}
	}
	return d
}

// proxy passes requests on to a server, each after a delay, and counts them. It
// changes nothing in them: they are signed, their Host included, so the server
// must be one that answers by any name.
type proxy struct {
	host  string // where it listens
	delay time.Duration
	trace *trace // nil: none
	tool  string
	pass  http.Handler
	srv   *http.Server

	mu   sync.Mutex
	seen traffic
}

// startProxy listens on a free port of the loopback. It must be closed.
func startProxy(tool, server string, delay time.Duration, tr *trace) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{host: l.Addr().String(), delay: delay, trace: tr, tool: tool, seen: traffic{Kinds: map[string]int{}}}
	to := &url.URL{Scheme: "http", Host: server}
	p.pass = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
			r.Out.URL.RawQuery = r.In.URL.RawQuery // as it was signed
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
		// What a client has given up is no error; the others are told by a 502.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	p.srv = &http.Server{Handler: p, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = p.srv.Serve(l) }() // ends when it is closed
	return p, nil
}

func (p *proxy) close() error { return p.srv.Close() }

// count returns what has passed so far. Bytes of requests under way are in it.
func (p *proxy) count() traffic {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.seen
	t.Kinds = maps.Clone(t.Kinds)
	return t
}

func (p *proxy) add(f func(*traffic)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.seen)
}

// kindOf is what a request is charged as: listings are GETs that cost more.
func kindOf(r *http.Request) string {
	q := r.URL.Query()
	if r.Method == http.MethodGet && (q.Has("list-type") || q.Has("prefix") || q.Has("delimiter") || q.Has("versions")) {
		return "LIST"
	}
	return r.Method
}

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, start := kindOf(r), time.Now()
	p.add(func(t *traffic) { t.Requests++; t.Kinds[kind]++ })
	late := time.NewTimer(p.delay)
	defer late.Stop()
	select {
	case <-late.C:
	case <-r.Context().Done():
		panic(http.ErrAbortHandler) // the client is gone
	}
	up := &meter{r: r.Body, add: func(n int64) { p.add(func(t *traffic) { t.Up += n }) }}
	r.Body = up
	answer := &answer{ResponseWriter: w, code: http.StatusOK, add: func(n int64) { p.add(func(t *traffic) { t.Down += n }) }}
	defer func() {
		if answer.code >= 400 {
			p.add(func(t *traffic) { t.Errors++ })
		}
		p.trace.write(line{Tool: p.tool, Kind: kind, Path: r.URL.Path, Query: r.URL.RawQuery, Range: strings.TrimPrefix(r.Header.Get("Range"), "bytes="),
			Code: answer.code, Up: up.n.Load(), Down: answer.n}, start)
	}()
	p.pass.ServeHTTP(answer, r)
}

// meter counts what is read. A transport may read on for a moment after it has
// the answer.
type meter struct {
	r   io.ReadCloser
	n   atomic.Int64
	add func(int64)
}

func (m *meter) Read(b []byte) (int, error) {
	n, err := m.r.Read(b)
	m.n.Add(int64(n))
	m.add(int64(n))
	return n, err
}

func (m *meter) Close() error { return m.r.Close() }

// answer counts what is written.
type answer struct {
	http.ResponseWriter
	code int
	n    int64
	add  func(int64)
}

func (a *answer) WriteHeader(code int) {
	if code >= 200 {
		a.code = code
	}
	a.ResponseWriter.WriteHeader(code)
}

func (a *answer) Write(b []byte) (int, error) {
	n, err := a.ResponseWriter.Write(b)
	a.n += int64(n)
	a.add(int64(n))
	return n, err
}

// Unwrap is for http.ResponseController: the proxy flushes.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// trace writes each request as a line of JSON. A nil trace writes nothing.
type trace struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
	step  map[string]string // tool -> what it does
	err   error
}

// line is one request.
type line struct {
	Tool  string  `json:"tool"`
	Step  string  `json:"step"`
	Start float64 `json:"start"` // seconds since the program began
	Took  float64 `json:"took"`  // seconds, the delay included
	Kind  string  `json:"kind"`
	Path  string  `json:"path"`
	Query string  `json:"query,omitempty"`
	Range string  `json:"range,omitempty"`
	Code  int     `json:"code"`
	Up    int64   `json:"up,omitempty"`
	Down  int64   `json:"down,omitempty"`
}

// begin names what a tool does from now on.
func (t *trace) begin(tool, step string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.step[tool] = step
}

func (t *trace) write(l line, start time.Time) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	l.Step, l.Start, l.Took = t.step[l.Tool], start.Sub(t.start).Seconds(), time.Since(start).Seconds()
	if err := json.NewEncoder(t.w).Encode(l); err != nil && t.err == nil {
		t.err = err
	}
}
