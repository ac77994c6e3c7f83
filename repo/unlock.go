package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// AtWork lists the writers that have announced themselves and not signed off,
// oldest sign of life first. Some may be gone.
func (r *Repo) AtWork(ctx context.Context) ([]Waiting, error) {
	intents, err := r.intents(ctx)
	if err != nil {
		return nil, err
	}
	var all []Waiting
	for _, id := range slices.SortedFunc(maps.Keys(intents), func(a, b ID) int { return slices.Compare(a[:], b[:]) }) {
		all = append(all, r.waitingFor(ctx, id, intents[id]))
	}
	slices.SortStableFunc(all, func(a, b Waiting) int { return a.Last.Compare(b.Last) })
	return all, nil
}

// waitingFor reads who a writer is, for people.
func (r *Repo) waitingFor(ctx context.Context, id ID, at intentState) Waiting {
	w := Waiting{Intent: Intent{ID: id}, Last: at.last}
	var in Intent
	if o, err := r.object(ctx, intentName(id), seal.KindIntent); err == nil && decode(intentName(id), o.Body, &in) == nil {
		w.Intent = in
	}
	return w
}

// Unlock removes the intent of a writer of which a person says that it is gone
// for good, so that nobody waits for it any more. If it has committed its
// snapshot stays, and committed is true. If not its tombstone is put first: where
// create-if-absent is fenced a writer that lives after all fails with ErrDead, and
// nothing is lost. Where it is not, such a writer may commit a snapshot whose
// chunks are gone, or lose one that it commits just then. A writer that is not at work is an error that wraps
// fs.ErrNotExist. Only the owner may.
func (r *Repo) Unlock(ctx context.Context, id ID) (committed bool, err error) {
	if err := r.ownerOnly("unlocking"); err != nil {
		return false, err
	}
	intents, err := r.intents(ctx)
	if err != nil {
		return false, err
	}
	in, ok := intents[id]
	if !ok {
		return false, fmt.Errorf("writer %s is not at work: %w", id, fs.ErrNotExist)
	}
	state, err := r.stateOf(ctx, id)
	if err != nil {
		return false, err
	}
	if state == noRecord {
		t := Tombstone{V: 1, ID: id, Time: r.opt.Now().UTC(), Why: "unlocked by the owner"}
		err := r.putJSON(ctx, "snapshots/"+id.String(), seal.KindTombstone, seal.ForList, t)
		var serr error
		if state, serr = r.stateOf(ctx, id); serr != nil {
			return false, errors.Join(err, serr)
		}
		if state == noRecord {
			return false, err
		}
	}
	return state == aRecord, r.removeIntentOf(ctx, id, in)
}
