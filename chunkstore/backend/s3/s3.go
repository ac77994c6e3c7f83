package s3

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/web"
)

// Options say how to reach a bucket.
type Options struct {
	// Transport connects; nil: http.DefaultTransport. It must repeat no request
	// that changes something.
	Transport http.RoundTripper

	// Rate is how many bytes a second a request moves at least, before it is
	// given up; 0: 32 KiB.
	Rate int64
}

// Bucket is a Backend in a bucket, below a prefix.
type Bucket struct {
	place
	c         minio.Core
	transport http.RoundTripper
	rate      int64
	quiet     int64
	busy      *web.Busy
}

var (
	_ backend.Backend  = (*Bucket)(nil)
	_ backend.Resumer  = (*Bucket)(nil)
	_ backend.Parallel = (*Bucket)(nil)
)

// Open returns the Backend that the URL names. It asks nothing of the bucket;
// where there are no credentials in the environment and no shared files it may
// ask the machine for its role. A URL that is none is an error that wraps
// fs.ErrInvalid, no credentials are one that wraps fs.ErrPermission.
func Open(url string, opt Options) (*Bucket, error) {
	l, err := parse(url, os.Getenv)
	if err != nil {
		return nil, err
	}
	if opt.Transport == nil {
		opt.Transport = http.DefaultTransport
	}
	if opt.Rate <= 0 {
		opt.Rate = 32 << 10
	}
	busy := &web.Busy{RoundTripper: opt.Transport}
	opt.Transport = busy
	creds, err := findCredentials(os.Getenv, opt.Transport)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.url, err)
	}
	c, err := minio.NewCore(l.host, &minio.Options{Creds: creds, Secure: l.secure, Transport: bounded{web.Sender{RoundTripper: opt.Transport}}, Region: l.region, MaxRetries: 1})
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", l.url, err, fs.ErrInvalid)
	}
	return &Bucket{l, *c, opt.Transport, opt.Rate, quiet, busy}, nil
}

// most is how long an answer may be that is held in memory as a whole: all but
// objects, of which always a range is asked for.
const most = 64 << 20

// bounded lets no server fill the memory with what it tells of objects, nor list
// for ever.
type bounded struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	if l, ok := req.Context().Value(listingKey{}).(*listing); ok {
		if err := l.page(); err != nil {
			return nil, err
		}
	}
	resp, err := b.RoundTripper.RoundTrip(req)
	if err == nil && (req.Header.Get("Range") == "" || resp.StatusCode >= 300) {
		resp.Body = http.MaxBytesReader(nil, resp.Body, most)
	}
	return resp, err
}

// key is where an object is.
func (b *Bucket) key(name string) string {
	if b.prefix == "" {
		return name
	}
	return b.prefix + "/" + name
}

// Put implements backend.Backend.
func (b *Bucket) Put(ctx context.Context, name string, p []byte) error {
	return b.put(ctx, name, p, putOptions{create: true})
}

// putOptions say how an object is put.
type putOptions struct {
	create bool      // only if it is absent
	until  time.Time // lock it; zero: do not
}

func (b *Bucket) put(ctx context.Context, name string, p []byte, how putOptions) error {
	req, cancel, err := web.Start(ctx, "put", name, int64(len(p)), b.rate)
	if err != nil {
		return err
	}
	defer cancel()
	sum := sha256.Sum256(p)
	opt := minio.PutObjectOptions{DisableContentSha256: true, // as a stream: it is in the signed header
		UserMetadata: map[string]string{"x-amz-checksum-sha256": base64.StdEncoding.EncodeToString(sum[:])}}
	if how.create {
		opt.SetMatchETagExcept("*")
	}
	if !how.until.IsZero() {
		opt.Mode, opt.RetainUntilDate = minio.Compliance, wholeSeconds(how.until)
	}
	for n := 1; ; n++ {
		body := web.Lend(p)
		_, err = b.c.PutObject(body.With(req), b.bucket, b.key(name), body.Reader(), int64(len(p)), "", hex.EncodeToString(sum[:]), opt)
		body.End()
		if !conflict(err) || n == 5 {
			return b.failed(ctx, "put", name, err)
		}
		// Another put or removal of the name was under way, and this one was
		// refused for it.
		select {
		case <-req.Done():
			return b.failed(ctx, "put", name, req.Err())
		case <-time.After(time.Duration(n) * 50 * time.Millisecond):
		}
	}
}

