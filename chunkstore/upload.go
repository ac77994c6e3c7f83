package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// publishEvery is after how many packs a segment is published, so that a killed
// session leaves little to adopt.
const publishEvery = 32

// uploadBudget bounds the bytes of packs that are under way at once.
const uploadBudget = 96 << 20

// renewals is how often a pack whose fate is unclear is stored under another
// name, where others are across a network. A disk that fails stays so.
const renewals = 5

// unpublished collects the packs that are stored and that no segment lists.
type unpublished struct {
	mu    sync.Mutex
	packs []*pack.Trailer
}

// add adds a pack and returns those to publish now, if any.
func (u *unpublished) add(t *pack.Trailer) []*pack.Trailer {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.packs = append(u.packs, t); len(u.packs) < publishEvery {
		return nil
	}
	full := u.packs
	u.packs = nil
	return full
}

// uploaders is how many packs to store at once: one where that is no gain, and
// not more than the budget has room for.
func (s *Store) uploaders() int {
	return max(1, min(backend.Transfers(s.b), uploadBudget/max(1, s.opt.PackSize)))
}

// uploader stores packs, beside others of its kind.
func (w *Writer) uploader() {
	defer w.uploaders.Done()
	for b := range w.uploads {
		if w.Err() != nil {
			continue
		}
		t, err := w.upload(b)
		if err != nil {
			w.fail(err)
			continue
		}
		w.publish(w.fresh.add(t))
	}
}

func (w *Writer) publish(packs []*pack.Trailer) {
	if len(packs) == 0 {
		return
	}
	if err := w.s.ix.Publish(context.Background(), packs); err != nil {
		w.fail(err)
	}
}

// upload stores a pack, and only then makes its chunks known. It is not
// cancelled: a pack is bounded, and what is stored serves the next run.
func (w *Writer) upload(b *pack.Builder) (*pack.Trailer, error) {
	ctx := context.Background()
	p, t, err := w.putPack(ctx, b)
	if err != nil {
		return nil, err
	}
	if err := w.s.PutParity(ctx, t.Name, p, w.s.opt.Parity); err != nil {
		return nil, err
	}
	if t.Kind == pack.Data {
		select {
		case w.room <- p[:0]:
		default:
		}
	}
	w.stats.packs.Add(1)
	w.stats.stored.Add(uint64(len(p)))
	if err := w.s.ix.Add(t); err != nil {
		return nil, err
	}
	for i := range t.Frames {
		for _, c := range t.Frames[i].Chunks {
			sh := &w.pending[c.ID[0]&63]
			sh.mu.Lock()
			delete(sh.ids, c.ID)
			sh.mu.Unlock()
		}
	}
	return t, nil
}

// putPack finishes a pack and stores it. A pack is never put again under its
// name: the first Put may yet be done, or have been done and undone. What is not
// there goes under another name.
func (w *Writer) putPack(ctx context.Context, b *pack.Builder) ([]byte, *pack.Trailer, error) {
	for n := 1; ; n++ {
		p, t, err := b.Finish(w.s.k, w.s.opt.Random)
		if err != nil {
			return nil, nil, err
		}
		err = w.s.b.Put(ctx, t.Name.Object(), p)
		if err == nil {
			return p, t, nil
		}
		// The answer may have been lost behind a success.
		got, gerr := w.s.b.Get(ctx, t.Name.Object(), 0, -1)
		if gerr == nil && bytes.Equal(got, p) {
			return p, t, nil
		}
		if errors.Is(err, fs.ErrExist) && gerr == nil {
			return nil, nil, fmt.Errorf("pack %s is there already with other bytes: %w", t.Name, chunk.ErrCorrupt)
		}
		if n > renewals || !backend.Transient(err) || !errors.Is(gerr, fs.ErrNotExist) || backend.Transfers(w.s.b) == 1 {
			return nil, nil, err
		}
		wait, _ := backend.Backoff(n)
		time.Sleep(wait)
		// Room of its own: whoever was sending p may not have let go of it.
		if b, err = b.Renew(w.s.k, w.s.opt.Random, make([]byte, 0, len(p)+len(p)/64)); err != nil {
			return nil, nil, err
		}
		w.own.Store(b.Name(), struct{}{})
	}
}

// PutParity stores the parity of pack name, whose file is p and is stored
// already: percent of it, none for 0. Parity that is there already is left as it
// is, for nobody puts any before the pack is whole.
func (s *Store) PutParity(ctx context.Context, name pack.Name, p []byte, percent float64) error {
	if percent == 0 {
		return nil
	}
	body, err := parity.Compute(name, p, percent)
	if err != nil {
		return err
	}
	object := parity.Object(name)
	o, err := s.k.Seal(object, seal.KindParity, seal.Clear, body, s.opt.Random)
	if err != nil {
		return err
	}
	err = s.b.Put(ctx, object, o)
	if err == nil || errors.Is(err, fs.ErrExist) {
		return nil
	}
	if got, gerr := s.b.Get(ctx, object, 0, -1); gerr == nil && bytes.Equal(got, o) {
		return nil // only the answer was lost
	}
	return fmt.Errorf("pack %s is stored, its parity is not: %w", name, err)
}
