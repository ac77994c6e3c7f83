package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/web"
)

var _ backend.Vault = (*Bucket)(nil)

// Lockable implements backend.Vault.
func (b *Bucket) Lockable(ctx context.Context) error {
	req, cancel := context.WithTimeout(ctx, web.Patience)
	defer cancel()
	const how = "make a bucket with Object Lock switched on (`aws s3api create-bucket --object-lock-enabled-for-bucket`, `mc mb --with-lock`), or switch it on with the tools of the store"
	on, mode, _, _, err := b.c.GetObjectLockConfig(req, b.bucket)
	if r := minio.ToErrorResponse(err); r.Code == "ObjectLockConfigurationNotFoundError" {
		return fmt.Errorf("%s: the bucket locks no objects: %s: %w", b.url, how, errors.ErrUnsupported)
	}
	if err = b.failed(ctx, "ask for Object Lock of", "", err); errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("the store locks no objects: %w", err)
	}
	switch {
	case err != nil:
		return err
	case on != "Enabled":
		return fmt.Errorf("%s: the bucket locks no objects: %s: %w", b.url, how, errors.ErrUnsupported)
	case mode != nil && mode.IsValid():
		return fmt.Errorf("%s: the bucket locks every object by itself (default retention), also those that must go soon: remove that rule, locks are set object by object: %w", b.url, errors.ErrUnsupported)
	}
	v, err := b.c.GetBucketVersioning(req, b.bucket)
	if err = b.failed(ctx, "ask for versioning of", "", err); err != nil {
		return err
	}
	if !v.Enabled() {
		return fmt.Errorf("%s: the bucket keeps no versions: switch versioning on: %w", b.url, errors.ErrUnsupported)
	}
	return nil
}

// skew is how far a client's clock may be from the store's: requests of one that is
// further off are refused.
const skew = 15 * time.Minute

// wholeSeconds rounds up to what the store can say.
func wholeSeconds(t time.Time) time.Time {
	if s := t.UTC().Truncate(time.Second); s.Equal(t) {
		return s
	}
	return t.UTC().Truncate(time.Second).Add(time.Second)
}

// PutLocked implements backend.Vault.
func (b *Bucket) PutLocked(ctx context.Context, name string, p []byte, until time.Time) error {
	return b.put(ctx, name, p, putOptions{create: true, until: until})
}

// PutOver implements backend.Vault.
func (b *Bucket) PutOver(ctx context.Context, name string, p []byte, until time.Time) error {
	return b.put(ctx, name, p, putOptions{until: until})
}

// Lock implements backend.Vault. A store refuses to shorten a lock, and says of
// that what it says of all that is not allowed: then the lock is looked at.
func (b *Bucket) Lock(ctx context.Context, name, id string, until time.Time) error {
	req, cancel, err := web.Start(ctx, "lock", name, 0, b.rate)
	if err != nil {
		return err
	}
	defer cancel()
	mode, until := minio.Compliance, wholeSeconds(until)
	err = b.c.PutObjectRetention(req, b.bucket, b.key(name), minio.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &until, VersionID: id})
	if err == nil {
		return nil
	}
	if c := minio.ToErrorResponse(err).StatusCode; c >= 400 && c < 500 && c != 404 && c != 408 && c != 429 {
		switch now, lerr := b.LockedUntil(ctx, name, id); {
		case lerr == nil && !now.Before(until):
			return nil
		case backend.Transient(lerr):
			return lerr // nobody knows why it was refused
		}
	}
	return b.failed(ctx, "lock", name, err)
}

