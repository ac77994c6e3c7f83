package repo

import (
	"context"
	"fmt"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// ownersKinds are what only the owner may say.
var ownersKinds = map[seal.Kind]bool{seal.KindConfig: true, seal.KindWriter: true, seal.KindMark: true, seal.KindCondemned: true, seal.KindForgotten: true, seal.KindLedger: true}

// errNotOwners is the error for what only the owner may say and another has
// signed. It proves that it is whole, so it is not what is left of the owner's.
var errNotOwners = fmt.Errorf("not signed by the owner: %w", chunk.ErrCorrupt)

// ownersObject is object for what only the owner may say. Nobody else's is
// unpacked.
func (r *Repo) ownersObject(ctx context.Context, name string, kind seal.Kind) (*seal.Object, error) {
	p, err := r.from(ctx).Get(ctx, name, 0, -1)
	if err != nil {
		return nil, err
	}
	return r.openOwners(name, kind, p)
}

func (r *Repo) openOwners(name string, kind seal.Kind, p []byte) (*seal.Object, error) {
	o, err := seal.Parse(p)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, formatError(err))
	case o.Writer != r.k.Owner():
		return nil, fmt.Errorf("%s: %w", name, errNotOwners)
	case o.Kind != kind:
		return nil, fmt.Errorf("%s: is an object of kind %q, want %q: %w", name, o.Kind, kind, chunk.ErrCorrupt)
	}
	return o, formatError(r.k.Open(name, o))
}
