package azure

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
)

// fake serves a Mem as the only container of an account, as far as a backend needs
// it: PUT, GET with ranges, HEAD, DELETE and listings in short pages. It checks no
// signatures.
type fake struct {
	mem      *backend.Mem
	fault    func(w http.ResponseWriter, r *http.Request) bool // may answer; nil: never
	entry    string                                            // more of a listing, XML
	exists   int                                               // what it answers for a name that is taken
	requests atomic.Int64
}

const fakePath = "/acc/con"

// answerAs answers as Azure does.
func answerAs(w http.ResponseWriter, status int, code string) {
	if code != "" {
		w.Header().Set("x-ms-error-code", code)
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>said the test's server\nRequestId:1</Message><AuthenticationErrorDetail>string to sign</AuthenticationErrorDetail></Error>", code)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.requests.Add(1)
	if f.fault != nil && f.fault(w, r) {
		return
	}
	name, ok := strings.CutPrefix(r.URL.Path, fakePath)
	name = strings.TrimPrefix(name, "/")
	switch {
	case !ok:
		answerAs(w, http.StatusNotFound, "ContainerNotFound")
	case name == "" && r.URL.Query().Get("comp") == "list":
		f.list(w, r)
	case r.Method == http.MethodPut:
		f.put(w, r, name)
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		f.get(w, r, name)
	case r.Method == http.MethodDelete:
		if _, err := f.mem.Get(r.Context(), name, 0, 0); err != nil {
			answerAs(w, http.StatusNotFound, "BlobNotFound")
			return
		}
		if r.Header.Get("x-ms-delete-snapshots") != "include" || f.mem.Remove(r.Context(), name) != nil {
			answerAs(w, http.StatusConflict, "SnapshotsPresent")
			return
		}
		w.WriteHeader(http.StatusAccepted)
	}
}

func (f *fake) put(w http.ResponseWriter, r *http.Request, name string) {
	p, err := io.ReadAll(r.Body)
	sum := md5.Sum(p)
	switch {
	case err != nil, r.Header.Get("Content-MD5") != base64.StdEncoding.EncodeToString(sum[:]):
		answerAs(w, http.StatusBadRequest, "Md5Mismatch")
		return
	case r.Header.Get("If-None-Match") != "*", r.Header.Get("x-ms-blob-type") != "BlockBlob":
		answerAs(w, http.StatusBadRequest, "MissingRequiredHeader")
		return
	}
	switch err := f.mem.Put(r.Context(), name, p); {
	case errors.Is(err, fs.ErrExist) && f.exists == http.StatusPreconditionFailed:
		answerAs(w, f.exists, "ConditionNotMet")
	case errors.Is(err, fs.ErrExist):
		answerAs(w, http.StatusConflict, "BlobAlreadyExists")
	case err != nil:
		answerAs(w, http.StatusInternalServerError, "InternalError")
	default:
		w.WriteHeader(http.StatusCreated)
	}
}

func (f *fake) get(w http.ResponseWriter, r *http.Request, name string) {
	p, err := f.mem.Get(r.Context(), name, 0, -1)
	if err != nil {
		answerAs(w, http.StatusNotFound, "BlobNotFound")
		return
	}
	backendtest.Bytes(w, r, p, r.Header.Get("x-ms-range"), func() { answerAs(w, http.StatusRequestedRangeNotSatisfiable, "InvalidRange") })
}

func (f *fake) list(w http.ResponseWriter, r *http.Request) {
	const page = 7
	q := r.URL.Query()
	var all []backend.Info
	for info, err := range f.mem.List(r.Context(), q.Get("prefix")) {
		if err != nil {
			answerAs(w, http.StatusInternalServerError, "InternalError")
			return
		}
		if "mark:"+info.Name > q.Get("marker") {
			all = append(all, info)
		}
	}
	slices.SortFunc(all, func(a, b backend.Info) int { return strings.Compare(a.Name, b.Name) })
	next := ""
	if len(all) > page {
		all = all[:page]
		next = "mark:" + all[page-1].Name
	}
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprint(w, `<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>`, f.entry)
	for _, info := range all {
		fmt.Fprint(w, "<Blob><Name>")
		_ = xml.EscapeText(w, []byte(info.Name)) // a client that is gone needs no answer
		fmt.Fprintf(w, "</Name><Properties><Last-Modified>%s</Last-Modified><Content-Length>%d</Content-Length></Properties></Blob>", info.ModTime.UTC().Format(http.TimeFormat), info.Size)
	}
	fmt.Fprintf(w, "</Blobs><NextMarker>%s</NextMarker></EnumerationResults>", next)
}

// clean lets a test see no variables but these, as NAME, VALUE, ...
func clean(t *testing.T, env ...string) {
	t.Helper()
	for _, name := range []string{"AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ENDPOINT",
		"AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_CLIENT_CERTIFICATE_PASSWORD", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST",
		"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET", "IMDS_ENDPOINT"} {
		t.Setenv(name, "")
	}
	for i := 0; i < len(env); i += 2 {
		t.Setenv(env[i], env[i+1])
	}
}

// serve opens the fake's container, below a prefix.
func (f *fake) serve(t *testing.T) *Container {
	t.Helper()
	f.mem = backend.NewMem()
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	clean(t, "AZURE_STORAGE_KEY", "aHVudGVyMg==")
	b, err := Open("azure+"+srv.URL+fakePath+"/some/prefix", Options{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The contract without a real service, a prefix apart: the test's server keeps
// objects, whose names are shorter.
func TestFake(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		b := (&fake{}).serve(t)
		b.prefix = ""
		return b
	})
}

func TestFakeFenced(t *testing.T) {
	for _, exists := range []int{http.StatusConflict, http.StatusPreconditionFailed} {
		f := &fake{exists: exists}
		if err := backend.Fenced(t.Context(), f.serve(t), []string{"tmp/1", "tmp/2"}); err != nil {
			t.Errorf("%d: %v", exists, err)
		}
		for info := range f.mem.List(t.Context(), "") {
			t.Errorf("%s is left", info.Name)
		}
	}
}

// What a server says, and what it comes to.
func TestAnswers(t *testing.T) {
	var status int
	var code string
	f := &fake{fault: func(w http.ResponseWriter, r *http.Request) bool {
		if code == "" { // a proxy in between
			w.WriteHeader(status)
		} else {
			answerAs(w, status, code)
		}
		return true
	}}
	b := f.serve(t)
	for _, tt := range []struct {
		status    int
		code      string
		is        error
		transient bool
		says      string
	}{
		{503, "ServerBusy", backend.ErrNotDone, true, ""},
		{429, "", backend.ErrNotDone, true, ""},
		{409, "SystemInUse", backend.ErrNotDone, true, ""},
		{400, "Md5Mismatch", backend.ErrNotDone, true, ""},
		{503, "", nil, true, ""},
		{500, "InternalError", nil, true, "said the test's server InternalError (HTTP 500)"},
		{500, "OperationTimedOut", nil, true, ""},
		{502, "", nil, true, "Bad Gateway"},
		{408, "", nil, true, ""},
		{403, "AuthenticationFailed", fs.ErrPermission, false, `AZURE_STORAGE_KEY that of the account "acc"`},
		{403, "AuthorizationFailure", fs.ErrPermission, false, "AZURE_STORAGE_KEY"},
		{403, "KeyBasedAuthenticationNotPermitted", fs.ErrPermission, false, "use an identity"},
		{403, "", fs.ErrPermission, false, ""},
		{401, "NoAuthenticationInformation", fs.ErrPermission, false, ""},
		{400, "InvalidHeaderValue", fs.ErrInvalid, false, ""},
		{409, "BlobAlreadyExists", fs.ErrExist, false, ""},
		{412, "", fs.ErrExist, false, ""},
		{412, "LeaseIdMissing", fs.ErrExist, false, "lease"},
		{403, "UnauthorizedBlobOverwrite", fs.ErrExist, false, ""},
		{409, "BlobImmutableDueToPolicy", fs.ErrPermission, false, ""},
		{404, "ContainerNotFound", errNoContainer, false, "make it first"},
		{404, "", fs.ErrInvalid, false, "is there such an account at http://"},
		{404, "ResourceNotFound", fs.ErrInvalid, false, ""},
		{307, "", fs.ErrInvalid, false, ""},
		{501, "NotImplemented", errors.ErrUnsupported, false, ""},
	} {
		before := f.requests.Load()
		status, code = tt.status, tt.code
		err := b.Put(t.Context(), "packs/aa/x", []byte("x"))
		if err == nil || tt.is != nil && !errors.Is(err, tt.is) || backend.Transient(err) != tt.transient || tt.is == nil && errors.Is(err, backend.ErrNotDone) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%d %s: got %v, transient %v", tt.status, tt.code, err, backend.Transient(err))
		}
		if err != nil && (strings.Contains(err.Error(), "string to sign") || strings.Contains(err.Error(), "RequestId") || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%d %s: too much is told: %v", tt.status, tt.code, err)
		}
		if n := f.requests.Load() - before; n != 1 {
			t.Errorf("%d %s: %d requests for a Put, want one", tt.status, tt.code, n)
		}
	}
	for _, tt := range []struct {
		status int
		code   string
		want   error
	}{{404, "BlobNotFound", nil}, {404, "ContainerNotFound", errNoContainer}, {404, "", fs.ErrInvalid}, {412, "LeaseIdMissing", fs.ErrPermission}, {409, "BlobImmutableDueToPolicy", fs.ErrPermission}} {
		status, code = tt.status, tt.code
		if err := b.Remove(t.Context(), "packs/aa/x"); !errors.Is(err, tt.want) {
			t.Errorf("remove, %d %s: got %v", tt.status, tt.code, err)
		}
	}
	status, code = 409, "BlobArchived"
	if _, err := b.Get(t.Context(), "packs/aa/x", 0, -1); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "rehydrate") {
		t.Errorf("get from the archive: %v", err)
	}
}

