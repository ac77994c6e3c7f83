package repo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// testFile is a file of one chunk below a directory of the root.
type testFile struct{ dir, name, text string }

// commitFiles makes a snapshot of files, which come sorted.
func commitFiles(t testing.TB, r *Repo, rec Snapshot, files ...testFile) *Snapshot {
	t.Helper()
	s := testBegin(t, r)
	data, meta := s.Writer.Stream(pack.Data), s.Writer.Stream(pack.Meta)
	put := func(p []byte) (chunk.ID, error) {
		id := r.SecretKeys().Tree.Sum(p)
		_, err := meta.Put(id, p)
		return id, err
	}
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	root := tree.Entry{Attr: tree.Attr{Name: tree.RootName, Kind: tree.Dir, Mode: 0o755, Nlink: 1}}
	top := tree.NewDirWriter(put)
	for len(files) > 0 {
		dir := tree.Entry{Attr: tree.Attr{Name: files[0].dir, Kind: tree.Dir, Mode: 0o755, Nlink: 1}}
		w := tree.NewDirWriter(put)
		for len(files) > 0 && files[0].dir == dir.Name {
			f := files[0]
			files = files[1:]
			id := r.SecretKeys().Data.Sum([]byte(f.text))
			_, err := data.Put(id, []byte(f.text))
			check(err)
			e := tree.Entry{Attr: tree.Attr{Name: f.name, Kind: tree.File, Mode: 0o644, Nlink: 1}}
			x := tree.NewRecipeWriter(put)
			check(x.Add(tree.Extent{Len: int64(len(f.text)), Kind: tree.Data, End: tree.EndFile, ID: id}))
			check(x.Finish(&e))
			check(w.Add(&e))
		}
		check(w.Finish(&dir))
		check(top.Add(&dir))
	}
	check(top.Finish(&root))
	w := tree.NewDirWriter(put)
	var e tree.Entry
	check(w.Add(&root))
	check(w.Finish(&e))
	data.Flush()
	meta.Flush()
	rec.Tree = PageID{e.Root}
	if rec.Name == "" {
		rec.Name = "host"
	}
	if rec.Time.IsZero() {
		rec.Time = start
	}
	check(s.Commit(t.Context(), &rec))
	return &rec
}

// filesOf returns n files of 5,000 bytes that cannot be compressed, in two
// directories.
func filesOf(seed byte, n int) []testFile {
	rnd := rand.NewChaCha8([32]byte{seed})
	files := make([]testFile, n)
	for i := range files {
		p := make([]byte, 5000)
		rnd.Read(p)
		files[i] = testFile{string(rune('a' + 2*i/n)), fmt.Sprintf("f%03d", i), string(p)}
	}
	return files
}

// checked runs a check and returns what it reported, a line each.
func checked(t testing.TB, r *Repo, opt CheckOptions) ([]string, CheckResult) {
	t.Helper()
	var lines []string
	res, err := r.Check(t.Context(), opt, func(d Damage) { lines = append(lines, damageText(d)) })
	if err != nil {
		t.Fatal(err)
	}
	return lines, res
}

func damageText(d Damage) string {
	s := fmt.Sprintf("%s %s", d.Object, d.Path)
	if d.Snapshot != nil {
		s += " " + d.Snapshot.Name + " " + d.Node
	}
	if d.Healed {
		s = "healed " + s
	}
	return s + ": " + d.Err.Error()
}

// clock is a backend and a verifier that agree on the time.
type clock struct{ now time.Time }

func (c *clock) open(t testing.TB, b backend.Backend) *Repo {
	t.Helper()
	opt := testOptions(t)
	opt.Now = func() time.Time { return c.now }
	r, err := Open(t.Context(), b, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// oneReader makes the order of reads certain.
func oneReader(t testing.TB) {
	n := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(n) })
}

// packsRead returns the packs that were read, in order.
func packsRead(rec *backendtest.Recorder) []string {
	var read []string
	for _, op := range rec.Ops() {
		if n, ok := pack.ParseObject(op.Name); ok && op.Verb == "get" && (len(read) == 0 || read[len(read)-1] != n.String()) {
			read = append(read, n.String())
		}
	}
	return read
}

