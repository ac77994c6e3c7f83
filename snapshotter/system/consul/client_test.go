package consul

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// open makes a System of arguments and variables.
func openSystem(t *testing.T, env map[string]string, args ...string) (*System, error) {
	t.Helper()
	f := flag.NewFlagSet("consul", flag.ContinueOnError)
	open := Kind.Flags(f)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	s, err := open(func(name string) string { return env[name] })
	if err != nil {
		return nil, err
	}
	c := s.(*System)
	c.pauses = []time.Duration{time.Millisecond, time.Millisecond}
	return c, nil
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(" file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		env         map[string]string
		args        []string
		base, token string
		fails       string
	}{
		{base: "http://127.0.0.1:8500"},
		{env: map[string]string{"CONSUL_HTTP_ADDR": "h:1", "CONSUL_HTTP_SSL": "true", "CONSUL_HTTP_TOKEN": "t"}, base: "https://h:1", token: "t"},
		{env: map[string]string{"CONSUL_HTTP_ADDR": "h:1"}, args: []string{"-http-addr", "https://g:2/consul/"}, base: "https://g:2/consul"},
		{env: map[string]string{"CONSUL_HTTP_ADDR": "http://h:1", "CONSUL_HTTP_SSL": "true", "CONSUL_HTTP_TOKEN": "t"}, base: "https://h:1", token: "t"},
		{env: map[string]string{"CONSUL_HTTP_ADDR": "https://h:1", "CONSUL_HTTP_SSL": "false"}, base: "https://h:1"},
		{env: map[string]string{"CONSUL_HTTP_ADDR": "unix:///x.sock"}, base: "http://localhost"},
		{env: map[string]string{"CONSUL_HTTP_TOKEN": "t"}, args: []string{"--token", "o"}, base: "http://127.0.0.1:8500", token: "o"},
		{env: map[string]string{"CONSUL_HTTP_TOKEN_FILE": token}, args: []string{"-token=o"}, base: "http://127.0.0.1:8500", token: "file"},
		{args: []string{"-token-file", dir + "/none"}, fails: "no such file"},
		{args: []string{"-http-addr", "ftp://h"}, fails: "no HOST:PORT"},
		{args: []string{"-http-addr", "http://u:hush@h"}, fails: "no HOST:PORT"},
		{args: []string{"-http-addr", "h:1?token=hush"}, fails: "no HOST:PORT"},
		{args: []string{"-http-addr", "http://u:hush@h:x"}, fails: "no HOST:PORT"},
		{env: map[string]string{"CONSUL_HTTP_SSL": "maybe"}, fails: "neither true nor false"},
		{env: map[string]string{"CONSUL_HTTP_SSL_VERIFY": "maybe"}, fails: "neither true nor false"},
		{args: []string{"-ca-file", token}, fails: "has no certificate"},
		{args: []string{"-ca-path", dir + "/none"}, fails: "no such file"},
		{env: map[string]string{"CONSUL_CLIENT_CERT": token}, fails: "needs both"},
		{args: []string{"-client-cert", token, "-client-key", token}, fails: "the client's certificate"},
		{args: []string{"-token", "a\nb"}, fails: "several lines"},
		{args: []string{"-max-stale", "-1s"}, fails: "are times"},
	} {
		s, err := openSystem(t, c.env, c.args...)
		switch {
		case c.fails != "":
			if err == nil || !strings.Contains(err.Error(), c.fails) || strings.Contains(err.Error(), "hush") {
				t.Errorf("%v %v: %v, want %q", c.env, c.args, err, c.fails)
			}
		case err != nil:
			t.Errorf("%v %v: %v", c.env, c.args, err)
		case s.c.base.String() != c.base || s.c.token != c.token:
			t.Errorf("%v %v: %s with %q, want %s with %q", c.env, c.args, &s.c.base, s.c.token, c.base, c.token)
		}
	}
}

// agent answers as an agent does; the real ones are in test/systems.
type agent struct {
	t       *testing.T
	archive []byte
	fail    []func(http.ResponseWriter) // one for each time that it is asked
	mu      sync.Mutex
	asked   []*http.Request
}

