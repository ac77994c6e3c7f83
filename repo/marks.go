package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// allowed checks that a writer may use a snapshot name. The owner may use any.
func (r *Repo) allowed(w seal.WriterID, name string) error {
	if w == r.k.Owner() {
		return nil
	}
	who, ok := r.writers[w.String()]
	if ok {
		for _, glob := range who.Names {
			if m, err := path.Match(glob, name); err == nil && m {
				return nil
			}
		}
	}
	return fmt.Errorf("writer %s may not write snapshots named %q: %w", w, name, chunk.ErrCorrupt)
}

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
	var errs []error
	for name := range infos {
		base, num, _ := strings.Cut(name, "-")
		id, ok := ParseID(base)
		n, err := strconv.Atoi(num)
		if !ok || err != nil {
			continue
		}
		m, err := r.mark(ctx, "marks/"+name, id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
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
	}
	return errors.Join(errs...)
}

func (s *Snapshot) apply(m Mark) {
	switch m.Op {
	case "tag":
		if !slices.Contains(s.Tags, m.Value) {
			s.Tags = append(s.Tags, m.Value)
		}
	case "untag":
		s.Tags = slices.DeleteFunc(s.Tags, func(t string) bool { return t == m.Value })
	case "pin":
		s.Pinned = true
	case "unpin":
		s.Pinned = false
	case "expire":
		s.Expires = m.Until
	}
}

func (r *Repo) mark(ctx context.Context, name string, id ID) (Mark, error) {
	if m, ok := r.marks[name]; ok {
		return m, nil
	}
	var m Mark
	o, err := r.object(ctx, name, seal.KindMark)
	if err != nil {
		return m, err
	}
	if err := decode(name, o.Body, &m); err != nil {
		return m, err
	}
	if m.ID != id || o.Writer != r.k.Owner() {
		return m, fmt.Errorf("%s: not the owner's word about that snapshot: %w", name, chunk.ErrCorrupt)
	}
	r.marks[name] = m
	return m, nil
}
