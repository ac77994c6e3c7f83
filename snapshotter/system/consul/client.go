package consul

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// options are those of Consul's own command line.
type options struct {
	addr, token, tokenFile                      string
	caFile, caPath, cert, key, serverName       string
	datacenter, namespace, partition, auth, ssl string
	sslVerify                                   string
	stale                                       bool
	maxStale, stall                             time.Duration
}

// variables are the environment variables that count where no option does, and where
// their values go.
func (o *options) variables() []struct {
	name string
	to   *string
} {
	return []struct {
		name string
		to   *string
	}{
		{"CONSUL_HTTP_ADDR", &o.addr}, {"CONSUL_HTTP_TOKEN", &o.token}, {"CONSUL_HTTP_TOKEN_FILE", &o.tokenFile},
		{"CONSUL_CACERT", &o.caFile}, {"CONSUL_CAPATH", &o.caPath}, {"CONSUL_CLIENT_CERT", &o.cert}, {"CONSUL_CLIENT_KEY", &o.key},
		{"CONSUL_TLS_SERVER_NAME", &o.serverName}, {"CONSUL_HTTP_AUTH", &o.auth}, {"CONSUL_HTTP_SSL", &o.ssl},
		{"CONSUL_HTTP_SSL_VERIFY", &o.sslVerify}, {"CONSUL_NAMESPACE", &o.namespace}, {"CONSUL_PARTITION", &o.partition},
	}
}

func (o *options) flags(f *flag.FlagSet) {
	f.StringVar(&o.addr, "http-addr", "", "`address` of an agent: HOST:PORT, http://, https:// or unix:///PATH (default 127.0.0.1:8500)")
	f.StringVar(&o.token, "token", "", "ACL `token`; others on this machine see it there, and do not see CONSUL_HTTP_TOKEN")
	f.StringVar(&o.tokenFile, "token-file", "", "`file` with the ACL token; wins over a token")
	f.StringVar(&o.caFile, "ca-file", "", "`file` with the certificates that servers must have")
	f.StringVar(&o.caPath, "ca-path", "", "`directory` of such files")
	f.StringVar(&o.cert, "client-cert", "", "`file` with the client's certificate")
	f.StringVar(&o.key, "client-key", "", "`file` with the client's key")
	f.StringVar(&o.serverName, "tls-server-name", "", "`name` that the server's certificate must have")
	f.StringVar(&o.datacenter, "datacenter", "", "`name` of the datacenter (default: the agent's)")
	f.StringVar(&o.namespace, "namespace", "", "`name` of the namespace that keys are restored into (Enterprise)")
	f.StringVar(&o.partition, "partition", "", "`name` of the partition that keys are restored into (Enterprise)")
	f.BoolVar(&o.stale, "stale", false, "let the server that is asked answer by itself, without a leader")
	f.DurationVar(&o.maxStale, "max-stale", 10*time.Minute, "with -stale: the `longest` time that server may have been without a leader")
	f.DurationVar(&o.stall, "stall", 10*time.Minute, "give up when nothing has come for this `long`")
}

// client talks to one agent.
type client struct {
	opt   options
	base  url.URL
	http  *http.Client
	token string
	user  *url.Userinfo
}

// newClient makes a client; it opens no connection.
func newClient(o options, getenv func(string) string) (*client, error) {
	for _, v := range o.variables() {
		// As in Consul's own tools a variable that names a file with a token wins
		// over any token.
		if *v.to == "" {
			*v.to = getenv(v.name)
		}
	}
	if o.maxStale < 0 || o.stall <= 0 {
		return nil, errors.New("-max-stale and -stall are times, as 90s or 10m")
	}
	c := &client{opt: o, token: o.token}
	if o.tokenFile != "" {
		p, err := readSmall(o.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("the token: %w", err)
		}
		c.token = strings.TrimSpace(string(p))
	}
	if strings.ContainsAny(c.token, "\r\n\x00") {
		return nil, errors.New("the token has several lines") // never say it
	}
	if o.auth != "" {
		name, password, ok := strings.Cut(o.auth, ":")
		if c.user = url.User(name); ok {
			c.user = url.UserPassword(name, password)
		}
	}
	return c, c.connect()
}

