package test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/snapshotter"
)

// TestBadLine lets writers, pruners and a forgetter work beside each other over a
// line that does one thing to two requests of five, for each thing and for all:
// nothing that was committed is lost, no read is wrong, and each run ends well or
// says what failed.
func TestBadLine(t *testing.T) {
	b := newBucket(t)
	for i, f := range append(faults, hangs) {
		if !slow() && i%3 != 0 {
			continue // all of them happen in the last one
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			newTraffic(t, b.fresh(), f).run(t)
		})
	}
	t.Run("all", func(t *testing.T) {
		t.Parallel()
		newTraffic(t, b.fresh(), append(faults, hangs)...).run(t)
	})
}

// traffic is what goes over a line.
type traffic struct {
	b    *bucket
	line *line
	url  string // of the repository, over the line
	dirs [][]string

	lag   time.Duration                         // of listings, as the config says
	store func(backend.Backend) backend.Backend // the store that is behind the line; nil: as it is

	mu        sync.Mutex
	committed map[repo.ID]string // snapshot -> what it was made of
	forgotten map[repo.ID]bool   // or perhaps
	failed    map[string]int     // runs that had to be repeated
}

const (
	trafficWriters = 2
	trafficRounds  = 2
)

func newTraffic(t *testing.T, b *bucket, faults ...fault) *traffic {
	n := &traffic{b: b, committed: map[repo.ID]string{}, forgotten: map[repo.ID]bool{}, failed: map[string]int{}}
	part := 0.4
	switch {
	case len(faults) == 0:
		part = 0
	case len(faults) == 1 && faults[0].name == hangs.name: // each takes a while
		part = 0.1
	}
	l, url := newLine(t, b.handler, part, 400*time.Millisecond, faults...)
	n.line, n.url = l, "s3+"+url+b.path
	for i := range trafficWriters {
		var dirs []string
		for round := range trafficRounds {
			dir := t.TempDir()
			for k := range round + 1 {
				p := make([]byte, 40<<10)
				rand.NewChaCha8([32]byte{byte(i), byte(k)}).Read(p)
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(k)), p, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			dirs = append(dirs, dir)
		}
		n.dirs = append(n.dirs, dirs)
	}
	return n
}

// client is the repository over the line, as a new process would open it.
func (n *traffic) client() backend.Backend {
	tries := func(n int, _ error) (time.Duration, bool) { return time.Millisecond << min(n, 5), n < 12 }
	b := backend.Retry(n.b.open(n.url, 300*time.Millisecond), tries, backend.PutAgain)
	if n.store != nil {
		return n.store(b)
	}
	return b
}

// again does f until it succeeds. That it fails is no harm, but it must be by the
// line's fault: nothing stored may seem to be damaged, or not there.
func (n *traffic) again(t *testing.T, what string, f func(r *repo.Repo) error) {
	t.Helper()
	for try := 1; ; try++ {
		r, err := repo.Open(t.Context(), n.client(), options(t))
		if err == nil {
			err = f(r)
			r.Close()
		}
		if err == nil {
			return
		}
		n.mu.Lock()
		n.failed[what]++
		n.mu.Unlock()
		t.Logf("%s: %v", what, err)
		if errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, chunk.ErrMissing) || errors.Is(err, repo.ErrNoRepo) || try == 8 {
			t.Errorf("%s, attempt %d: %v", what, try, err)
			return
		}
	}
}

func (n *traffic) run(t *testing.T) {
	n.init(t)
	var writers, group sync.WaitGroup
	for i, dirs := range n.dirs {
		writers.Go(func() {
			for _, dir := range dirs {
				n.snapshot(t, fmt.Sprintf("w%d", i), dir)
			}
		})
	}
	done := make(chan struct{})
	// until does f while there are writers, and once when there are none any more.
	until := func(f func()) {
		group.Go(func() {
			for {
				select {
				case <-done:
					f()
					return
				default:
					f()
				}
			}
		})
	}
	for range 2 {
		until(func() {
			n.again(t, "prune", func(r *repo.Repo) error {
				_, err := r.Prune(t.Context(), repo.PruneOptions{MaxRepack: -1})
				return err
			})
		})
	}
	until(func() { n.forget(t) })
	writers.Wait()
	close(done)
	group.Wait()
	n.again(t, "check", func(r *repo.Repo) error {
		_, err := r.Check(t.Context(), repo.CheckOptions{ReadData: true}, func(d repo.Damage) {
			if errors.Is(d.Err, chunk.ErrCorrupt) || errors.Is(d.Err, chunk.ErrMissing) {
				t.Errorf("over the line, damage: %s: %v", d.Object, d.Err)
			}
		})
		return err
	})
	n.line.quiet()
	n.finish(t)
	t.Logf("happened %v, failed %v, committed %d, forgotten %d", n.line.counts, n.failed, len(n.committed), len(n.forgotten))
}

