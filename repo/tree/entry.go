package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// ErrVersion says that a page was written by a newer program.
var ErrVersion = errors.New("unknown format version")

const (
	maxInlineExtents = 4
	maxInlineXattrs  = 256
	flagChanged      = 1
	flagScope        = 2
	flagLostNames    = 4
	flagLostXattrs   = 8
	knownFlags       = flagChanged | flagScope | flagLostNames | flagLostXattrs
)

// Entry is a name of a stored directory and all that is stored for it.
type Entry struct {
	Attr // Dev, Ino and Ctime are not stored

	Link      string   // hard link: path of the first name, from the scope's root; empty for that one
	Scope     bool     // hard links below are relative to here
	Xattrs    []Xattr  // unless in XattrPage
	XattrPage chunk.ID // page with the extended attributes
	Extents   []Extent // a short recipe
	Recipe    chunk.ID // root of a longer one
	Holes     int64    // bytes of a file that are holes
	Root      chunk.ID // of a directory's pages; zero if it is empty
	Children  uint64   // of a directory
	Below     Totals   // what is below a directory, without itself

	// What a repair could not bring back, besides lost extents.
	LostNames  bool // names of a directory
	LostXattrs bool // extended attributes

	Flags uint64 // unknown bits are kept
	Extra []byte // fields of newer versions
}

// Totals returns what is below and including the entry.
func (e *Entry) Totals() Totals {
	t := e.Below
	t.Nodes++
	switch e.Kind {
	case Dir:
		t.Dirs++
	case File:
		t.Files++
		t.Bytes += uint64(e.Size)
	}
	return t
}

// roundAllocated is what that much data usually takes on disk. What the source
// took there says more of its file system than of the file, and would make equal
// trees unequal.
func roundAllocated(size int64) int64 { return (size + 4095) &^ 4095 }

// AppendEntry appends e's stored form.
func AppendEntry(p []byte, e *Entry) []byte {
	p = appendString(p, 1, e.Name)
	p = appendVarint(p, 2, uint64(e.Kind))
	p = appendVarint(p, 3, uint64(e.Mode))
	p = appendVarint(p, 4, uint64(e.UID))
	p = appendVarint(p, 5, uint64(e.GID))
	p = appendVarint(p, 6, protowire.EncodeZigZag(e.Mtime.Sec))
	p = appendVarint(p, 7, uint64(e.Mtime.Nsec))
	if e.Kind == File {
		p = appendVarint(p, 8, uint64(e.Size))
		p = appendVarint(p, 9, uint64(e.Holes))
	}
	p = appendString(p, 10, e.Target)
	p = appendVarint(p, 11, e.Rdev)
	if e.Nlink > 1 && e.Kind != Dir {
		p = appendVarint(p, 12, uint64(e.Nlink))
	}
	p = appendString(p, 13, e.Link)
	flags := e.Flags &^ knownFlags
	if e.Changed {
		flags |= flagChanged
	}
	if e.Scope {
		flags |= flagScope
	}
	if e.LostNames {
		flags |= flagLostNames
	}
	if e.LostXattrs {
		flags |= flagLostXattrs
	}
	p = appendVarint(p, 14, flags)
	for _, x := range e.Xattrs {
		p = protowire.AppendTag(p, 15, protowire.BytesType)
		p = protowire.AppendBytes(p, appendXattr(nil, x))
	}
	p = appendID(p, 16, e.XattrPage)
	for _, x := range e.Extents {
		p = protowire.AppendTag(p, 17, protowire.BytesType)
		p = protowire.AppendBytes(p, appendExtent(nil, x))
	}
	p = appendID(p, 18, e.Recipe)
	p = appendID(p, 20, e.Root)
	p = appendVarint(p, 21, e.Children)
	p = appendVarint(p, 22, e.Below.Nodes)
	p = appendVarint(p, 23, e.Below.Files)
	p = appendVarint(p, 24, e.Below.Dirs)
	p = appendVarint(p, 25, e.Below.Bytes)
	return append(p, e.Extra...)
}

