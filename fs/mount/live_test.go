package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
)

const (
	day1 = "2026-11-21T10.00.00Z"
	day2 = "2026-11-22T10.00.00Z"
	day3 = "2026-11-23T10.00.00Z"
)

func smallRoot(content int64) *memNode {
	return dirNode("", dirNode("etc", fileNode("conf", content, 5), fileNode("large", pushFile+1, 6)))
}

func TestLayout(t *testing.T) {
	var log logLines
	s, dir := mountTest(t, Options{Logf: log.add})
	if out := run(t, "find", dir, "-mindepth", "1", "-printf", "%P\n"); out != "ids\ntags\n" && out != "tags\nids\n" {
		t.Errorf("an empty repository shows\n%s", out)
	}
	s.Update([]Snapshot{
		snapshotOf("aa11", "web", day1, smallRoot(1), "keep"),
		snapshotOf("aa22", "web", day1+"-10", smallRoot(2)),
		snapshotOf("aa33", "web", day1+"-2", smallRoot(3)),
		snapshotOf("aa44", "db", day2, smallRoot(4), "keep", "gold"),
		// What cannot be shown must not spoil the rest.
		snapshotOf("aa11", "again", day1, smallRoot(1)),
		snapshotOf("aa55", "db", day2, smallRoot(1)),
		snapshotOf("aa66", "ids", day1, smallRoot(1)),
		snapshotOf("aa77", "x/y", day1, smallRoot(1)),
		snapshotOf("aa88", "web", "latest", smallRoot(1)),
		snapshotOf("../..", "web", day3, smallRoot(1)),
		snapshotOf("aa99", "tagged", day3, smallRoot(9), "a/b", ".."),
	})
	want := []string{
		"db/" + day2 + "/etc/conf 4", "db/latest -> " + day2,
		"ids/aa11 -> ../web/" + day1, "ids/aa44 -> ../db/" + day2,
		"tags/gold/db/" + day2 + " -> ../../../db/" + day2, "tags/keep/web/" + day1 + " -> ../../../web/" + day1,
		"web/latest -> " + day1 + "-10", "web/" + day1 + "-2/etc/conf 3",
		"tagged/latest -> " + day3,
	}
	out := run(t, "find", dir, "-mindepth", "1", "-type", "l", "-printf", "%P -> %l\n", "-o", "-printf", "%P %s\n")
	for _, w := range want {
		if !strings.Contains("\n"+out, "\n"+w+"\n") {
			t.Errorf("lacks %q", w)
		}
	}
	if strings.Contains(out, "again") || strings.Contains(out, "tags/a") || strings.Contains(out, "ids/aa66") {
		t.Errorf("shows what cannot be shown")
	}
	if t.Failed() {
		t.Log(out)
	}
	for _, id := range []string{"aa55", "aa66", "aa77", "aa88", "../..", "a/b"} {
		if !strings.Contains(log.all(), fmt.Sprintf("%q", id)) {
			t.Errorf("%q was refused without a word", id)
		}
	}
	for _, p := range []string{"ids/aa22/etc/conf", "web/latest/etc/conf"} {
		if st, err := os.Stat(filepath.Join(dir, p)); err != nil || st.Size() != 2 {
			t.Errorf("%s: %v, %v", p, st, err)
		}
	}
	if out := run(t, "cat", filepath.Join(dir, "tags/keep/db", day2, "etc/conf")); len(out) != 4 {
		t.Errorf("through a tag: %q", out)
	}
}