func (n *traffic) init(t *testing.T) {
	for try := 1; ; try++ {
		in := small(t)
		in.Probe, in.ListingLag = true, n.lag
		r, err := repo.Init(t.Context(), n.client(), in, options(t))
		if err == nil {
			r.Close()
			return
		}
		// Who has made it may not have been told.
		if r, oerr := repo.Open(t.Context(), n.b.open(n.b.direct, 0), options(t)); oerr == nil {
			r.Close()
			return
		}
		if t.Logf("init: %v", err); try == 8 {
			t.Fatal(err)
		}
		n.line.delayed.Wait() // a key that comes later would be a stranger's
	}
}

func (n *traffic) snapshot(t *testing.T, name, dir string) {
	n.again(t, "snapshot", func(r *repo.Repo) error {
		s, err := trySnapshot(t, r, live(t, dir), func(o *snapshotter.Options) { o.Name = name })
		if err == nil {
			n.mu.Lock()
			n.committed[s.ID] = dir
			n.mu.Unlock()
		}
		return err
	})
}

// forget forgets one of those that are not the newest.
func (n *traffic) forget(t *testing.T) {
	n.again(t, "forget", func(r *repo.Repo) error {
		list, err := r.Snapshots(t.Context())
		if err != nil {
			return err
		}
		newest := map[string]repo.ID{}
		for _, s := range list {
			newest[s.Name] = s.ID
		}
		for _, s := range list {
			if newest[s.Name] != s.ID {
				n.mu.Lock()
				n.forgotten[s.ID] = true
				n.mu.Unlock()
				_, err := r.Forget(t.Context(), []repo.ID{s.ID})
				return err
			}
		}
		return nil
	})
}

// finish looks at what is there, without a line between.
func (n *traffic) finish(t *testing.T) {
	r, err := tryOpen(t, n.b.open(n.b.direct, 0), options(t))
	if err != nil {
		t.Error(err)
		return
	}
	clean(t, "at last", r)
	n.allThere(t, r)
	time.Sleep(1100 * time.Millisecond) // for the grace
	for range 2 {
		if _, err := r.Prune(context.WithoutCancel(t.Context()), repo.PruneOptions{MaxRepack: -1, Grace: time.Second, Wait: true, Poll: 100 * time.Millisecond}); err != nil {
			t.Error(err)
		}
		// A writer that had committed and whose intent came once more is at work for
		// ever, unless a person says otherwise.
		atWork, err := r.AtWork(t.Context())
		if err != nil {
			t.Error(err)
		}
		for _, w := range atWork {
			if committed, err := r.Unlock(t.Context(), w.Intent.ID); err != nil || !committed {
				t.Errorf("unlocking %s: committed %v, %v", w.Intent.ID, committed, err)
			}
		}
	}
	clean(t, "after the last prune", r)
	n.allThere(t, r)
	for _, prefix := range []string{"condemned/", "forgotten/"} {
		for info, err := range r.Backend().List(t.Context(), prefix) {
			if t.Errorf("%s is left, %v", info.Name, err); err != nil {
				return
			}
		}
	}
}

// allThere compares all that was committed and not forgotten with what it was
// made of.
func (n *traffic) allThere(t *testing.T, r *repo.Repo) {
	there := map[repo.ID]*repo.Snapshot{}
	for _, s := range snapshots(t, r) {
		there[s.ID] = s
	}
	for id, dir := range n.committed {
		s := there[id]
		if s == nil && !n.forgotten[id] {
			t.Errorf("snapshot %s is gone, and nobody forgot it", id)
		}
		if s != nil {
			same(t, "snapshot "+s.ID.String(), live(t, dir), stored(t, r, s))
		}
	}
}

// TestUploadOnlyTheRest: a run that is refused in the middle fails and says so, and
// the next one uploads only what is not there yet.
func TestUploadOnlyTheRest(t *testing.T) {
	const allowed = 20
	b := newBucket(t)
	dir := t.TempDir()
	bulk(t, dir, 9, 3)
	initRepo(t, b.open(b.direct, 0), small(t)).Close()
	var puts atomic.Int64
	l, url := newLine(t, b.handler, 1, 0, fault{"forbidden", func(c *call) {
		if c.r.Method == http.MethodPut && strings.Contains(c.r.URL.Path, "/packs/") && puts.Add(1) > allowed {
			c.refused(http.StatusForbidden, "AccessDenied", "")
			return
		}
		c.answer(c.deliver())
	}})
	place := "s3+" + url + b.path
	if _, err := trySnapshot(t, open(t, b.open(place, 0)), live(t, dir), nil); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v, want fs.ErrPermission", err)
	}
	first := l.packs.Load()
	l.quiet()
	r := open(t, b.open(place, 0))
	s := snapshot(t, r, live(t, dir), nil)
	all := int64(0)
	for info, err := range r.Backend().List(t.Context(), "packs/") {
		if err != nil {
			t.Fatal(err)
		}
		all += info.Size
	}
	if sent := l.packs.Load(); first == 0 || sent != all {
		t.Errorf("%d bytes of packs were uploaded, %d of them at first, %d are there", sent, first, all)
	}
	if n := twice(t, r); n > 0 {
		t.Errorf("%d chunks are stored twice", n)
	}
	same(t, "at last", live(t, dir), stored(t, r, s))
}