func parseEntry(p []byte) (Entry, error) {
	var e Entry
	var deep error
	err := fields(p, func(f *field) bool {
		switch f.num {
		case 1:
			e.Name = string(f.bytes)
		case 2:
			e.Kind = Kind(f.v)
			return f.v >= uint64(Dir) && f.v <= uint64(BlockDevice)
		case 3:
			e.Mode = uint32(f.v)
			return f.v <= 07777
		case 4:
			e.UID = uint32(f.v)
			return f.v <= math.MaxUint32
		case 5:
			e.GID = uint32(f.v)
			return f.v <= math.MaxUint32
		case 6:
			e.Mtime.Sec = protowire.DecodeZigZag(f.v)
		case 7:
			e.Mtime.Nsec = uint32(f.v)
			return f.v < 1e9
		case 8:
			e.Size = int64(f.v)
			return f.v < 1<<62
		case 9:
			e.Holes = int64(f.v)
			return f.v <= maxCount
		case 10:
			e.Target = string(f.bytes)
		case 11:
			e.Rdev = f.v
		case 12:
			e.Nlink = uint32(f.v)
			return f.v <= math.MaxUint32
		case 13:
			e.Link = string(f.bytes)
		case 14:
			e.Changed, e.Scope = f.v&flagChanged != 0, f.v&flagScope != 0
			e.LostNames, e.LostXattrs = f.v&flagLostNames != 0, f.v&flagLostXattrs != 0
			e.Flags = f.v &^ knownFlags
		case 15:
			var x Xattr
			if x, deep = parseXattr(f.bytes); deep != nil {
				return false
			}
			e.Xattrs = append(e.Xattrs, x)
		case 16:
			return f.id(&e.XattrPage)
		case 17:
			x, rest, err := parseExtent(f.bytes)
			if deep = err; err != nil || len(rest) > 0 || len(e.Extents) == maxInlineExtents {
				return false
			}
			e.Extents = append(e.Extents, x)
		case 18:
			return f.id(&e.Recipe)
		default:
			return e.parseBelow(f)
		}
		return true
	})
	if deep != nil {
		return e, deep
	}
	if err != nil {
		return e, err
	}
	if e.Kind == File {
		e.Allocated = roundAllocated(e.Size - e.Holes)
	} else {
		e.Size, e.Holes = 0, 0 // check sets the size of a symlink
	}
	if e.Nlink == 0 || e.Kind == Dir {
		e.Nlink = 1
	}
	return e, e.check()
}

// parseBelow reads the fields of directories, and keeps unknown ones.
func (e *Entry) parseBelow(f *field) bool {
	switch f.num {
	case 20:
		return f.id(&e.Root)
	case 21:
		e.Children = f.v
	case 22:
		e.Below.Nodes = f.v
	case 23:
		e.Below.Files = f.v
	case 24:
		e.Below.Dirs = f.v
	case 25:
		e.Below.Bytes = f.v
	default:
		e.Extra = append(e.Extra, f.raw...)
		return true
	}
	return f.v < 1<<62
}

// ValidName reports whether a directory may hold that name.
func ValidName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 4096 && strings.IndexByte(name, '/') < 0 && strings.IndexByte(name, 0) < 0
}

// check refuses what would lead a reader astray.
func (e *Entry) check() error {
	if !ValidName(e.Name) {
		return fmt.Errorf("directory entry with the name %q: %w", e.Name, chunk.ErrCorrupt)
	}
	ok := e.Kind >= Dir && len(e.Target) <= 1<<16 && strings.IndexByte(e.Target, 0) < 0
	switch e.Kind {
	case Dir:
		ok = ok && e.Root.IsZero() == (e.Children == 0) && e.Below.Nodes >= e.Children && e.Link == ""
	case File:
		ok = ok && e.Holes >= 0 && e.Holes <= e.Size
		if e.Recipe.IsZero() {
			ok = ok && placeExtents(e.Extents) == e.Size
		} else {
			ok = ok && len(e.Extents) == 0
		}
	case Symlink:
		e.Size = int64(len(e.Target))
	}
	if e.Kind != Dir && (e.Children != 0 || !e.Root.IsZero() || e.Below != Totals{}) || e.Kind != File && (len(e.Extents) > 0 || !e.Recipe.IsZero()) {
		ok = false
	}
	if !ok {
		return fmt.Errorf("directory entry %q contradicts itself: %w", e.Name, chunk.ErrCorrupt)
	}
	return nil
}

