package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// ForgetResult tells what became of snapshots that were to be forgotten. Both
// kinds are gone for readers, and their chunks for prune.
type ForgetResult struct {
	Removed []ID // records that are removed
	Hidden  []ID // records that stay, hidden, until nobody can put them again and their locks have passed
}

// Forget makes snapshots absent. Their chunks stay until prune. Where the intent
// of the snapshot's writer is still there, the record is only hidden: the writer
// may be repeating a Put that succeeded, and must find its name taken. So it is
// where a Put of a young record may yet be late (backend.Late). IDs of
// which there is no record are no error. Only the owner may.
func (r *Repo) Forget(ctx context.Context, ids []ID) (ForgetResult, error) {
	var res ForgetResult
	if err := r.ownerOnly("forgetting snapshots"); err != nil {
		return res, err
	}
	var records map[string]backend.Info
	var intents map[ID]intentState
	for _, st := range forgetOrder {
		var err error
		switch st {
		case doListRecords:
			records, err = r.names(ctx, "snapshots/")
		case doCatchUp:
			err = r.wait(ctx, r.lag())
		case doListIntents:
			intents, err = r.intents(ctx)
		case doRemoveRecord:
			for _, id := range ids {
				info, ok := records[id.String()]
				if !ok {
					continue
				}
				_, at := intents[id]
				if err = r.forget(ctx, id, info, mayRemoveRecord(at, r.settled(info, newest(records, intents))), &res); err != nil {
					break
				}
			}
		}
		if err != nil {
			return res, err
		}
	}
	return res, nil
}

// settled reports whether no Put of an object is under way any more. later is the
// time of anything that was put.
func (r *Repo) settled(info backend.Info, later time.Time) bool {
	return settled(info.ModTime, later, backend.Late(r.b))
}

// newest returns when the last of these was put: it is that late at least, by the
// backend's clock.
func newest(records map[string]backend.Info, intents map[ID]intentState) (t time.Time) {
	for _, info := range records {
		if info.ModTime.After(t) {
			t = info.ModTime
		}
	}
	for _, in := range intents {
		if in.last.After(t) {
			t = in.last
		}
	}
	return t
}

func (r *Repo) forget(ctx context.Context, id ID, info backend.Info, remove bool, res *ForgetResult) error {
	state, err := r.stateOf(ctx, id)
	if err != nil || state != aRecord {
		return err // a tombstone stays: its writer must find its name taken
	}
	if !remove {
		if err := r.hide(ctx, id); err != nil {
			return err
		}
		res.Hidden = append(res.Hidden, id)
		return nil
	}
	locked, err := r.removeInfo(ctx, info)
	if err == nil && !locked.IsZero() {
		// It stays until its lock has passed. Nobody reads it any more.
		if err := r.hide(ctx, id); err != nil {
			return err
		}
		res.Hidden = append(res.Hidden, id)
		return nil
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.records, id)
	r.mu.Unlock()
	res.Removed = append(res.Removed, id)
	return nil
}

// hide puts forgotten/<id>. One that is there but does not prove itself hides
// nothing: it is replaced.
func (r *Repo) hide(ctx context.Context, id ID) error {
	name := "forgotten/" + id.String()
	for range 2 {
		err := r.putJSON(ctx, name, seal.KindForgotten, seal.ForList, Forgotten{V: 1, ID: id, Time: r.opt.Now().UTC()})
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		r.mu.Lock()
		hidden, err := r.forgotten(ctx)
		r.mu.Unlock()
		if _, ok := hidden[id.String()]; ok || err != nil {
			return err
		}
		if until, err := r.remove(ctx, name); err != nil {
			return err
		} else if !until.IsZero() {
			return fmt.Errorf("%s: what is there hides nothing, and cannot be removed: %w", name, &backend.LockedError{Name: name, Until: until})
		}
	}
	return fmt.Errorf("%s: something else is put there again and again: %w", name, fs.ErrExist)
}

// intentState is what a listing tells of a writer at work.
type intentState struct {
	last  time.Time // its last sign of life, by the backend's clock
	beats []string  // names of its heartbeats
}