// connect finds out where to connect to, and how.
func (c *client) connect() error {
	addr := c.opt.addr
	if addr == "" {
		addr = "127.0.0.1:8500"
	}
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: 30 * time.Second}).DialContext, TLSHandshakeTimeout: 30 * time.Second}
	c.http = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // the token is for the agent that was named
	}}
	if path, ok := strings.CutPrefix(addr, "unix://"); ok {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
		c.base = url.URL{Scheme: "http", Host: "localhost"}
		return nil
	}
	secure, err := boolean("CONSUL_HTTP_SSL", c.opt.ssl)
	if err != nil {
		return err
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" {
		// It is not repeated: who writes a password or a token there means it.
		return errors.New("-http-addr is no HOST:PORT, http://, https:// or unix:///PATH; names and passwords stand in CONSUL_HTTP_AUTH, tokens in CONSUL_HTTP_TOKEN")
	}
	if secure {
		u.Scheme = "https" // no address takes that back, in Consul's own tools neither
	}
	c.base = url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(u.Path, "/")}
	t.TLSClientConfig, err = c.tls()
	return err
}

func boolean(name, v string) (bool, error) {
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("%s: %q is neither true nor false", name, v)
	}
	return b, nil
}

func (c *client) tls() (*tls.Config, error) {
	o := &c.opt
	t := &tls.Config{ServerName: o.serverName}
	if o.sslVerify != "" {
		verify, err := boolean("CONSUL_HTTP_SSL_VERIFY", o.sslVerify)
		if err != nil {
			return nil, err
		}
		t.InsecureSkipVerify = !verify
	}
	if (o.cert == "") != (o.key == "") {
		return nil, errors.New("a client's certificate needs both -client-cert and -client-key")
	}
	if o.cert != "" {
		pair, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			return nil, fmt.Errorf("the client's certificate: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	files := []string{o.caFile}
	if o.caFile == "" {
		files = nil
		if o.caPath != "" {
			entries, err := os.ReadDir(o.caPath)
			if err != nil {
				return nil, fmt.Errorf("-ca-path: %w", err)
			}
			for _, e := range entries {
				if !e.IsDir() {
					files = append(files, filepath.Join(o.caPath, e.Name()))
				}
			}
		}
	}
	for _, name := range files {
		p, err := readSmall(name)
		if err != nil {
			return nil, fmt.Errorf("certificates of servers: %w", err)
		}
		if t.RootCAs == nil {
			t.RootCAs = x509.NewCertPool()
		}
		if !t.RootCAs.AppendCertsFromPEM(p) {
			return nil, fmt.Errorf("%s has no certificate", name)
		}
	}
	if o.caPath != "" && len(files) == 0 {
		return nil, fmt.Errorf("-ca-path: %s has no files", o.caPath)
	}
	return t, nil
}

// readSmall reads a file of configuration.
func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := io.ReadAll(io.LimitReader(f, 1<<20+1))
	if err == nil && len(p) > 1<<20 {
		err = fmt.Errorf("%s has more than a MiB", name)
	}
	return p, err
}

// Errors of an agent.
var (
	errNoLeader = fmt.Errorf("the cluster has no leader: %w", system.ErrRefused)
	errBroken   = errors.New("no whole answer came")
)

// answer is what an agent gives. Its Body must be closed.
type answer struct {
	*http.Response
	body io.Reader // gives up when nothing comes
}

// do asks the agent. An answer that is no 200 is an error, which names the path and
// never the token.
func (c *client) do(ctx context.Context, method, path string, query url.Values, body io.Reader) (*answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	watch := time.AfterFunc(c.opt.stall, func() { cancel(fmt.Errorf("nothing has come for %v: %w", c.opt.stall, errBroken)) })
	u := c.base
	u.Path += path
	if query == nil {
		query = url.Values{}
	}
	if c.opt.datacenter != "" {
		query.Set("dc", c.opt.datacenter)
	}
	if strings.HasPrefix(path, "/v1/kv/") || path == "/v1/txn" {
		for k, v := range map[string]string{"ns": c.opt.namespace, "partition": c.opt.partition} {
			if v != "" {
				query.Set(k, v)
			}
		}
	}
	u.RawQuery = query.Encode()
	if body != nil {
		body = &watched{body, watch, c.opt.stall}
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("X-Consul-Token", c.token)
	}
	if c.user != nil {
		password, _ := c.user.Password()
		req.SetBasicAuth(c.user.Username(), password)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	res, err := c.http.Do(req)
	if err != nil {
		watch.Stop()
		cause := context.Cause(ctx)
		cancel(nil)
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // the URL is said in what follows, without its query
		}
		switch {
		case cause != nil:
			err = cause
		case lasting(err):
		default:
			err = fmt.Errorf("%w: %w", errBroken, err)
		}
		return nil, fmt.Errorf("%s %s%s: %w", method, c.base.Host, path, err)
	}
	a := &answer{res, &watched{res.Body, watch, c.opt.stall}}
	res.Body = closer{res.Body, func() { watch.Stop(); cancel(nil) }}
	if res.StatusCode == http.StatusOK {
		return a, nil
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(a.body, 64<<10)) // what came of it will do
	return nil, fmt.Errorf("%s %s%s: %w", method, c.base.Host, path, newStatusError(res.StatusCode, path, text))
}

// lasting reports that nobody is there, or that the two do not believe each other: that
// does not change by asking again.
func lasting(err error) bool {
	var op *net.OpError
	var cert *tls.CertificateVerificationError
	return errors.As(err, &op) && (op.Op == "dial" || op.Op == "remote error") || errors.As(err, &cert) || errors.Is(err, http.ErrSchemeMismatch)
}

type closer struct {
	io.ReadCloser
	done func()
}

func (c closer) Close() error {
	defer c.done()
	return c.ReadCloser.Close()
}

// watched tells a timer that something goes on.
type watched struct {
	r     io.Reader
	timer *time.Timer
	stall time.Duration
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if n > 0 {
		w.timer.Reset(w.stall)
	}
	return n, err
}

// statusError is an answer that is no 200.
type statusError struct {
	code int
	text string
	kind error // what it means; may be nil
}

// What a token needs.
const (
	aclToken = `the token needs acl = "write"`
	keyToken = `the token needs policy = "write" for these keys`
)

func newStatusError(code int, path string, text []byte) *statusError {
	e := &statusError{code: code, text: strings.TrimSpace(strings.ToValidUTF8(string(text), "?"))}
	switch {
	case code == http.StatusForbidden || code == http.StatusUnauthorized:
		needs := aclToken
		if path != "/v1/snapshot" {
			needs = keyToken
		}
		e.kind = fmt.Errorf("%s: %w", needs, fs.ErrPermission)
	case code == http.StatusNotFound:
		e.kind = fs.ErrNotExist
	case strings.Contains(e.text, "No cluster leader"):
		e.kind = errNoLeader
	case strings.Contains(e.text, "No path to datacenter"):
		e.kind = system.ErrRefused
	case code >= 500:
		e.kind = errBroken // agents have many words for a leader that has just gone away
	}
	return e
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("status %d: %q", e.code, e.text[:min(len(e.text), 4<<10)])
	if e.kind != nil {
		text += ": " + e.kind.Error()
	}
	return text
}

func (e *statusError) Unwrap() error { return e.kind }

// small reads an answer that is not large.
func (c *client) small(ctx context.Context, path string, query url.Values) ([]byte, error) {
	a, err := c.do(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	p, err := io.ReadAll(io.LimitReader(a.body, 16<<20+1))
	if err == nil && len(p) > 16<<20 {
		err = fmt.Errorf("%s: the answer has more than 16 MiB", path)
	}
	return p, err
}