// placeExtents sets the offsets of extents that follow each other and returns
// where they end, or -1 if that is too far.
func placeExtents(xs []Extent) int64 {
	off := int64(0)
	for i := range xs {
		xs[i].Off = off
		if off += xs[i].Len; off >= 1<<62 {
			return -1
		}
	}
	return off
}

func appendExtent(p []byte, x Extent) []byte {
	p = append(p, byte(x.Kind)|byte(x.End)<<4)
	p = binary.AppendUvarint(p, uint64(x.Len))
	if x.Kind == Data {
		p = append(p, x.ID[:]...)
	}
	return p
}

func parseExtent(p []byte) (x Extent, rest []byte, err error) {
	if len(p) < 2 {
		return x, nil, errPage
	}
	x.Kind, x.End = ExtentKind(p[0]&15), End(p[0]>>4)
	if x.Kind < Data || x.Kind > Lost || x.End > EndRecord {
		return x, nil, fmt.Errorf("extent of kind %d, end %d: %w", x.Kind, x.End, ErrVersion)
	}
	v, n := binary.Uvarint(p[1:])
	if n <= 0 || v == 0 || v >= 1<<62 {
		return x, nil, errPage
	}
	x.Len = int64(v)
	p = p[1+n:]
	if x.Kind == Data {
		if len(p) < chunk.Size {
			return x, nil, errPage
		}
		p = p[copy(x.ID[:], p):]
	}
	return x, p, nil
}

func appendXattr(p []byte, x Xattr) []byte {
	return appendBytes(appendString(p, 1, x.Name), 2, x.Value)
}

func parseXattr(p []byte) (x Xattr, err error) {
	err = fields(p, func(f *field) bool {
		switch f.num {
		case 1:
			x.Name = string(f.bytes)
		case 2:
			x.Value = append([]byte(nil), f.bytes...)
		}
		return true
	})
	if err == nil && (x.Name == "" || strings.IndexByte(x.Name, 0) >= 0) {
		err = errPage
	}
	return x, err
}

// Witness is where a name's node lived when it was read.
type Witness struct {
	Name  string
	Ino   uint64
	Ctime Time
	Dev   uint64
	Root  chunk.ID // of a directory's own witness
	Extra []byte
}

func appendWitness(p []byte, w *Witness) []byte {
	p = appendString(p, 1, w.Name)
	p = appendVarint(p, 2, w.Ino)
	p = appendVarint(p, 3, protowire.EncodeZigZag(w.Ctime.Sec))
	p = appendVarint(p, 4, uint64(w.Ctime.Nsec))
	p = appendVarint(p, 5, w.Dev)
	p = appendID(p, 6, w.Root)
	return append(p, w.Extra...)
}

func parseWitness(p []byte) (w Witness, err error) {
	err = fields(p, func(f *field) bool {
		switch f.num {
		case 1:
			w.Name = string(f.bytes)
		case 2:
			w.Ino = f.v
		case 3:
			w.Ctime.Sec = protowire.DecodeZigZag(f.v)
		case 4:
			w.Ctime.Nsec = uint32(f.v)
			return f.v < 1e9
		case 5:
			w.Dev = f.v
		case 6:
			return f.id(&w.Root)
		default:
			w.Extra = append(w.Extra, f.raw...)
		}
		return true
	})
	if err == nil && !ValidName(w.Name) {
		err = errPage
	}
	return w, err
}