// An answer that is lost after the Put is done is told as unclear; Retry finds its
// own bytes.
func TestLostAnswer(t *testing.T) {
	var lose atomic.Bool
	f := &fake{}
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || !lose.CompareAndSwap(true, false) {
			return false
		}
		f.put(httptest.NewRecorder(), r, strings.TrimPrefix(r.URL.Path, fakePath+"/"))
		panic(http.ErrAbortHandler)
	}
	b := f.serve(t)
	lose.Store(true)
	err := b.Put(t.Context(), "packs/aa/x", []byte("x"))
	if err == nil || errors.Is(err, backend.ErrNotDone) || !backend.Transient(err) || f.requests.Load() != 1 {
		t.Errorf("got %v after %d requests", err, f.requests.Load())
	}
	lose.Store(true)
	at := func(n int, _ error) (time.Duration, bool) { return 0, n < 3 }
	if err := backend.Retry(b, at, backend.PutAgain).Put(t.Context(), "snapshots/x", []byte("x")); err != nil {
		t.Errorf("put again: %v", err)
	}
	lose.Store(true)
	if err := backend.Retry(b, at, backend.PutAgain).Put(t.Context(), "packs/aa/y", []byte("x")); err == nil {
		t.Error("a pack was put again")
	}
}

// A service that is busy, and says for how long, is left alone for so long.
func TestBusy(t *testing.T) {
	var asked atomic.Int64 // when, the first time
	f := &fake{fault: func(w http.ResponseWriter, r *http.Request) bool {
		now := time.Now().UnixMilli()
		if !asked.CompareAndSwap(0, now) {
			if d := now - asked.Load(); d < 900 {
				t.Errorf("asked again after %d ms, want a second", d)
			}
			return false
		}
		w.Header().Set("Retry-After", "1")
		answerAs(w, http.StatusServiceUnavailable, "ServerBusy")
		return true
	}}
	b := backend.Retry(f.serve(t), func(n int, _ error) (time.Duration, bool) { return 0, n < 3 }, nil)
	if err := b.Put(t.Context(), "packs/aa/x", []byte("x")); err != nil || f.requests.Load() != 2 {
		t.Errorf("%d requests, %v", f.requests.Load(), err)
	}
}

