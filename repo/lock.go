package repo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// MinLock and MaxLock bound how long objects are locked.
const (
	MinLock = 24 * time.Hour
	MaxLock = 3653 * 24 * time.Hour
)

// lockedKinds are the objects that are locked: all that a snapshot needs to be
// found, proven and read. The others are not:
//
//   - intents and their heartbeats say who is at work now, and go within hours;
//     that nobody is, who finds none, costs at most a writer that has to run again.
//   - condemned and forgotten records say what shall go. Who removes one, or
//     overwrites it, has brought back what was to go; that goes with the next
//     forget and prune. Locked, each would outlast what it waits for.
//   - ledgers are merged all the time, and what they say can be found out again.
var lockedKinds = map[string]bool{
	"config": true, "keys": true, "writers": true, "packs": true, "index": true, "snapshots": true, "marks": true, "parity": true,
}

// isLocked reports whether objects of that name are locked.
func isLocked(name string) bool {
	dir, _, _ := strings.Cut(name, "/")
	return lockedKinds[dir]
}

// CheckLock reports whether objects can be locked for so long.
func CheckLock(d time.Duration) error {
	if d < MinLock || d > MaxLock {
		return fmt.Errorf("a lock of %s: want a day at least and ten years at most", d)
	}
	return nil
}

// LockPeriod is how long each object is locked when it is stored, and again
// whenever its lock is lengthened; zero: nothing is locked.
func (c *Config) LockPeriod() time.Duration {
	d, _ := time.ParseDuration(c.Lock) // checked when it was read
	return d
}

// checkLock checks what a config says of locks. Periods that Init would not take
// are read all the same, as long as they make sense.
func (c *Config) checkLock() error {
	if c.Lock == "" {
		return nil
	}
	if d, err := time.ParseDuration(c.Lock); err != nil || d < time.Second || d > MaxLock {
		return fmt.Errorf("a lock of %q: want a span of time of ten years at most", c.Lock)
	}
	return nil
}

// formatLock writes what LockPeriod reads.
func formatLock(d time.Duration) string {
	if d > 0 && d%time.Hour == 0 {
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return d.String()
}

// ErrReadOnly says that a repository is only read where it is.
var ErrReadOnly = errors.New("read only")

// useLocks makes what r stores locked, as its config says, from now on. A place
// that is read in its oldest versions, or that cannot lock although the config
// says so, as a copy in a folder, is only read.
func (r *Repo) useLocks() {
	v, ok := r.b.(backend.Vault)
	_, oldest := r.b.(*backend.OldestOf)
	switch {
	case oldest:
		r.readOnly = fmt.Errorf("%s: %w: %w", r.b, backend.ErrOldest, ErrReadOnly)
	case r.cfg.Lock == "":
	case ok:
		r.vault = v
		r.b = backend.Locked(v, r.lockUntil)
	default:
		r.readOnly = fmt.Errorf("%s locks no objects, and this repository's are to be locked for %s: %w here; `cutbank copy` makes one that is written to", r.b, r.cfg.LockPeriod(), ErrReadOnly)
		r.b = backend.ReadOnly(r.b, r.readOnly)
	}
}

// lockUntil is how long what is stored now is locked; zero: it is not. It is this
// machine's clock that says so: a store takes no request of one whose clock is
// wrong by more than minutes.
func (r *Repo) lockUntil(name string) time.Time {
	if !isLocked(name) {
		return time.Time{}
	}
	return r.opt.Now().Add(r.cfg.LockPeriod())
}

// stillLocked returns until when an object is locked at least, from the time it
// was stored; zero if that has passed. It asks nothing: who has to know more tries
// to remove it.
func (r *Repo) stillLocked(info backend.Info) time.Time {
	if r.vault == nil || !isLocked(info.Name) {
		return time.Time{}
	}
	const clocks = time.Hour // may differ by that
	if until := info.ModTime.Add(r.cfg.LockPeriod()); until.After(r.opt.Now().Add(clocks)) {
		return until
	}
	return time.Time{}
}

// segmentLocked is index.Options.Locked.
func (r *Repo) segmentLocked() func(backend.Info) bool {
	if r.vault == nil {
		return nil
	}
	return func(info backend.Info) bool { return !r.stillLocked(info).IsZero() }
}

// remove removes an object unless it is locked. That is no error: until tells when
// the lock ends, zero if the object is gone.
func (r *Repo) remove(ctx context.Context, name string) (until time.Time, err error) {
	err = r.b.Remove(ctx, name)
	var l *backend.LockedError
	if errors.As(err, &l) {
		r.opt.Logf("%v: it stays until then", l)
		return l.Until, nil
	}
	return time.Time{}, err
}

// removeInfo is remove for what was listed: what is surely locked is not tried.
func (r *Repo) removeInfo(ctx context.Context, info backend.Info) (until time.Time, err error) {
	if until := r.stillLocked(info); !until.IsZero() {
		return until, nil
	}
	return r.remove(ctx, info.Name)
}
