package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// Patience is what a request may take beside the time for its bytes.
const Patience = 2 * time.Minute

// largest is how many bytes a request of unknown size is given time for.
const largest = 256 << 20

// Deadline gives a request that moves n bytes its time, at rate bytes a second;
// n < 0: nobody knows how many.
func Deadline(ctx context.Context, n, rate int64) (context.Context, context.CancelFunc) {
	if n < 0 || n > largest {
		n = largest
	}
	return context.WithTimeout(ctx, Patience+time.Duration(float64(n)/float64(rate)*float64(time.Second)))
}

// Start validates the name of a call and gives its request, which moves n bytes,
// its time, as Deadline does.
func Start(ctx context.Context, verb, name string, n, rate int64) (context.Context, context.CancelFunc, error) {
	if !backend.ValidName(name) {
		return nil, nil, backend.InvalidName(verb, name)
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := Deadline(ctx, n, rate)
	return ctx, cancel, nil
}

// Ranged checks that an answer to a Get of n bytes of the object where, from off
// on, is what was asked for, and returns how much of it to read. size is the
// length of the answer, -1 if the server does not say; spec is the header
// Content-Range. Some servers answer a range behind the end with an empty one.
func Ranged(where string, off, n, size int64, spec string) (int64, error) {
	total, first := size, int64(0)
	if spec != "" {
		var end int64
		if _, err := fmt.Sscanf(spec, "bytes %d-%d/%d", &first, &end, &total); err != nil || first != off || end < first-1 || size >= 0 && size != end-first+1 {
			return 0, fmt.Errorf("get %s: the server has answered another range than bytes from %d on: %q", where, off, spec)
		}
	} else if off > 0 {
		return 0, fmt.Errorf("get %s: the server ignores ranges: %w", where, errors.ErrUnsupported)
	}
	if total < 0 {
		return 0, fmt.Errorf("get %s: the server does not say how long it is", where)
	}
	return backend.Range(where, total, off, n)
}

// Read reads n bytes of an answer. What the server says of a length is not
// believed further than it sends.
func Read(r io.Reader, n int64) ([]byte, error) {
	const atOnce = 64 << 20
	p := make([]byte, 0, min(n, atOnce))
	for int64(len(p)) < n {
		if len(p) == cap(p) {
			p = append(make([]byte, 0, min(n, 2*int64(cap(p)))), p...)
		}
		m, err := io.ReadFull(r, p[len(p):min(int64(cap(p)), n)])
		if p = p[:len(p)+m]; err != nil {
			// Not io.ErrUnexpectedEOF: the object has the bytes, the line broke.
			return nil, fmt.Errorf("the answer ended after %d of %d bytes: %v", len(p), n, err)
		}
	}
	return p, nil
}

// Unanswered makes an error of the house of one by which a request has ended
// without an answer. plain is how a URL begins that means no encryption.
func Unanswered(err error, plain string) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return fmt.Errorf("no end after %s and more: %v", Patience, err) // the caller's context has not ended
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // it names the place once more
		if strings.HasPrefix(err.Error(), "Connection closed by foreign host") {
			err = errors.New("the server has closed the connection")
		}
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the answer broke off") // the sentinel tells of an object's end
	}
	var name x509.HostnameError
	if errors.As(err, &name) {
		return fmt.Errorf("%w; the URL must name the server as its certificate does: %w", err, fs.ErrInvalid)
	}
	var cert *tls.CertificateVerificationError
	if errors.As(err, &cert) {
		return fmt.Errorf("%w; a store with a certificate of its own needs --ca-cert FILE: %w", err, fs.ErrInvalid)
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		return fmt.Errorf("the server speaks plain HTTP there: its URL begins with %s: %w", plain, fs.ErrInvalid)
	}
	var op *net.OpError
	if errors.As(err, &op) && (op.Op == "dial" || op.Op == "proxyconnect") {
		return fmt.Errorf("%w: %w", err, backend.ErrNotDone)
	}
	return err
}