// conflict reports whether a put was refused because another is under way.
func conflict(err error) bool {
	r := minio.ToErrorResponse(err)
	return r.StatusCode == http.StatusConflict && r.Code == "ConditionalRequestConflict"
}

// Get implements backend.Backend.
func (b *Bucket) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	return b.get(ctx, name, "", off, n)
}

// get is Get of a version, of the newest if id is empty.
func (b *Bucket) get(ctx context.Context, name, id string, off, n int64) ([]byte, error) {
	req, cancel, err := web.Start(ctx, "get", name, n, b.rate)
	if err != nil {
		return nil, err
	}
	defer cancel()
	if off < 0 || n == 0 {
		return b.none(ctx, req, name, id, off, n)
	}
	// A range is asked for always: its answer says how long the object is, beside
	// how long the answer is, and what was cut short on the way does not pass for
	// an object.
	opt := minio.GetObjectOptions{VersionID: id}
	if last := off + n - 1; n > 0 && last >= off {
		opt.Set("Range", fmt.Sprintf("bytes=%d-%d", off, last))
	} else {
		opt.Set("Range", fmt.Sprintf("bytes=%d-", off))
	}
	body, info, header, err := b.c.GetObject(req, b.bucket, b.key(name), opt)
	if minio.ToErrorResponse(err).StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return b.none(ctx, req, name, id, off, n)
	}
	if err != nil {
		return nil, b.failed(ctx, "get", name, err)
	}
	defer body.Close()
	length, err := web.Ranged(b.url+"/"+name, off, n, info.Size, header.Get("Content-Range"))
	if err != nil {
		return nil, err
	}
	p, err := web.Read(body, length)
	if err != nil {
		return nil, b.failed(ctx, "get", name, err)
	}
	return p, nil
}

// none answers a Get that is to return no bytes, or more than there are.
func (b *Bucket) none(ctx, req context.Context, name, id string, off, n int64) ([]byte, error) {
	info, err := b.c.StatObject(req, b.bucket, b.key(name), minio.StatObjectOptions{VersionID: id})
	if err != nil {
		return nil, b.failed(ctx, "get", name, err)
	}
	if n, err = backend.Range(b.url+"/"+name, info.Size, off, n); err != nil {
		return nil, err
	}
	if n != 0 {
		return nil, fmt.Errorf("get %s/%s: the server has refused a range of an object of %d bytes that lies in it", b.url, name, info.Size)
	}
	return []byte{}, nil
}

// List implements backend.Backend. Keys that can be no objects are passed over.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return b.ListAfter(ctx, prefix, "")
}

// ListAfter implements backend.Resumer.
func (b *Bucket) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		if !backend.ValidPrefix(prefix) {
			if err := ctx.Err(); err != nil {
				yield(backend.Info{}, err)
			}
			return
		}
		ask := prefix
		if base := prefix[strings.LastIndexByte(prefix, '/')+1:]; base == "." || base == ".." {
			ask = strings.TrimSuffix(prefix, base) // names may begin so, but some stores refuse it
		}
		owner := false
		opt := minio.ListObjectsOptions{Prefix: b.key(ask), Recursive: true, FetchOwner: &owner}
		if after != "" {
			opt.StartAfter = b.key(after)
		}
		req, l := b.listing(ctx)
		for o := range b.c.ListObjectsIter(req, b.bucket, opt) {
			if o.Err != nil {
				yield(backend.Info{}, b.failed(ctx, "list", prefix, o.Err))
				return
			}
			if err := l.entry(o.Key); err != nil {
				yield(backend.Info{}, fmt.Errorf("list %s/%s: %w", b, prefix, err))
				return
			}
			name := strings.TrimPrefix(o.Key, b.key(""))
			if !backend.ValidName(name) || !strings.HasPrefix(name, prefix) {
				continue
			}
			if !yield(backend.Info{Name: name, Size: o.Size, ModTime: o.LastModified}, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(backend.Info{}, err)
		}
	}
}

// Remove implements backend.Backend.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	req, cancel, err := web.Start(ctx, "remove", name, 0, b.rate)
	if err != nil {
		return err
	}
	defer cancel()
	err = b.failed(ctx, "remove", name, b.c.RemoveObject(req, b.bucket, b.key(name), minio.RemoveObjectOptions{}))
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNoBucket) {
		return nil
	}
	return err
}

// Lag implements backend.Backend: zero.
func (b *Bucket) Lag() time.Duration { return 0 }

// String implements backend.Backend: the URL.
func (b *Bucket) String() string { return b.url }

// Transfers implements backend.Parallel.
func (b *Bucket) Transfers() int { return 4 }
