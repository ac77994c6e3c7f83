package repo

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// applyMarks adds to the snapshots what was said of them later.
func (r *Repo) applyMarks(ctx context.Context, snaps []*Snapshot) error {
	infos, err := r.names(ctx, "marks/")
	if err != nil {
		return err
	}
	type numbered struct {
		n int
		m Mark
	}
	byID := map[ID][]numbered{}
	bad := map[ID]error{}
	var errs []error
	for name := range infos {
		id, n, ok := parseMark(name)
		if !ok {
			continue
		}
		m, err := r.mark(ctx, "marks/"+name, id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case errors.Is(err, errNotOwners):
			r.opt.Logf("%v", err) // whoever put it may say nothing
			continue
		case err != nil:
			errs = append(errs, err)
			bad[id] = errors.Join(bad[id], err)
			continue
		}
		byID[id] = append(byID[id], numbered{n, m})
	}
	for name := range r.marks {
		if _, ok := infos[strings.TrimPrefix(name, "marks/")]; !ok {
			delete(r.marks, name)
		}
	}
	for _, s := range snaps {
		ms := byID[s.ID]
		slices.SortFunc(ms, func(a, b numbered) int { return cmp.Compare(a.n, b.n) })
		for _, m := range ms {
			s.apply(m.m)
		}
		s.MarkErr = bad[s.ID]
	}
	return errors.Join(errs...)
}

// What a Mark may say.
const (
	MarkTag    = "tag"
	MarkUntag  = "untag"
	MarkPin    = "pin"
	MarkUnpin  = "unpin"
	MarkExpire = "expire" // with no Until: never
)

func (s *Snapshot) apply(m Mark) {
	switch m.Op {
	case MarkTag:
		if !slices.Contains(s.Tags, m.Value) {
			s.Tags = append(s.Tags, m.Value)
		}
	case MarkUntag:
		s.Tags = slices.DeleteFunc(s.Tags, func(t string) bool { return t == m.Value })
	case MarkPin:
		s.Pinned = true
	case MarkUnpin:
		s.Pinned = false
	case MarkExpire:
		s.Expires = m.Until
	}
}

// parseMark reads an object's name without the prefix: ID-n.
func parseMark(name string) (id ID, n int, ok bool) {
	base, num, _ := strings.Cut(name, "-")
	id, ok = ParseID(base)
	n, err := strconv.Atoi(num)
	return id, n, ok && err == nil && n > 0 && strconv.Itoa(n) == num
}

// markTries is how many numbers AddMark tries. Each one that is taken is
// somebody else's mark, or one that the listing did not show yet.
const markTries = 100

// check says what is wrong with what a mark is to say.
func (m *Mark) check() error {
	switch m.Op {
	case MarkTag:
		if err := CheckLabel(m.Value); err != nil {
			return err
		}
	case MarkUntag:
		if m.Value == "" {
			return errors.New("untag: no tag is named")
		}
	case MarkPin, MarkUnpin, MarkExpire:
		if m.Value != "" {
			return fmt.Errorf("%s takes no value, got %q", m.Op, m.Value)
		}
	default:
		return fmt.Errorf("%q is nothing to say of a snapshot: use tag, untag, pin, unpin or expire", m.Op)
	}
	if m.Op != MarkExpire && !m.Until.IsZero() {
		return fmt.Errorf("%s takes no time", m.Op)
	}
	return nil
}

// AddMark says something of a snapshot: Op of m, and what belongs to it, is the
// caller's, the rest is filled in. It counts after all marks that were there
// before, and is durable on return; Snapshots applies it from then on, in every
// process. Who does not hold the owner's key gets seal.ErrNoKey, a snapshot that
// is not there is fs.ErrNotExist. After any other error it may have been said or
// not, and may be said again.
func (r *Repo) AddMark(ctx context.Context, id ID, m Mark) error {
	if err := m.check(); err != nil {
		return err
	}
	if err := r.ownerOnly("a mark on a snapshot"); err != nil {
		return err
	}
	if there, err := r.names(ctx, "snapshots/"+id.String()); err != nil {
		return err
	} else if len(there) == 0 {
		return fmt.Errorf("snapshot %s: %w", id, fs.ErrNotExist)
	}
	n, err := r.lastMark(ctx, id)
	if err != nil {
		return err
	}
	m.V, m.ID, m.Time = 1, id, r.opt.Now().UTC()
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if n, err = r.after(n); err != nil {
		return err
	}
	for range markTries {
		done, err := r.putMark(ctx, fmt.Sprintf("marks/%s-%d", id, n), body)
		if done || err != nil {
			return err
		}
		n++
	}
	return fmt.Errorf("snapshot %s: %d numbers in a row are taken, so it has no new mark; `cutbank verify` tells whether junk takes them: %w", id, markTries, fs.ErrExist)
}

// lastMark returns the highest number of a snapshot's marks, 0 for none. Only
// what proves itself counts: junk under the highest number there is would else
// leave no room for more.
func (r *Repo) lastMark(ctx context.Context, id ID) (int, error) {
	infos, err := r.names(ctx, "marks/"+id.String()+"-")
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	last := 0
	for num := range infos {
		name := id.String() + "-" + num
		_, n, ok := parseMark(name)
		if !ok || n < last {
			continue
		}
		_, err := r.mark(ctx, "marks/"+name, id)
		switch {
		case err == nil:
			last = n
		case !unproven(err) && !errors.Is(err, ErrFormat) && !errors.Is(err, fs.ErrNotExist):
			return 0, err
		}
	}
	return last, nil
}

// putMark puts a mark at a name, unless another is there.
func (r *Repo) putMark(ctx context.Context, name string, body []byte) (done bool, err error) {
	p, err := r.k.Seal(name, seal.KindMark, seal.ForEpoch, body, r.opt.Random)
	if err != nil {
		return false, err
	}
	if err := r.b.Put(ctx, name, p); !errors.Is(err, fs.ErrExist) {
		return err == nil, err
	}
	// The answer to a Put that was tried twice may have been lost.
	got, err := r.b.Get(ctx, name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // gone again: the name has been used
	}
	return err == nil && bytes.Equal(got, p), err
}

func (r *Repo) mark(ctx context.Context, name string, id ID) (Mark, error) {
	if m, ok := r.marks[name]; ok {
		return m, nil
	}
	var m Mark
	o, err := r.ownersObject(ctx, name, seal.KindMark)
	if err != nil {
		return m, err
	}
	if err := decode(name, o.Body, &m); err != nil {
		return m, err
	}
	if m.ID != id {
		return m, fmt.Errorf("%s: not the owner's word about that snapshot: %w", name, chunk.ErrCorrupt)
	}
	r.marks[name] = m
	return m, nil
}
