package azure

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/web"
)

// Options say how to reach a container.
type Options struct {
	// Transport connects; nil: http.DefaultTransport. It must repeat no request
	// that changes something.
	Transport http.RoundTripper

	// Rate is how many bytes a second a request moves at least, before it is
	// given up; 0: 32 KiB.
	Rate int64
}

// Container is a Backend in a container, below a prefix.
type Container struct {
	place
	creds settings
	c     *container.Client
	rate  int64
	busy  *web.Busy
	page  *int32 // how many blobs to list at once; nil: as the service likes
}

var (
	_ backend.Backend  = (*Container)(nil)
	_ backend.Pager    = (*Container)(nil)
	_ backend.Parallel = (*Container)(nil)
)

// Open returns the Backend that the URL names. It asks nobody anything: neither
// the container, nor for a token. A URL that is none, or variables that contradict
// each other, are an error that wraps fs.ErrInvalid; what is wrong with the
// credentials of an identity is one that wraps fs.ErrPermission.
func Open(url string, opt Options) (*Container, error) {
	s, err := environment(os.Getenv)
	if err != nil {
		return nil, err
	}
	l, err := parse(url, s)
	if err != nil {
		return nil, err
	}
	if opt.Transport == nil {
		opt.Transport = http.DefaultTransport
	}
	if opt.Rate <= 0 {
		opt.Rate = 32 << 10
	}
	b := &Container{place: l, creds: s, rate: opt.Rate, busy: &web.Busy{RoundTripper: opt.Transport}}
	if b.c, err = b.client(policy.ClientOptions{
		Transport: transporter{web.Sender{RoundTripper: b.busy}},
		Retry:     policy.RetryOptions{MaxRetries: -1}, // none
		Telemetry: policy.TelemetryOptions{Disabled: true},
	}); err != nil {
		return nil, fmt.Errorf("%s: %w", l.url, err)
	}
	return b, nil
}

// client makes the SDK's client, for the credentials that there are.
func (b *Container) client(opt policy.ClientOptions) (*container.Client, error) {
	where := b.service + "/" + b.container
	o := &container.ClientOptions{ClientOptions: opt}
	o.ExpectContinueBehavior.Mode = blob.ExpectContinueModeOff
	switch {
	case b.creds.key != "":
		key, err := container.NewSharedKeyCredential(b.account, b.creds.key)
		if err != nil {
			return nil, fmt.Errorf("%s: the key is no base64: %w", b.creds.from, fs.ErrInvalid)
		}
		return container.NewClientWithSharedKeyCredential(where, key, o)
	case b.creds.sas != "":
		return container.NewClientWithNoCredential(where+"?"+b.creds.sas, o)
	}
	var who azcore.TokenCredential
	var err error
	if who, b.creds.from, err = identity(os.Getenv, opt); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", b.creds.from, firstLine(err.Error()), fs.ErrPermission)
	}
	if strings.HasPrefix(b.service, "http://") {
		return nil, fmt.Errorf("no AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING is set, and an identity is not shown to a service without https: %w", fs.ErrInvalid)
	}
	return container.NewClient(where, who, o)
}

// blob is where an object is.
func (b *Container) blob(name string) *blockblob.Client { return b.c.NewBlockBlobClient(b.below(name)) }

// below is a name, or the beginning of some, with the prefix.
func (b *Container) below(name string) string {
	if b.prefix == "" {
		return name
	}
	return b.prefix + "/" + name
}

// Put implements backend.Backend.
func (b *Container) Put(ctx context.Context, name string, p []byte) error {
	req, cancel, err := web.Start(ctx, "put", name, int64(len(p)), b.rate)
	if err != nil {
		return err
	}
	defer cancel()
	sum := md5.Sum(p)
	body := web.Lend(p)
	defer body.End()
	_, err = b.blob(name).Upload(body.With(req), body.Reader(), &blockblob.UploadOptions{
		TransactionalValidation: blob.TransferValidationTypeMD5(sum[:]),
		AccessConditions:        &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)}},
	})
	if code(err) == bloberror.LeaseIDMissing { // so there is one
		return fmt.Errorf("put %s/%s: somebody holds a lease on it: %w", b.url, name, fs.ErrExist)
	}
	return b.failed(ctx, "put", name, err)
}

// Get implements backend.Backend.
func (b *Container) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	req, cancel, err := web.Start(ctx, "get", name, n, b.rate)
	if err != nil {
		return nil, err
	}
	defer cancel()
	if off < 0 || n == 0 {
		return b.none(ctx, req, name, off, n)
	}
	// A range is asked for always: its answer says how long the object is, beside
	// how long the answer is, and what was cut short on the way does not pass for
	// an object.
	opt := blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: off, Count: backend.MaxGet}}
	if n > 0 {
		opt.Range.Count = n
	}
	if off > math.MaxInt64-opt.Range.Count {
		return b.none(ctx, req, name, off, n)
	}
	r, err := b.blob(name).DownloadStream(whole(req), &opt)
	if code(err) == bloberror.InvalidRange {
		return b.none(ctx, req, name, off, n)
	}
	if err != nil {
		return nil, b.failed(ctx, "get", name, err)
	}
	defer r.Body.Close()
	if isFolder(r.Metadata) {
		return nil, b.failed(ctx, "get", name, errFolder)
	}
	length, err := web.Ranged(b.url+"/"+name, off, n, size(r.ContentLength), value(r.ContentRange))
	if err != nil {
		return nil, err
	}
	p, err := web.Read(r.Body, length)
	if err != nil {
		return nil, b.failed(ctx, "get", name, err)
	}
	return p, nil
}

