// Package web is what the backends over HTTP share: connections that respect
// the proxy variables and further certificates, that end when nothing moves any
// more, and that keep to a bandwidth; bodies that are the caller's again when a
// request ends; and checks of what a server says. It speaks no protocol of a
// store.
package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// Options say how to connect. Zero fields stand for nothing special.
type Options struct {
	CACert   string // file with certificates, PEM, to be trusted beside the system's
	Upload   int64  // bytes a second over all connections; 0: no limit
	Download int64

	// Stall is for how long nothing may move before a connection counts as
	// lost; 0: one minute.
	Stall time.Duration

	// Ending, if not nil, is done when whoever asked waits no more: from then on
	// nothing may move for Hurry only; 0: five seconds.
	Ending context.Context
	Hurry  time.Duration
}

// Transport returns what HTTP clients connect with. Its limits are over all that
// share it. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are respected. It repeats no
// request that a server may have seen and that changes something.
func Transport(opt Options) (*http.Transport, error) {
	if opt.Stall == 0 {
		opt.Stall = time.Minute
	}
	if opt.Hurry == 0 {
		opt.Hurry = 5 * time.Second
	}
	if opt.Ending == nil {
		opt.Ending = context.Background()
	}
	roots, err := trusted(opt.CACert)
	if err != nil {
		return nil, err
	}
	up, down := newLimiter(opt.Upload), newLimiter(opt.Download)
	dialer := net.Dialer{Timeout: 20 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return newConn(c, opt, up, down), nil
		},
		TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   20 * time.Second,
		MaxIdleConns:          256,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       opt.Stall,
		ExpectContinueTimeout: 10 * time.Second,
		DisableCompression:    true, // ranges are of the bytes as they are stored
	}, nil
}

// trusted returns the system's certificates and those of the file; nil stands
// for the system's alone.
func trusted(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	p, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(p) {
		return nil, fmt.Errorf("%s: no certificate in it: want PEM, lines from BEGIN CERTIFICATE to END CERTIFICATE", file)
	}
	return roots, nil
}
