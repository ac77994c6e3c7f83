package pack

import (
	"encoding/hex"
	"fmt"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// Name names a pack: 16 random bytes, used once.
type Name [16]byte

func (n Name) String() string { return hex.EncodeToString(n[:]) }

// Object is the name of the pack's file in the repository.
func (n Name) Object() string { s := n.String(); return "packs/" + s[:2] + "/" + s }

// ParseObject is the reverse of Object. Names that are no pack's give false.
func ParseObject(object string) (Name, bool) {
	var n Name
	if len(object) != len("packs/xx/")+32 || object[:6] != "packs/" {
		return n, false
	}
	b, err := hex.DecodeString(object[9:])
	if err != nil {
		return n, false
	}
	copy(n[:], b)
	return n, n.Object() == object
}

// Kind is what a pack holds. The values are part of the format.
type Kind uint8

const (
	Data Kind = 1
	Meta Kind = 2
)

func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case Meta:
		return "meta"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// ChunkKind is how a chunk's bytes are kept. The values are part of the
// format.
type ChunkKind uint8

const (
	Plain ChunkKind = 0
	Delta ChunkKind = 1 // reserved
)

// Chunk is one chunk in a frame.
type Chunk struct {
	ID   chunk.ID
	Len  uint32 // bytes
	Kind ChunkKind
	Base chunk.ID // of a delta
}

// Frame is one frame in a pack.
type Frame struct {
	Off    uint32 // of the stored frame in the file, behind its length
	Stored uint32 // bytes of the stored frame
	Plain  uint32 // bytes of the plain frame, the lengths in front included
	Chunks []Chunk
	Extra  []byte // fields of newer versions, as they came
}

// Start returns where chunk i begins in the plain frame.
func (f *Frame) Start(i int) uint32 {
	n := uvarintLen(uint64(len(f.Chunks)))
	for j := range f.Chunks {
		n += uvarintLen(uint64(f.Chunks[j].Len))
	}
	for _, c := range f.Chunks[:i] {
		n += c.Len
	}
	return n
}

func uvarintLen(v uint64) uint32 {
	n := uint32(1)
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// Header is the clear beginning of a pack file.
type Header struct {
	Kind    Kind
	Epoch   uint32
	Writer  [16]byte
	Session [16]byte
	Wrapped []byte
}

// Trailer lists a pack: all that an index keeps of it.
type Trailer struct {
	Name Name
	Header
	Size      int64 // of the whole file in bytes; 0 while it is not finished
	Frames    []Frame
	Extra     []byte // fields of newer versions, as they came
	Signature []byte // of the writer, over all the rest
}

// Location is where one copy of a chunk lies.
type Location struct {
	Pack   Name
	Frame  uint32 // number of the frame in the pack
	Off    uint32 // of the stored frame in the file
	Stored uint32 // bytes of the stored frame
	Plain  uint32 // bytes of the plain frame
	Start  uint32 // of the chunk in the plain frame
	Len    uint32 // of the chunk
}

// Locations calls f for every plain chunk of the pack.
func (t *Trailer) Locations(f func(chunk.ID, Location)) {
	for i := range t.Frames {
		fr := &t.Frames[i]
		start := fr.Start(0)
		for _, c := range fr.Chunks {
			if c.Kind == Plain {
				f(c.ID, Location{Pack: t.Name, Frame: uint32(i), Off: fr.Off, Stored: fr.Stored, Plain: fr.Plain, Start: start, Len: c.Len})
			}
			start += c.Len
		}
	}
}