// TestLive: snapshots come and go under caches that are kept for ever.
func TestLive(t *testing.T) {
	s, dir := mountTest(t, Options{})
	a := snapshotOf("aa", "web", day1, smallRoot(1), "t1")
	b := snapshotOf("bb", "web", day2, smallRoot(2))
	c := snapshotOf("cc", "new", day3, smallRoot(3), "t1")
	s.Update([]Snapshot{a})

	newer := filepath.Join(dir, "web", day2, "etc/conf")
	exists := func(p string) bool {
		_, err := try("stat", p)
		return err == nil
	}
	list := func(sub string) string {
		return strings.ReplaceAll(run(t, "ls", filepath.Join(dir, sub)), "\n", " ")
	}
	// Fill the caches: absences, listings, links.
	for range 2 {
		if exists(newer) || exists(filepath.Join(dir, "new")) || exists(filepath.Join(dir, "ids/bb")) {
			t.Fatal("shows what is not there yet")
		}
		if got := list("") + "|" + list("web") + "|" + list("ids") + "|" + list("tags/t1"); got != "ids tags web |"+day1+" latest |aa |web " {
			t.Fatalf("before: %s", got)
		}
		if out := run(t, "cat", filepath.Join(dir, "web/latest/etc/conf")); len(out) != 1 {
			t.Fatal("latest is not the first")
		}
	}
	s.Update([]Snapshot{a, b, c})
	start := time.Now()
	if !exists(newer) || !exists(filepath.Join(dir, "new", "latest", "etc")) || !exists(filepath.Join(dir, "ids/bb")) {
		t.Error("does not show what came, after a cached absence")
	}
	if got := list("") + "|" + list("web") + "|" + list("ids") + "|" + list("tags/t1"); got != "ids new tags web |"+day1+" "+day2+" latest |aa bb cc |new web " {
		t.Errorf("after the second came: %s", got)
	}
	if out := run(t, "cat", filepath.Join(dir, "web/latest/etc/conf")); len(out) != 2 {
		t.Errorf("latest still leads to %q", out)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("visible after %v", took)
	}

	open, err := os.Open(filepath.Join(filepath.Dir(newer), "large")) // not in the page cache
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	s.Update([]Snapshot{a})
	if exists(newer) || exists(filepath.Join(dir, "new")) || exists(filepath.Join(dir, "ids/bb")) {
		t.Error("shows what is gone")
	}
	if got := list("") + "|" + list("web") + "|" + list("ids") + "|" + list("tags/t1"); got != "ids tags web |"+day1+" latest |aa |web " {
		t.Errorf("after it went: %s", got)
	}
	if out := run(t, "cat", filepath.Join(dir, "web/latest/etc/conf")); len(out) != 1 {
		t.Errorf("latest leads to %q", out)
	}
	if _, err := open.Read(make([]byte, 10)); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("an open file of a vanished snapshot: %v, want ESTALE", err)
	}
	open.Close()

	s.Update([]Snapshot{a, b})
	if !exists(newer) {
		t.Error("does not show what came back")
	}
}

// TestListingWhileUpdating: a listing in pieces neither loses nor repeats what
// stays while others come and go.
func TestListingWhileUpdating(t *testing.T) {
	s, dir := mountTest(t, Options{})
	var keep, come []Snapshot
	for i := range 600 {
		sn := snapshotOf(fmt.Sprintf("%04x", i), "n", fmt.Sprintf("2026-01-01T10.00.00Z-%03d", i), smallRoot(1))
		if i%2 == 0 {
			keep = append(keep, sn)
		} else {
			come = append(come, sn)
		}
	}
	both := append(append([]Snapshot(nil), keep...), come...)
	s.Update(both)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				s.Update([][]Snapshot{keep, both}[i%2])
			}
		}
	}()
	for range 20 {
		seen := map[string]int{}
		for name := range strings.Lines(run(t, "ls", "-U", filepath.Join(dir, "n"))) {
			seen[strings.TrimSpace(name)]++
		}
		for _, sn := range keep {
			if seen[sn.Time] != 1 {
				t.Fatalf("%s is listed %d times", sn.Time, seen[sn.Time])
			}
		}
	}
	close(stop)
	wg.Wait()
	s.Update(keep)
	if n := strings.Count(run(t, "ls", "-U", filepath.Join(dir, "n")), "\n"); n != len(keep)+1 {
		t.Errorf("%d names stay, want %d", n, len(keep)+1)
	}
}

