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
	open    func(url string, t *http.Transport, rate int64) (backend.Backend, error)
}{
	{s3.Schemes, func(url string, t *http.Transport, rate int64) (backend.Backend, error) {
		return s3.Open(url, s3.Options{Transport: t, Rate: rate})
	}},
	{azure.Schemes, func(url string, t *http.Transport, rate int64) (backend.Backend, error) {
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
	b, err := openFolder(place)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w; `cutbank init -r %s` makes one", place, repo.ErrNoRepo, place)
	}
	return b, err
}

// openFolder opens a folder. Tests have it say another listing lag.
var openFolder = func(dir string) (backend.Backend, error) { return local.Open(dir) }

// newBackendAt opens the place for a new repository. A folder is made, or must
// be empty but for what an interrupted init left.
func (a *app) newBackendAt(place string) (backend.Backend, error) {
	if place == "" || isURL(place) {
		return a.backendAt(place)
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
	var known []string
	for _, k := range remotes {
		known = append(known, k.schemes...)
		if !slices.Contains(k.schemes, scheme) {
			continue
		}
		if a.transport == nil {
			t, err := web.Transport(web.Options{CACert: a.caCert, Upload: int64(a.limitUpload), Download: int64(a.limitDownload)})
			if err != nil {
				return nil, err
			}
			a.transport = t
		}
		b, err := k.open(url, a.transport, a.slowest())
		if errors.Is(err, fs.ErrInvalid) {
			return nil, usagef("%v", err)
		}
		if err != nil {
			return nil, err
		}
		return backend.Retry(b, a.backoff(b.String()), backend.PutAgain), nil
	}
	return nil, usagef("%s:// is no kind of place that is known: want a folder, or a URL that begins with %s://; a folder of that name is ./%s://...", scheme, strings.Join(known, "://, "), scheme)
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

// backoff is backend.Backoff, and tells --verbose.
func (a *app) backoff(place string) func(int) (time.Duration, bool) {
	return func(n int) (time.Duration, bool) {
		wait, again := backend.Backoff(n)
		if n == 3 {
			a.warnf("%s fails or does not answer; trying on", place)
		}
		if again {
			a.logf("%s: attempt %d has failed, the next is in %s", place, n, wait.Round(time.Millisecond))
		}
		return wait, again
	}
}
