package index

import (
	"fmt"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// A writer claims again and again to have a chunk.
func TestCrowdedChunk(t *testing.T) {
	owner := ownerKeys(t)
	node, hostile := writerKeys(t, 1, owner), writerKeys(t, 2, owner)
	meet(node, hostile)
	type which struct {
		id   chunk.ID
		from int
	}
	made := map[which][]*pack.Trailer{}
	crowd := func(t *testing.T, id chunk.ID, from int) (all []*pack.Trailer) {
		if all := made[which{id, from}]; all != nil {
			return all
		}
		defer func() { made[which{id, from}] = all }()
		for n := range 100 {
			x := &pack.Trailer{Name: testName(1_000_000 + from + n), Size: 1 << 20, Header: pack.Header{Kind: pack.Data, Epoch: 1, Wrapped: make([]byte, 100)}}
			all = append(all, lie(t, hostile, x, id))
		}
		x := *all[0]
		x.Name = testName(2_000_000 + from)
		return append(all, lie(t, hostile, &x, make([]chunk.ID, 2000)...), lie(t, hostile, &x, func() (ids []chunk.ID) {
			for range 1000 {
				ids = append(ids, id)
			}
			return ids
		}()...))
	}
	for _, honest := range []*seal.Keys{owner, node} {
		for _, reader := range []*seal.Keys{owner, node} {
			for _, when := range []string{"before", "after", "both"} {
				for _, cached := range []bool{false, true} {
					t.Run(fmt.Sprintf("owner=%v reader=%v %s cached=%v", honest == owner, reader == owner, when, cached), func(t *testing.T) {
						b, dir := newBackend(), ""
						if cached {
							dir = t.TempDir()
						}
						x, id := storedBy(t, b, honest, 1)
						db, _ := openAs(t, b, reader, dir)
						step := func(n int) {
							mustSync(t, db)
							if cached { // each step in a generation of its own
								put(t, b, owner, testPacks(n, n+15)...)
								mustSync(t, db)
							}
						}
						if when != "after" {
							put(t, b, hostile, crowd(t, id, 0)...)
							step(100)
						}
						put(t, b, honest, x)
						step(200)
						if when != "before" {
							put(t, b, hostile, crowd(t, id, 10_000)...)
							step(300)
						}
						for range 2 {
							locs, err := db.Lookup(id, nil)
							if err != nil || len(locs) > 4*maxLocations {
								t.Fatalf("%d locations, %v", len(locs), err)
							}
							at := -1
							for i, l := range locs {
								if l.Pack == x.Name {
									at = i
									break
								}
							}
							if ours := honest == owner || honest == reader; at < 0 || ours && at > 0 || at > 1 {
								t.Fatalf("the honest location is number %d of %d", at, len(locs))
							}
							db.Close()
							db, _ = openAs(t, b, reader, dir)
							mustSync(t, db)
						}
					})
				}
			}
		}
	}
}

// Claims that come in bit by bit, each time into the next generation, add up
// to no more than claims that come at once.
func TestCrowdedOverGenerations(t *testing.T) {
	owner := ownerKeys(t)
	node, hostile := writerKeys(t, 1, owner), writerKeys(t, 2, owner)
	b, dir := newBackend(), t.TempDir()
	db, _ := openAs(t, b, owner, dir)
	x, id := storedBy(t, b, node, 1)
	const rounds = 6
	for i := range rounds {
		var claims []*pack.Trailer
		for n := range maxLocations {
			c := &pack.Trailer{Name: testName(1_000_000 + i*maxLocations + n), Size: 1 << 20, Header: pack.Header{Kind: pack.Data, Epoch: 1, Wrapped: make([]byte, 100)}}
			claims = append(claims, lie(t, hostile, c, id))
		}
		put(t, b, hostile, claims...)
		if i == rounds-1 {
			put(t, b, node, x) // at last
		}
		mustSync(t, db)
		put(t, b, owner, testPacks(100+20*i, 115+20*i)...)
		mustSync(t, db)
	}
	of := map[[16]byte]int{}
	v, err := db.gen.lookup(&id, nil, db.dead)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range v {
		of[db.writerOf(l.Pack)]++
	}
	if of[[16]byte(hostile.Self())] != maxLocations || of[[16]byte(node.Self())] != 1 {
		t.Errorf("the generation has %d claims and %d true locations, want %d and 1", of[[16]byte(hostile.Self())], of[[16]byte(node.Self())], maxLocations)
	}
}
