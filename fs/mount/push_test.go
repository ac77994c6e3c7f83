package mount

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// tarOf reads everything below dir in tar's order and throws it away. (To
// /dev/null itself tar would not read.)
func tarOf(t testing.TB, dir string) {
	t.Helper()
	run(t, "sh", "-c", `tar -C "$1" -cf - . | cat >/dev/null`, "sh", dir)
}

func TestPush(t *testing.T) {
	requireTool(t, "tar")
	const files = 12 * 400
	tarStats := func(budget int64) Stats {
		s, dir := mountTest(t, Options{Root: newMemTree(smallFiles(12, 400)).root, PushBytes: budget})
		tarOf(t, dir)
		first := s.Stats()
		tarOf(t, dir)
		if st := s.Stats(); st.Reads > first.Reads+files/100 { // the kernel may have dropped a page
			t.Errorf("the second tar sends %d READs:\n%+v\n%+v", st.Reads-first.Reads, first, st)
		}
		return first
	}
	if st := tarStats(-1); st.PushedFiles != 0 || st.Reads < files {
		t.Errorf("without pushing: %+v", st)
	}
	// The pusher races with the reader: on a busy machine it may lose once.
	var st Stats
	for range 3 {
		st = tarStats(0)
		t.Logf("%d files: %+v", files, st)
		if st.PushedFiles > files*11/10 {
			t.Errorf("%d files pushed of %d", st.PushedFiles, files)
		}
		if st.Reads < files*6/10 {
			return
		}
	}
	t.Errorf("pushing saves too few of %d READs: %d", files, st.Reads)
}

// TestPushedContents: what was pushed is what would have been read.
func TestPushedContents(t *testing.T) {
	root := smallFiles(4, 200)
	root.children[1].children[20].readErr = errDamage
	empty, large := fileNode("file00050", 0, 1), fileNode("file00051", pushFile+4096, 2)
	root.children[2].children[50], root.children[2].children[51] = empty, large
	s, dir := mountTest(t, Options{Root: newMemTree(root).root})
	tarry(t, dir)
	for _, d := range root.children {
		for i, f := range d.children {
			got, err := os.ReadFile(filepath.Join(dir, d.attr.Name, f.attr.Name))
			if f.readErr != nil {
				if err == nil {
					t.Errorf("%s/%s is damaged and reads", d.attr.Name, f.attr.Name)
				}
				continue
			}
			want := make([]byte, f.attr.Size)
			fillBytes(want, f.seed, 0)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("file %d of %s: %v", i, d.attr.Name, err)
			}
		}
	}
	if st := s.Stats(); st.PushedFiles == 0 {
		t.Errorf("nothing was pushed: %+v", st)
	}
}

// tarry runs a tar that may meet damage.
func tarry(t testing.TB, dir string) {
	t.Helper()
	try("sh", "-c", `tar -C "$1" -cf - . | cat >/dev/null`, "sh", dir)
}

// TestPushDoesNotBlock: many readers of the same directories, in both
// directions, while runs are under way. A deadlock shows as a hanging reader.
func TestPushDoesNotBlock(t *testing.T) {
	root := smallFiles(6, 150)
	s, dir := mountTest(t, Options{Root: newMemTree(root).root})
	want := filepath.Join(t.TempDir(), "want")
	if err := os.Mkdir(want, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := root.writeTo(want); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			script := `cd "$1" && find . -type f | sort | xargs cat | cksum`
			if i%2 == 1 {
				script = `cd "$1" && find . -type f | sort -r | xargs cat | cksum`
			}
			if i > 5 {
				script = `diff -r "$1" "$2"`
			}
			cmd := exec.Command("timeout", "-k", "1", "40", "sh", "-c", script, "sh", dir, want)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v %s", script, err, out)
			}
		}()
	}
	wg.Wait()
	t.Logf("%+v", s.Stats())
}

