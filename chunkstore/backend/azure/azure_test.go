package azure

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/backend/web"
)

// service returns the URL of a container for tests, which a variable names. Where
// there is none the test is skipped, or fails if CUTBANK_REQUIRE names azure.
func service(t *testing.T, variable string) string {
	t.Helper()
	url := os.Getenv(variable)
	if url == "" {
		if slices.Contains(strings.Split(os.Getenv("CUTBANK_REQUIRE"), ","), "azure") {
			t.Fatalf("%s names no container, and CUTBANK_REQUIRE asks for one", variable)
		}
		t.Skipf("LEFT OUT: %s names no container; `make test-services` starts a server and runs this", variable)
	}
	return url
}

// open opens a fresh prefix.
func open(t *testing.T) *Container {
	t.Helper()
	return opened(t, service(t, "CUTBANK_TEST_AZURE"), Options{})
}

func opened(t *testing.T, url string, opt Options) *Container {
	t.Helper()
	b, err := Open(url+"/"+strings.ToLower(rand.Text()), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for info, err := range b.List(context.Background(), "") {
			if err == nil {
				err = b.Remove(context.Background(), info.Name)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	return b
}

func TestContainer(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend { return open(t) })
}

// Pages of two: what comes and goes between them confuses no listing.
func TestContainerPages(t *testing.T) {
	b := open(t)
	b.page = to.Ptr(int32(2))
	for i := range 9 {
		if err := b.Put(t.Context(), fmt.Sprintf("a/%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	for info, err := range b.List(t.Context(), "a/") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
		if err := b.Remove(t.Context(), info.Name); err != nil { // the mark's own, too
			t.Fatal(err)
		}
	}
	if len(names) != 9 {
		t.Errorf("listed %v", names)
	}
}

func TestContainerMissing(t *testing.T) {
	b := open(t)
	url := b.url[:strings.LastIndex(strings.TrimSuffix(b.url, "/"+b.prefix), "/")] + "/there-is-no-such-container"
	b, err := Open(url, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), "a", 0, -1); !errors.Is(err, errNoContainer) || backend.Transient(err) {
		t.Errorf("get: %v", err)
	}
	if _, err := b.Get(t.Context(), "a", 0, 0); !errors.Is(err, errNoContainer) {
		t.Errorf("get nothing: %v", err)
	}
	if err := b.Put(t.Context(), "a", nil); !errors.Is(err, errNoContainer) {
		t.Errorf("put: %v", err)
	}
	if err := b.Remove(t.Context(), "a"); !errors.Is(err, errNoContainer) {
		t.Errorf("remove: %v", err)
	}
	for _, err := range b.List(t.Context(), "") {
		if !errors.Is(err, errNoContainer) {
			t.Errorf("list: %v", err)
		}
	}
}

// Snapshots are not listed, and go with their blob; a lease keeps a blob.
func TestContainerSnapshots(t *testing.T) {
	b := open(t)
	if err := b.Put(t.Context(), "packs/x", []byte("x")); err != nil {
		t.Fatal(err)
	}
	at := b.blob("packs/x").BlobClient()
	if _, err := at.CreateSnapshot(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	n := 0
	for range b.List(t.Context(), "") {
		n++
	}
	if n != 1 {
		t.Errorf("a blob and its snapshot are listed as %d", n)
	}
	leases, err := lease.NewBlobClient(at, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leases.AcquireLease(t.Context(), -1, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "packs/x", []byte("y")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("put under a lease: %v", err)
	}
	if err := b.Remove(t.Context(), "packs/x"); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "lease") {
		t.Errorf("remove under a lease: %v", err)
	}
	if _, err := leases.BreakLease(t.Context(), &lease.BlobBreakOptions{BreakPeriod: to.Ptr(int32(0))}); err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(t.Context(), "packs/x"); err != nil {
		t.Errorf("remove with a snapshot: %v", err)
	}
	if err := b.Put(t.Context(), "packs/x", []byte("y")); err != nil {
		t.Errorf("put after that: %v", err)
	}
}

// A body that was changed on the way is refused.
func TestContainerRefusesChanged(t *testing.T) {
	url := service(t, "CUTBANK_TEST_AZURE")
	b, err := Open(url, Options{Transport: flipping{http.DefaultTransport}})
	if err != nil {
		t.Fatal(err)
	}
	name := "packs/" + strings.ToLower(rand.Text())
	if err := b.Put(t.Context(), name, []byte("0123456789")); err == nil {
		t.Error("no error")
	}
	if _, err := b.Get(t.Context(), name, 0, -1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
}

// flipping sends another byte than it is given.
type flipping struct{ http.RoundTripper }

func (f flipping) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		req.Body = struct {
			*strings.Reader
			nopClose
		}{strings.NewReader("0123456788"), nopClose{}}
	}
	return f.RoundTripper.RoundTrip(req)
}

type nopClose struct{}

func (nopClose) Close() error { return nil }

// Each way to get in gets in, and says what was wrong if it does not; no error
// tells a secret.
func TestContainerCredentials(t *testing.T) {
	url := service(t, "CUTBANK_TEST_AZURE")
	account, key := os.Getenv("AZURE_STORAGE_ACCOUNT"), os.Getenv("AZURE_STORAGE_KEY")
	b := open(t)
	endpoint := b.service
	signed := func(expiry time.Duration, may sas.ContainerPermissions) string {
		cred, err := blob.NewSharedKeyCredential(account, key)
		if err != nil {
			t.Fatal(err)
		}
		q, err := sas.BlobSignatureValues{Protocol: sas.ProtocolHTTPSandHTTP, StartTime: time.Now().Add(-time.Hour).UTC(), ExpiryTime: time.Now().Add(expiry).UTC(), Permissions: may.String(), ContainerName: b.container}.SignWithSharedKey(cred)
		if err != nil {
			t.Fatal(err)
		}
		return q.Encode()
	}
	all := sas.ContainerPermissions{Read: true, Write: true, Delete: true, List: true}
	wrong := base64.StdEncoding.EncodeToString([]byte("wrong"))
	ours := "azure://" + b.container + "/" + b.prefix
	for _, tt := range []struct {
		url  string
		env  []string
		says string // empty: it works
	}{
		{url, []string{"AZURE_STORAGE_KEY", key}, ""},
		{url, []string{"AZURE_STORAGE_KEY", wrong}, `AZURE_STORAGE_KEY that of the account "` + account + `"`},
		{url, []string{"AZURE_STORAGE_SAS_TOKEN", "?" + signed(time.Hour, all)}, ""},
		{url, []string{"AZURE_STORAGE_SAS_TOKEN", signed(-time.Minute, all)}, "signature in AZURE_STORAGE_SAS_TOKEN still valid"},
		{url, []string{"AZURE_STORAGE_SAS_TOKEN", signed(time.Hour, sas.ContainerPermissions{Read: true, List: true})}, "to read, write, delete and list"},
		{ours, []string{"AZURE_STORAGE_ACCOUNT", account, "AZURE_STORAGE_KEY", key, "AZURE_STORAGE_ENDPOINT", endpoint}, ""},
		{ours, []string{"AZURE_STORAGE_SAS_TOKEN", signed(time.Hour, all), "AZURE_STORAGE_ENDPOINT", endpoint + "/"}, ""},
		{ours, []string{"AZURE_STORAGE_CONNECTION_STRING", "AccountName=" + account + ";AccountKey=" + key + ";BlobEndpoint=" + endpoint + ";"}, ""},
		{ours, []string{"AZURE_STORAGE_CONNECTION_STRING", "BlobEndpoint=" + endpoint + "/;SharedAccessSignature=" + signed(time.Hour, all)}, ""},
		{ours, []string{"AZURE_STORAGE_CONNECTION_STRING", "AccountName=" + account + ";AccountKey=" + wrong + ";BlobEndpoint=" + endpoint}, "AZURE_STORAGE_CONNECTION_STRING"},
	} {
		clean(t, tt.env...)
		b, err := Open(tt.url, Options{})
		if err != nil {
			t.Errorf("%v: %v", tt.env, err)
			continue
		}
		name := "snapshots/" + strings.ToLower(rand.Text())
		err = b.Put(t.Context(), name, []byte("x"))
		if tt.says != "" {
			if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), "sig=") {
				t.Errorf("%v: got %v", tt.env, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v: %v", tt.env, err)
			continue
		}
		if err := b.Put(t.Context(), name, []byte("y")); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%v: put again: %v", tt.env, err)
		}
		if p, err := b.Get(t.Context(), name, 0, 1); err != nil || string(p) != "x" {
			t.Errorf("%v: %q, %v", tt.env, p, err)
		}
		for _, err := range b.List(t.Context(), name) {
			if err != nil {
				t.Errorf("%v: %v", tt.env, err)
			}
		}
		if err := b.Remove(t.Context(), name); err != nil {
			t.Errorf("%v: %v", tt.env, err)
		}
	}
}

const tenant = "11111111-2222-3333-4444-555555555555"

// token is one as Entra ID gives out, unsigned.
func token(t *testing.T, client string) string {
	now := time.Now().Unix()
	claims, err := json.Marshal(map[string]any{"aud": "https://storage.azure.com", "iss": "https://sts.windows.net/" + tenant + "/", "iat": now - 60, "nbf": now - 60, "exp": now + 3600, "appid": client})
	if err != nil {
		t.Error(err)
	}
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + part(claims) + "." + part([]byte("none"))
}

// certificate returns a file with a certificate of its own, and its key.
func certificate(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	file := filepath.Join(t.TempDir(), "client.pem")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// authority gives out tokens as Entra ID does, unsigned, to who says the secret.
func authority(t *testing.T, requests *atomic.Int64) *httptest.Server {
	mux := http.NewServeMux()
	srv := httptest.NewTLSServer(mux)
	t.Cleanup(srv.Close)
	answer := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v) // a client that is gone needs no answer
	}
	mux.HandleFunc("GET /"+tenant+"/v2.0/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		answer(w, 200, map[string]string{"token_endpoint": srv.URL + "/" + tenant + "/oauth2/v2.0/token", "authorization_endpoint": srv.URL + "/" + tenant + "/oauth2/v2.0/authorize", "issuer": srv.URL + "/" + tenant + "/v2.0"})
	})
	mux.HandleFunc("POST /"+tenant+"/oauth2/v2.0/token", func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if r.PostFormValue("client_secret") != "hunter2" && !strings.Contains(r.PostFormValue("client_assertion"), ".") {
			answer(w, 401, map[string]any{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided.\r\nTrace ID: 1", "trace_id": "1"})
			return
		}
		answer(w, 200, map[string]any{"token_type": "Bearer", "expires_in": 3600, "access_token": token(t, r.PostFormValue("client_id"))})
	})
	return srv
}

// A service principal gets in over https, with the certificates of --ca-cert, by
// its secret; a wrong one is named.
func TestContainerPrincipal(t *testing.T) {
	url := service(t, "CUTBANK_TEST_AZURE_TLS")
	var tokens atomic.Int64
	srv := authority(t, &tokens)
	trusted, err := os.ReadFile(os.Getenv("CUTBANK_TEST_AZURE_CA"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	trusted = append(trusted, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})...)
	if err := os.WriteFile(file, trusted, 0o600); err != nil {
		t.Fatal(err)
	}
	transport, err := web.Transport(web.Options{CACert: file})
	if err != nil {
		t.Fatal(err)
	}
	defer transport.CloseIdleConnections()
	env := []string{"AZURE_AUTHORITY_HOST", srv.URL + "/", "AZURE_TENANT_ID", tenant, "AZURE_CLIENT_ID", "client"}
	t.Run("secret", func(t *testing.T) {
		clean(t, append(env, "AZURE_CLIENT_SECRET", "hunter2")...)
		backendtest.Run(t, func(t *testing.T) backend.Backend { return opened(t, url, Options{Transport: transport}) })
		if n := tokens.Load(); n == 0 || n > 40 {
			t.Errorf("%d tokens were asked for", n)
		}
	})
	t.Run("wrong secret", func(t *testing.T) {
		clean(t, append(env, "AZURE_CLIENT_SECRET", "hunter3")...)
		b, err := Open(url, Options{Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Put(t.Context(), "x", nil); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "AADSTS7000215") || !strings.Contains(err.Error(), "AZURE_CLIENT_SECRET right") || strings.Contains(err.Error(), "hunter3") || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("workload", func(t *testing.T) {
		token := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(token, []byte("a.b.c"), 0o600); err != nil {
			t.Fatal(err)
		}
		clean(t, append(env, "AZURE_FEDERATED_TOKEN_FILE", token)...)
		if _, err := opened(t, url, Options{Transport: transport}).Get(t.Context(), "none", 0, -1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("certificate", func(t *testing.T) {
		clean(t, append(env, "AZURE_CLIENT_CERTIFICATE_PATH", certificate(t))...)
		if _, err := opened(t, url, Options{Transport: transport}).Get(t.Context(), "none", 0, -1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("machine", func(t *testing.T) {
		has := true
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if !has {
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"statusCode":400,"message":"no identity"}`) // a client that is gone needs no answer
				return
			}
			_ = json.NewEncoder(w).Encode(map[string]string{"access_token": token(t, "machine"), "expires_on": fmt.Sprint(time.Now().Add(time.Hour).Unix()), "resource": r.FormValue("resource"), "token_type": "Bearer"})
		}))
		defer srv.Close()
		clean(t, "IDENTITY_ENDPOINT", srv.URL, "IDENTITY_HEADER", "header")
		if _, err := opened(t, url, Options{Transport: transport}).Get(t.Context(), "none", 0, -1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v", err)
		}
		has = false
		clean(t, "IDENTITY_ENDPOINT", srv.URL, "IDENTITY_HEADER", "header", "AZURE_CLIENT_ID", "another") // its token is not known yet
		b, err := Open(url, Options{Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Put(t.Context(), "x", nil); !errors.Is(err, fs.ErrPermission) || !errors.Is(err, errNoCredentials) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("unknown certificate", func(t *testing.T) {
		clean(t, "AZURE_STORAGE_KEY", "aHVudGVyMg==")
		b, err := Open(url, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Put(t.Context(), "x", nil); !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "--ca-cert") {
			t.Errorf("got %v", err)
		}
	})
}
