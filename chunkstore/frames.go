package chunkstore

import (
	"errors"
	"maps"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// lean notes that a chunk was found in a pack.
func (w *Writer) lean(name pack.Name) {
	w.leanMu.Lock()
	w.leaned[name] = struct{}{}
	w.leanMu.Unlock()
}

// Leaned returns in which packs all chunks lie that this session was asked for
// or was given: usable ones that it found them in, and its own. Those of its own
// are all there only after Close.
func (w *Writer) Leaned() []pack.Name {
	w.leanMu.Lock()
	names := slices.Collect(maps.Keys(w.leaned))
	w.leanMu.Unlock()
	w.own.Range(func(name, _ any) bool {
		names = append(names, name.(pack.Name))
		return true
	})
	return names
}

// LeanOn tells whether all these packs, in which an earlier session of this
// process found chunks, are usable in this one too; if so, it leans on them.
// What is known to lie in them need not be asked for chunk by chunk.
func (w *Writer) LeanOn(packs []pack.Name) bool {
	for _, name := range packs {
		if !w.usable(name) {
			return false
		}
	}
	for _, name := range packs {
		w.lean(name)
	}
	return true
}

// errFrame says that a frame cannot be put as it is.
var errFrame = errors.New("the frame cannot be taken as it is")

// PutFrame stores a whole frame of another repository that has the same secrets,
// without compressing it again, unless all its chunks are known. packed is what
// seal.FrameKey.OpenPacked returned for f, a frame of a pack of that kind; whether
// its bytes are those chunks is the caller's to know. It reports how many of the chunks were
// not known. An error ends the session, or says that the frame must be put chunk
// by chunk: Err tells which. PutFrame keeps no reference to packed.
func (w *Writer) PutFrame(kind pack.Kind, packed []byte, f *pack.Frame) (fresh int, err error) {
	if err := w.Err(); err != nil {
		return 0, err
	}
	if f.Plain > seal.MaxFrame || len(f.Extra) > 0 {
		return 0, errFrame
	}
	for i := range f.Chunks {
		if f.Chunks[i].Kind != pack.Plain {
			return 0, errFrame
		}
	}
	var claimed []chunk.ID
	for i := range f.Chunks {
		c := &f.Chunks[i]
		ok, err := w.claim(c.ID)
		if err != nil {
			w.fail(err) // chunks are pending that nobody will store
			return 0, err
		}
		if ok {
			claimed = append(claimed, c.ID)
			w.stats.newBytes.Add(uint64(c.Len))
		} else {
			w.stats.knownBytes.Add(uint64(c.Len))
		}
	}
	w.stats.newChunks.Add(uint64(len(claimed)))
	w.stats.knownChunks.Add(uint64(len(f.Chunks) - len(claimed)))
	if len(claimed) == 0 {
		return 0, nil
	}
	// The frame's chunks are listed in the new pack for as long as it lives: they
	// must not hold the whole old trailer.
	if err := w.addFrame(kind, packed, int(f.Plain), slices.Clone(f.Chunks)); err != nil {
		w.fail(err)
		return 0, err
	}
	return len(claimed), nil
}
