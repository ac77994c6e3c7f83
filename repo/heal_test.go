package repo

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// parityRepo is a repository with a snapshot and chunks in several packs.
func parityRepo(t *testing.T, b backend.Backend, percent float64) (*Repo, []string) {
	t.Helper()
	in := testParams(t)
	in.Parity = percent
	r, err := Init(t.Context(), b, in, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	texts := chunksOf(1, 60)
	commit(t, r, Snapshot{}, texts...)
	return r, texts
}

// chunksOf returns n chunks of 4,000 bytes.
func chunksOf(seed byte, n int) []string {
	rnd := rand.NewChaCha8([32]byte{seed})
	texts := make([]string, n)
	for i := range texts {
		p := make([]byte, 4000)
		rnd.Read(p)
		texts[i] = string(p)
	}
	return texts
}

func packNames(t *testing.T, b backend.Backend) []pack.Name {
	t.Helper()
	var list []pack.Name
	for _, object := range names(t, b, "packs/") {
		name, ok := pack.ParseObject(object)
		if !ok {
			t.Fatalf("%s", object)
		}
		list = append(list, name)
	}
	// The names are random; the large ones come first.
	slices.SortFunc(list, func(x, y pack.Name) int {
		return cmp.Or(len(get(t, b, y.Object()))-len(get(t, b, x.Object())), bytes.Compare(x[:], y[:]))
	})
	return list
}

// damage changes n bytes in the middle of an object.
func damage(t *testing.T, b backend.Backend, name string, n int) {
	t.Helper()
	p := get(t, b, name)
	at := (len(p) - n) / 2
	for i := at; i < at+n; i++ {
		p[i] ^= 0x55
	}
	replace(t, b, name, p)
}

// wantTexts reads all chunks by a repository that is opened anew, with these
// packs gone.
func wantTexts(t *testing.T, b backend.Backend, gone []pack.Name, texts []string) {
	t.Helper()
	for _, name := range gone {
		if err := b.Remove(t.Context(), name.Object()); err != nil {
			t.Fatal(err)
		}
	}
	r := testOpen(t, b)
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, text := range texts {
		if p, err := r.Store().Data(t.Context(), r.SecretKeys().Data.Sum([]byte(text))); err != nil || string(p) != text {
			t.Errorf("chunk %d: %v", i, err)
		}
	}
	if _, err := r.Check(t.Context(), CheckOptions{ReadData: true}, func(d Damage) {
		if d.Err != nil && !strings.HasPrefix(d.Object, "parity/") {
			t.Errorf("%+v", d)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func TestHeal(t *testing.T) {
	b := backend.NewMem()
	r, texts := parityRepo(t, b, 5)
	packs := packNames(t, b)
	if len(packs) < 5 || len(names(t, b, "parity/")) != len(packs) {
		t.Fatalf("%d packs, %d with parity", len(packs), len(names(t, b, "parity/")))
	}
	for i, name := range packs {
		damage(t, b, name.Object(), 20*i+1)
		damage(t, b, parity.Object(name), 1)
	}
	before := map[string][]byte{}
	for _, object := range names(t, b, "") {
		before[object] = get(t, b, object)
	}
	results, err := r.Heal(t.Context(), packs)
	if err != nil {
		t.Fatal(err)
	}
	chunks := 0
	for i, res := range results {
		if res.Err != nil || res.Pack != packs[i] || res.Chunks == 0 || res.Stored != res.Chunks || res.Report.DataDamaged == 0 {
			t.Errorf("%+v", res)
		}
		chunks += res.Chunks
	}
	if chunks < len(texts) {
		t.Errorf("%d chunks were healed, want %d and pages", chunks, len(texts))
	}
	for object, p := range before {
		if !bytes.Equal(get(t, b, object), p) {
			t.Errorf("%s was changed", object)
		}
	}
	if left := names(t, b, "intents/"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// What is new has parity too, and another run has nothing to store.
	if n := len(packNames(t, b)); len(names(t, b, "parity/")) != n || n <= len(packs) {
		t.Errorf("%d packs, %d parity objects", n, len(names(t, b, "parity/")))
	}
	n := len(names(t, b, ""))
	results, err = testOpen(t, b).Heal(t.Context(), packs)
	if err != nil || results[0].Err != nil || results[0].Stored != 0 || len(names(t, b, "")) != n {
		t.Errorf("healed again: %+v, %v, %d objects instead of %d", results[0], err, len(names(t, b, "")), n)
	}
	wantTexts(t, b, packs, texts)
}

// TestHealNot: what cannot be healed says why, and changes nothing.
func TestHealNot(t *testing.T) {
	b := backend.NewMem()
	r, _ := parityRepo(t, b, 2)
	packs := packNames(t, b)
	damage(t, b, packs[0].Object(), 30_000)
	damage(t, b, packs[1].Object(), 1)
	damage(t, b, packs[2].Object(), 1)
	for _, err := range []error{
		b.Remove(t.Context(), parity.Object(packs[1])),
		b.Remove(t.Context(), packs[3].Object()),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	replace(t, b, parity.Object(packs[2]), []byte("cutbankR"))
	before := names(t, b, "")
	results, err := r.Heal(t.Context(), packs[:4])
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		text string
		err  error
	}{{"parity cannot rebuild it", chunk.ErrCorrupt}, {"has no parity", chunk.ErrMissing}, {"can be read", chunk.ErrCorrupt}, {"is gone", chunk.ErrMissing}} {
		if res := results[i]; !errors.Is(res.Err, want.err) || !contains(res.Err, want.text) || res.NoParity != (i == 1) || res.Stored != 0 {
			t.Errorf("%d: %+v, want %q", i, res, want.text)
		}
	}
	if after := names(t, b, ""); !slices.Equal(sorted(before), sorted(after)) {
		t.Errorf("objects were %v, are %v", before, after)
	}
	// One that can be healed beside those that cannot.
	damage(t, b, packs[4].Object(), 1)
	results, err = r.Heal(t.Context(), packs[:5])
	if err != nil || results[0].Err == nil || results[4].Err != nil || results[4].Stored == 0 {
		t.Errorf("%+v, %v", results, err)
	}
}

func sorted(list []string) []string { slices.Sort(list); return list }

// TestHealLeansOnNoDamage: two packs hold the same chunks, and both are
// damaged: neither is a reason not to store the other's.
func TestHealLeansOnNoDamage(t *testing.T) {
	b := backend.NewMem()
	r, texts := parityRepo(t, b, 10)
	first := packNames(t, b)
	none := func(pack.Name) bool { return false }
	s, err := r.begin(t.Context(), none)
	if err != nil {
		t.Fatal(err)
	}
	if n := store(t, r, s, texts...); n != len(texts) {
		t.Fatalf("%d chunks were stored again", n)
	}
	s.Abort(t.Context())
	all := packNames(t, b)
	for _, name := range all {
		damage(t, b, name.Object(), 50)
	}
	results, err := r.Heal(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	stored := 0
	for _, res := range results {
		if res.Err != nil {
			t.Error(res.Err)
		}
		stored += res.Stored
	}
	if stored < len(texts) || stored > len(texts)+5 || len(all) < 2*len(first)-2 {
		t.Errorf("%d of %d chunks were stored, packs %d, %d", stored, len(texts), len(first), len(all))
	}
	wantTexts(t, b, all, texts)
}

// badDisk fails reads of some sectors of one object.
type badDisk struct {
	backend.Backend
	name     string
	from, to int64
}

func (d *badDisk) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	p, err := d.Backend.Get(ctx, name, off, n)
	if err == nil && name == d.name && off < d.to && off+int64(len(p)) > d.from {
		return nil, fmt.Errorf("get %s: %w", name, syscall.EIO)
	}
	return p, err
}

// TestHealUnreadable: a sector that the disk does not give is damage like any
// other, in a pack and in its parity.
func TestHealUnreadable(t *testing.T) {
	b := &badDisk{Backend: backend.NewMem()}
	r, texts := parityRepo(t, b, 10)
	packs := packNames(t, b)
	i := slices.IndexFunc(packs, func(n pack.Name) bool { return len(get(t, b, n.Object())) > 60_000 })
	b.name, b.from, b.to = packs[i].Object(), 40960, 40960+4096
	results, err := r.Heal(t.Context(), packs[i:i+1])
	if err != nil || results[0].Err != nil || results[0].Stored == 0 {
		t.Fatalf("%+v, %v", results, err)
	}
	b.name = ""
	wantTexts(t, b, packs[i:i+1], texts)

	j := (i + 1) % len(packs)
	damage(t, b, packs[j].Object(), 1)
	b.name, b.from, b.to = parity.Object(packs[j]), 0, 4096
	r = testOpen(t, b)
	if results, err = r.Heal(t.Context(), packs[j:j+1]); err != nil || results[0].Err != nil {
		t.Fatalf("%+v, %v", results, err)
	}
}

func TestHealCancelled(t *testing.T) {
	b := backend.NewMem()
	r, _ := parityRepo(t, b, 10)
	packs := packNames(t, b)
	damage(t, b, packs[0].Object(), 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Heal(ctx, packs[:1]); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if left := names(t, b, "intents/"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAddParity(t *testing.T) {
	b := backend.NewMem()
	r, texts := parityRepo(t, b, 0)
	packs := packNames(t, b)
	if res, err := r.AddParity(t.Context(), ParityOptions{}); err != nil || res.Packs != 0 || len(names(t, b, "parity/")) > 0 {
		t.Fatalf("without parity: %+v, %v", res, err)
	}
	damage(t, b, packs[0].Object(), 1)
	dry, err := r.AddParity(t.Context(), ParityOptions{Percent: 5, DryRun: true})
	if err != nil || len(names(t, b, "parity/")) > 0 || dry.Packs != uint64(len(packs)) {
		t.Fatalf("dry run: %+v, %v", dry, err)
	}
	var p ParityProgress
	res, err := r.AddParity(t.Context(), ParityOptions{Percent: 5, Progress: &p})
	if err != nil || res.Packs != uint64(len(packs)-1) || !errors.Is(res.Damaged[packs[0]], chunk.ErrCorrupt) {
		t.Fatalf("%+v, %v", res, err)
	}
	bytes := 0
	for _, object := range names(t, b, "parity/") {
		bytes += len(get(t, b, object))
	}
	if res.Bytes != uint64(bytes) || p.Packs.Load() != uint64(len(packs)) || p.Bytes.Load() != p.BytesTotal.Load() {
		t.Errorf("%d bytes were put, %d said; %d of %d bytes", bytes, res.Bytes, p.Bytes.Load(), p.BytesTotal.Load())
	}
	damage(t, b, packs[0].Object(), 1) // the same bytes again: well
	if res, err = r.AddParity(t.Context(), ParityOptions{Percent: 5}); err != nil || res.Packs != 1 || res.Had != uint64(len(packs)-1) {
		t.Errorf("%+v, %v", res, err)
	}
	for i, name := range packs {
		damage(t, b, name.Object(), i+1)
	}
	if results, err := r.Heal(t.Context(), packs); err != nil || results[0].Err != nil {
		t.Fatalf("%+v, %v", results, err)
	}
	wantTexts(t, b, packs, texts)
}

func TestRenewParity(t *testing.T) {
	b := backend.NewMem()
	r, _ := parityRepo(t, b, 5)
	packs := packNames(t, b)
	good := get(t, b, parity.Object(packs[0]))
	damage(t, b, parity.Object(packs[0]), 1)
	replace(t, b, parity.Object(packs[1]), good)
	if res, err := r.AddParity(t.Context(), ParityOptions{}); err != nil || res.Packs != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	res, err := r.AddParity(t.Context(), ParityOptions{Renew: true})
	if err != nil || res.Packs != 2 || res.Renewed != 2 || res.Had != uint64(len(packs)-2) {
		t.Errorf("%+v, %v", res, err)
	}
	if !bytes.Equal(get(t, b, parity.Object(packs[0])), good) {
		t.Error("the parity made anew is other bytes")
	}
	if _, err := r.Check(t.Context(), CheckOptions{}, func(d Damage) { t.Errorf("%+v", d) }); err != nil {
		t.Error(err)
	}
}

func TestSweepParity(t *testing.T) {
	b := backend.NewMem()
	r, _ := parityRepo(t, b, 5)
	packs := packNames(t, b)
	if n, err := r.sweepParity(t.Context()); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if err := b.Remove(t.Context(), packs[2].Object()); err != nil {
		t.Fatal(err)
	}
	if n, err := r.sweepParity(t.Context()); n != 1 || err != nil || slices.Contains(names(t, b, "parity/"), parity.Object(packs[2])) {
		t.Errorf("%d, %v", n, err)
	}
}

// TestHealForeign: parity that anybody could have put does not bring in a pack
// that no writer signed.
func TestHealForeign(t *testing.T) {
	b := backend.NewMem()
	r, _ := parityRepo(t, b, 5)
	name := packNames(t, b)[0]
	ring, err := seal.NewRing(r.SecretKeys().Ring().Repo, random)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	builder, err := pack.NewBuilder(k, pack.Data, [16]byte{}, bytes.NewReader(append(bytes.Clone(name[:]), make([]byte, 4096)...)), nil)
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := builder.Finish(k, random)
	if err != nil {
		t.Fatal(err)
	}
	body, err := parity.Compute(name, p, 100)
	if err != nil {
		t.Fatal(err)
	}
	o, err := k.Seal(parity.Object(name), seal.KindParity, seal.Clear, body, random)
	if err != nil {
		t.Fatal(err)
	}
	replace(t, b, parity.Object(name), o)
	results, err := r.Heal(t.Context(), []pack.Name{name})
	if err != nil || results[0].Err == nil || results[0].Stored != 0 {
		t.Errorf("%+v, %v", results, err)
	}
}

func TestParseParity(t *testing.T) {
	for text, want := range map[string]float64{"": 0, "0": 0, "0%": 0, "2": 2, "2%": 2, " 2.5 % ": 2.5, "100%": 100, "5": 5} {
		if got, err := ParseParity(text); err != nil || got != want {
			t.Errorf("%q: %g, %v", text, got, err)
		}
		if got, err := ParseParity(formatParity(want)); err != nil || got != want {
			t.Errorf("%g, written and read: %g, %v", want, got, err)
		}
	}
	for _, text := range []string{"0.5", "101%", "-1", "x", "%", "NaN", "2%%", "1e9"} {
		if got, err := ParseParity(text); err == nil {
			t.Errorf("%q: %g", text, got)
		}
	}
}

// TestCheckHeals: a check heals packs and parity, says so, and finds nothing
// wrong the next time but what it knows.
func TestCheckHeals(t *testing.T) {
	b := backend.NewMem()
	r, texts := parityRepo(t, b, 5)
	packs := packNames(t, b)
	damage(t, b, packs[0].Object(), 100)
	damage(t, b, packs[1].Object(), 1)
	damage(t, b, parity.Object(packs[1]), 1)
	damage(t, b, parity.Object(packs[2]), 1)
	p := get(t, b, packs[3].Object())
	replace(t, b, packs[3].Object(), p[:len(p)-200])
	check := func(r *Repo, opt CheckOptions) (healed, not []string, res CheckResult) {
		t.Helper()
		res, err := r.Check(t.Context(), opt, func(d Damage) {
			if d.Healed {
				healed = append(healed, d.Object)
			} else {
				not = append(not, d.Object)
			}
			t.Logf("healed %v: %s %v", d.Healed, d.Object, d.Err)
		})
		if err != nil {
			t.Fatal(err)
		}
		return sorted(healed), sorted(not), res
	}
	before := names(t, b, "")
	if healed, not, _ := check(testOpen(t, b), CheckOptions{}); len(healed) > 0 || !slices.Equal(not, []string{packs[3].Object()}) {
		t.Errorf("without reading: healed %v, not %v", healed, not)
	}
	if now := names(t, b, ""); len(now) > len(before)+1 { // the ledger
		t.Errorf("%v are new", now)
	}
	want := sorted([]string{packs[0].Object(), packs[1].Object(), packs[3].Object(), parity.Object(packs[1]), parity.Object(packs[2])})
	healed, not, res := check(r, CheckOptions{ReadData: true, Heal: true})
	if !slices.Equal(healed, want) || len(not) > 0 || res.Damages != 0 {
		t.Errorf("healed %v, want %v; not %v", healed, want, not)
	}
	for _, opt := range []CheckOptions{{}, {ReadData: true, Heal: true}, {Heal: true}} {
		healed, not, res = check(testOpen(t, b), opt)
		if len(healed) < 3 || len(not) > 0 || res.Damages != 0 {
			t.Errorf("again, %+v: healed %v, not %v", opt, healed, not)
		}
	}
	wantTexts(t, b, []pack.Name{packs[0], packs[1], packs[3]}, texts)
}

// TestCheckHealsNot: what parity does not cover stays damage.
func TestCheckHealsNot(t *testing.T) {
	b := backend.NewMem()
	r, _ := parityRepo(t, b, 1)
	packs := packNames(t, b)
	damage(t, b, packs[0].Object(), 30_000)
	damage(t, b, packs[1].Object(), 1)
	if err := b.Remove(t.Context(), parity.Object(packs[1])); err != nil {
		t.Fatal(err)
	}
	found := map[string]error{}
	res, err := r.Check(t.Context(), CheckOptions{ReadData: true, Heal: true}, func(d Damage) {
		if d.Healed {
			t.Errorf("%s: %v", d.Object, d.Err)
		}
		found[d.Object] = d.Err
	})
	if err != nil || res.Damages != uint64(len(found)) || len(found) != 2 || !contains(found[packs[0].Object()], "parity cannot rebuild it") {
		t.Errorf("%+v, %v, %v", res, err, found)
	}
}
