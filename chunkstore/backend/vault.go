package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"time"
)

// ErrLocked says that what is stored under a name cannot be removed before a
// date. Errors that wrap it are a *LockedError.
var ErrLocked = errors.New("locked")

// LockedError is an ErrLocked of one name.
type LockedError struct {
	Name  string
	Until time.Time // it may be removed afterwards, by the store's clock
}

// Error implements error.
func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is locked until %s", e.Name, e.Until.UTC().Format(time.RFC3339))
}

// Unwrap makes it an ErrLocked.
func (e *LockedError) Unwrap() error { return ErrLocked }

// Version is one of the things that were stored under a name.
type Version struct {
	Info
	ID      string
	Latest  bool // what Get and List see of the name
	Deleted bool // no object, but the mark of one who removed it: what is behind it is still there
}

// Versions is a place that keeps what was overwritten or removed. All methods are
// safe for concurrent use.
type Versions interface {
	// ListVersions yields what is kept under the names that start with prefix and
	// are greater than after. Of one name the newest comes first; names come in
	// no order, and those that are marks of removal may come apart from the others
	// of their name. An error ends the sequence.
	ListVersions(ctx context.Context, prefix, after string) iter.Seq2[Version, error]

	// GetVersion is Get for one version.
	GetVersion(ctx context.Context, name, id string, off, n int64) ([]byte, error)
}

// Vault is a Backend that can lock what it keeps, so that nobody, whatever they
// are allowed to do, can remove or change it before a date. Others can still be
// stored over it, and it can be hidden by a mark of removal; it is there all the
// same, as a version. Dates are full seconds, and rounded up to them.
type Vault interface {
	Backend
	Versions

	// Lockable returns nil if the place is set up for locks, and else an error
	// that says what to switch on.
	Lockable(ctx context.Context) error

	// PutLocked is Put, and locks what is stored.
	PutLocked(ctx context.Context, name string, p []byte, until time.Time) error

	// PutOver stores p as the newest version of a name, whatever is there, and
	// locks it; it is not locked if until is zero.
	PutOver(ctx context.Context, name string, p []byte, until time.Time) error

	// Lock makes the lock of a version last until then at least; an empty id
	// stands for the newest. It shortens no lock. A missing one is an error that
	// wraps fs.ErrNotExist.
	Lock(ctx context.Context, name, id string, until time.Time) error

	// LockedUntil returns how long a version is locked, zero if it is not; an
	// empty id stands for the newest.
	LockedUntil(ctx context.Context, name, id string) (time.Time, error)

	// RemoveVersion removes one version for good. A locked one is a *LockedError,
	// a missing one no error.
	RemoveVersion(ctx context.Context, name, id string) error
}

// Locked returns v with Puts that lock what until gives a date for, and with
// Removes that leave nothing behind: all versions of the name go, or, if one of
// them is locked, none, and the error is a *LockedError. Removing leaves no mark.
func Locked(v Vault, until func(name string) time.Time) Backend {
	return &locked{v, until}
}

type locked struct {
	Vault
	until func(name string) time.Time
}

// Transfers implements Parallel.
func (l *locked) Transfers() int { return Transfers(l.Vault) }

// Late implements Tardy.
func (l *locked) Late() time.Duration { return Late(l.Vault) }

func (l *locked) Put(ctx context.Context, name string, p []byte) error {
	if until := l.until(name); !until.IsZero() {
		return l.PutLocked(ctx, name, p, until)
	}
	return l.Vault.Put(ctx, name, p)
}

// Remove removes the oldest version first, so that who is interrupted does not make
// an older one the newest, and marks of removal last.
func (l *locked) Remove(ctx context.Context, name string) error {
	if !ValidName(name) {
		return InvalidName("remove", name)
	}
	for {
		vs, more, err := versionsOf(ctx, l.Vault, name)
		if err != nil || len(vs) == 0 {
			return err
		}
		if len(vs) > 1 {
			if err := l.removable(ctx, name, vs); err != nil {
				return err
			}
		}
		for _, v := range vs {
			if err := l.RemoveVersion(ctx, name, v.ID); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
	}
}

// removable returns a *LockedError if one of several versions is locked.
func (l *locked) removable(ctx context.Context, name string, vs []Version) error {
	var last time.Time
	for _, v := range vs {
		if v.Deleted {
			continue
		}
		until, err := l.LockedUntil(ctx, name, v.ID)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if until.After(last) {
			last = until
		}
	}
	if last.IsZero() {
		return nil
	}
	// Whether that has passed is for the store's clock to say, and trying the one
	// that is locked longest is how to ask it.
	for _, v := range vs {
		if until, err := l.LockedUntil(ctx, name, v.ID); !v.Deleted && err == nil && until.Equal(last) {
			return l.RemoveVersion(ctx, name, v.ID)
		}
	}
	return nil
}

// manyVersions bounds how many versions of one name are held in memory.
const manyVersions = 1000

// versionsOf returns the oldest versions of a name, the oldest first and the marks
// of removal last; more reports that there are others.
func versionsOf(ctx context.Context, v Versions, name string) (vs []Version, more bool, err error) {
	var marks []Version
	for x, err := range v.ListVersions(ctx, name, "") {
		switch {
		case err != nil:
			return nil, false, err
		case x.Name != name:
			continue
		case x.Deleted && len(marks) == manyVersions, !x.Deleted && len(vs) == manyVersions:
			more = true
		}
		if x.Deleted {
			marks = keepLast(marks, x)
		} else {
			vs = keepLast(vs, x)
		}
	}
	slices.Reverse(vs)
	slices.Reverse(marks)
	if more && len(vs) > 0 {
		return vs, true, nil // the marks must go last of all
	}
	return append(vs, marks...), more, nil
}

func keepLast(vs []Version, x Version) []Version {
	if len(vs) == manyVersions {
		vs = append(vs[:0], vs[1:]...)
	}
	return append(vs, x)
}

// ReadOnly returns b without Put and Remove: they are the error why.
func ReadOnly(b Backend, why error) Backend { return &readOnly{b, why} }

type readOnly struct {
	Backend
	why error
}

func (r *readOnly) Put(_ context.Context, name string, _ []byte) error {
	return &fs.PathError{Op: "put", Path: name, Err: r.why}
}

func (r *readOnly) Remove(_ context.Context, name string) error {
	return &fs.PathError{Op: "remove", Path: name, Err: r.why}
}

// Late implements Tardy.
func (r *readOnly) Late() time.Duration { return Late(r.Backend) }

// Transfers implements Parallel.
func (r *readOnly) Transfers() int { return Transfers(r.Backend) }
