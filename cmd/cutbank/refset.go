package main

import (
	"encoding/binary"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// refSet remembers for chunks and pages which group of snapshots refers to
// them: one group, or several. It keeps 63 bits of an ID: that among ten million
// chunks two are taken for one has a probability below one in a hundred
// thousand. It takes 15 to 30 bytes for each, and half as much again while it
// grows.
type refSet struct {
	keys   []uint64 // 0: a free slot
	groups []uint16
	n      int
}

// sharedGroup is the group of what several groups refer to.
const sharedGroup = ^uint16(0)

// maxGroups is how many groups there can be.
const maxGroups = int(sharedGroup)

func newRefSet() *refSet {
	const slots = 1 << 10
	return &refSet{keys: make([]uint64, slots), groups: make([]uint16, slots)}
}

// refChange is what a reference changed.
type refChange uint8

const (
	refKnown  refChange = iota // nothing: the group, or all, had it already
	refNew                     // the group is the first
	refShared                  // another group had it for itself
)

// refer notes that a group refers to a chunk. With refShared it returns whose
// it was.
func (s *refSet) refer(id chunk.ID, group uint16) (refChange, uint16) {
	if s.n*10 > len(s.keys)*7 {
		s.grow()
	}
	// IDs are hashes under a secret key: their bits need no mixing.
	key := binary.LittleEndian.Uint64(id[:]) | 1<<63
	i := s.slot(key)
	switch {
	case s.keys[i] == 0:
		s.keys[i], s.groups[i] = key, group
		s.n++
		return refNew, group
	case s.groups[i] == group || s.groups[i] == sharedGroup:
		return refKnown, s.groups[i]
	}
	was := s.groups[i]
	s.groups[i] = sharedGroup
	return refShared, was
}

// slot returns where a key is, or would be put.
func (s *refSet) slot(key uint64) int {
	mask := uint64(len(s.keys) - 1)
	i := key & mask
	for s.keys[i] != 0 && s.keys[i] != key {
		i = (i + 1) & mask
	}
	return int(i)
}

func (s *refSet) grow() {
	old := *s
	s.keys, s.groups = make([]uint64, 2*len(old.keys)), make([]uint16, 2*len(old.keys))
	for i, key := range old.keys {
		if key != 0 {
			j := s.slot(key)
			s.keys[j], s.groups[j] = key, old.groups[i]
		}
	}
}
