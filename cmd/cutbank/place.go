package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/azure"
	"github.com/cutbankfs/cutbank/chunkstore/backend/local"
	"github.com/cutbankfs/cutbank/chunkstore/backend/s3"
	"github.com/cutbankfs/cutbank/chunkstore/backend/web"
	"github.com/cutbankfs/cutbank/repo"
)

// remotes are the kinds of places in the network, by the schemes of their URLs.
// What has no scheme is a folder.
var remotes = []struct {
	schemes []string
	trust   string // the variable that stands for --ca-cert, as in the vendor's own tools
	open    func(url string, t *http.Transport, rate int64) (backend.Backend, error)
}{
	{s3.Schemes, "AWS_CA_BUNDLE", func(url string, t *http.Transport, rate int64) (backend.Backend, error) {
		return s3.Open(url, s3.Options{Transport: t, Rate: rate})
	}},
	{azure.Schemes, "", func(url string, t *http.Transport, rate int64) (backend.Backend, error) {
		return azure.Open(url, azure.Options{Transport: t, Rate: rate})
	}},
}

// aScheme finds the scheme of what is a URL.
var aScheme = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*)://`)

// isURL reports whether a place is named by a URL and not a folder.
func isURL(place string) bool { return aScheme.MatchString(place) }

// backendAt opens the place that --repo names.
func (a *app) backendAt(place string) (backend.Backend, error) {
	if place == "" {
		return nil, usagef("no repository named: give --repo or set CUTBANK_REPO")
	}
	if isURL(place) {
		return a.remoteAt(place)
	}
	if err := aFolder(place); err != nil {
		return nil, err
	}
	b, err := openFolder(place)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w; `cutbank init -r %s` makes one", place, repo.ErrNoRepo, place)
	}
	return b, err
}

// aFolder refuses what other tools take for a place in the network (s3:host/bucket,
// host:/path), unless there is such a folder: a backup must not land on this
// machine's disk unnoticed.
func aFolder(place string) error {
	host, _, ok := strings.Cut(place, ":")
	if !ok || strings.Contains(host, "/") {
		return nil
	}
	if _, err := os.Lstat(place); err == nil {
		return nil
	}
	return usagef("%s is no kind of place that is known: want a folder, or a URL that begins with %s://; a folder of that name is ./%s", place, strings.Join(schemes(), "://, "), place)
}

// schemes are those of all URLs.
func schemes() (known []string) {
	for _, k := range remotes {
		known = append(known, k.schemes...)
	}
	return known
}

// openFolder opens a folder. Tests have it say another listing lag.
var openFolder = func(dir string) (backend.Backend, error) { return local.Open(dir) }

// newBackendAt opens the place for a new repository. A folder is made, or must
// be empty but for what an interrupted init left.
func (a *app) newBackendAt(place string) (backend.Backend, error) {
	if place == "" || isURL(place) {
		return a.backendAt(place)
	}
	if err := aFolder(place); err != nil {
		return nil, err
	}
	if _, err := local.Create(place); err != nil {
		// A repository, or what an interrupted init left of one: Init tells.
		if _, serr := os.Stat(filepath.Join(place, "keys")); !errors.Is(err, fs.ErrExist) || serr != nil {
			return nil, err
		}
	}
	return a.backendAt(place)
}

// remoteAt opens a place in the network. What fails for a reason that may pass
// is tried again.
func (a *app) remoteAt(url string) (backend.Backend, error) {
	scheme := strings.ToLower(aScheme.FindStringSubmatch(url)[1])
	for _, k := range remotes {
		if !slices.Contains(k.schemes, scheme) {
			continue
		}
		t, err := a.transport(k.trust)
		if err != nil {
			return nil, err
		}
		b, err := k.open(url, t, a.slowest())
		if errors.Is(err, fs.ErrInvalid) {
			return nil, usagef("%v", err)
		}
		if err != nil {
			return nil, err
		}
		return backend.Retry(b, a.backoff(), backend.PutAgain), nil
	}
	return nil, usagef("%s:// is no kind of place that is known: want a folder, or a URL that begins with %s://; a folder of that name is ./%s://...", scheme, strings.Join(schemes(), "://, "), scheme)
}

// transport returns what places in the network are reached with that trust the same
// certificates; limits are over all of these.
func (a *app) transport(variable string) (*http.Transport, error) {
	file, from := a.caCert, "--ca-cert"
	if file == "" && variable != "" {
		file, from = os.Getenv(variable), variable
	}
	if t := a.transports[file]; t != nil {
		return t, nil
	}
	t, err := web.Transport(web.Options{CACert: file, Upload: int64(a.limitUpload), Download: int64(a.limitDownload), Ending: a.ending})
	if err != nil {
		return nil, usagef("%s: %v", from, err)
	}
	if a.transports == nil {
		a.transports = map[string]*http.Transport{}
	}
	a.transports[file] = t
	return t, nil
}

// slowest is how many bytes a second a request moves at least: its share of the
// limits.
func (a *app) slowest() int64 {
	const most, share = 32 << 10, 64
	slow := int64(most)
	for _, limit := range []int64{int64(a.limitUpload), int64(a.limitDownload)} {
		if limit > 0 {
			slow = max(1, min(slow, limit/share))
		}
	}
	return slow
}

// warnAgain is how long after a warning of a place that fails there is none: many
// requests fail together.
const warnAgain = time.Minute

// backoff is backend.Backoff until the command is to end, and tells why there is to
// wait.
func (a *app) backoff() func(int, error) (time.Duration, bool) {
	var mu sync.Mutex
	var warned time.Time
	return func(n int, why error) (time.Duration, bool) {
		wait, again := backend.Backoff(n)
		if !again || a.ending != nil && a.ending.Err() != nil {
			return wait, false
		}
		a.logf("attempt %d: %v; the next is in %s", n, why, wait.Round(time.Millisecond))
		mu.Lock()
		defer mu.Unlock()
		slow := errors.Is(why, os.ErrDeadlineExceeded) // minutes have passed already
		if (n >= 3 || slow) && (warned.IsZero() || now().Sub(warned) >= warnAgain) {
			warned = now()
			a.warnf("%v; trying on", why)
		}
		return wait, again
	}
}
