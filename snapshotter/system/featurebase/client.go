package featurebase

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// client asks the nodes of one cluster. It is safe for concurrent use once its
// fields are set.
type client struct {
	base          string // scheme://host:port of the node that was named
	token         string // goes to nodes of the cluster only; never into a message
	period        time.Duration
	headerTimeout time.Duration
	stall         time.Duration // for which nothing may move in either direction
	read, write   *http.Client
	now           func() time.Time
	logf          func(format string, a ...any)
	lost          sync.Map // addresses of nodes that did not answer for the retry period
}

// uploadAnswer is how long a node may take over what it was sent: it rebuilds the
// caches of a shard before it answers.
const uploadAnswer = 10 * time.Minute

// answerLimit bounds answers that are kept in memory.
const answerLimit = 64 << 20

func newClient(o *options) (*client, error) {
	c := &client{token: strings.TrimPrefix(o.token, "Bearer "), period: o.retryPeriod, headerTimeout: o.headerTimeout, stall: 2 * time.Minute}
	conf, err := o.tls()
	if err != nil {
		return nil, err
	}
	host := o.host
	if !strings.Contains(host, "://") {
		scheme := "http://"
		if conf != nil {
			scheme = "https://"
		}
		host = scheme + host
	}
	u, err := url.Parse(host)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("--host %q: want HOST:PORT, http://HOST:PORT or https://HOST:PORT", o.host)
	}
	if u.Port() == "" {
		u.Host = net.JoinHostPort(u.Hostname(), "10101")
	}
	c.base = u.Scheme + "://" + u.Host
	c.read, c.write = connect(conf, o.headerTimeout), connect(conf, uploadAnswer)
	return c, nil
}

// connect returns what requests are made with. Redirects are not followed: who has
// what is asked, and the token goes nowhere else.
func connect(conf *tls.Config, answer time.Duration) *http.Client {
	dialer := net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}
	tr := &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSClientConfig: conf, TLSHandshakeTimeout: 10 * time.Second,
		ResponseHeaderTimeout: answer, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute, DisableCompression: true}
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// tls returns nil where no option speaks of TLS.
func (o *options) tls() (*tls.Config, error) {
	if o.ca == "" && o.cert == "" && o.key == "" && !o.skipVerify && !strings.HasPrefix(o.host, "https://") {
		return nil, nil
	}
	if o.ca != "" && o.skipVerify {
		return nil, errors.New("--tls.ca-certificate and --tls.skip-verify: one of them")
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.skipVerify}
	if o.ca != "" {
		p, err := os.ReadFile(o.ca)
		if err != nil {
			return nil, fmt.Errorf("--tls.ca-certificate: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(p) {
			return nil, fmt.Errorf("--tls.ca-certificate %s: no certificate in it: want PEM", o.ca)
		}
	}
	if o.cert == "" && o.key == "" {
		return conf, nil
	}
	if o.cert == "" || o.key == "" {
		return nil, errors.New("--tls.certificate and --tls.key: both or none")
	}
	pair, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return nil, fmt.Errorf("--tls.certificate %s: %w", o.cert, err)
	}
	conf.Certificates = []tls.Certificate{pair}
	return conf, nil
}

// statusError is an answer that is no success.
type statusError struct {
	what string // method and URL
	code int
	text string // the beginning of what the node said
}

func (e *statusError) Error() string {
	hint := ""
	switch e.code {
	case http.StatusForbidden, http.StatusUnauthorized:
		hint = "; give a valid token in PILOSA_AUTH_TOKEN (restoring needs one of an admin)"
	}
	return fmt.Sprintf("%s: %d %s%s", e.what, e.code, e.text, hint)
}

// Unwrap makes what is not allowed known as such.
func (e *statusError) Unwrap() error {
	if e.code == http.StatusForbidden || e.code == http.StatusUnauthorized {
		return fs.ErrPermission
	}
	return nil
}

// passing reports whether asking again may help.
func passing(err error) bool {
	var s *statusError
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var verify *tls.CertificateVerificationError
	var remote *net.OpError
	switch {
	case errors.As(err, &s):
		// Under load nodes take each other for lost, for a moment: then they send us to
		// one another, or refuse what is allowed again soon.
		return s.code >= 500 || s.code == http.StatusTooManyRequests || s.code == http.StatusRequestTimeout || s.code == http.StatusSeeOther || strings.Contains(s.text, "not allowed in state")
	case errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &verify), errors.Is(err, context.Canceled), errors.Is(err, errStored), errors.Is(err, errSpace),
		errors.Is(err, system.ErrRefused), errors.As(err, &remote) && remote.Op == "remote error": // of TLS: the node does not like our certificate
		return false
	}
	return true
}