func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/v1/snapshot" {
		http.NotFound(w, r)
		return
	}
	a.mu.Lock()
	n := len(a.asked)
	a.asked = append(a.asked, r)
	a.mu.Unlock()
	w.Header().Set("X-Consul-Knownleader", "true")
	w.Header().Set("X-Consul-Lastcontact", "0")
	if n < len(a.fail) && a.fail[n] != nil {
		a.fail[n](w)
		return
	}
	w.Write(a.archive)
}

// requests are all that were made.
func (a *agent) requests() []*http.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.asked)
}

// realArchive is an archive with one key.
func realArchive(t testing.TB) []byte {
	p := state(t, kv("a", "1"), entry{kindRegister, map[string]any{"Node": "n", "Datacenter": "dc1", "Service": map[string]any{"Service": "consul", "Meta": map[string]any{"version": "1.2.3"}}}})
	m := fmt.Sprintf(`{"Version":1,"ID":"2-340-1795244068292","Index":340,"Term":2,"Size":%d}`+"\n", len(p))
	return pack(t, []member{{"meta.json", m}, {"state.bin", string(p)}, {"SHA256SUMS", sums(m, string(p))}}, "", "")
}

func capturing(t *testing.T) system.CaptureOptions {
	return system.CaptureOptions{Mode: system.Full, Scratch: t.TempDir(), Now: func() time.Time { return time.Unix(1e9, 0) }, Warnf: t.Logf, Logf: t.Logf}
}

// TestConnections: TLS in both directions, sockets, basic authentication, redirects.
func TestConnections(t *testing.T) {
	a := &agent{t: t, archive: realArchive(t)}
	server := httptest.NewUnstartedServer(a)
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.Config.ErrorLog = nil
	server.StartTLS()
	defer server.Close()
	dir := t.TempDir()
	ca, key := filepath.Join(dir, "ca.pem"), filepath.Join(t.TempDir(), "key.pem")
	cert := server.TLS.Certificates[0]
	writePEM(t, ca, "CERTIFICATE", cert.Certificate[0])
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, key, "PRIVATE KEY", der)
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	plain := &http.Server{Handler: a}
	go plain.Serve(l)
	defer plain.Close()
	moved := httptest.NewServer(http.RedirectHandler(server.URL, http.StatusFound))
	defer moved.Close()
	for _, c := range []struct {
		name  string
		env   map[string]string
		args  []string
		fails string
	}{
		{"unknown authority", nil, []string{"-http-addr", server.URL}, "certificate signed by unknown authority"},
		{"no client certificate", nil, []string{"-http-addr", server.URL, "-ca-file", ca}, "certificate required"},
		{"all of it", nil, []string{"-http-addr", server.URL, "-ca-file", ca, "-client-cert", ca, "-client-key", key}, ""},
		{"directory", map[string]string{"CONSUL_HTTP_ADDR": strings.TrimPrefix(server.URL, "https://"), "CONSUL_HTTP_SSL": "1", "CONSUL_CAPATH": dir, "CONSUL_CLIENT_CERT": ca, "CONSUL_CLIENT_KEY": key}, nil, ""},
		{"another name", nil, []string{"-http-addr", server.URL, "-ca-file", ca, "-client-cert", ca, "-client-key", key, "-tls-server-name", "x.y"}, "valid for"},
		{"believing anything", map[string]string{"CONSUL_HTTP_SSL_VERIFY": "false"}, []string{"-http-addr", server.URL, "-client-cert", ca, "-client-key", key}, ""},
		{"socket", map[string]string{"CONSUL_HTTP_ADDR": "unix://" + sock, "CONSUL_HTTP_AUTH": "u:p", "CONSUL_HTTP_TOKEN": "t", "CONSUL_NAMESPACE": "n"}, []string{"-datacenter", "dc2", "-stale"}, ""},
		{"redirect", nil, []string{"-http-addr", moved.URL}, "status 302"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := openSystem(t, c.env, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			s.pauses = []time.Duration{time.Hour} // none of it changes by asking again
			got, err := s.Capture(context.Background(), capturing(t))
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%v, want %q", err, c.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if info, err := got.Finish(context.Background()); err != nil || info.Version != "1.2.3" || info.Cluster != "dc1" || info.Facts["keys"] != "1" {
				t.Errorf("%+v, %v", info, err)
			}
			if err := errors.Join(got.Close(context.Background(), true), got.Close(context.Background(), true)); err != nil {
				t.Error(err)
			}
		})
	}
	all := a.requests()
	r := all[len(all)-1]
	if u, p, _ := r.BasicAuth(); u != "u" || p != "p" || r.Header.Get("X-Consul-Token") != "t" || r.URL.RawQuery != "dc=dc2&stale=" {
		t.Errorf("asked %s with %v", r.URL, r.Header)
	}
}