// TestUnmountWhilePushing: a mount can go at any moment.
func TestUnmountWhilePushing(t *testing.T) {
	for i := range 5 {
		s, dir := mountTest(t, Options{Root: newMemTree(smallFiles(1, 2000)).root})
		d := filepath.Join(dir, "dir0000")
		run(t, "ls", "-U", d)
		run(t, "cat", filepath.Join(d, fmt.Sprintf("file%05d", i)), filepath.Join(d, fmt.Sprintf("file%05d", i+1)))
		start := time.Now()
		if err := s.Unmount(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
	}
}

// TestPushWindow follows the decisions of reading without a mount.
func TestPushWindow(t *testing.T) {
	s := newServer("/nowhere", Options{PushBytes: -1})
	defer s.end()
	p := &pusher{srv: s, runBytes: 4 << 20, jobs: make(chan pushRun, 1)}
	files := newMemTree(smallFiles(1, 3000)).root.children[0].children
	files[7].attr.Size = pushFile + 1
	read := func(i int64) *pushRun {
		p.reading(known{node: files[i], dir: 5, index: i})
		select {
		case r := <-p.jobs:
			return &r
		default:
			return nil
		}
	}
	finish := func(r *pushRun, hi int64) { r.next = hi; p.finish(r) }

	r := read(3)
	if r == nil || r.from != 4 || r.files != firstFiles || r.bytes != firstBytes {
		t.Fatalf("the first READ asks for %+v", r)
	}
	if read(4) != nil || r.state.last.Load() != 4 {
		t.Error("a READ during a run must only be noted")
	}
	finish(r, 36)
	if read(5) != nil || read(7) != nil {
		t.Error("READs within what was pushed start nothing")
	}
	r = read(36)
	if r == nil || r.from != 37 || r.files != firstFiles*growth || r.bytes != firstBytes*growth {
		t.Fatalf("reading on asks for %+v", r)
	}
	finish(r, 165)
	if r = read(2000); r == nil || r.files != firstFiles || r.from != 2001 {
		t.Fatalf("elsewhere asks for %+v", r)
	}
	finish(r, 2033)
	for i := range int64(fewMisses) {
		if r := read(2010 + i); r != nil {
			t.Fatalf("miss %d asks for %+v", i, r)
		}
	}
	if r = read(2020); r == nil || r.from != 2021 {
		t.Fatalf("evicted files ask for %+v", r)
	}
	finish(r, 2053)
	r.state.pause = 2
	if read(2053) != nil || read(2054) != nil || read(2055) == nil {
		t.Error("a pause must end after two READs")
	}
	finish(r, 2080)
	if r = read(2010); r == nil || r.from != 2011 || r.until != 2020 || r.hi != 2080 {
		t.Fatalf("reading before what was pushed asks for %+v", r)
	}
	finish(r, r.hi)
	if r := read(2009); r != nil {
		t.Errorf("reading backwards asks for %+v", r)
	}
	for i := range int64(3 * pushDirs) {
		p.reading(known{node: files[0], dir: 100 + uint64(i)<<1, index: 0})
	}
	if n := len(p.young) + len(p.old); n > 2*pushDirs {
		t.Errorf("%d directories are remembered", n)
	}
}

func TestRecent(t *testing.T) {
	var r recent
	sl, other := &slot{num: 1}, &slot{num: 2}
	r.put(5, known{slot: sl, dir: 3, index: 4})
	r.put(5, known{slot: sl})
	if k, ok := r.get(5); !ok || k.dir != 3 || k.index != 4 {
		t.Errorf("a LOOKUP must not make the place forgotten: %+v", k)
	}
	for i := range uint64(10 * recentShards * recentNodes) {
		r.put(1000+i, known{slot: other})
		if i%1000 == 0 {
			if _, ok := r.get(5); !ok {
				t.Fatal("a node in use was forgotten")
			}
		}
	}
	n := 0
	for i := range r {
		n += len(r[i].young) + len(r[i].old)
	}
	if limit := 2 * recentShards * recentNodes; n > limit {
		t.Errorf("%d nodes are kept, more than %d", n, limit)
	}
	r.drop(other)
	if _, ok := r.get(5); !ok {
		t.Error("drop took another snapshot's node")
	}
	r.drop(sl)
	if _, ok := r.get(5); ok {
		t.Error("drop left a node")
	}
}
