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
	"slices"
	"strconv"
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
	c := &client{token: strings.TrimPrefix(o.token, "Bearer "), period: o.retryPeriod, headerTimeout: o.headerTimeout}
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
		return s.code >= 500 || s.code == http.StatusTooManyRequests || s.code == http.StatusRequestTimeout
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
func (c *client) request(ctx context.Context, method, base, path string, body io.Reader, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, base+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "cutbank")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	hc := c.read
	if method == http.MethodGet {
		req.Header.Set("Accept", "*/*")
	} else {
		hc = c.write
		req.ContentLength = size
		req.Header.Set("Accept", "application/json")
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	resp, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 300)) // the code says enough
	return nil, &statusError{method + " " + base + path, resp.StatusCode, strings.TrimSpace(string(text))}
}

// get returns a small answer.
func (c *client) get(ctx context.Context, base, path string) ([]byte, error) {
	var p []byte
	err := c.try(ctx, base, func() error {
		resp, err := c.request(ctx, http.MethodGet, base, path, nil, 0)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		p, err = io.ReadAll(io.LimitReader(resp.Body, answerLimit+1))
		if err == nil && len(p) > answerLimit {
			return fmt.Errorf("GET %s%s: more than %d bytes: %w", base, path, answerLimit, system.ErrRefused)
		}
		return err
	})
	return p, err
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
		if s, ok := src.(*stored); ok && s.err != nil {
			return fmt.Errorf("%w: %w", errStored, s.err)
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
			return &statusError{method + " " + base + path, resp.StatusCode, string(answer.Error)}
		}
		return nil
	})
}

// node is one member of the cluster.
type node struct {
	ID  string `json:"id"`
	URI struct {
		Scheme string `json:"scheme"`
		Host   string `json:"host"`
		Port   int    `json:"port"`
	} `json:"uri"`
	Primary bool   `json:"isPrimary"`
	State   string `json:"state"`
}

func (n *node) base() string {
	scheme := n.URI.Scheme
	if scheme == "" {
		scheme = "http"
	}
	return scheme + "://" + net.JoinHostPort(n.URI.Host, strconv.Itoa(n.URI.Port))
}

// cluster is what the nodes say of themselves.
type cluster struct {
	State   string  `json:"state"`
	Nodes   []*node `json:"nodes"`
	Name    string  `json:"clusterName"`
	version string
	storage string // "rbf"; empty where the token does not let us see it
	replica int    // 0: not known
	width   uint64 // columns of a shard; 0: not known
}

const normal = "NORMAL"

// cluster asks who is there. All nodes but those in the way of a cluster that is not
// NORMAL are named by it.
func (c *client) cluster(ctx context.Context) (*cluster, error) {
	var cl cluster
	if err := c.getJSON(ctx, c.base, "/status", &cl); err != nil {
		return nil, err
	}
	if len(cl.Nodes) == 0 || slices.Contains(cl.Nodes, nil) {
		return nil, fmt.Errorf("%s knows no nodes, itself included: is it FeatureBase?: %w", c.base, system.ErrRefused)
	}
	var v struct{ Version string }
	if err := c.getJSON(ctx, c.base, "/version", &v); err != nil {
		return nil, err
	}
	cl.version = strings.TrimPrefix(v.Version, "v")
	var info struct {
		Storage string `json:"storageBackend"`
		Replica int    `json:"replicaN"`
		Width   uint64 `json:"shardWidth"`
	}
	err := c.getJSON(ctx, c.base, "/info", &info)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	cl.storage, cl.replica, cl.width = info.Storage, info.Replica, info.Width
	return &cl, nil
}

// identity tells a cluster from others: by its name, which is the same for all that
// were given none, and by a node's ID, which etcd draws.
func (cl *cluster) identity() string {
	var ids []string
	for _, n := range cl.Nodes {
		ids = append(ids, n.ID)
	}
	return cl.Name + "/" + slices.Min(ids)
}

// primary returns the address of the node that speaks for the cluster.
func (cl *cluster) primary() (string, error) {
	for _, n := range cl.Nodes {
		if n.Primary {
			return n.base(), nil
		}
	}
	return "", fmt.Errorf("the cluster has no primary node now: try again when /status says NORMAL: %w", system.ErrRefused)
}

// down names the nodes that are not up.
func (cl *cluster) down() string {
	var list []string
	for _, n := range cl.Nodes {
		if n.State != "STARTED" {
			list = append(list, fmt.Sprintf("%s (%s)", n.base(), n.State))
		}
	}
	return strings.Join(list, ", ")
}

// owners returns the nodes that have a shard or a partition, the first of which is
// the one that others follow.
func (c *client) owners(ctx context.Context, path string) ([]*node, error) {
	var nodes []*node
	if err := c.getJSON(ctx, c.base, path, &nodes); err != nil {
		return nil, err
	}
	if len(nodes) == 0 || slices.Contains(nodes, nil) {
		return nil, fmt.Errorf("GET %s%s: no node: %w", c.base, path, system.ErrIncomplete)
	}
	return nodes, nil
}

func shardNodes(index string, shard uint64) string {
	return "/internal/fragment/nodes?index=" + url.QueryEscape(index) + "&shard=" + strconv.FormatUint(shard, 10)
}

func partitionNodes(partition int) string {
	return "/internal/partition/nodes?partition=" + strconv.Itoa(partition)
}

// bytesBody is the body of a request from memory.
func bytesBody(p []byte) func() io.Reader {
	return func() io.Reader { return bytes.NewReader(p) }
}
