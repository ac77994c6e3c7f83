package index

import (
	"fmt"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// TestListedTwice: a writer lists a pack of its own as it is, on which others
// lean, and also with other chunks in it. All else that describes the pack is
// the same. The pack decides, for who reads the listings in any order, from a
// cache too, and after they were merged.
func TestListedTwice(t *testing.T) {
	for _, order := range []string{"true first", "false first", "in one segment"} {
		for _, cached := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s cached=%v", order, cached), func(t *testing.T) {
				b, dir := newBackend(), ""
				if cached {
					dir = t.TempDir()
				}
				owner := ownerKeys(t)
				hostile := writerKeys(t, 2, owner)
				x, id := storedBy(t, b, hostile, 1)
				claimed := chunk.ID{7}
				other := *x
				other.Frames = []pack.Frame{x.Frames[0]}
				other.Frames[0].Chunks = []pack.Chunk{{ID: claimed, Len: x.Frames[0].Chunks[0].Len}}
				if err := other.Sign(hostile); err != nil {
					t.Fatal(err)
				}
				db, _ := openAs(t, b, owner, dir)
				step := func(n int) {
					mustSync(t, db)
					if cached { // in a generation of its own
						put(t, b, owner, testPacks(n, n+15)...)
						mustSync(t, db)
					}
				}
				switch order {
				case "true first":
					put(t, b, hostile, x)
					step(100)
					put(t, b, hostile, &other)
				case "false first":
					put(t, b, hostile, &other)
					step(100)
					put(t, b, hostile, x)
				default:
					put(t, b, hostile, &other, x)
				}
				step(200)
				knowsTruly(t, db, x, id, claimed)
				if err := db.EachPack(t.Context(), func(got *pack.Trailer) error {
					if got.Name == x.Name && got.Frames[0].Chunks[0].ID != id {
						t.Error("the false listing is passed on")
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				db.Close()
				db, _ = openAs(t, b, owner, dir)
				mustSync(t, db)
				knowsTruly(t, db, x, id, claimed)
				if _, err := db.Compact(t.Context()); err != nil {
					t.Fatal(err)
				}
				fresh, _ := openAs(t, b, owner, "")
				mustSync(t, fresh)
				knowsTruly(t, fresh, x, id, claimed)
			})
		}
	}
}
