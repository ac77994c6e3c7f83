package chunkstore

import (
	"bytes"
	"context"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/diskcache"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// Prefetch hints that these data chunks will be wanted soon, in this order. It
// never waits; what fails will fail again for who really asks. Across a network
// their frames are fetched, neighbours with one request and as many as Ahead tells;
// otherwise they are decoded in the background as far as cores are free.
func (s *Store) Prefetch(ids []chunk.ID) {
	if s.fetch != nil {
		s.announce(ids)
		return
	}
	var room [4]pack.Location
	var last frameID
	for _, id := range ids {
		locs, err := s.ix.Lookup(id, room[:0])
		if err != nil || len(locs) == 0 {
			continue
		}
		fid := frameID{locs[0].Pack, locs[0].Frame}
		if fid == last || s.cache.has(fid) {
			continue
		}
		last = fid
		select {
		case s.prefetch <- struct{}{}:
		default:
			return
		}
		go func(loc pack.Location) {
			defer func() { <-s.prefetch }()
			ctx := context.Background()
			_, _ = s.cache.get(ctx, fid, func() (*frame, error) { return s.decode(ctx, loc) })
		}(locs[0])
	}
}

// Ahead returns how many bytes of chunks are worth a Prefetch in front of who reads
// them in order; 0 where a few are enough, since no request takes long. It is a
// quarter of what is held, for neighbours come with what was asked for, and what is
// pushed out before it is read is fetched twice.
func (s *Store) Ahead() int64 {
	if s.fetch == nil {
		return 0
	}
	return s.fetch.limit / 4
}

func (s *Store) announce(ids []chunk.ID) {
	var room [4]pack.Location
	var last frameID
	var places []place
	for _, id := range ids {
		locs, err := s.ix.Lookup(id, room[:0])
		if err != nil || len(locs) == 0 {
			continue
		}
		loc := locs[0]
		fid := frameID{loc.Pack, loc.Frame}
		if fid == last || s.cache.has(fid) || s.opt.Disk != nil && s.opt.Disk.Has(diskKey(loc), int64(loc.Stored)) {
			continue
		}
		if loc.Stored > seal.MaxFrame+seal.FrameOverhead {
			continue
		}
		last = fid
		places = append(places, place{pack: loc.Pack, off: int64(loc.Off), n: int64(loc.Stored)})
	}
	s.fetch.announce(places)
}

func diskKey(loc pack.Location) diskcache.Key {
	return diskcache.Key{Pack: loc.Pack, Off: loc.Off}
}

// openFar opens a frame of a pack across a network: one that is on this machine's
// disk, or was fetched ahead, or else is fetched now.
func (s *Store) openFar(ctx context.Context, key *seal.FrameKey, info PackInfo, loc pack.Location) ([]byte, error) {
	at := place{pack: loc.Pack, kind: info.Kind, size: info.Size, off: int64(loc.Off), n: int64(loc.Stored)}
	disk := s.opt.Disk
	if disk != nil {
		if stored := disk.Get(diskKey(loc), at.n); stored != nil {
			plain, err := key.Open(make([]byte, 0, loc.Plain), loc.Frame, stored)
			if err == nil {
				return plain, nil
			}
			disk.Drop(diskKey(loc)) // it has rotted there, not in the repository
		}
	}
	stored, ok := s.fetch.held(ctx, at)
	if !ok {
		var err error
		if stored, err = s.fetch.fetch(ctx, at); err != nil {
			return nil, err
		}
	}
	plain, err := s.openKept(key, info, loc, stored)
	if err == nil {
		return plain, nil
	}
	// It may have been damaged on its way, and with it all that came along: none of
	// it is kept for others.
	s.fetch.distrust(at)
	if stored, err = s.b.Get(ctx, loc.Pack.Object(), at.off, at.n); err != nil {
		return nil, err
	}
	return s.openKept(key, info, loc, stored)
}

// openKept opens a stored frame, and keeps it on this machine's disk if it is whole.
func (s *Store) openKept(key *seal.FrameKey, info PackInfo, loc pack.Location, stored []byte) ([]byte, error) {
	keep := s.opt.Disk != nil && (info.Kind == pack.Meta || !s.opt.DiskPages)
	var sealed []byte
	if keep {
		sealed = bytes.Clone(stored) // for Open overwrites it
	}
	plain, err := key.Open(make([]byte, 0, loc.Plain), loc.Frame, stored)
	if err == nil && keep {
		s.opt.Disk.Put(diskKey(loc), sealed)
	}
	return plain, err
}

// Close ends what is being fetched ahead, and waits until what was read is kept on
// the disk. The Store is not to be used any more.
func (s *Store) Close() {
	if s.fetch != nil {
		s.fetch.end()
	}
	if s.opt.Disk != nil {
		s.opt.Disk.Close()
	}
}
