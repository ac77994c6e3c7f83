package test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// soakTime is how long the soak runs: CUTBANK_SOAK, or some time in a slow run.
func soakTime(t *testing.T) time.Duration {
	if v := os.Getenv("CUTBANK_SOAK"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatalf("CUTBANK_SOAK: %v", err)
		}
		return d
	}
	if slow() {
		return time.Minute
	}
	return 12 * time.Second
}

// soakGrace is short, so that writers are declared dead within the test.
const soakGrace = 2 * time.Second

// soak is a repository that many processes use and abuse at once.
type soak struct {
	*cli
	t   *testing.T
	end time.Time
	mnt string

	mu        sync.Mutex
	committed map[string]string // snapshot ID -> what its source held
	forgotten map[string]bool   // by a run of forget that may have been killed
	counts    map[string]int
}

// TestSoak runs snapshots, prunes, forgets, verifications and a mount at once, as
// processes. Any of the first three may be killed, or stopped for longer than the
// grace, at any moment. No snapshot that was committed and not forgotten may
// differ from its source by a byte, through the mount or in the end; and when all
// is quiet, two prunes leave nothing that nobody needs.
func TestSoak(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := newCLI(t)
	c.init()
	s := &soak{cli: c, t: t, end: time.Now().Add(soakTime(t)), mnt: t.TempDir(), committed: map[string]string{}, forgotten: map[string]bool{}, counts: map[string]int{}}
	m := c.mount(s.mnt)
	var wg sync.WaitGroup
	n := uint64(0)
	loop := func(f func(rng *rand.Rand)) {
		n++
		rng := rand.New(rand.NewPCG(seed, n))
		wg.Add(1)
		go func() {
			defer wg.Done()
			for time.Now().Before(s.end) && !t.Failed() {
				f(rng)
			}
		}()
	}
	for i := range 3 {
		src := t.TempDir()
		loop(func(rng *rand.Rand) { s.snapshot(rng, fmt.Sprintf("host%d", i), src) })
	}
	for range 2 {
		loop(func(rng *rand.Rand) { s.prune(rng) })
	}
	loop(func(rng *rand.Rand) { s.forget(rng) })
	loop(func(rng *rand.Rand) { s.read(rng) })
	loop(func(rng *rand.Rand) { s.verify(rng) })
	wg.Wait()
	m.stop()
	t.Logf("%v", s.counts)
	s.finish()
}

// trouble runs a process and may kill it, or stop it for longer than the grace.
// It returns the exit code, -1 if it was killed.
func (s *soak) trouble(rng *rand.Rand, what string, args ...string) (string, int) {
	p := s.start(args...)
	after := time.Duration(rng.Int64N(int64(400 * time.Millisecond)))
	var timer *time.Timer
	var stopped sync.WaitGroup
	switch rng.IntN(6) {
	case 0:
		timer = time.AfterFunc(after, func() { p.Process.Kill() })
	case 1:
		stopped.Add(1)
		timer = time.AfterFunc(after, func() {
			defer stopped.Done()
			if p.Process.Signal(syscall.SIGSTOP) == nil {
				time.Sleep(soakGrace + time.Duration(rng.Int64N(int64(soakGrace))))
				p.Process.Signal(syscall.SIGCONT)
				s.count(what + " stopped")
			}
		})
	}
	code := p.end()
	if timer != nil && timer.Stop() {
		stopped = sync.WaitGroup{} // it had not begun
	}
	stopped.Wait()
	s.count(fmt.Sprintf("%s %d", what, code))
	if code != 0 && code != -1 {
		return p.out.String() + p.err.String(), code
	}
	return p.out.String(), code
}

func (s *soak) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// snapshot changes a tree and keeps a snapshot of it. The contents come from a
// small pool, so that writers share chunks.
func (s *soak) snapshot(rng *rand.Rand, name, src string) {
	for range 1 + rng.IntN(12) {
		path := filepath.Join(src, fmt.Sprintf("d%d/f%d", rng.IntN(4), rng.IntN(10)))
		if rng.IntN(4) == 0 {
			os.Remove(path)
			continue
		}
		content := make([]byte, 20_000+rng.IntN(3)*200_000)
		rand.NewChaCha8([32]byte{byte(rng.IntN(60)), byte(len(content))}).Read(content)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o644)); err != nil {
			s.t.Error(err)
			return
		}
	}
	want, err := sumOf(live(s.t, src))
	if err != nil {
		s.t.Error(err)
		return
	}
	out, code := s.trouble(rng, "snapshot", "snapshot", "--json", "--name", name, "--heartbeat", "300ms", src)
	switch {
	case code == 0:
		var id string
		for line := range strings.Lines(out) {
			var o struct{ Type, ID string }
			if json.Unmarshal([]byte(line), &o) == nil && o.Type == "snapshot" {
				id = o.ID
			}
		}
		s.mu.Lock()
		s.committed[id] = name + src + "\x00" + want
		s.mu.Unlock()
	case code == -1, strings.Contains(out, repo.ErrDead.Error()):
	default:
		s.t.Errorf("snapshot: exit code %d\n%s", code, out)
	}
}

