package repo

import (
	"context"
	"maps"

	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// trust returns which packs may be relied on to hold what they list: as a place
// that a new snapshot leans on, and as the reason why another copy may go. A
// trailer only proves who wrote it. So packs of the owner, of this writer,
// and of writers that the owner trusts count, and those of others once the owner has read them whole; none counts
// that was found damaged since. The function is safe for concurrent use.
func (r *Repo) trust(ctx context.Context) (func(pack.Name) bool, error) {
	verified, err := r.Verified(ctx)
	if err != nil {
		return nil, err
	}
	writers := r.trustedWriters()
	return func(name pack.Name) bool {
		e, known := verified[name]
		if known && !e.OK {
			return false
		}
		info, ok, err := r.ix.Pack(name)
		if err != nil || !ok {
			return false
		}
		return writers[info.Writer] || known && e.Depth == DepthChunks
	}, nil
}

// Trusts reports whether what a snapshot says of others is to be believed: which
// one it is a copy of, or that a file has not changed since. Anybody may say that,
// in a snapshot of a name that others use too. So it counts from the owner, from
// oneself, and from writers whose packs are leaned on.
func (r *Repo) Trusts(s *Snapshot) bool {
	if s.Writer == "" { // it was made here, and not read
		return true
	}
	id, ok := ParseID(s.Writer)
	return ok && r.trustedWriters()[seal.WriterID(id)]
}

// keepTrusted takes out what must not be leaned on.
func (r *Repo) keepTrusted(ctx context.Context, usable map[pack.Name]int64, lean func(pack.Name) bool) error {
	trusted, err := r.trust(ctx)
	if err != nil {
		return err
	}
	maps.DeleteFunc(usable, func(name pack.Name, _ int64) bool { return !trusted(name) || lean != nil && !lean(name) })
	return nil
}
