package repo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/index"
)

// salvagedFrame is a frame of a damaged pack that proved itself. Its chunks need no
// proof: their IDs are computed from their bytes.
type salvagedFrame struct {
	n      uint32 // number of the frame
	off    int    // of the stored frame in the file
	stored int
	plain  []byte
	chunks [][]byte
}

// salvage finds what can still be read in the bytes of a damaged pack. One is
// good for one pack.
type salvage struct {
	name  pack.Name
	p     []byte
	key   *seal.FrameKey
	head  *pack.Header
	known *pack.Trailer // what the pack lists, from wherever that can be had; nil
	start int           // of the first frame's length
	max   int           // plain bytes of a usual frame

	// work bounds the bytes that are tried to be opened, for a pack can be made
	// so that every four bytes of it look like a frame's length.
	work int64
}

// errNoPackKey says that nothing that holds a pack's key can be read.
var errNoPackKey = fmt.Errorf("neither its header nor any listing of it can be read: %w", chunk.ErrCorrupt)

// newSalvage prepares to look into a pack's bytes. listed are trailers of the pack
// as segments have them. Its own, if it can be read, says more: any writer can
// list any pack.
func (r *Repo) newSalvage(name pack.Name, p []byte, listed ...*pack.Trailer) (*salvage, error) {
	s := &salvage{name: name, p: p, max: max(r.cfg.FrameSize, r.cfg.Splitter.Max) + 64<<10, work: 16*int64(len(p)) + 64<<20}
	t, err := pack.ReadTrailer(r.k, name, int64(len(p)), func(off, n int64) ([]byte, error) { return p[off : off+n], nil })
	if err != nil {
		t = looseTrailer(r.k, name, p)
	}
	if s.known = t; t == nil {
		s.known = r.likeliest(p, listed)
	}
	head, n, err := pack.ParseHeader(p)
	if s.known != nil {
		// A signed listing says more than a header that anybody could have changed.
		head, n, err = &s.known.Header, len(pack.AppendHeader(nil, &s.known.Header)), nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name.Object(), errNoPackKey)
	}
	if s.key, err = pack.FrameKey(r.k, name, head.Epoch, head.Wrapped); err != nil {
		return nil, fmt.Errorf("%s: %w", name.Object(), err)
	}
	s.head, s.start = head, n
	return s, nil
}

// likeliest returns the listing that fits a pack's header, or else one of the owner
// or of these keys, or else any.
func (r *Repo) likeliest(p []byte, listed []*pack.Trailer) (best *pack.Trailer) {
	head, _, err := pack.ParseHeader(p)
	rank := 0
	for _, t := range listed {
		of := 1
		switch w := seal.WriterID(t.Writer); {
		case err == nil && t.Writer == head.Writer && bytes.Equal(t.Wrapped, head.Wrapped):
			of = 3
		case w == r.k.Owner(), w == r.k.Self():
			of = 2
		}
		if of > rank {
			best, rank = t, of
		}
	}
	return best
}

// looseTrailer finds the trailer of a pack whose header is damaged, or which has
// bytes too many: by the length that stands before the closing hash.
func looseTrailer(k *seal.Keys, name pack.Name, p []byte) *pack.Trailer {
	if len(p) < pack.TailFixed {
		return nil
	}
	end := len(p) - pack.TailFixed
	n := int64(binary.LittleEndian.Uint32(p[end:]))
	if n > int64(end) {
		return nil
	}
	plain, err := k.OpenList(name.Object(), p[end-int(n):end])
	if err != nil {
		return nil
	}
	t, err := pack.ParseTrailer(plain)
	if err != nil || t.Name != name || t.Verify(k) != nil {
		return nil
	}
	return t
}

// frames returns what can be read, in order, calling do for each frame; the
// bytes are good until do returns. lost is how many frames are known to be
// there and could not be read; without a listing there may be more of them at
// the pack's end.
func (s *salvage) frames(do func(salvagedFrame) error) (read, lost int, err error) {
	if s.known != nil {
		for i := range s.known.Frames {
			f := &s.known.Frames[i]
			fr, ok := s.open(uint32(i), int(f.Off), int(f.Stored))
			if !ok {
				lost++
				continue
			}
			read++
			if err := do(fr); err != nil {
				return read, lost, err
			}
		}
		return read, lost, nil
	}
	return s.walk(do)
}

// frameTries is how many numbers are tried for a frame that is found behind a
// damaged place: as many frames less one may lie in that place.
const frameTries = 16