// TestMaxAge reads what was not proven for so long, those first that nobody has
// looked at, then the oldest.
func TestMaxAge(t *testing.T) {
	oneReader(t)
	b := backend.NewMem()
	testInit(t, b)
	c := &clock{start}
	rec := backendtest.NewRecorder(b)
	r := c.open(t, rec)
	commitFiles(t, r, Snapshot{}, filesOf(1, 40)...)
	all := names(t, b, "packs/")
	if len(all) < 4 {
		t.Fatalf("%d packs are too few", len(all))
	}
	// Each was proven on a day of its own, in an order of its own, but for two:
	// one never, and one by who had a clock that was ahead.
	var order []string
	for _, name := range all {
		n, _ := pack.ParseObject(name)
		order = append(order, n.String())
	}
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	c.now = start.Add(100 * oneDay)
	for i, name := range order[1 : len(order)-1] {
		e := LedgerEntry{Pack: name, Time: start.Add(time.Duration(60+i) * oneDay), Depth: DepthChunks, OK: true}
		if err := r.addLedger(t.Context(), []LedgerEntry{e}); err != nil {
			t.Fatal(err)
		}
	}
	ahead := LedgerEntry{Pack: order[len(order)-1], Time: c.now.Add(time.Hour), Depth: DepthChunks, OK: true}
	if err := r.addLedger(t.Context(), []LedgerEntry{ahead}); err != nil {
		t.Fatal(err)
	}
	// Not walking any tree, whose pages are in packs too.
	opt := CheckOptions{MaxAge: 39*oneDay + 3*time.Hour, Snapshots: []*Snapshot{}}
	rec.Reset()
	_, res := checked(t, r, opt)
	want := []string{order[0], order[1], order[len(order)-1]} // 60 days, but not 61: 39 days ago
	if got := packsRead(rec); !slices.Equal(got, want) || res.Read != 3 {
		t.Errorf("read %d packs, %q, want %q", res.Read, got, want)
	}
	rec.Reset()
	if _, res = checked(t, r, opt); res.Read != 1 {
		// What the clock ahead said is still the last word.
		t.Errorf("read %d packs again: %q", res.Read, packsRead(rec))
	}
	c.now = c.now.Add(2 * time.Hour)
	if _, res = checked(t, r, opt); res.Read != 0 {
		t.Errorf("read %d packs at last", res.Read)
	}
	c.now = c.now.Add(40 * oneDay)
	if _, res = checked(t, r, opt); res.Read != uint64(len(all)) {
		t.Errorf("read %d packs after 40 days, want all", res.Read)
	}
	if got := res.Coverage.Groups[0]; got.Packs != uint64(len(all)) {
		t.Errorf("%d packs count as proven today", got.Packs)
	}
}

// TestBudget gets round to all packs in small runs, whatever is the bound.
func TestBudget(t *testing.T) {
	oneReader(t)
	for name, opt := range map[string]CheckOptions{
		"bytes":       {ReadData: true, BudgetBytes: 150 << 10},
		"one byte":    {ReadData: true, BudgetBytes: 1},
		"time":        {ReadData: true, Budget: 2 * time.Minute},
		"no time":     {ReadData: true, Budget: 1},
		"with an age": {MaxAge: oneDay, Budget: 2 * time.Minute},
	} {
		b := backend.NewMem()
		testInit(t, b)
		c := &clock{start}
		commitFiles(t, c.open(t, b), Snapshot{}, filesOf(1, 60)...)
		all := len(names(t, b, "packs/"))
		// Each trailer that is read takes a minute.
		slow := &before{Backend: b, verb: "get", name: "packs/", when: func(int) bool { return true }}
		r := c.open(t, slow)
		last := ""
		slow.do = func() {}
		seen := map[string]int{}
		rec := backendtest.NewRecorder(slow)
		r.b = rec
		slow.do = func() {
			if read := packsRead(rec); len(read) > 0 && read[len(read)-1] != last {
				last = read[len(read)-1]
				c.now = c.now.Add(time.Minute)
			}
		}
		opt.Snapshots = []*Snapshot{}
		read := uint64(0)
		for runs := 0; read < uint64(all); runs++ {
			rec.Reset()
			last = ""
			_, res := checked(t, r, opt)
			for _, n := range packsRead(rec) {
				seen[n]++
			}
			read += res.Read
			per := map[string]uint64{"bytes": 2, "one byte": 1, "time": 2, "no time": 1, "with an age": 2}[name]
			if res.Read == 0 || res.Read > per+1 || per == 1 && res.Read != 1 || res.Left != uint64(all)-read && opt.MaxAge > 0 || runs > all {
				t.Fatalf("%s, run %d: %d packs of %d, %d left", name, runs, res.Read, all, res.Left)
			}
			if opt.BudgetBytes > 1 && res.Bytes > uint64(opt.BudgetBytes) {
				t.Errorf("%s: read %d bytes", name, res.Bytes)
			}
		}
		if len(seen) != all {
			t.Errorf("%s: %d of %d packs were read, some twice", name, len(seen), all)
		}
	}
}