func (s *soak) prune(rng *rand.Rand) {
	if out, code := s.trouble(rng, "prune", "prune", "--grace", soakGrace.String()); code > 0 {
		s.t.Errorf("prune: exit code %d\n%s", code, out)
	}
}

// forget forgets one of the older snapshots.
func (s *soak) forget(rng *rand.Rand) {
	time.Sleep(time.Duration(rng.Int64N(int64(time.Second))))
	id, _ := s.pick()
	if id == "" {
		return
	}
	s.mu.Lock()
	s.forgotten[id] = true
	s.mu.Unlock()
	if out, code := s.trouble(rng, "forget", "forget", id); code > 0 {
		s.t.Errorf("forget: exit code %d\n%s", code, out)
	}
}

// pick returns a snapshot that is not forgotten, if there are some.
func (s *soak) pick() (id, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.committed)-len(s.forgotten) < 4 {
		return "", ""
	}
	for id, what := range s.committed {
		if !s.forgotten[id] {
			return id, what
		}
	}
	return "", ""
}

// read compares a snapshot in the mount with what its source held.
func (s *soak) read(*rand.Rand) {
	id, what := s.pick()
	if id == "" {
		time.Sleep(100 * time.Millisecond)
		return
	}
	place, want, _ := strings.Cut(what, "\x00")
	dir := filepath.Join(s.mnt, "ids", id, place[strings.Index(place, "/"):])
	if _, err := os.Stat(dir); err != nil {
		time.Sleep(100 * time.Millisecond) // the mount looks every few seconds
		return
	}
	got, err := sumOf(live(s.t, dir))
	s.mu.Lock()
	gone := s.forgotten[id]
	s.mu.Unlock()
	if gone {
		return
	}
	if err != nil || got != want {
		s.t.Errorf("snapshot %s through the mount: %v, or it differs", id, err)
	}
	s.count("read")
}

func (s *soak) verify(rng *rand.Rand) {
	time.Sleep(time.Duration(rng.Int64N(int64(time.Second))))
	args := []string{"verify"}
	if rng.IntN(2) == 0 {
		args = append(args, "--read-data")
	}
	if out, code := s.trouble(rand.New(rand.NewPCG(0, 0)), "verify", args...); code > 0 {
		s.t.Errorf("%v: exit code %d\n%s", args, code, out)
	}
}

// finish looks at what is left when everybody is gone.
func (s *soak) finish() {
	t := s.t
	time.Sleep(soakGrace + time.Second)
	s.verified("after the soak")
	r := s.open()
	defer r.Close()
	alive := map[string]*repo.Snapshot{}
	for _, snap := range snapshots(t, r) {
		alive[snap.ID.String()] = snap
	}
	for id, what := range s.committed {
		place, want, _ := strings.Cut(what, "\x00")
		snap := alive[id]
		if snap == nil {
			if !s.forgotten[id] {
				t.Errorf("snapshot %s is gone, and nobody forgot it", id)
			}
			continue
		}
		n, err := at(stored(t, r, snap), place[strings.Index(place, "/")+1:])
		if err == nil {
			var got string
			if got, err = sumOf(n); err == nil && got != want {
				err = errors.New("it differs")
			}
		}
		if err != nil {
			t.Errorf("snapshot %s: %v", id, err)
		}
	}
	t.Logf("%d committed, %d alive, %d forgotten", len(s.committed), len(alive), len(s.forgotten))
	s.run("prune", "--grace", "1s")
	s.run("prune", "--grace", "1s")
	o := s.json("prune", "prune", "--dry-run")
	for _, what := range []string{"unneeded", "repack", "left"} {
		if sums := o[what].(map[string]any); sums["packs"].(float64) > 0 {
			t.Errorf("after two prunes: %s %v", what, sums)
		}
	}
	s.verified("after the last prune")
}

// at finds a node by its path.
func at(n tree.Node, path string) (tree.Node, error) {
	return snapfs.Walk(context.Background(), n, path)
}

// sumOf returns a hash of what lies below a directory: names, kinds, modes and
// contents.
func sumOf(n tree.Node) (string, error) {
	h := sha256.New()
	err := sumInto(h, n, "")
	return hex.EncodeToString(h.Sum(nil)), err
}

func sumInto(h hash.Hash, n tree.Node, path string) error {
	ctx := context.Background()
	a := n.Attr()
	fmt.Fprintf(h, "%q %s %o\n", path, a.Kind, a.Mode)
	switch a.Kind {
	case tree.File:
		content, err := io.ReadAll(io.NewSectionReader(readerAt{n}, 0, a.Size))
		if err != nil {
			return &fs.PathError{Op: "read", Path: path, Err: err}
		}
		sum := sha256.Sum256(content)
		h.Write(sum[:])
	case tree.Dir:
		for c, err := range n.Entries(ctx, 0) {
			if err != nil {
				return err
			}
			if err := sumInto(h, c, path+"/"+c.Attr().Name); err != nil {
				return err
			}
		}
	}
	return nil
}

type readerAt struct{ tree.Node }

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	return r.Node.ReadAt(context.Background(), p, off)
}
