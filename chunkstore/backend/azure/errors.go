package azure

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"syscall"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/web"
)

// errNoContainer tells a missing container from a missing object.
var errNoContainer = fmt.Errorf("no such container: make it first, with the tools of Azure: %w", fs.ErrNotExist)

// facts are the answers that tell one, by the code that Azure gives them.
var facts = map[bloberror.Code]error{
	bloberror.BlobNotFound:                     fs.ErrNotExist,
	bloberror.ContainerNotFound:                errNoContainer,
	bloberror.ContainerBeingDeleted:            errNoContainer,
	bloberror.BlobAlreadyExists:                fs.ErrExist,
	bloberror.ConditionNotMet:                  fs.ErrExist, // the only condition is that there is none
	bloberror.UnauthorizedBlobOverwrite:        fs.ErrExist,
	bloberror.LeaseIDMissing:                   fmt.Errorf("somebody holds a lease on it: break the lease: %w", fs.ErrPermission),
	bloberror.BlobImmutableDueToPolicy:         fmt.Errorf("a policy or a legal hold keeps it: %w", fs.ErrPermission),
	bloberror.AccountIsDisabled:                fs.ErrPermission,
	bloberror.ContainerDisabled:                fs.ErrPermission,
	"KeyBasedAuthenticationNotPermitted":       fmt.Errorf("the account takes no keys: use an identity: %w", fs.ErrPermission),
	bloberror.AuthorizationSourceIPMismatch:    fmt.Errorf("the signature is not for this machine's address: %w", fs.ErrPermission),
	bloberror.AuthorizationProtocolMismatch:    fmt.Errorf("the signature is for https only: %w", fs.ErrPermission),
	bloberror.BlobArchived:                     fmt.Errorf("it is in the archive tier: rehydrate it first, and keep the repository out of that tier: %w", errors.ErrUnsupported),
	bloberror.BlobBeingRehydrated:              fmt.Errorf("it is on its way out of the archive tier, which takes hours: %w", errors.ErrUnsupported),
	"FeatureVersionMismatch":                   errors.ErrUnsupported,
	bloberror.RequestBodyTooLarge:              fs.ErrInvalid,
	bloberror.ContentLengthLargerThanTierLimit: fs.ErrInvalid,
	bloberror.InvalidResourceName:              fs.ErrInvalid,
	"AccountQuotaExceeded":                     syscall.EDQUOT,
	"BlobUsesCustomerSpecifiedEncryption":      errors.ErrUnsupported,
}

// refusals are answers of a server that has done nothing, and will do when asked
// again.
var refusals = map[bloberror.Code]bool{bloberror.ServerBusy: true, bloberror.MD5Mismatch: true, "TooManyRequests": true, "AccountBeingCreated": true, "SystemInUse": true}

// failed makes an error of the house of what the SDK says. ctx is the caller's:
// only its own end is told as such.
func (b *Container) failed(ctx context.Context, verb, name string, err error) error {
	if err == nil {
		return nil
	}
	where := fmt.Sprintf("%s %s/%s", verb, b.url, name)
	if cerr := ctx.Err(); cerr != nil {
		return fmt.Errorf("%s: %w", where, cerr)
	}
	var said *azcore.ResponseError
	var refused *azidentity.AuthenticationFailedError
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &long):
		return fmt.Errorf("%s: the server answers with more than %d bytes", where, long.Limit)
	case errors.Is(err, errNoCredentials):
		return fmt.Errorf("%s: %w", where, err)
	case errors.As(err, &refused) && refused.RawResponse != nil && refused.RawResponse.StatusCode/100 != 5:
		return fmt.Errorf("%s: no token: %v; are %s right? %w", where, brief(err), b.creds.from, fs.ErrPermission)
	case errors.As(err, &refused):
		return fmt.Errorf("%s: no token: %v: %w", where, brief(err), backend.ErrNotDone)
	case errors.As(err, &said):
		err := fmt.Errorf("%s: %w", where, b.answer(said))
		if said.StatusCode == http.StatusTooManyRequests || said.StatusCode == http.StatusServiceUnavailable {
			err = backend.After(err, b.busy.Left())
		}
		return err
	}
	return fmt.Errorf("%s: %w", where, web.Unanswered(err, "azure+http://"))
}

// answer makes an error of the house of what the server has answered.
func (b *Container) answer(r *azcore.ResponseError) error {
	said := fmt.Errorf("%s (HTTP %d)", message(r), r.StatusCode)
	if fact := facts[bloberror.Code(r.ErrorCode)]; fact != nil {
		return fmt.Errorf("%w: %w", said, fact)
	}
	switch c := r.StatusCode; {
	case refusals[bloberror.Code(r.ErrorCode)], c == http.StatusTooManyRequests, c == http.StatusConflict:
		return fmt.Errorf("%w: %w", said, backend.ErrNotDone)
	case c == http.StatusUnauthorized, c == http.StatusForbidden:
		return fmt.Errorf("%w; %s %w", said, b.creds.advice(b.account), fs.ErrPermission)
	case c == http.StatusPreconditionFailed:
		return fmt.Errorf("%w: %w", said, fs.ErrExist)
	case c == http.StatusNotImplemented, c == http.StatusMethodNotAllowed:
		return fmt.Errorf("%w: %w", said, errors.ErrUnsupported)
	case c == http.StatusInsufficientStorage:
		return fmt.Errorf("%w: %w", said, syscall.ENOSPC)
	case c == http.StatusNotFound:
		return fmt.Errorf("%w; is there such an account at %s? %w", said, b.service, fs.ErrInvalid)
	case c >= 300 && c < 500 && c != http.StatusRequestTimeout:
		return fmt.Errorf("%w: %w", said, fs.ErrInvalid)
	}
	return said
}

// code is what Azure calls an error; empty if it is no answer of Azure.
func code(err error) bloberror.Code {
	var r *azcore.ResponseError
	if errors.As(err, &r) {
		return bloberror.Code(r.ErrorCode)
	}
	return ""
}

// message is what a server says for people, on one line, with its code.
func message(r *azcore.ResponseError) string {
	var said struct{ Message string }
	if p, err := runtime.Payload(r.RawResponse); err == nil {
		_ = xml.Unmarshal(p, &said) // what is no XML says nothing
	}
	switch line := firstLine(said.Message); {
	case line == "" && r.ErrorCode == "":
		return http.StatusText(r.StatusCode)
	case line == "":
		return r.ErrorCode
	default:
		return line + " " + r.ErrorCode
	}
}

// brief is what an identity's error says, on one line and without the answer's
// other fields.
func brief(err error) string {
	var refused *azidentity.AuthenticationFailedError
	if errors.As(err, &refused) && refused.RawResponse != nil {
		var said struct {
			Error       string `json:"error"`
			Description string `json:"error_description"`
		}
		if p, perr := runtime.Payload(refused.RawResponse); perr == nil {
			_ = json.Unmarshal(p, &said) // what is no JSON says nothing
		}
		return fmt.Sprintf("%s (HTTP %d)", firstLine(said.Error+" "+said.Description), refused.RawResponse.StatusCode)
	}
	return firstLine(err.Error())
}

// firstLine is the first line of what may be long.
func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	s = strings.TrimSpace(s)
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "..."
	}
	return s
}