// TestSlowOpen: a snapshot that takes long to open holds up only who enters
// it, can be interrupted, and is opened once.
func TestSlowOpen(t *testing.T) {
	s, dir := mountTest(t, Options{})
	release := make(chan struct{})
	var opens atomic.Int32
	slow := snapshotOf("aa", "n", day1, smallRoot(1))
	open := slow.Open
	slow.Open = func(ctx context.Context) (tree.Numbered, error) {
		opens.Add(1)
		select {
		case <-release:
			return open(ctx)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s.Update([]Snapshot{slow})
	p := filepath.Join(dir, "n", day1, "etc/conf")
	if out, err := try("timeout", "-s", "INT", "0.2", "cat", p); err == nil {
		t.Errorf("read from a snapshot that is not open: %q", out)
	}
	done := make(chan string)
	go func() {
		out, _ := try("cat", p)
		done <- out
	}()
	for opens.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	s.Update([]Snapshot{slow, snapshotOf("bb", "n", day2, smallRoot(2))})
	if out := run(t, "ls", filepath.Join(dir, "n")); !strings.Contains(out, day2) {
		t.Errorf("an Update while somebody waits: %s", out)
	}
	if out := run(t, "cat", filepath.Join(dir, "n", day2, "etc/conf")); len(out) != 2 {
		t.Errorf("the neighbour: %q", out)
	}
	close(release)
	if out := <-done; len(out) != 1 {
		t.Errorf("the one who waited got %q", out)
	}
	if n := opens.Load(); n != 1 {
		t.Errorf("opened %d times", n)
	}
}

// TestOpenFails: an error is answered, logged once, and tried again.
func TestOpenFails(t *testing.T) {
	var log logLines
	s, dir := mountTest(t, Options{Logf: log.add})
	var fail atomic.Bool
	fail.Store(true)
	sn := snapshotOf("aa", "n", day1, smallRoot(1))
	open := sn.Open
	sn.Open = func(ctx context.Context) (tree.Numbered, error) {
		if fail.Load() {
			return nil, errDamage
		}
		return open(ctx)
	}
	s.Update([]Snapshot{sn})
	for range 2 {
		if out, err := try("ls", filepath.Join(dir, "n", day1)); err == nil || !strings.Contains(out, "Input/output error") {
			t.Errorf("%v: %s", err, out)
		}
	}
	if n := strings.Count(log.all(), "n/"+day1); n != 1 {
		t.Errorf("logged %d times:\n%s", n, log.all())
	}
	fail.Store(false)
	if out := run(t, "ls", filepath.Join(dir, "n", day1)); out != "etc\n" {
		t.Errorf("after it was repaired: %s", out)
	}
}

func TestNewer(t *testing.T) {
	order := []string{day1, day1 + "-2", day1 + "-9", day1 + "-10", day2}
	for i, x := range order {
		for j, y := range order {
			if got := newer(x, y); got != (i > j) {
				t.Errorf("newer(%s, %s) = %v", x, y, got)
			}
		}
	}
}

func TestEqualHashes(t *testing.T) {
	s := newServer("/nowhere", Options{PushBytes: -1})
	defer s.end()
	inos := map[uint64]bool{}
	a, b := s.newSlot(Snapshot{ID: "aa"}, inos), s.newSlot(Snapshot{ID: "aa"}, inos)
	if a.ino == b.ino || a.num == b.num || a.inoOf(0) == b.inoOf(0) {
		t.Errorf("%d and %d in slots %d and %d", a.ino, b.ino, a.num, b.num)
	}
	s.lastSlot = maxSlot
	if c := s.newSlot(Snapshot{ID: "cc"}, inos); c != nil {
		t.Errorf("slot %d", c.num)
	}
	if last := (&slot{num: maxSlot}).idOf(numberMask); last == ^uint64(0) {
		t.Error("a node has the ID that go-fuse uses itself")
	}
}
