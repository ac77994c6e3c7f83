package seal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// hostile seals an object as someone with all keys could, but with any header
// and any body.
func hostile(k *Keys, name string, o Object, body []byte) []byte {
	key := make([]byte, 32)
	switch o.Sealing {
	case ForList:
		key = k.ListKey(name)
	case ForEpoch:
		if o.Wrapped == nil {
			o.Epoch, o.Wrapped, _ = k.Wrap(name, key)
		}
	}
	if o.Sealing != Clear && body != nil {
		nonce := make([]byte, nonceSize)
		body = newGCM(key).Seal(nonce, nonce, body, k.bound(name))
	}
	p := appendObject(nil, &o, body)
	sig, _ := k.Sign(k.signedMessage(name, p))
	return finishObject(p, sig)
}

func hostileKeys(tb testing.TB) *Keys {
	r, err := NewRing("00", rand.NewChaCha8([32]byte{1}))
	if err != nil {
		tb.Fatal(err)
	}
	k, err := r.Open()
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// TestHostileObjects opens objects that are signed by a known writer and make no
// sense.
func TestHostileObjects(t *testing.T) {
	k := hostileKeys(t)
	o := Object{Kind: KindMark, Version: Version, Writer: k.self}
	// A zstd frame that claims one byte more than an object may have, and has
	// one block of 100 zeros.
	bomb := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0}, binary.LittleEndian.AppendUint32(nil, maxBody+1)...)
	bomb = append(bomb, 100<<3&0xff|3, 100>>5, 0, 0)
	tests := []struct {
		name string
		do   func(o *Object) []byte
		want error
	}{
		{"no nonce", func(o *Object) []byte { o.Sealing = ForList; return nil }, chunk.ErrCorrupt},
		{"wrapped key of one byte", func(o *Object) []byte { o.Sealing, o.Epoch, o.Wrapped = ForEpoch, 1, []byte{1}; return []byte("x") }, chunk.ErrCorrupt},
		{"no wrapped key", func(o *Object) []byte { o.Sealing, o.Epoch, o.Wrapped = ForEpoch, 1, []byte{}; return []byte("x") }, chunk.ErrCorrupt},
		{"unknown epoch", func(o *Object) []byte {
			o.Sealing, o.Epoch, o.Wrapped = ForEpoch, 9, make([]byte, 1168)
			return []byte("x")
		}, ErrNoKey},
		{"not compressed", func(o *Object) []byte { o.Sealing, o.Compressed = ForList, true; return []byte("not zstd") }, chunk.ErrCorrupt},
		{"a bomb", func(o *Object) []byte {
			o.Sealing, o.Compressed = ForList, true
			return bomb
		}, chunk.ErrCorrupt},
	}
	for _, tt := range tests {
		o := o
		body := tt.do(&o)
		p := hostile(k, "marks/1", o, body)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := k.OpenAs("marks/1", KindMark, p)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
			t.Errorf("%s: %d bytes were allocated", tt.name, n)
		}
	}
}

// FuzzOpen opens what someone with all keys could have sealed.
func FuzzOpen(f *testing.F) {
	k := hostileKeys(f)
	f.Add(byte(ForList), true, uint32(0), []byte(nil), compress(nil, []byte("a body, a body, a body")))
	f.Add(byte(ForEpoch), false, uint32(1), make([]byte, 1168), []byte("body"))
	f.Add(byte(Clear), true, uint32(7), []byte("key"), []byte("body"))
	f.Fuzz(func(t *testing.T, s byte, compressed bool, epoch uint32, wrapped, body []byte) {
		if len(wrapped) > 1<<16-1 {
			return
		}
		o := Object{Kind: KindMark, Version: Version, Writer: k.self, Sealing: Sealing(s), Compressed: compressed, Epoch: epoch, Wrapped: wrapped}
		p := hostile(k, "marks/1", o, body)
		kept := bytes.Clone(p)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := k.OpenAs("marks/1", KindMark, p)
		runtime.ReadMemStats(&after)
		limit := uint64(8<<20 + 8*len(p))
		if err == nil {
			limit += 2 * uint64(len(got.Body))
		} else if compressed {
			limit += maxBody // a size that is claimed but not there
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > limit {
			t.Errorf("%d bytes made it allocate %d, want at most %d", len(p), n, limit)
		}
		if !bytes.Equal(p, kept) {
			t.Error("opening changed the stored bytes")
		}
	})
}