// TestInterrupted keeps what it did.
func TestInterrupted(t *testing.T) {
	oneReader(t)
	b := backend.NewMem()
	testInit(t, b)
	commitFiles(t, testOpen(t, b), Snapshot{}, filesOf(1, 40)...)
	ctx, cancel := context.WithCancel(t.Context())
	third := &before{Backend: b, verb: "get", name: "packs/", do: cancel}
	r := testOpen(t, third)
	var seen []string
	third.when = func(int) bool { return false }
	rec := backendtest.NewRecorder(third)
	r.b = rec
	third.when = func(int) bool { return len(packsRead(rec)) == 3 }
	_, err := r.Check(ctx, CheckOptions{ReadData: true}, func(d Damage) { t.Error(damageText(d)) })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	seen = packsRead(rec)[:2]
	v, err := testOpen(t, b).Verified(t.Context())
	if err != nil || len(v) != 2 {
		t.Fatalf("%d packs are remembered, %v, want the 2 that were read", len(v), err)
	}
	for name, e := range v {
		if !slices.Contains(seen, name.String()) || !e.OK || e.Depth != DepthChunks {
			t.Errorf("%+v", e)
		}
	}
}

// TestLongRuns write the ledger now and then.
func TestLongRuns(t *testing.T) {
	oneReader(t)
	b := backend.NewMem()
	testInit(t, b)
	c := &clock{start}
	commitFiles(t, c.open(t, b), Snapshot{}, filesOf(1, 40)...)
	slow := &before{Backend: b, verb: "get", name: "packs/", when: func(int) bool { return true }, do: func() { c.now = c.now.Add(time.Minute) }}
	checked(t, c.open(t, slow), CheckOptions{ReadData: true, Snapshots: []*Snapshot{}})
	if n := len(names(t, b, "ledger/")); n < 3 {
		t.Errorf("%d ledgers", n)
	}
}

