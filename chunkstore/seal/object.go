package seal

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// Magic starts every file of a repository; the kind's letter follows.
const Magic = "cutbank"

// Version is the format version that this program writes, and the newest that
// it reads.
const Version = 1

// ErrVersion says that an object is of a format version that this program does
// not read.
var ErrVersion = errors.New("unknown format version")

// Kind is the letter that tells what a file of a repository is.
type Kind byte

const (
	KindConfig    Kind = 'C'
	KindKey       Kind = 'K'
	KindWriter    Kind = 'W'
	KindPack      Kind = 'P' // in an envelope of its own: package pack
	KindSegment   Kind = 'I'
	KindIntent    Kind = 'N'
	KindSnapshot  Kind = 'S'
	KindTombstone Kind = 'T'
	KindMark      Kind = 'M'
	KindCondemned Kind = 'D'
	KindForgotten Kind = 'F'
	KindLedger    Kind = 'L'
	KindParity    Kind = 'R'
)

// Sealing is who can open an object.
type Sealing byte

const (
	Clear     Sealing = 0 // anyone
	ForList   Sealing = 1 // every node of the repository
	ForEpoch  Sealing = 2 // who holds the private key of the epoch
	headFixed         = 34
	tailFixed         = ed25519.SignatureSize + 32
	nonceSize         = 12
	// maxBody bounds an object's plain body: what a damaged or hostile length
	// can make a reader allocate.
	maxBody    = 256 << 20
	maxSegment = 64 << 20
	// MaxRecord bounds the plain body of a snapshot's record in bytes. Any writer
	// may sign such, as segments and intents, and readers decode and keep them in a
	// multiple of their size.
	MaxRecord = 8 << 20
)

// maxPlain returns how many bytes the plain body of an object may have.
func maxPlain(kind Kind) int {
	switch kind {
	case KindSnapshot, KindIntent:
		return MaxRecord
	case KindSegment:
		return maxSegment
	}
	return maxBody
}

// An Object is what Parse found, opened or not.
type Object struct {
	Kind       Kind
	Version    uint16
	Sealing    Sealing
	Compressed bool
	Epoch      uint32
	Writer     WriterID
	Wrapped    []byte
	Body       []byte // plain after Open, as stored after Parse
	signed     []byte // what the signature is over, before the name is bound
	sig        []byte
}

// Seal returns the stored form of body under name, signed by these keys.
func (k *Keys) Seal(name string, kind Kind, s Sealing, body []byte, random io.Reader) ([]byte, error) {
	o := Object{Kind: kind, Version: Version, Sealing: s, Writer: k.self}
	if limit := maxPlain(kind); len(body) > limit {
		return nil, fmt.Errorf("%s would take %d bytes, at most %d are possible", name, len(body), limit)
	}
	if s != Clear {
		if z := compress(nil, body); len(z) < len(body) {
			o.Compressed, body = true, z
		}
		key := make([]byte, 32)
		nonce := make([]byte, nonceSize)
		if _, err := io.ReadFull(random, nonce); err != nil {
			return nil, fmt.Errorf("%s: random nonce: %w", name, err)
		}
		switch s {
		case ForList:
			key = k.ListKey(name)
		case ForEpoch:
			if _, err := io.ReadFull(random, key); err != nil {
				return nil, fmt.Errorf("%s: random key: %w", name, err)
			}
			var err error
			if o.Epoch, o.Wrapped, err = k.Wrap(name, key); err != nil {
				return nil, err
			}
		}
		body = newGCM(key).Seal(nonce, nonce, body, k.bound(name))
	}
	p := appendObject(nil, &o, body)
	sig, err := k.Sign(k.signedMessage(name, p))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return finishObject(p, sig), nil
}

// SealClear returns the stored form of an unsigned object that anyone can
// read: only a key, whose body protects itself, of who cannot sign as the owner.
func SealClear(kind Kind, body []byte) []byte {
	p := appendObject(nil, &Object{Kind: kind, Version: Version}, body)
	return finishObject(p, make([]byte, ed25519.SignatureSize))
}

func appendObject(p []byte, o *Object, body []byte) []byte {
	p = append(p, Magic...)
	p = append(p, byte(o.Kind))
	p = binary.LittleEndian.AppendUint16(p, o.Version)
	var z byte
	if o.Compressed {
		z = 1
	}
	p = append(p, byte(o.Sealing), z)
	p = binary.LittleEndian.AppendUint32(p, o.Epoch)
	p = append(p, o.Writer[:]...)
	p = binary.LittleEndian.AppendUint16(p, uint16(len(o.Wrapped)))
	p = append(p, o.Wrapped...)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(body)))
	return append(p, body...)
}

func finishObject(p, sig []byte) []byte {
	p = append(p, sig...)
	d := chunk.Digest(p)
	return append(p, d[:]...)
}