// LockedUntil implements backend.Vault. What somebody with a special right could
// unlock (GOVERNANCE) is not locked.
func (b *Bucket) LockedUntil(ctx context.Context, name, id string) (time.Time, error) {
	req, cancel, err := web.Start(ctx, "ask for the lock of", name, 0, b.rate)
	if err != nil {
		return time.Time{}, err
	}
	defer cancel()
	info, err := b.c.StatObject(req, b.bucket, b.key(name), minio.StatObjectOptions{VersionID: id})
	if err != nil {
		return time.Time{}, b.failed(ctx, "ask for the lock of", name, err)
	}
	mode := info.Metadata.Get("X-Amz-Object-Lock-Mode")
	if mode == "" && id != "" {
		return b.retention(ctx, req, name, id)
	}
	if !strings.EqualFold(mode, string(minio.Compliance)) {
		return time.Time{}, nil
	}
	until, err := time.Parse(time.RFC3339, info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"))
	if err != nil {
		return time.Time{}, fmt.Errorf("ask for the lock of %s/%s: the server says %v", b.url, name, err)
	}
	return until.UTC(), nil
}

// retention asks in another way how long a version is locked: of one that is not
// the newest some stores do not tell it beside the object, and answer this in a
// form of their own, which the SDK does not take.
func (b *Bucket) retention(ctx, req context.Context, name, id string) (time.Time, error) {
	const verb = "ask for the lock of"
	u, err := b.c.Presign(req, http.MethodGet, b.bucket, b.key(name), time.Minute, url.Values{"retention": {""}, "versionId": {id}})
	if err != nil {
		return time.Time{}, b.failed(ctx, verb, name, err)
	}
	ask, err := http.NewRequestWithContext(req, http.MethodGet, u.String(), nil)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s %s/%s: no request can be made", verb, b.url, name) // its text holds the signature
	}
	resp, err := b.transport.RoundTrip(ask)
	if err != nil {
		return time.Time{}, b.failed(ctx, verb, name, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound, resp.StatusCode == http.StatusBadRequest:
		return time.Time{}, nil // it was there just now: it has no lock
	case resp.StatusCode != http.StatusOK:
		return time.Time{}, fmt.Errorf("%s %s/%s: %w", verb, b.url, name, answer(minio.ErrorResponse{StatusCode: resp.StatusCode, Message: resp.Status}))
	}
	var said struct{ Mode, RetainUntilDate string }
	if err := xml.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&said); err != nil {
		return time.Time{}, fmt.Errorf("%s %s/%s: %v", verb, b.url, name, err)
	}
	if !strings.EqualFold(said.Mode, string(minio.Compliance)) {
		return time.Time{}, nil
	}
	until, err := time.Parse(time.RFC3339, said.RetainUntilDate)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s %s/%s: the server says %v", verb, b.url, name, err)
	}
	return until.UTC(), nil
}

// RemoveVersion implements backend.Vault. Stores refuse in various ways to remove
// what is locked: whatever they say, the lock is looked at.
func (b *Bucket) RemoveVersion(ctx context.Context, name, id string) error {
	req, cancel, err := web.Start(ctx, "remove", name, 0, b.rate)
	if err != nil {
		return err
	}
	defer cancel()
	if id == "" {
		return fmt.Errorf("remove %s/%s: no version is named: %w", b.url, name, fs.ErrInvalid)
	}
	err = b.c.RemoveObject(req, b.bucket, b.key(name), minio.RemoveObjectOptions{VersionID: id})
	if err == nil {
		return nil
	}
	if c := minio.ToErrorResponse(err).StatusCode; c >= 400 && c < 500 && c != 404 {
		switch until, lerr := b.LockedUntil(ctx, name, id); {
		case lerr == nil && until.After(time.Now().Add(-skew)):
			return &backend.LockedError{Name: name, Until: until}
		case backend.Transient(lerr):
			return lerr // nobody knows why it was refused
		}
	}
	if err = b.failed(ctx, "remove", name, err); errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNoBucket) {
		return nil
	}
	return err
}

// GetVersion implements backend.Versions.
func (b *Bucket) GetVersion(ctx context.Context, name, id string, off, n int64) ([]byte, error) {
	return b.get(ctx, name, id, off, n)
}

// ListVersions implements backend.Versions.
func (b *Bucket) ListVersions(ctx context.Context, prefix, after string) iter.Seq2[backend.Version, error] {
	return func(yield func(backend.Version, error) bool) {
		if !backend.ValidPrefix(prefix) {
			if err := ctx.Err(); err != nil {
				yield(backend.Version{}, err)
			}
			return
		}
		ask := prefix
		if base := prefix[strings.LastIndexByte(prefix, '/')+1:]; base == "." || base == ".." {
			ask = strings.TrimSuffix(prefix, base) // as in ListAfter
		}
		opt := minio.ListObjectsOptions{Prefix: b.key(ask), Recursive: true, WithVersions: true}
		if after != "" {
			opt.StartAfter = b.key(after)
		}
		var last [2]struct{ name, id string } // of versions, and of marks: some stores begin a page with what ended the one before
		req, l := b.listing(ctx)
		for o := range b.c.ListObjectsIter(req, b.bucket, opt) {
			if o.Err != nil {
				yield(backend.Version{}, b.failed(ctx, "list the versions of", prefix, o.Err))
				return
			}
			name := strings.TrimPrefix(o.Key, b.key(""))
			v := backend.Version{Info: backend.Info{Name: name, Size: o.Size, ModTime: o.LastModified}, ID: o.VersionID, Latest: o.IsLatest, Deleted: o.IsDeleteMarker}
			if v.ID == "" {
				v.ID = "null"
			}
			was, what := &last[0], v.Name+" "+v.ID
			if v.Deleted {
				was, what = &last[1], what+", a removal"
			}
			if was.name == v.Name && was.id == v.ID {
				continue
			}
			was.name, was.id = v.Name, v.ID
			if err := l.entry(what); err != nil {
				yield(backend.Version{}, fmt.Errorf("list the versions of %s/%s: %w", b, prefix, err))
				return
			}
			if !backend.ValidName(name) || !strings.HasPrefix(name, prefix) || name <= after {
				continue
			}
			if !yield(v, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(backend.Version{}, err)
		}
	}
}
