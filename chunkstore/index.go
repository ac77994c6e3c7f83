package chunkstore

import (
	"context"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// PackInfo is what an index knows of a pack as a whole.
type PackInfo struct {
	pack.Header
	Size int64

	// Listing tells the trailer that this is from any other of the pack that its
	// writer may have signed. Zero: not known.
	Listing [16]byte
}

// Index tells where chunks are. What it knows may be older than the repository:
// it is a cache, and a hint. Implementations are safe for concurrent use.
type Index interface {
	// Lookup appends the known locations of a chunk to dst; none is no error.
	Lookup(id chunk.ID, dst []pack.Location) ([]pack.Location, error)

	// Pack returns what is known of a pack, false if it is not known.
	Pack(name pack.Name) (PackInfo, bool, error)

	// Add makes the chunks of a pack known that this process wrote or adopted.
	// The index keeps t.
	Add(t *pack.Trailer) error

	// Sync reads what has been published in the repository since the last
	// time and reports whether that was anything.
	Sync(ctx context.Context) (changed bool, err error)

	// Publish stores a segment that lists these packs, which are durable, for
	// all others to read.
	Publish(ctx context.Context, packs []*pack.Trailer) error
}