// none answers a Get that is to return no bytes, or more than there are.
func (b *Container) none(ctx, req context.Context, name string, off, n int64) ([]byte, error) {
	r, err := b.blob(name).GetProperties(req, nil)
	if err == nil && isFolder(r.Metadata) {
		err = errFolder
	}
	if err != nil {
		return nil, b.failed(ctx, "get", name, err)
	}
	if r.ContentLength == nil {
		return nil, fmt.Errorf("get %s/%s: the server does not say how long it is", b.url, name)
	}
	if n, err = backend.Range(b.url+"/"+name, *r.ContentLength, off, n); err != nil {
		return nil, err
	}
	if n != 0 {
		return nil, fmt.Errorf("get %s/%s: the server has refused a range of an object of %d bytes that lies in it", b.url, name, *r.ContentLength)
	}
	return []byte{}, nil
}

var errFolder = fmt.Errorf("it is a directory: %w", fs.ErrNotExist)

// isFolder reports whether a blob stands for a directory: accounts with a
// hierarchical namespace have some.
func isFolder(metadata map[string]*string) bool {
	for k, v := range metadata {
		if strings.EqualFold(k, "hdi_isfolder") && value(v) == "true" {
			return true
		}
	}
	return false
}

// List implements backend.Backend. Blobs that can be no objects are passed over.
func (b *Container) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		for from := ""; ; {
			page, next, err := b.ListPage(ctx, prefix, from)
			if err != nil {
				yield(backend.Info{}, err)
				return
			}
			for _, info := range page {
				if !yield(info, nil) {
					return
				}
			}
			if from = next; from == "" {
				return
			}
		}
	}
}

// pageSize is about how many bytes a page of a listing has.
const pageSize = 4 << 20

// ListPage implements backend.Pager.
func (b *Container) ListPage(ctx context.Context, prefix, from string) (page []backend.Info, next string, err error) {
	if err := ctx.Err(); err != nil || !backend.ValidPrefix(prefix) {
		return nil, "", err
	}
	req, cancel := web.Deadline(ctx, pageSize, b.rate)
	defer cancel()
	opt := container.ListBlobsFlatOptions{Prefix: to.Ptr(b.below(prefix)), MaxResults: b.page}
	if from != "" {
		opt.Marker = &from
	}
	r, err := b.c.NewListBlobsFlatPager(&opt).NextPage(req)
	if err != nil {
		return nil, "", b.failed(ctx, "list", prefix, err)
	}
	if next = value(r.NextMarker); next == from && next != "" {
		return nil, "", fmt.Errorf("list %s/%s: the server has no end of one page", b.url, prefix)
	}
	if r.Segment == nil {
		return nil, next, nil
	}
	for _, item := range r.Segment.BlobItems {
		info, ok, err := b.info(item)
		if err != nil {
			return nil, "", fmt.Errorf("list %s/%s: %w", b.url, prefix, err)
		}
		if ok && strings.HasPrefix(info.Name, prefix) {
			page = append(page, info)
		}
	}
	return page, next, nil
}

// info is what a listing says of a blob; false if it is no object.
func (b *Container) info(item *container.BlobItem) (backend.Info, bool, error) {
	name, below := strings.CutPrefix(value(item.Name), b.below(""))
	p := item.Properties
	if !below || !backend.ValidName(name) || value(item.Deleted) || value(item.Snapshot) != "" || item.IsCurrentVersion != nil && !*item.IsCurrentVersion ||
		p != nil && value(p.ResourceType) == "directory" {
		return backend.Info{}, false, nil
	}
	if p == nil || p.ContentLength == nil || p.LastModified == nil {
		return backend.Info{}, false, fmt.Errorf("the server says neither size nor time of %s", name)
	}
	return backend.Info{Name: name, Size: *p.ContentLength, ModTime: *p.LastModified}, true, nil
}

// Remove implements backend.Backend.
func (b *Container) Remove(ctx context.Context, name string) error {
	req, cancel, err := web.Start(ctx, "remove", name, 0, b.rate)
	if err != nil {
		return err
	}
	defer cancel()
	_, err = b.blob(name).Delete(req, &blob.DeleteOptions{DeleteSnapshots: to.Ptr(blob.DeleteSnapshotsOptionTypeInclude)})
	err = b.failed(ctx, "remove", name, err)
	if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errNoContainer) {
		return nil
	}
	return err
}

// Lag implements backend.Backend: zero.
func (b *Container) Lag() time.Duration { return 0 }

// String implements backend.Backend: the URL.
func (b *Container) String() string { return b.url }

// Transfers implements backend.Parallel.
func (b *Container) Transfers() int { return 4 }

// value is what p points to; the zero value if it is nil.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// size is a Content-Length; -1 if there was none.
func size(n *int64) int64 {
	if n == nil {
		return -1
	}
	return *n
}