// TestAsksAgain: what a leader's end looks like is asked for again, all else is not.
func TestAsksAgain(t *testing.T) {
	whole := realArchive(t)
	status := func(code int, text string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { http.Error(w, text, code) }
	}
	cut := func(w http.ResponseWriter) {
		w.Write(whole[:len(whole)/2])
		panic(http.ErrAbortHandler)
	}
	short := func(w http.ResponseWriter) { w.Write(whole[:len(whole)-9]) }
	header := func(k, v string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { w.Header().Set(k, v); w.Write(whole) }
	}
	for _, c := range []struct {
		name  string
		fail  []func(http.ResponseWriter)
		args  []string
		asked int
		want  error
	}{
		{"none", nil, nil, 1, nil},
		{"cut, then whole", []func(http.ResponseWriter){cut, short}, nil, 3, nil},
		{"no leader, then one", []func(http.ResponseWriter){status(500, "No cluster leader"), status(500, "rpc error making call: EOF")}, nil, 3, nil},
		{"no leader", []func(http.ResponseWriter){status(500, "No cluster leader"), status(500, "No cluster leader"), status(500, "No cluster leader")}, nil, 3, errNoLeader},
		{"cut for ever", []func(http.ResponseWriter){cut, cut, cut}, nil, 3, errBroken},
		{"short for ever", []func(http.ResponseWriter){short, short, short}, nil, 3, system.ErrIncomplete},
		{"forbidden", []func(http.ResponseWriter){status(403, "ACL not found")}, nil, 1, fs.ErrPermission},
		{"another datacenter", []func(http.ResponseWriter){status(500, "No path to datacenter")}, nil, 1, system.ErrRefused},
		{"stale", []func(http.ResponseWriter){header("X-Consul-Lastcontact", "600001")}, []string{"-stale"}, 1, system.ErrRefused},
		{"stale without a time", []func(http.ResponseWriter){header("X-Consul-Lastcontact", "9223372036854775807")}, []string{"-stale"}, 1, system.ErrRefused},
		{"not very stale", []func(http.ResponseWriter){header("X-Consul-Lastcontact", "600000")}, []string{"-stale"}, 1, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &agent{t: t, archive: whole, fail: c.fail}
			server := httptest.NewServer(a)
			defer server.Close()
			s, err := openSystem(t, map[string]string{"CONSUL_HTTP_ADDR": server.URL}, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.Capture(context.Background(), capturing(t))
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || len(a.requests()) != c.asked {
				t.Errorf("asked %d times: %v, want %d: %v", len(a.requests()), err, c.asked, c.want)
			}
			if err == nil {
				f, err := got.Root().Lookup(context.Background(), stateFile)
				if err != nil {
					t.Fatal(err)
				}
				if p, err := wholeFile(context.Background(), f, 1<<20); err != nil || !bytes.Contains(p, []byte("Key")) {
					t.Errorf("%q, %v", p, err)
				}
				if err := got.Close(context.Background(), false); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestStall: an agent that stops talking does not hold us for ever.
func TestStall(t *testing.T) {
	hold := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "x")
		w.(http.Flusher).Flush()
		<-hold
	}))
	defer server.Close()
	defer close(hold)
	s, err := openSystem(t, map[string]string{"CONSUL_HTTP_ADDR": server.URL}, "-stall", "50ms")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Capture(context.Background(), capturing(t)); !errors.Is(err, errBroken) {
		t.Error(err)
	}
}

func writePEM(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
