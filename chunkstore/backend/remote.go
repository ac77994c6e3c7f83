package backend

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// ErrNotDone says that a call has done nothing, and will do nothing: it was
// refused, or never reached the place. Any call may be repeated after it.
var ErrNotDone = errors.New("nothing was done")

// ErrUnclear says that a call has failed, and that an earlier one of its kind, of
// which nobody knows what became of it, may have been done or be done yet. What
// else the error says is of the last call only.
var ErrUnclear = errors.New("an earlier attempt may have been done, or be done yet")

// Tardy is a Backend that may do something after who asked for it has gone on.
type Tardy interface {
	// Late is how long after it was asked for a Put or Remove may yet be done, or
	// be done once more, whatever the caller was told of it. Who wraps a Backend
	// passes it on, or what is forgotten may come back damaged.
	Late() time.Duration
}

// Late is how long a Put or Remove may yet be done after it was asked for, or be
// done once more: zero, unless b is a Tardy.
func Late(b Backend) time.Duration {
	if t, ok := b.(Tardy); ok {
		return t.Late()
	}
	return 0
}

// After returns an error that is err, after which a call may be repeated, but only
// when so much time has passed: the place has asked for it.
func After(err error, wait time.Duration) error {
	if wait <= 0 {
		return err
	}
	return &afterError{err, wait}
}

type afterError struct {
	error
	wait time.Duration
}

func (e *afterError) Unwrap() error { return e.error }

// asked is how long to wait at least before a call that failed so is repeated.
func asked(err error) time.Duration {
	var e *afterError
	if errors.As(err, &e) {
		return e.wait
	}
	return 0
}

// longestUnderWay is more than a request stays under way. Signatures are good for
// a quarter of an hour, the largest pack takes about as long at the slowest rate,
// and a proxy keeps neither for longer.
const longestUnderWay = time.Hour

// Resumer is a Backend that lists in the order of names, and can begin behind
// one.
type Resumer interface {
	// ListAfter is List for the names that are greater than after.
	ListAfter(ctx context.Context, prefix, after string) iter.Seq2[Info, error]
}

// Pager is a Backend that lists in pages, in an order of its own, and can be
// asked for one again.
type Pager interface {
	// ListPage returns one page of what List yields, the first where from is
	// empty, and what from is for the next one: empty after the last. A page may
	// be empty, and is the caller's.
	ListPage(ctx context.Context, prefix, from string) (page []Info, next string, err error)
}

// Parallel is a Backend that gains from calls beside each other.
type Parallel interface {
	// Transfers is how many Puts of much data to have under way at once.
	Transfers() int
}

// Transfers is how many Puts of much data to have under way at once: one, unless
// b is a Parallel.
func Transfers(b Backend) int {
	if p, ok := b.(Parallel); ok {
		return max(1, p.Transfers())
	}
	return 1
}

// Backoff is what Retry asks, for a place in the network: pauses that double
// from 200 ms to 20 s, each cut short by up to half at random, so that clients
// that failed together do not come back together. It gives up after ten
// failures, about two minutes.
func Backoff(n int) (wait time.Duration, again bool) {
	wait = min(200*time.Millisecond<<min(n-1, 10), 20*time.Second)
	return wait - rand.N(wait/2), n < 10
}

// PutAgain reports whether an object may be put again after an unclear answer,
// as Retry asks. Whoever removes it may be followed by a Put that is late or was
// sent twice, so what counts is what a second appearance says, for as long as Late:
//
//	config, writers   nobody removes them: none
//	snapshots         a forgotten snapshot would live again, without its packs; so
//	                  the record stays, hidden, until no Put of it can come
//	packs             no: others may have taken over what it held, and the index
//	                  denies it; once condemned it stays so until no Put of it can
//	                  come, and what may be late goes under another name instead
//	index             lists packs that are gone; who leans on a pack has listed it
//	intents           a writer that has ended seems to be at work, until it is
//	                  declared dead; one that had committed until Unlock, and its
//	                  record stays hidden that long when it is forgotten
//	condemned         condemns packs that are gone; the next prune ends it
//	forgotten, marks  say something of a snapshot that is gone; prune removes them
//	ledger            says once more what counts by its own time
//	parity            of a pack that is gone; prune removes it
//	keys              no: a password that was removed would open again
//	tmp               what Fenced has tried out and nobody looks at
//
// A Remove may be late as well, and destroys nothing else: names are used once.
// Three may be used again, where what was there did not prove itself and was
// removed: forgotten/<id>, which the next forget puts once more, a mark's number,
// and parity/<pack>, which the next prune makes once more.
func PutAgain(name string) bool {
	dir, _, _ := strings.Cut(name, "/")
	return slices.Contains([]string{"config", "index", "intents", "snapshots", "forgotten", "condemned", "ledger", "parity", "marks", "tmp", "writers"}, dir)
}
