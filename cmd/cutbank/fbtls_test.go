package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// makeCerts makes a CA and a certificate of it for loopback, for both ends:
// certs DIR writes ca.pem, cert.pem and key.pem.
func makeCerts(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	from, to := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: args[0]}, NotBefore: from, NotAfter: to, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	ts.Check(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "loopback"}, NotBefore: from, NotAfter: to,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	ts.Check(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	for name, b := range map[string]*pem.Block{"ca.pem": {Type: "CERTIFICATE", Bytes: caDER}, "cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		ts.Check(os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600))
	}
}

// provideIdentity stands for the provider of identities that a cluster with
// authentication asks which groups a token is in: fbidp sets IDP to its address, and
// ADMIN, READER and STRANGER to tokens; only the last is of nobody.
func provideIdentity(ts *testscript.TestScript, _ bool, _ []string) {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	groups := map[string]string{}
	for _, who := range []string{"admin", "reader", "stranger"} {
		token := part(`{"alg":"HS256","typ":"JWT"}`) + "." + part(`{"name":"`+who+`","oid":"`+who+`"}`) + "." + part("signature")
		ts.Setenv(strings.ToUpper(who), token)
		groups[token] = who
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := groups[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
		if who != "admin" && who != "reader" {
			http.Error(w, "who?", http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"value":[{"id":%q,"displayName":%q}]}`, who, who)
	}))
	ts.Defer(srv.Close)
	ts.Setenv("IDP", srv.URL)
}
