package index

import (
	"maps"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// Small returns up to which stored size, in bytes, a segment is small, and merged
// with others.
func (db *DB) Small() int64 { return db.smallObject() }

// unlocked takes out of some segments those that cannot be removed yet: merging
// them now would leave both. They are merged once their locks have passed.
func (db *DB) unlocked(all map[SegmentName]backend.Info) map[SegmentName]int64 {
	free := map[SegmentName]int64{}
	for name, info := range all {
		if db.opt.Locked == nil || !db.opt.Locked(info) {
			free[name] = info.Size
		}
	}
	return free
}

func sizesOf(all map[SegmentName]backend.Info) map[SegmentName]int64 {
	sizes := make(map[SegmentName]int64, len(all))
	for name, info := range all {
		sizes[name] = info.Size
	}
	return sizes
}

// chooseUnlocked fixes the segments that are locked, and chooses the small ones
// whose locks have passed, if there are several: what they list is stored anew,
// and that is locked.
func (sv *survey) chooseUnlocked(free map[SegmentName]int64) {
	var small []*part
	for _, p := range sv.parts {
		if _, ok := free[p.name]; !ok {
			p.fixed, p.chosen = true, false
		} else if p.size <= sv.small && !p.fixed {
			small = append(small, p)
		}
	}
	if len(small) > 1 {
		for _, p := range small {
			p.chosen = true
		}
	}
}

// withoutLocked is what Merge looks at.
func (db *DB) withoutLocked(all map[SegmentName]backend.Info) map[SegmentName]int64 {
	small := db.unlocked(all)
	maps.DeleteFunc(small, func(_ SegmentName, size int64) bool { return size > db.smallObject() })
	return small
}
