package chunkstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// putHook is a backend that is asked before each Put, and whose answer may get
// lost behind it.
type putHook struct {
	*backend.Mem
	mu   sync.Mutex
	puts []string
	lose func(name string) error
	deny func(name string) error
}

func (b *putHook) Put(ctx context.Context, name string, p []byte) error {
	b.mu.Lock()
	b.puts = append(b.puts, name)
	b.mu.Unlock()
	if b.deny != nil {
		if err := b.deny(name); err != nil {
			return err
		}
	}
	err := b.Mem.Put(ctx, name, p)
	if err == nil && b.lose != nil {
		err = b.lose(name)
	}
	return err
}

func isParity(err error) func(string) error {
	return func(name string) error {
		if strings.HasPrefix(name, "parity/") {
			return err
		}
		return nil
	}
}

// TestParity: every pack gets parity, behind it, by which it is rebuilt.
func TestParity(t *testing.T) {
	for _, lost := range []error{nil, errors.New("the answer was lost")} {
		b, ix := &putHook{Mem: backend.NewMem(), lose: isParity(lost)}, newIndex()
		s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1), PackSize: 256 << 10, Parity: 2})
		var chunks [][]byte
		for i := range 20 {
			chunks = append(chunks, content(1, i, 60_000))
		}
		store(t, s, pack.Data, chunks...)
		store(t, s, pack.Meta, content(2, 1, 3000))
		packs := ix.all()
		if len(packs) < 3 || len(b.puts) != 2*len(packs) {
			t.Fatalf("%d packs, put: %v", len(packs), b.puts)
		}
		for i := 0; i < len(b.puts); i += 2 {
			name, ok := pack.ParseObject(b.puts[i])
			if !ok || b.puts[i+1] != parity.Object(name) {
				t.Errorf("put %s and then %s", b.puts[i], b.puts[i+1])
			}
		}
		for _, tr := range packs {
			p, o := object(t, b, tr.Name.Object()), object(t, b, parity.Object(tr.Name))
			if _, err := testKeys(t).OpenAs(parity.Object(tr.Name), seal.KindParity, o); err != nil {
				t.Error(err)
			}
			x, err := parity.Open(tr.Name, o)
			if err != nil {
				t.Fatal(err)
			}
			clear(p[len(p)/2:][:20])
			if _, rep, err := x.Rebuild(p); err != nil || rep.DataDamaged == 0 {
				t.Errorf("pack %s: %+v, %v", tr.Name, rep, err)
			}
		}
	}
}

func object(t *testing.T, b backend.Backend, name string) []byte {
	t.Helper()
	p, err := b.Get(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestParityFails: a session whose parity cannot be stored fails as loudly as
// one whose packs cannot.
func TestParityFails(t *testing.T) {
	b, ix := &putHook{Mem: backend.NewMem(), deny: isParity(syscall.ENOSPC)}, newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1), Parity: 2})
	w := s.NewWriter([16]byte{1}, usable(false))
	st := w.Stream(pack.Data)
	p := content(1, 1, 1000)
	if _, err := st.Put(s.Keys().Data.Sum(p), p); err != nil {
		t.Fatal(err)
	}
	st.Flush()
	err := w.Close()
	wantErr(t, "a full disk", err, syscall.ENOSPC)
	if len(ix.all()) != 0 {
		t.Error("a pack without its parity was published")
	}
}

// BenchmarkParity stores 256 MiB, half of which compresses, with and without
// parity. stored% is what lies in the repository, in per cent of the bytes.
func BenchmarkParity(b *testing.B) {
	const size, n = 64 << 10, 4096
	var ids [n][32]byte
	s := chunkstore.New(backend.NewMem(), testKeys(b), newIndex(), chunkstore.Options{})
	chunks := make([][]byte, n)
	for i := range chunks {
		chunks[i] = content(1, i, size)
		clear(chunks[i][size/2:])
		ids[i] = s.Keys().Data.Sum(chunks[i])
	}
	for _, percent := range []float64{0, 1, 2, 5, 10} {
		b.Run(fmt.Sprintf("%g%%", percent), func(b *testing.B) {
			b.SetBytes(size * n)
			stored := int64(0)
			for b.Loop() {
				mem := backend.NewMem()
				s := chunkstore.New(mem, testKeys(b), newIndex(), chunkstore.Options{Random: testRandom(1), Parity: percent})
				w := s.NewWriter([16]byte{1}, usable(false))
				st := w.Stream(pack.Data)
				for i, p := range chunks {
					if _, err := st.Put(ids[i], p); err != nil {
						b.Fatal(err)
					}
				}
				st.Flush()
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
				stored = 0
				for info := range mem.List(b.Context(), "") {
					stored += info.Size
				}
			}
			b.ReportMetric(100*float64(stored)/(size*n), "stored%")
		})
	}
}
