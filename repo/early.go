package repo

import (
	"context"
	"iter"
	"maps"
	"strconv"
	"strings"
	"sync"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// early is a backend with some Lists and Gets begun before they are called for, all
// at once: over a network each takes a round trip, and what is read one after the
// other would cost as many as there are objects. Each answer is given out once;
// what failed, or was not begun, is asked for as ever. It lives as long as the
// call that it was made for, so that no answer is older than that.
type early struct {
	backend.Backend
	ctx   context.Context
	lanes chan struct{}

	mu    sync.Mutex
	lists map[string]*earlyAnswer
	gets  map[string]*earlyAnswer
}

type earlyAnswer struct {
	done  chan struct{}
	infos []backend.Info
	p     []byte
	err   error
}

const (
	// earlyLanes is how many Gets are under way at once.
	earlyLanes = 16
	// earlyGets bounds how many objects one listing lets be read early, and
	// earlyBytes how large each may be.
	earlyGets, earlyBytes = 1024, 1 << 20
)

type earlyKey struct{}

// withEarly returns a context in which r reads through e. It is nil where calls
// beside each other are no gain, and where what is read depends on keys that are
// read first.
func withEarly(ctx context.Context, b backend.Backend) (context.Context, *early) {
	if _, oldest := b.(*backend.OldestOf); oldest || backend.Transfers(b) <= 1 {
		return ctx, nil
	}
	e := &early{Backend: b, ctx: ctx, lanes: make(chan struct{}, earlyLanes), lists: map[string]*earlyAnswer{}, gets: map[string]*earlyAnswer{}}
	return context.WithValue(ctx, earlyKey{}, e), e
}

func earlyIn(ctx context.Context) *early {
	e, _ := ctx.Value(earlyKey{}).(*early)
	return e
}

// from is where to read from in that context.
func (r *Repo) from(ctx context.Context) backend.Backend {
	if e := earlyIn(ctx); e != nil {
		return e
	}
	return r.b
}

// list begins to list a prefix, and then to get what is listed and wanted.
func (e *early) list(prefix string, wanted func([]backend.Info) []string) {
	a := &earlyAnswer{done: make(chan struct{})}
	e.mu.Lock()
	e.lists[prefix] = a
	e.mu.Unlock()
	go func() {
		defer close(a.done)
		for info, err := range e.Backend.List(e.ctx, prefix) {
			if err != nil {
				a.err = err
				return
			}
			a.infos = append(a.infos, info)
		}
		e.get(wanted(a.infos))
	}()
}

// get begins to get objects.
func (e *early) get(names []string) {
	for _, name := range names[:min(len(names), earlyGets)] {
		a := &earlyAnswer{done: make(chan struct{})}
		e.mu.Lock()
		e.gets[name] = a
		e.mu.Unlock()
		go func() {
			e.lanes <- struct{}{}
			a.p, a.err = e.Backend.Get(e.ctx, name, 0, -1)
			<-e.lanes
			close(a.done)
		}()
	}
}

// Get implements backend.Backend.
func (e *early) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	if off == 0 && n < 0 {
		if a := e.answer(ctx, e.gets, name); a != nil && a.err == nil {
			return a.p, nil
		}
	}
	return e.Backend.Get(ctx, name, off, n)
}

// List implements backend.Backend.
func (e *early) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	a := e.answer(ctx, e.lists, prefix)
	if a == nil || a.err != nil {
		return e.Backend.List(ctx, prefix)
	}
	return func(yield func(backend.Info, error) bool) {
		for _, info := range a.infos {
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (e *early) answer(ctx context.Context, of map[string]*earlyAnswer, name string) *earlyAnswer {
	e.mu.Lock()
	a := of[name]
	delete(of, name)
	e.mu.Unlock()
	if a == nil {
		return nil
	}
	select {
	case <-a.done:
		return a
	case <-ctx.Done():
		return nil
	}
}

// opening begins what opening a repository reads first.
func (e *early) opening() {
	e.list("keys/", func(infos []backend.Info) []string {
		return namesOf(infos, func(info backend.Info) bool {
			_, _, grant := grantID(info.Name)
			return !grant && keySize(info) == nil
		})
	})
	e.list("config/", func(infos []backend.Info) []string {
		newest, at := 0, ""
		for _, info := range infos {
			if n, err := strconv.Atoi(strings.TrimPrefix(info.Name, "config/")); err == nil && n > newest && info.Size <= maxConfig {
				newest, at = n, info.Name
			}
		}
		if at == "" {
			return nil
		}
		return []string{at}
	})
	e.list("writers/", smallOnes)
}

// listing begins what a list of snapshots reads when these records are there. The
// caller holds r.mu.
func (r *Repo) listing(e *early, records map[string]backend.Info) {
	var unread []string
	for name, info := range records {
		id, ok := ParseID(name)
		if _, known := r.records[id]; ok && !known && info.Size <= earlyBytes {
			unread = append(unread, info.Name)
		}
	}
	e.get(unread)
	e.list("writers/", func(infos []backend.Info) []string {
		r.writersMu.RLock()
		defer r.writersMu.RUnlock()
		return namesOf(infos, func(info backend.Info) bool {
			_, known := r.writerObjects[info.Name]
			return !known
		})
	})
	e.list("forgotten/", smallOnes)
	known := maps.Clone(r.marks)
	e.list("marks/", func(infos []backend.Info) []string {
		return namesOf(infos, func(info backend.Info) bool {
			_, has := known[info.Name]
			return !has
		})
	})
}

func smallOnes(infos []backend.Info) []string {
	return namesOf(infos, func(backend.Info) bool { return true })
}

func namesOf(infos []backend.Info, wanted func(backend.Info) bool) (names []string) {
	for _, info := range infos {
		if info.Size <= earlyBytes && wanted(info) {
			names = append(names, info.Name)
		}
	}
	return names
}