// TestDamagedThenWhole: a damaged pack is told by every check until one reads it
// and finds it whole.
func TestDamagedThenWhole(t *testing.T) {
	b := backend.NewMem()
	testInit(t, b)
	c := &clock{start}
	r := c.open(t, b)
	files := filesOf(1, 4)
	commitFiles(t, r, Snapshot{Host: "box"}, files...)
	id := r.SecretKeys().Data.Sum([]byte(files[1].text))
	locs, err := r.Index().Lookup(id, nil)
	if err != nil || len(locs) != 1 {
		t.Fatalf("%v, %v", locs, err)
	}
	object := locs[0].Pack.Object()
	whole := get(t, b, object)
	bad := slices.Clone(whole)
	bad[locs[0].Off+locs[0].Stored/2] ^= 4
	replace(t, b, object, bad)
	look := func(what string, opt CheckOptions, want ...string) {
		t.Helper()
		c.now = c.now.Add(time.Hour)
		lines, res := checked(t, c.open(t, b), opt)
		if len(lines) != len(want) || res.Damages != uint64(len(want)) {
			t.Fatalf("%s: %q, want %q", what, lines, want)
		}
		for i, line := range lines {
			if !strings.Contains(line, want[i]) {
				t.Errorf("%s: %q, want %q", what, line, want[i])
			}
		}
	}
	read := CheckOptions{ReadData: true}
	file := files[1].dir + "/" + files[1].name + " host box: "
	look("unread", CheckOptions{})
	look("read", read, "closing hash does not fit, 1 of ", file)
	look("known", CheckOptions{}, "was found damaged at 2026-03-01T14:00:00Z", file)
	look("read again", read, "closing hash does not fit, 1 of ", file)
	replace(t, b, object, whole)
	look("whole again, but nobody knows", CheckOptions{}, "was found damaged at 2026-03-01T16:00:00Z")
	look("read once more", read)
	look("known as whole", CheckOptions{})
	replace(t, b, object, bad)
	look("read", read, "closing hash", file)
	if err := b.Remove(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	look("removed", CheckOptions{}, "a/f000 host box: ", "a/f001 host box: ", "b/f002 host box: ", "b/f003 host box: ")
}

// TestDepths: what is wrong tells how deep one has to look to find it.
func TestDepths(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	s := testBegin(t, r)
	st := s.Writer.Stream(pack.Data)
	// A pack whose writer lies.
	if _, err := st.Put(r.SecretKeys().Data.Sum([]byte("one thing")), []byte("another")); err != nil {
		t.Fatal(err)
	}
	st.Flush()
	s.Abort(t.Context())
	lines, _ := checked(t, r, CheckOptions{ReadData: true})
	v, err := r.Verified(t.Context())
	if err != nil || len(v) != 1 || len(lines) != 1 || !strings.Contains(lines[0], "holds other bytes") {
		t.Fatalf("%v, %v, %q", v, err, lines)
	}
	for name, e := range v {
		if e.OK || e.Depth != DepthChunks || !strings.Contains(e.What, "holds other bytes") {
			t.Errorf("%+v", e)
		}
		// Rot in the same pack is found by its closing hash.
		p := get(t, b, name.Object())
		for what, bad := range map[string][]byte{"cut short": p[:len(p)-1], "longer": append(slices.Clone(p), 0), "empty": nil, "flipped": flip(p, len(p)-100), "in its hash": flip(p, len(p)-1)} {
			replace(t, b, name.Object(), bad)
			lines, _ := checked(t, r, CheckOptions{ReadData: true})
			v, err := r.Verified(t.Context())
			if e := v[name]; err != nil || e.OK || e.Depth != DepthHash || len(lines) != 1 {
				t.Errorf("%s: %+v, %q, %v", what, e, lines, err)
			}
		}
	}
}

func flip(p []byte, i int) []byte {
	q := slices.Clone(p)
	q[i] ^= 1
	return q
}

// TestOutOfReach: that a pack cannot be had just now is told, and says nothing
// of the pack.
func TestOutOfReach(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	commitFiles(t, r, Snapshot{}, filesOf(1, 4)...)
	r.b = &away{b}
	lines, res := checked(t, r, CheckOptions{ReadData: true, Snapshots: []*Snapshot{}})
	v, err := r.Verified(t.Context())
	if err != nil || len(v) != 0 || len(lines) == 0 || res.LedgerErr != nil {
		t.Errorf("%v, %v, %q, %v", v, err, lines, res.LedgerErr)
	}
}

type away struct{ backend.Backend }

func (a *away) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	if strings.HasPrefix(name, "packs/") {
		return nil, errLost
	}
	return a.Backend.Get(ctx, name, off, n)
}

// TestOnlyTheOwnerRemembers: others look as deep, write no ledger, and are told.
func TestOnlyTheOwnerRemembers(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	commitFiles(t, r, Snapshot{}, filesOf(1, 4)...)
	node := addWriter(t, r, "node*")
	r = testOpen(t, b)
	r.k = node
	lines, res := checked(t, r, CheckOptions{ReadData: true})
	if !errors.Is(res.LedgerErr, seal.ErrNoKey) || res.Read == 0 || len(lines) > 0 || len(names(t, b, "ledger/")) > 0 {
		t.Errorf("%v, read %d, %q, %q", res.LedgerErr, res.Read, lines, names(t, b, "ledger/"))
	}
	if never := res.Coverage.Groups[5]; never.Packs != res.Packs {
		t.Errorf("%+v", res.Coverage)
	}
}

