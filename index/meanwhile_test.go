package index

import (
	"context"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// A writer may become known while a merged segment is read. What an earlier Sync
// could not prove of the segments that it replaces is taken from it.
func TestWriterKnownMeanwhile(t *testing.T) {
	owner := ownerKeys(t)
	node := writerKeys(t, 1, owner)
	late := ownerKeys(t) // does not know the node
	b := newBackend()
	x, id := storedBy(t, b, node, 1)
	by, _ := openAs(t, b, owner, "")
	first, _, err := by.putSegment(t.Context(), &Segment{Packs: []*pack.Trailer{x}})
	if err != nil {
		t.Fatal(err)
	}
	db, _ := openAs(t, b, late, "")
	mustSync(t, db)
	merged, _, err := by.putSegment(t.Context(), &Segment{Packs: []*pack.Trailer{x}, Replaced: []SegmentName{first}})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(t.Context(), first.Object()); err != nil {
		t.Fatal(err)
	}
	b.hook = func(op, name string) error {
		if op == "get" && name == merged.Object() {
			meet(late, node)
		}
		return nil
	}
	mustSync(t, db)
	mustSync(t, db)
	knowsTruly(t, db, x, id, testID(1<<30))
}

// staleBackend still lists a segment that is gone.
type staleBackend struct {
	*memBackend
	gone  backend.Info
	until time.Time
	lists atomic.Int32
}

func (b *staleBackend) Lag() time.Duration { return 100 * time.Millisecond }

func (b *staleBackend) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		b.lists.Add(1)
		if strings.HasPrefix(b.gone.Name, prefix) && time.Now().Before(b.until) && !yield(b.gone, nil) {
			return
		}
		b.memBackend.List(ctx, prefix)(yield)
	}
}

// Where a listing may show for a while what is gone, EachPack waits, and does not
// ask without end.
func TestEachPackStaleListing(t *testing.T) {
	b := &staleBackend{memBackend: newBackend()}
	db, _ := openDB(t, b, "")
	publish(t, db, testPacks(0, 5)...)
	gone, _ := openDB(t, b, "")
	publish(t, gone, testPacks(5, 6)...)
	for _, name := range b.names(segmentPrefix) {
		if s, _ := ParseSegmentName(name); db.covered[s] == 0 {
			b.gone = backend.Info{Name: name, Size: int64(len(b.objects[name]))}
		}
	}
	b.until = time.Now().Add(50 * time.Millisecond)
	if err := b.Remove(t.Context(), b.gone.Name); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := db.EachPack(t.Context(), func(*pack.Trailer) error { n++; return nil }); err != nil || n != 5 {
		t.Errorf("%d packs, %v", n, err)
	}
	if lists := b.lists.Load(); lists > 20 {
		t.Errorf("listed %d times", lists)
	}
}