// walk goes from frame to frame by their lengths. Behind a frame that does not
// open it first believes the length, and then looks at every place.
func (s *salvage) walk(do func(salvagedFrame) error) (read, lost int, err error) {
	at, n := s.start, uint32(0)
	for s.work > 0 && at+4 < len(s.p) && !s.behind(at, n) {
		fr, ok := s.at(at, n, 1)
		if !ok {
			if fr, ok = s.resync(at, n); !ok {
				lost++ // at least
				break
			}
			lost += int(fr.n - n)
		}
		read++
		if err := do(fr); err != nil {
			return read, lost, err
		}
		at, n = fr.off+fr.stored, fr.n+1
	}
	return read, lost, nil
}

// behind reports whether the frames may well end at that place: what follows is
// as long as the trailer's length says.
func (s *salvage) behind(at int, n uint32) bool {
	end := len(s.p) - pack.TailFixed
	return n > 0 && end > at && int(binary.LittleEndian.Uint32(s.p[end:])) == end-at
}

// resync finds the next frame behind a damaged one at that place.
func (s *salvage) resync(at int, n uint32) (salvagedFrame, bool) {
	if l, ok := s.length(at); ok {
		if fr, ok := s.at(at+4+l, n+1, frameTries); ok {
			return fr, true
		}
	}
	for o := at + 1; o+4 < len(s.p) && s.work > 0; o++ {
		if fr, ok := s.at(o, n, frameTries); ok {
			return fr, true
		}
	}
	return salvagedFrame{}, false
}

// length reads the length of a stored frame, if it can be one.
func (s *salvage) length(at int) (int, bool) {
	if at+4 > len(s.p) {
		return 0, false
	}
	l := int64(binary.LittleEndian.Uint32(s.p[at:]))
	return int(l), l > seal.FrameOverhead && l <= int64(s.max+seal.FrameOverhead) && int64(at)+4+l <= int64(len(s.p))
}

// at tries to open what stands at a place as one of the frames from number n on.
func (s *salvage) at(at int, n uint32, tries int) (salvagedFrame, bool) {
	l, ok := s.length(at)
	for i := range tries {
		if !ok || s.work <= 0 {
			break
		}
		if fr, ok := s.open(n+uint32(i), at+4, l); ok {
			return fr, true
		}
	}
	return salvagedFrame{}, false
}

// open opens one frame.
func (s *salvage) open(n uint32, off, stored int) (salvagedFrame, bool) {
	if off < 0 || stored < 0 || off > len(s.p)-stored || stored > seal.MaxFrame+seal.FrameOverhead {
		return salvagedFrame{}, false
	}
	s.work -= int64(stored)
	plain, err := s.key.Open(nil, n, slices.Clone(s.p[off:off+stored]))
	if err != nil {
		return salvagedFrame{}, false
	}
	chunks, err := seal.ParseFrame(plain)
	if err != nil {
		return salvagedFrame{}, false
	}
	return salvagedFrame{n, off, stored, plain, chunks}, true
}

// listings reads what the segments of the repository list of these packs, and
// which segments cannot be read. Segments that vanish meanwhile are neither. Of
// each writer it returns one listing of a pack, or two if they differ.
func (r *Repo) listings(ctx context.Context, want func(pack.Name) bool) (found map[pack.Name][]*pack.Trailer, damaged map[string]error, err error) {
	found, damaged = map[pack.Name][]*pack.Trailer{}, map[string]error{}
	for info, err := range r.b.List(ctx, "index/") {
		if err != nil {
			return nil, nil, err
		}
		o, err := r.object(ctx, info.Name, seal.KindSegment)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		var seg *index.Segment
		if err == nil {
			seg, err = index.ParseSegment(o.Body)
		}
		if err != nil {
			damaged[info.Name] = err
			continue
		}
		for _, t := range seg.Packs {
			if want(t.Name) && t.Verify(r.k) == nil {
				found[t.Name] = addListing(found[t.Name], t)
			}
		}
	}
	return found, damaged, nil
}

func addListing(all []*pack.Trailer, t *pack.Trailer) []*pack.Trailer {
	of := 0
	for _, o := range all {
		if index.ListingOf(o) == index.ListingOf(t) {
			return all
		}
		if o.Writer == t.Writer {
			of++
		}
	}
	if of == 2 {
		return all
	}
	return append(all, t)
}
