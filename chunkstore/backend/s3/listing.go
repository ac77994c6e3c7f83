package s3

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// quiet is how many pages of a listing in a row may hold nothing new: a store that
// passes over what was removed may send some.
const quiet = 10000

// errEndless says that a server goes on and on.
var errEndless = fmt.Errorf("the server may never come to an end: %w", errors.ErrUnsupported)

// listing finds out that a listing never ends: something is listed again, or page
// after page holds nothing new. Stores have orders of their own, so that tells
// nothing.
type listing struct {
	most  int64
	left  atomic.Int64 // pages until something new must come
	round backend.Round
}

type listingKey struct{}

// listing returns a context for the requests of one listing, which count its pages.
func (b *Bucket) listing(ctx context.Context) (context.Context, *listing) {
	l := &listing{most: b.quiet}
	l.left.Store(l.most)
	return context.WithValue(ctx, listingKey{}, l), l
}

// page fails if one page more is too many.
func (l *listing) page() error {
	if l.left.Add(-1) < 0 {
		return fmt.Errorf("%d pages in a row hold nothing new: %w", l.most, errEndless)
	}
	return nil
}

// entry fails if what is listed was listed before.
func (l *listing) entry(what string) error {
	l.left.Store(l.most)
	if l.round.Again(what) {
		return fmt.Errorf("%q is listed again: %w", what, errEndless)
	}
	return nil
}
