package chunk

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/zeebo/blake3"
)

// ErrCorrupt says that stored bytes are not what their name, checksum or
// signature promises.
var ErrCorrupt = errors.New("data is damaged")

// ErrMissing says that something names a chunk that no pack holds. It never
// wraps fs.ErrNotExist: damage must not look like an absent file.
var ErrMissing = errors.New("chunk is missing")

// Size is the length of an ID in bytes.
const Size = 32

// ID names a chunk by its contents: the keyed BLAKE3 hash of its plain bytes.
// It is a value: comparable, and usable as a map key.
type ID [Size]byte

// String returns the ID in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first eight hexadecimal digits, for messages.
func (id ID) Short() string { return hex.EncodeToString(id[:4]) }

// IsZero reports whether id is the zero ID, which names nothing.
func (id ID) IsZero() bool { return id == ID{} }

// ParseID reads what String wrote.
func ParseID(s string) (ID, error) {
	var id ID
	b, err := hex.DecodeString(strings.TrimSpace(s))
	if err != nil || len(b) != Size {
		return id, fmt.Errorf("%q is no chunk ID: want %d hexadecimal digits", s, 2*Size)
	}
	copy(id[:], b)
	return id, nil
}

// A Hasher computes chunk IDs under one secret key. It is safe for concurrent
// use.
type Hasher struct{ pool sync.Pool } // of *blake3.Hasher: 10 KB each, dear to make

// NewHasher returns the Hasher of a 32-byte key.
func NewHasher(key [32]byte) *Hasher {
	base, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // only for a key that is not 32 bytes
	}
	return &Hasher{sync.Pool{New: func() any { return base.Clone() }}}
}

// Sum returns the ID of p: BLAKE3 in keyed mode, 32 bytes (BLAKE3 paper, 2.3).
func (h *Hasher) Sum(p []byte) ID {
	d := h.pool.Get().(*blake3.Hasher)
	d.Reset()
	d.Write(p)
	var id ID
	d.Sum(id[:0])
	h.pool.Put(d)
	return id
}

// Digest is the plain, unkeyed BLAKE3 hash of p: what every file of a
// repository ends with, so that rot is found without any key.
func Digest(p []byte) [32]byte { return blake3.Sum256(p) }

// Derive returns a 32-byte key for one purpose out of key material, by
// BLAKE3's key derivation mode. context is a constant of the program.
func Derive(context string, material ...[]byte) [32]byte {
	h := blake3.NewDeriveKey(context)
	for _, m := range material {
		h.Write(m)
	}
	var k [32]byte
	h.Sum(k[:0])
	return k
}
