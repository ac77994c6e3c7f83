package repo

import (
	"errors"
	"syscall"
)

// reserver is a backend that can keep a little space for when it is full.
type reserver interface {
	Reserve() error
	Release() (bool, error)
}

// isFull reports whether an error says that there is no space left.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// reserve takes space for a later release. Where there is none it is not needed
// now, and prune tries again.
func (r *Repo) reserve() {
	if b, ok := r.b.(reserver); ok {
		if err := b.Reserve(); err != nil {
			r.opt.Logf("no space is kept for when the disk is full: %v", err)
		}
	}
}

// release gives back what was reserved, and reports whether that helps.
func (r *Repo) release() bool {
	b, ok := r.b.(reserver)
	if !ok {
		return false
	}
	released, err := b.Release()
	if err != nil {
		r.opt.Logf("%v", err)
	}
	return released
}
