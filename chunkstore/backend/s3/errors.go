package s3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"syscall"

	"github.com/minio/minio-go/v7"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/web"
)

// facts are the answers that tell one, by the code that S3 gives them.
var facts = map[string]error{
	"NoSuchKey":                      fs.ErrNotExist,
	"NoSuchVersion":                  fs.ErrNotExist,
	"NoSuchBucket":                   fmt.Errorf("%w: %w", errNoBucket, fs.ErrNotExist),
	"PreconditionFailed":             fs.ErrExist,
	"AccessDenied":                   fs.ErrPermission,
	"AllAccessDisabled":              fs.ErrPermission,
	"InvalidAccessKeyId":             fmt.Errorf("the store knows no such access key: %w", fs.ErrPermission),
	"XAdminUserNotFound":             fmt.Errorf("the store knows no such access key: %w", fs.ErrPermission), // versitygw, with status 404
	"SignatureDoesNotMatch":          fmt.Errorf("the secret key does not fit the access key: %w", fs.ErrPermission),
	"RequestTimeTooSkewed":           fmt.Errorf("this machine's clock is wrong: %w", fs.ErrPermission),
	"AuthorizationHeaderMalformed":   fmt.Errorf("is AWS_REGION the bucket's region? %w", fs.ErrInvalid),
	"PermanentRedirect":              fmt.Errorf("the bucket is in another region: set AWS_REGION: %w", fs.ErrInvalid),
	"EntityTooLarge":                 fs.ErrInvalid,
	"InvalidBucketName":              fs.ErrInvalid,
	"NotImplemented":                 errors.ErrUnsupported,
	"MethodNotAllowed":               errors.ErrUnsupported,
	"QuotaExceeded":                  syscall.EDQUOT,
	"XMinioStorageFull":              syscall.ENOSPC,
	"XMinioAdminBucketQuotaExceeded": syscall.EDQUOT,
}

// refusals are answers of a server that has done nothing, and will do when asked
// again.
var refusals = map[string]bool{
	"SlowDown": true, "SlowDownRead": true, "SlowDownWrite": true, "Throttling": true, "ThrottlingException": true, "RequestLimitExceeded": true,
	"TooManyRequests": true, "BadDigest": true, "XAmzContentSHA256Mismatch": true, "IncompleteBody": true, "ConditionalRequestConflict": true, "OperationAborted": true,
}

// failed makes an error of the house of what the SDK says. ctx is the caller's:
// only its own end is told as such.
func (b *Bucket) failed(ctx context.Context, verb, name string, err error) error {
	if err == nil {
		return nil
	}
	where := fmt.Sprintf("%s %s/%s", verb, b.url, name)
	if cerr := ctx.Err(); cerr != nil {
		return fmt.Errorf("%s: %w", where, cerr)
	}
	var r minio.ErrorResponse
	if errors.As(err, &r) && r.StatusCode != 0 {
		err := fmt.Errorf("%s: %w", where, answer(r))
		if r.StatusCode == http.StatusTooManyRequests || r.StatusCode == http.StatusServiceUnavailable {
			err = backend.After(err, b.busy.Left())
		}
		return err
	}
	return fmt.Errorf("%s: %w", where, web.Unanswered(err, "s3+http://"))
}

// answer makes an error of the house of what the server has answered.
func answer(r minio.ErrorResponse) error {
	if fact := facts[r.Code]; fact != nil {
		return fmt.Errorf("%s (%s): %w", r.Message, r.Code, fact)
	}
	said := fmt.Errorf("%s (%s, HTTP %d)", r.Message, r.Code, r.StatusCode)
	switch c := r.StatusCode; {
	case refusals[r.Code], c == http.StatusTooManyRequests:
		return fmt.Errorf("%w: %w", said, backend.ErrNotDone)
	case c == http.StatusNotFound:
		return fmt.Errorf("%w: %w", said, fs.ErrNotExist)
	case c == http.StatusPreconditionFailed:
		return fmt.Errorf("%w: %w", said, fs.ErrExist)
	case c == http.StatusUnauthorized, c == http.StatusForbidden:
		return fmt.Errorf("%w: %w", said, fs.ErrPermission)
	case c == http.StatusNotImplemented, c == http.StatusMethodNotAllowed:
		return fmt.Errorf("%w: %w", said, errors.ErrUnsupported)
	case c == http.StatusInsufficientStorage:
		return fmt.Errorf("%w: %w", said, syscall.ENOSPC)
	case c >= 300 && c < 500 && c != http.StatusRequestTimeout && c != http.StatusConflict && r.Code != "RequestTimeout":
		return fmt.Errorf("%w: %w", said, fs.ErrInvalid)
	}
	return said
}