// Nobody answers there: nothing was done.
func TestRefusedConnection(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	clean(t, "AZURE_STORAGE_SAS_TOKEN", "?sv=1&sig=hunter2")
	b, err := Open("azure+"+srv.URL+"/acc/con", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "x", nil); !errors.Is(err, backend.ErrNotDone) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}

// Answers to Get that lie about what they are.
func TestLies(t *testing.T) {
	p := bytes.Repeat([]byte("0123456789"), 100)
	partial := func(w http.ResponseWriter, spec string, length int, body []byte) {
		w.Header().Set("Content-Range", spec)
		w.Header().Set("Content-Length", strconv.Itoa(length))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(body)
	}
	for name, fault := range map[string]func(w http.ResponseWriter){
		"cut short":                 func(w http.ResponseWriter) { partial(w, "bytes 10-109/1000", 100, p[:10]) },
		"another range":             func(w http.ResponseWriter) { partial(w, "bytes 0-99/1000", 100, p[:100]) },
		"another length":            func(w http.ResponseWriter) { partial(w, "bytes 10-109/1000", 50, p[:50]) },
		"no range":                  func(w http.ResponseWriter) { _, _ = w.Write(p) },
		"a whole that is cut short": func(w http.ResponseWriter) { partial(w, "bytes 0-999/1000", 500, p[:500]) },
		"a terabyte": func(w http.ResponseWriter) {
			partial(w, fmt.Sprintf("bytes 10-%d/%d", 1<<40-1, 1<<40), 1<<40-10, p)
		},
		"an endless error": func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusInternalServerError)
			for _, err := w.Write(p); err == nil; _, err = w.Write(make([]byte, 1<<20)) {
			}
		},
		"a proxy's page": func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) },
	} {
		f := &fake{fault: func(w http.ResponseWriter, r *http.Request) bool { fault(w); return true }}
		n := int64(100)
		off := int64(10)
		switch name {
		case "a terabyte":
			n = -1
		case "a whole that is cut short":
			off, n = 0, -1
		}
		got, err := f.serve(t).Get(t.Context(), "x", off, n)
		if err == nil || got != nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %d bytes, %v", name, len(got), err)
		}
	}
}