// try does f, which asks the node at base, until it succeeds, or fails in a way that
// will not pass, or the retry period has ended. A node that did not answer for so long
// is given one chance at a time from then on, until it takes one: else each of
// thousands of files would cost the whole period.
func (c *client) try(ctx context.Context, base string, f func() error) error {
	deadline := c.now().Add(c.period)
	if _, lost := c.lost.Load(base); lost {
		deadline = c.now()
	}
	err := c.repeat(ctx, deadline, f)
	var s *statusError
	switch {
	case err == nil || errors.As(err, &s):
		c.lost.Delete(base)
	case ctx.Err() == nil && passing(err) && !errors.Is(err, system.ErrIncomplete):
		c.lost.Store(base, true)
	}
	return err
}

func (c *client) repeat(ctx context.Context, deadline time.Time, f func() error) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := f()
		if err == nil || ctx.Err() != nil || !passing(err) || c.now().Add(wait).After(deadline) {
			return err
		}
		c.logf("again in %s: %v", wait, err)
		pause(ctx, wait)
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// said reports whether a node answered with that code.
func said(err error, code int) bool {
	var s *statusError
	return errors.As(err, &s) && s.code == code
}

// request makes a request of a node; base is its address. The caller closes the body.
// One that neither takes nor sends anything for a while is given up.
func (c *client) request(ctx context.Context, method, base, path string, body io.Reader, size int64) (*http.Response, error) {
	ctx, flow := newFlow(ctx, c.stall)
	if size == 0 {
		body = nil
	} else if body != nil {
		body = &outgoing{flow, body}
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, body)
	if err != nil {
		flow.end()
		return nil, err
	}
	req.Header.Set("User-Agent", "cutbank")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	// What is no JSON comes all the same; what can be text is, unless this is asked for.
	req.Header.Set("Accept", "application/json")
	hc := c.read
	if method != http.MethodGet {
		hc = c.write
		req.ContentLength = size
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	resp, err := hc.Do(req)
	if err != nil {
		err = flow.why(err)
		flow.end()
		return nil, err
	}
	resp.Body = &incoming{flow, resp.Body}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // the code says enough
	return nil, &statusError{method + " " + base + path, resp.StatusCode, c.said(text)}
}

// said is what a node has said, for a message: without what a terminal would do, and
// without the token, if the node repeats that.
func (c *client) said(text []byte) string {
	s := strings.TrimSpace(string(text))
	if c.token != "" {
		s = strings.ReplaceAll(s, c.token, "(the token)")
	}
	return printable(s)
}

// get returns a small answer.
func (c *client) get(ctx context.Context, base, path string) ([]byte, error) {
	var p []byte
	err := c.try(ctx, base, func() (err error) {
		p, err = c.once(ctx, base, path)
		return err
	})
	return p, err
}

// once returns a small answer, and does not ask again.
func (c *client) once(ctx context.Context, base, path string) ([]byte, error) {
	resp, err := c.request(ctx, http.MethodGet, base, path, nil, 0)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit+1))
	if err == nil && len(p) > answerLimit {
		return nil, fmt.Errorf("GET %s%s: more than %d bytes: %w", base, path, answerLimit, system.ErrRefused)
	}
	return p, err
}

// schemaOf returns what a node knows of the schema.
func (c *client) schemaOf(ctx context.Context, base string) (*schema, error) {
	var s *schema
	err := c.try(ctx, base, func() error {
		p, err := c.once(ctx, base, "/schema")
		if err != nil {
			return err
		}
		if s, err = parseSchema(p); err != nil {
			return fmt.Errorf("%s: %w", base, err)
		}
		return nil
	})
	return s, err
}

// getJSON decodes a small answer.
func (c *client) getJSON(ctx context.Context, base, path string, v any) error {
	p, err := c.get(ctx, base, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(p, v); err != nil {
		return fmt.Errorf("GET %s%s: %w", base, path, err)
	}
	return nil
}

// send sends what body gives, which is called again for each attempt.
func (c *client) send(ctx context.Context, method, base, path string, size int64, body func() io.Reader) error {
	return c.try(ctx, base, func() error {
		src := body()
		resp, err := c.request(ctx, method, base, path, src, size)
		if s, ok := src.(*stored); ok && s.failed.Load() != nil {
			return fmt.Errorf("%w: %w", errStored, *s.failed.Load())
		}
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		if err != nil {
			return fmt.Errorf("%s %s%s: %w", method, base, path, err)
		}
		// The translation endpoints say that they failed in a field, too.
		var answer struct {
			Success *bool           `json:"success"`
			Error   json.RawMessage `json:"error"`
		}
		if json.Unmarshal(text, &answer) == nil && answer.Success != nil && !*answer.Success {
			return &statusError{method + " " + base + path, resp.StatusCode, c.said(answer.Error)}
		}
		return nil
	})
}

// bytesBody is the body of a request from memory.
func bytesBody(p []byte) func() io.Reader {
	return func() io.Reader { return bytes.NewReader(p) }
}
