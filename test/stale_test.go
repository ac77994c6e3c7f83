package test

import (
	"context"
	"iter"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// stale is a store whose listings may miss what was put, and show what was
// removed, within the last lag; each change and each listing for itself. It states
// no lag: whoever makes the repository has to know.
type stale struct {
	lag time.Duration

	mu            sync.Mutex
	random        *rand.Rand
	came          map[string]time.Time
	gone          map[string]ghost
	missed, shown int
}

type ghost struct {
	backend.Info
	at time.Time
}

func newStale(t *testing.T, lag time.Duration) *stale {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return &stale{lag: lag, random: rand.New(rand.NewPCG(seed, 0)), came: map[string]time.Time{}, gone: map[string]ghost{}}
}

// over returns b as a client of the store sees it.
func (s *stale) over(b backend.Backend) backend.Backend { return &staleClient{b, s} }

type staleClient struct {
	backend.Backend
	s *stale
}

func (c *staleClient) Put(ctx context.Context, name string, p []byte) error {
	err := c.Backend.Put(ctx, name, p)
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if err == nil {
		c.s.came[name] = time.Now()
	}
	return err
}

func (c *staleClient) Remove(ctx context.Context, name string) error {
	err := c.Backend.Remove(ctx, name)
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if g, ok := c.s.gone[name]; ok && err == nil && g.at.IsZero() {
		g.at = time.Now()
		c.s.gone[name] = g
	}
	return err
}

func (c *staleClient) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		begun, seen := time.Now(), map[string]bool{}
		for info, err := range c.Backend.List(ctx, prefix) {
			if err == nil {
				seen[info.Name] = true
				if c.s.misses(info, begun) {
					continue
				}
			}
			if !yield(info, err) || err != nil {
				return
			}
		}
		for _, info := range c.s.ghosts(prefix, begun, seen) {
			if !yield(info, nil) {
				return
			}
		}
	}
}

// misses decides whether a listing that began then misses an object, and
// remembers the object for the time when it is gone.
func (s *stale) misses(info backend.Info, begun time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.gone[info.Name]; !ok {
		s.gone[info.Name] = ghost{Info: info}
	}
	if begun.Sub(s.came[info.Name]) < s.lag && s.random.IntN(2) == 0 {
		s.missed++
		return true
	}
	return false
}

// ghosts returns what a listing that began then shows though it is gone.
func (s *stale) ghosts(prefix string, begun time.Time, seen map[string]bool) (list []backend.Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, g := range s.gone {
		if !g.at.IsZero() && !seen[name] && strings.HasPrefix(name, prefix) && begun.Sub(g.at) < s.lag && s.random.IntN(2) == 0 {
			s.shown++
			list = append(list, g.Info)
		}
	}
	return list
}

// TestStaleListings is TestBadLine over a good line to a store whose listings lag,
// as the config says.
func TestStaleListings(t *testing.T) {
	n := newTraffic(t, newBucket(t))
	n.lag = 150 * time.Millisecond
	s := newStale(t, n.lag)
	n.store = s.over
	n.run(t)
	t.Logf("missed %d, shown when gone %d", s.missed, s.shown)
	if s.missed == 0 || s.shown == 0 {
		t.Error("no listing was stale")
	}
}