// intents lists the writers at work. Heartbeats without an intent are none.
func (r *Repo) intents(ctx context.Context) (map[ID]intentState, error) {
	infos, err := r.names(ctx, "intents/")
	if err != nil {
		return nil, err
	}
	found := map[ID]intentState{}
	for name, info := range infos {
		if id, ok := ParseID(name); ok {
			found[id] = intentState{last: info.ModTime}
		}
	}
	for name, info := range infos {
		base, _, beat := strings.Cut(name, ".")
		id, ok := ParseID(base)
		in, is := found[id]
		if !beat || !ok || !is {
			continue
		}
		in.beats = append(in.beats, "intents/"+name)
		if info.ModTime.After(in.last) {
			in.last = info.ModTime
		}
		found[id] = in
	}
	return found, nil
}

// removeIntentOf removes a writer's intent after its tombstone was put; the
// heartbeats first.
func (r *Repo) removeIntentOf(ctx context.Context, id ID, in intentState) error {
	for _, name := range append(slices.Clone(in.beats), intentName(id)) {
		if _, err := r.remove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// tidy finishes what others left: records that were hidden and can be removed
// now, and objects that say something of what is no more.
func (r *Repo) tidy(ctx context.Context) error {
	if err := r.sweepForgotten(ctx); err != nil {
		return err
	}
	if err := r.sweepBeats(ctx); err != nil {
		return err
	}
	if err := r.sweepBelow(ctx, "marks/", "snapshots/", func(name string) string { base, _, _ := strings.Cut(name, "-"); return base }); err != nil {
		return err
	}
	if err := r.sweepParts(ctx); err != nil {
		return err
	}
	if err := r.sweepKeys(ctx); err != nil {
		return err
	}
	_, err := r.sweepParity(ctx)
	return err
}

// sweepForgotten removes hidden records whose writers are gone, and which nobody
// can put any more: first the record, then what hides it.
func (r *Repo) sweepForgotten(ctx context.Context) error {
	r.mu.Lock()
	hidden, err := r.forgotten(ctx)
	r.mu.Unlock()
	if err != nil || len(hidden) == 0 {
		return err
	}
	if err := r.wait(ctx, r.lag()); err != nil {
		return err
	}
	intents, err := r.intents(ctx)
	if err != nil {
		return err
	}
	records, err := r.names(ctx, "snapshots/")
	if err != nil {
		return err
	}
	now := newest(records, intents)
	for name := range hidden {
		id, ok := ParseID(name)
		_, at := intents[id]
		info, there := records[name]
		if !ok || !mayRemoveRecord(at, !there || r.settled(info, now)) {
			continue
		}
		if until, err := r.remove(ctx, "snapshots/"+name); err != nil {
			return err
		} else if !until.IsZero() {
			continue // what hides it must stay, too
		}
		if _, err := r.remove(ctx, "forgotten/"+name); err != nil {
			return err
		}
	}
	return nil
}

// sweepBeats removes heartbeats whose intent is gone. They are listed before the
// intents: a writer puts its intent first.
func (r *Repo) sweepBeats(ctx context.Context) error {
	return r.sweepBelow(ctx, "intents/", "intents/", func(name string) string {
		base, _, beat := strings.Cut(name, ".")
		if !beat {
			return ""
		}
		return base
	})
}

// sweepParts removes condemned/<id>.<n> whose condemned/<id> is gone.
func (r *Repo) sweepParts(ctx context.Context) error {
	return r.sweepBelow(ctx, "condemned/", "condemned/", func(name string) string {
		base, _, part := strings.Cut(name, ".")
		if !part {
			return ""
		}
		return base
	})
}

// sweepBelow removes the objects under prefix that belong to an object which is
// not there: owner gives its name under ownerPrefix, empty for none. Whatever
// belongs to another is put after it, so the owners are listed last.
func (r *Repo) sweepBelow(ctx context.Context, prefix, ownerPrefix string, owner func(name string) string) error {
	infos, err := r.names(ctx, prefix)
	if err != nil || len(infos) == 0 {
		return err
	}
	if err := r.wait(ctx, r.lag()); err != nil {
		return err
	}
	owners, err := r.names(ctx, ownerPrefix)
	if err != nil {
		return err
	}
	for name, info := range infos {
		of := owner(name)
		if of == "" {
			continue
		}
		if _, there := owners[of]; there {
			continue
		}
		if _, err := r.removeInfo(ctx, info); err != nil {
			return fmt.Errorf("remove %s%s, which belongs to nothing: %w", prefix, name, err)
		}
	}
	return nil
}
