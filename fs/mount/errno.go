package mount

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// errnos says what the kernel is told for an error that carries no errno of
// its own. The first match counts.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{chunk.ErrCorrupt, syscall.EIO},
	{chunk.ErrMissing, syscall.EIO},
	{context.Canceled, syscall.EINTR},
	{context.DeadlineExceeded, syscall.EIO}, // a store that does not answer: the caller was not interrupted
	{fs.ErrNotExist, syscall.ENOENT},
	{fs.ErrExist, syscall.EEXIST},
	{fs.ErrPermission, syscall.EACCES},
	{fs.ErrInvalid, syscall.EINVAL},
	{fs.ErrClosed, syscall.EBADF},
	{errors.ErrUnsupported, syscall.EOPNOTSUPP},
}

// maxErrno is the largest error number that the FUSE protocol takes.
const maxErrno = 511

// errnoOf maps an error to what the kernel is told; nil is 0. Damage is EIO
// whatever else the error wraps, an errno passes through, then the table
// counts, and all else is EIO.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var n syscall.Errno
	if !isDamage(err) && errors.As(err, &n) {
		switch {
		case n == syscall.ENOSYS:
			return syscall.EOPNOTSUPP // ENOSYS would switch the operation off for the whole mount
		case n == 0 || n > maxErrno:
			return syscall.EIO
		}
		return n
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	return syscall.EIO
}

// isDamage reports whether err says that stored data is damaged or gone.
func isDamage(err error) bool {
	return errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, chunk.ErrMissing)
}
