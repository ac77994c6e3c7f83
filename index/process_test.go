package index

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// TestMain makes the test binary a child process of the tests below where the
// environment asks for it: "from to" are the packs it publishes, in the
// repository and the cache directory that its arguments name.
func TestMain(m *testing.M) {
	if os.Getenv("INDEX_TEST_CHILD") == "" {
		os.Exit(m.Run())
	}
	if err := child(); err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
}

// child publishes packs one by one, syncs and looks up in between, and says
// which pack is published. Then it waits for "all <n>", and leaves when it
// knows the packs 0 to n.
func child() error {
	if os.Getenv("INDEX_TEST_CHILD") == "compact" {
		return compactor()
	}
	var from, to int
	if _, err := fmt.Sscan(os.Getenv("INDEX_TEST_CHILD"), &from, &to); err != nil {
		return err
	}
	ctx := context.Background()
	db, err := Open(ctx, dirBackend{os.Getenv("INDEX_TEST_REPO")}, testKeys(), Options{
		Dir: os.Getenv("INDEX_TEST_DIR"), MemoryLimit: 500,
		Logf: func(f string, a ...any) { fmt.Fprintf(os.Stderr, "child log: "+f+"\n", a...) },
	})
	if err != nil {
		return err
	}
	defer db.Close()
	for n := from; n < to; n++ {
		p := testPack(n)
		if err := db.Add(p); err != nil {
			return err
		}
		if err := db.Publish(ctx, []*pack.Trailer{p}); err != nil {
			return err
		}
		fmt.Println(n)
		if _, err := db.Sync(ctx); err != nil {
			return err
		}
		for i := from; i <= n; i++ {
			if err := knows(db, i); err != nil {
				return err
			}
		}
	}
	var all int
	if _, err := fmt.Scanf("all %d", &all); err != nil {
		return err
	}
	if _, err := db.Sync(ctx); err != nil {
		return err
	}
	for n := range all {
		if err := knows(db, n); err != nil {
			return err
		}
	}
	return nil
}

func knows(db *DB, n int) (err error) {
	for i := n * perPack; i < (n+1)*perPack && err == nil; i += 7 {
		locs, e := db.Lookup(testID(i), nil)
		if len(locs) == 0 {
			err = fmt.Errorf("chunk %d of pack %d is not known: %v", i-n*perPack, n, e)
		} else if locs[0].Pack != testName(n) {
			err = fmt.Errorf("chunk %d of pack %d is said to be in %s", i-n*perPack, n, locs[0].Pack)
		}
	}
	return err
}

type process struct {
	*exec.Cmd
	in    *os.File
	lines *bufio.Scanner
	close func() error
	errs  strings.Builder
}

func startChild(t *testing.T, repo, dir string, from, to int) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0])}
	p.Env = append(os.Environ(), fmt.Sprintf("INDEX_TEST_CHILD=%d %d", from, to), "INDEX_TEST_REPO="+repo, "INDEX_TEST_DIR="+dir)
	p.Stderr = &p.errs
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.Stdin, p.in = r, w
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(out)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	t.Cleanup(func() { w.Close(); p.Process.Kill() })
	return p
}

func TestProcesses(t *testing.T) {
	repo, dir := t.TempDir(), t.TempDir()
	const each = 20
	var all []*process
	for i := range 3 {
		all = append(all, startChild(t, repo, dir, i*each, (i+1)*each))
	}
	for _, p := range all {
		for n := 0; n < each && p.lines.Scan(); n++ {
		}
	}
	for _, p := range all {
		fmt.Fprintf(p.in, "all %d\n", 3*each)
	}
	for i, p := range all {
		if err := p.Wait(); err != nil {
			t.Errorf("process %d: %v\n%s", i, err, p.errs.String())
		}
		if strings.Contains(p.errs.String(), "setting it aside") {
			t.Errorf("process %d found damage: %s", i, p.errs.String())
		}
	}
	db, log := openDB(t, dirBackend{repo}, dir)
	if db.gen == nil {
		t.Error("no generation was built")
	}
	mustSync(t, db)
	check(t, db, 0, 3*each)
	if log.String() != "" {
		t.Error(log)
	}
}

// Processes are killed while they publish and build; a neighbour stays open
// all the time; at last somebody deletes the cache beside it.
func TestKilledBuilders(t *testing.T) {
	repo, dir := t.TempDir(), t.TempDir()
	b := dirBackend{repo}
	neighbour, nlog := openDB(t, b, dir)
	const seed = 3
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	next, midway := 0, 0
	var said []int
	for range 6 {
		p := startChild(t, repo, dir, next, next+1000)
		scan := func() bool {
			if !p.lines.Scan() {
				return false
			}
			n, err := strconv.Atoi(p.lines.Text())
			if err != nil {
				t.Fatal(err)
			}
			said = append(said, n)
			next = n + 1
			return true
		}
		for stop := next + 4 + rnd.IntN(8); next < stop && scan(); {
		}
		time.Sleep(time.Duration(rnd.IntN(20)) * time.Millisecond)
		p.Process.Kill()
		for scan() { // what it had said before it died
		}
		p.Wait()
		next++ // it may have published one more
		if strings.Contains(p.errs.String(), "panic") || strings.Contains(p.errs.String(), "setting it aside") {
			t.Fatal(p.errs.String())
		}
		if left, _ := filepath.Glob(filepath.Join(dir, subdir, tempPrefix+"*")); len(left) > 0 {
			midway++
		}
		mustSync(t, neighbour)
		fresh, log := openDB(t, b, dir)
		mustSync(t, fresh)
		for _, n := range said {
			if err := errors.Join(knows(neighbour, n), knows(fresh, n)); err != nil {
				t.Fatal(err)
			}
		}
		if log.String() != "" {
			t.Error(log)
		}
	}
	t.Logf("%d packs were published, %d of 6 processes died while they built", len(said), midway)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	found(t, neighbour, 0, next)
	mustSync(t, neighbour)
	fresh, _ := openDB(t, b, dir)
	mustSync(t, fresh)
	if len(generations(t, dir)) != 1 {
		t.Errorf("generations %v", generations(t, dir))
	}
	if nlog.String() != "" {
		t.Error(nlog)
	}
}