// TestNodeOf names whose files are damaged: the member of a cluster snapshot.
func TestNodeOf(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	f := filesOf(1, 2) // in a and b
	cluster := Snapshot{Name: "cluster", Host: "agent", Members: []Member{{Name: "a", State: "complete"}, {Name: "c", State: "absent"}}}
	commitFiles(t, r, cluster, f...)
	commitFiles(t, r, Snapshot{Name: "single"}, f...)
	for _, name := range names(t, b, "packs/") {
		if get(t, b, name)[10] == byte(pack.Data) {
			if err := b.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	lines, _ := checked(t, testOpen(t, b), CheckOptions{})
	slices.Sort(lines)
	want := []string{" a/f000 cluster a: ", " a/f000 single single: ", " b/f001 cluster agent: ", " b/f001 single single: "}
	if len(lines) != len(want) {
		t.Fatalf("%q", lines)
	}
	for i, line := range lines {
		if !strings.HasPrefix(line, want[i]) {
			t.Errorf("%q, want %q", line, want[i])
		}
	}
}

// TestHealedElsewhere: a damaged pack that nobody needs any more is told, and is
// no damage.
func TestHealedElsewhere(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	files := filesOf(1, 4)
	commitFiles(t, r, Snapshot{}, files...)
	locs, err := r.Index().Lookup(r.SecretKeys().Data.Sum([]byte(files[0].text)), nil)
	if err != nil {
		t.Fatal(err)
	}
	object := locs[0].Pack.Object()
	replace(t, b, object, flip(get(t, b, object), int(locs[0].Off)+10))
	if lines, _ := checked(t, r, CheckOptions{ReadData: true}); len(lines) != 2 {
		t.Errorf("%q", lines)
	}
	// The next snapshot does not lean on it.
	commitFiles(t, r, Snapshot{}, files...)
	lines, res := checked(t, testOpen(t, b), CheckOptions{})
	if len(lines) != 1 || !strings.HasPrefix(lines[0], "healed "+object) || res.Damages != 0 {
		t.Errorf("%q", lines)
	}
}

// TestPieces: whatever a trailer lists, a pack is read whole, in order and in
// pieces of bounded size, and frames that are in order lie each in one piece.
func TestPieces(t *testing.T) {
	const seed = 3
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		var frames []pack.Frame
		at, honest := int64(1300), rnd.IntN(2) == 0
		for range rnd.IntN(200) {
			f := pack.Frame{Off: uint32(at + 4), Stored: uint32(rnd.IntN(600 << 10))}
			if !honest && rnd.IntN(20) == 0 {
				f.Off = uint32(rnd.IntN(200 << 20))
			}
			if rnd.IntN(300) == 0 {
				f.Stored = seal.MaxFrame
			}
			at = int64(f.Off) + int64(f.Stored)
			frames = append(frames, f)
		}
		size := at + int64(rnd.IntN(9<<20))
		for _, f := range frames {
			size = max(size, int64(f.Off)+int64(f.Stored)+36)
		}
		next := 0
		for pos := int64(0); pos < size; {
			end, upTo := piece(frames, next, pos, size)
			if end <= pos || end > size || end-pos > pieceSize+seal.MaxFrame+seal.FrameOverhead {
				t.Fatalf("piece from %d to %d of %d", pos, end, size)
			}
			for ; next < upTo; next++ {
				if f := frames[next]; int64(f.Off) < pos || int64(f.Off)+int64(f.Stored) > end {
					t.Fatalf("frame %d at %d of %d bytes is not in the piece from %d to %d", next, f.Off, f.Stored, pos, end)
				}
			}
			pos = end
			for ; next < len(frames) && int64(frames[next].Off) < pos; next++ {
				if honest {
					t.Fatalf("frame %d at %d is cut by the piece that ends at %d", next, frames[next].Off, end)
				}
			}
		}
		if next != len(frames) {
			t.Fatalf("%d of %d frames were read", next, len(frames))
		}
	}
}
