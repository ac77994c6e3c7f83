package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo"
)

// localWitness stands in for the repository where it cannot be read: a
// write-only node's pages of its last snapshot, and those of this one for the
// next. Without it, or where it is damaged, every file is read. A nil
// localWitness keeps nothing. It is safe for concurrent use.
type localWitness struct {
	logf func(format string, args ...any)

	mu   sync.Mutex
	prev *repo.LocalPages
	next *repo.LocalPagesWriter
}

// openLocal opens it for a snapshot that is about to be made, if the repository
// cannot be read.
func openLocal(r *repo.Repo, rec *repo.Snapshot, opt *Options) *localWitness {
	if !r.WriteOnly() {
		return nil
	}
	l := &localWitness{logf: opt.Logf}
	if rec.ModeName() != Full {
		return l // what is kept stays that of the full ones
	}
	var err error
	if !opt.NoParent {
		l.prev, err = r.LocalPages(rec.Name, rec.Paths)
		if errors.Is(err, fs.ErrNotExist) {
			opt.Logf("nothing is kept of an earlier snapshot: every file is read")
		} else if err != nil {
			opt.Warnf("what was kept of the last snapshot is of no use, every file is read: %v", err)
		}
	}
	if l.next, err = r.NewLocalPages(rec.Name, rec.Paths); err != nil {
		opt.Warnf("the next snapshot will have to read every file: %v", err)
	}
	return l
}

// parent is the last snapshot, as far as it is known.
func (l *localWitness) parent() *repo.Snapshot {
	if l.prev == nil {
		return nil
	}
	return l.prev.Snapshot
}

// page returns a page of the last snapshot.
func (l *localWitness) page(id chunk.ID) ([]byte, error) {
	if l == nil || l.prev == nil {
		return nil, chunk.ErrMissing
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.prev.Page(id)
}

// keep keeps a page for the next snapshot.
func (l *localWitness) keep(id chunk.ID, p []byte) {
	if l == nil || l.next == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next.Add(id, p)
}

// close ends it: with the snapshot that was committed, or nil for none.
func (l *localWitness) close(rec *repo.Snapshot) {
	if l == nil {
		return
	}
	var err error
	if l.prev != nil {
		err = l.prev.Close()
	}
	if l.next != nil && rec != nil {
		err = errors.Join(err, l.next.Commit(rec))
	} else if l.next != nil {
		err = errors.Join(err, l.next.Abort())
	}
	if err != nil {
		l.logf("local state: %v", err)
	}
}

// page gets a page of the previous snapshot.
func (u *run) page(ctx context.Context, id chunk.ID) ([]byte, error) {
	p, err := u.local.page(id)
	if err == nil {
		return p, nil
	}
	if !errors.Is(err, chunk.ErrMissing) {
		return nil, fmt.Errorf("local state: %w", err)
	}
	return u.r.Store().Page(ctx, id)
}