// What is no object of now is passed over.
func TestListPassesOver(t *testing.T) {
	const props = "<Properties><Last-Modified>Mon, 02 Jan 2006 15:04:05 GMT</Last-Modified><Content-Length>1</Content-Length>%s</Properties>"
	entry := func(name, more, prop string) string {
		return "<Blob><Name>" + name + "</Name>" + more + fmt.Sprintf(props, prop) + "</Blob>"
	}
	f := &fake{entry: entry("some/prefix/packs/1", "<Deleted>true</Deleted>", "") + entry("some/prefix/packs/2", "<Snapshot>2011-03-09T01:42:34.9360000Z</Snapshot>", "") +
		entry("some/prefix/packs/3", "<VersionId>1</VersionId><IsCurrentVersion>false</IsCurrentVersion>", "") + entry("some/prefix/packs", "", "<ResourceType>directory</ResourceType>") +
		entry("some/prefix/packs/A b", "", "") + entry("some/other/packs/4", "", "") +
		entry("some/prefix/packs/5", "<VersionId>1</VersionId><IsCurrentVersion>true</IsCurrentVersion>", "<ResourceType>file</ResourceType>")}
	b := f.serve(t)
	var names []string
	for info, err := range b.List(t.Context(), "packs") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	if !slices.Equal(names, []string{"packs/5"}) {
		t.Errorf("got %v", names)
	}
	f.entry = "<Blob><Name>some/prefix/packs/1</Name></Blob>"
	for _, err := range b.List(t.Context(), "") {
		if err == nil {
			t.Error("a blob without a size is listed")
		}
	}
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("x-ms-meta-hdi_isfolder", "true")
		return true
	}
	for _, n := range []int64{-1, 0} {
		if _, err := b.Get(t.Context(), "packs", 0, n); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("get of a directory: %v", err)
		}
	}
}

// A server that hands out one mark for ever is found out.
func TestListEnds(t *testing.T) {
	f := &fake{fault: func(w http.ResponseWriter, r *http.Request) bool {
		fmt.Fprint(w, "<EnumerationResults><Blobs></Blobs><NextMarker>again</NextMarker></EnumerationResults>")
		return true
	}}
	var last error
	for _, err := range f.serve(t).List(t.Context(), "") {
		last = err
	}
	if last == nil {
		t.Error("no error")
	}
}

// Over a line that loses every third request a listing of many pages gets through.
func TestListOverBadLine(t *testing.T) {
	f := &fake{}
	f.fault = func(http.ResponseWriter, *http.Request) bool {
		if f.requests.Load()%3 == 0 {
			panic(http.ErrAbortHandler)
		}
		return false
	}
	b := f.serve(t)
	b.prefix = ""
	for i := range 100 {
		if err := f.mem.Put(t.Context(), fmt.Sprintf("packs/%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for _, err := range backend.Retry(b, func(n int, _ error) (time.Duration, bool) { return 0, n < 10 }, nil).List(t.Context(), "packs/") {
		if n++; err != nil {
			t.Fatal(err)
		}
	}
	if n != 100 {
		t.Errorf("listed %d of 100", n)
	}
}
