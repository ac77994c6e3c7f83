package main

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// startBehind returns a proxy in front of a server, and a client.
func startBehind(t *testing.T, h http.HandlerFunc, delay time.Duration, tr *trace) (*proxy, *http.Client) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	p, err := startProxy("cutbank", srv.Listener.Addr().String(), delay, tr)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return p, client
}

func ask(t *testing.T, c *http.Client, method, url, body string) string {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

func TestProxyCounts(t *testing.T) {
	var out bytes.Buffer
	tr := &trace{w: &out, start: time.Now(), step: map[string]string{}}
	p, c := startBehind(t, func(w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.Method == http.MethodDelete {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		// What is signed must arrive as it was.
		_, _ = io.WriteString(w, r.Host+" "+r.RequestURI+" "+r.Header.Get("X-Forwarded-For")+r.Header.Get("Accept-Encoding")+string(got))
	}, 0, tr)
	tr.begin("cutbank", "tar")
	base := "http://" + p.host
	if got, want := ask(t, c, "PUT", base+"/b/o%2Fx?b=1&a=2", "hello"), p.host+" /b/o%2Fx?b=1&a=2 hello"; got != want {
		t.Errorf("the server saw %q, want %q", got, want)
	}
	before := p.count()
	ask(t, c, "GET", base+"/b/o", "")
	down := int64(len(ask(t, c, "GET", base+"/b/?list-type=2&prefix=x", "")) + len(p.host+" /b/o "))
	ask(t, c, "DELETE", base+"/b/o", "")
	got := p.count().since(before)
	if want := map[string]int{"GET": 1, "LIST": 1, "DELETE": 1}; !maps.Equal(got.Kinds, want) || got.Requests != 3 || got.Errors != 1 {
		t.Errorf("counted %+v", got)
	}
	if before.Up != 5 || got.Up != 0 || got.Down != down+int64(len("no\n")) {
		t.Errorf("bytes: %+v after %+v, want %d down", got, before, down+3)
	}
	if err := p.close(); err != nil {
		t.Fatal(err)
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	n := 0
	for text := range bytes.Lines(out.Bytes()) {
		var l line
		if err := json.Unmarshal(text, &l); err != nil || l.Step != "tar" || l.Tool != "cutbank" || l.Path == "" {
			t.Errorf("traced %s, %v", text, err)
		}
		n++
	}
	if n != 4 || tr.err != nil {
		t.Errorf("%d lines traced, %v", n, tr.err)
	}
}

// Each request waits, on a connection that is kept too, and side by side they
// wait at the same time.
func TestProxyDelaysEachRequest(t *testing.T) {
	const delay = 200 * time.Millisecond
	p, c := startBehind(t, func(http.ResponseWriter, *http.Request) {}, delay, nil)
	start := time.Now()
	for range 2 {
		ask(t, c, "GET", "http://"+p.host+"/b/o", "")
	}
	if took := time.Since(start); took < 2*delay {
		t.Errorf("two requests took %v", took)
	}
	start = time.Now()
	done := make(chan struct{})
	const many = 50
	for range many {
		go func() {
			defer func() { done <- struct{}{} }()
			resp, err := c.Get("http://" + p.host + "/b/o")
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		}()
	}
	for range many {
		<-done
	}
	if took := time.Since(start); took > many*delay/2 {
		t.Errorf("%d requests at once took %v: they waited for each other", many, took)
	}
	if got := p.count().Requests; got != 2+many {
		t.Errorf("%d requests counted", got)
	}
}