// bound is an object's name in its repository: repositories may share their
// secrets, but no object of one passes for one of another.
func (k *Keys) bound(name string) []byte { return []byte(k.repo + "/" + name) }

func (k *Keys) signedMessage(name string, p []byte) []byte {
	d := chunk.Digest(p)
	return bytes.Join([][]byte{[]byte("cutbank object"), k.bound(name), d[:]}, []byte{0})
}

// Parse reads an envelope without any key: it checks the closing hash, magic,
// version and lengths. The object's slices point into p. Damage is
// chunk.ErrCorrupt; a newer version ErrVersion.
func Parse(p []byte) (*Object, error) {
	if len(p) < len(Magic)+3 || string(p[:len(Magic)]) != Magic {
		return nil, fmt.Errorf("no cutbank object: %w", chunk.ErrCorrupt)
	}
	if len(p) < headFixed+4+tailFixed {
		return nil, fmt.Errorf("%d bytes are too short for an object: %w", len(p), chunk.ErrCorrupt)
	}
	all, sum := p[:len(p)-32], p[len(p)-32:]
	if d := chunk.Digest(all); !bytes.Equal(d[:], sum) {
		return nil, fmt.Errorf("its closing hash does not fit: %w", chunk.ErrCorrupt)
	}
	o := &Object{Kind: Kind(p[7]), Version: binary.LittleEndian.Uint16(p[8:]), Sealing: Sealing(p[10]), Compressed: p[11] == 1,
		Epoch: binary.LittleEndian.Uint32(p[12:]), Writer: WriterID(p[16:32])}
	if o.Version == 0 || o.Version > Version {
		return nil, fmt.Errorf("format version %d, this program reads up to %d: %w", o.Version, Version, ErrVersion)
	}
	if o.Sealing > ForEpoch || p[11] > 1 {
		return nil, fmt.Errorf("unknown sealing %d or compression %d: %w", p[10], p[11], ErrVersion)
	}
	w := int(binary.LittleEndian.Uint16(p[32:]))
	if len(p) < headFixed+w+4+tailFixed {
		return nil, fmt.Errorf("wrapped key of %d bytes does not fit: %w", w, chunk.ErrCorrupt)
	}
	o.Wrapped = p[headFixed : headFixed+w]
	at := headFixed + w
	n := int64(binary.LittleEndian.Uint32(p[at:]))
	if int64(at)+4+n+tailFixed != int64(len(p)) {
		return nil, fmt.Errorf("body of %d bytes does not fit: %w", n, chunk.ErrCorrupt)
	}
	at += 4
	o.Body = p[at : at+int(n)]
	o.signed, o.sig = p[:at+int(n)], all[len(all)-ed25519.SignatureSize:]
	return o, nil
}

// Open proves that the object was signed under this name by a writer that
// these keys know, and replaces o.Body by its plain form.
func (k *Keys) Open(name string, o *Object) error {
	if err := k.Verify(o.Writer, k.signedMessage(name, o.signed), o.sig); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if o.Sealing == Clear {
		return tooLong(name, o)
	}
	key := []byte(nil)
	switch o.Sealing {
	case ForList:
		key = k.ListKey(name)
	case ForEpoch:
		var err error
		if key, err = k.Unwrap(name, o.Epoch, o.Wrapped); err != nil {
			return err
		}
	}
	if len(o.Body) < nonceSize {
		return fmt.Errorf("%s: body too short: %w", name, chunk.ErrCorrupt)
	}
	body, err := newGCM(key).Open(nil, o.Body[:nonceSize], o.Body[nonceSize:], k.bound(name))
	if err != nil {
		return fmt.Errorf("%s: does not open: %w", name, chunk.ErrCorrupt)
	}
	if o.Compressed {
		if body, err = Decompress(nil, body, maxPlain(o.Kind)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	o.Body = body
	return tooLong(name, o)
}

func tooLong(name string, o *Object) error {
	if limit := maxPlain(o.Kind); len(o.Body) > limit {
		return fmt.Errorf("%s: %d bytes, more than %d: %w", name, len(o.Body), limit, chunk.ErrCorrupt)
	}
	return nil
}

// Signed proves that the object was signed under this name by a writer that these
// keys know. What it holds is not opened: they may be keys that cannot.
func (k *Keys) Signed(name string, o *Object) error {
	return k.Verify(o.Writer, k.signedMessage(name, o.signed), o.sig)
}

// OpenAs parses p, wants it to be of that kind, and opens it under name.
func (k *Keys) OpenAs(name string, kind Kind, p []byte) (*Object, error) {
	o, err := Parse(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if o.Kind != kind {
		return nil, fmt.Errorf("%s: is an object of kind %q, want %q: %w", name, o.Kind, kind, chunk.ErrCorrupt)
	}
	return o, k.Open(name, o)
}
