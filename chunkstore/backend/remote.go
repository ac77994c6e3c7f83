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

// Resumer is a Backend that lists in the order of names, and can begin behind
// one.
type Resumer interface {
	// ListAfter is List for the names that are greater than after.
	ListAfter(ctx context.Context, prefix, after string) iter.Seq2[Info, error]
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
// as Retry asks: objects whose second appearance, after somebody has removed
// them, says nothing that is not so. Records of snapshots are among them, for who
// puts one has announced it, and until it signs off nobody removes the record.
// Packs are not, nor are keys.
func PutAgain(name string) bool {
	dir, _, _ := strings.Cut(name, "/")
	return slices.Contains([]string{"config", "index", "intents", "snapshots", "forgotten", "condemned", "ledger", "parity", "marks"}, dir)
}
