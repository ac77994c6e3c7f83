package consul

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/tinylib/msgp/msgp"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// Bounds of what a state may have. Records are as large as values may be, half a MiB
// unless the cluster is told otherwise, and a write that is being put together from
// pieces.
const (
	maxRecord = 256 << 20
	maxDepth  = 256

	// What is decoded costs up to a hundred times its length, as arrays of empty maps
	// do. All but keys and pieces of writes are far shorter than this.
	maxDecoded = 2 << 20
)

// record is one record of a state: a byte that says its type, and one value in
// MessagePack.
type record struct {
	kind uint8
	off  int64  // of the type
	body []byte // without it; valid until the next record
}

func (r *record) len() int64 { return 1 + int64(len(r.body)) }

// walker goes through a state's records.
type walker struct {
	in   counter
	r    *msgp.Reader
	buf  bounded
	rec  record
	head map[string]any // what stands before the first record
}

// newWalker reads the header of a state.
func newWalker(r io.Reader) (*walker, error) {
	w := &walker{in: counter{r: r}}
	w.r = msgp.NewReaderSize(&w.in, 1<<20)
	w.r.SetMaxRecursionDepth(maxDepth)
	if err := w.value(); err != nil {
		return nil, fmt.Errorf("the header of the state: %w", err)
	}
	w.head, _ = decode(w.buf.b.Bytes()).(map[string]any)
	if v, ok := w.head[reducedField]; ok && number(v) != reducedVersion {
		return nil, fmt.Errorf("the records are of version %d, which a newer cutbank wrote", number(v))
	}
	return w, nil
}

// lastIndex is the index of Raft's log that the header tells.
func (w *walker) lastIndex() uint64 { return number(w.head["LastIndex"]) }

func (w *walker) pos() int64 { return w.in.n - int64(w.r.Buffered()) }

// next returns the next record; io.EOF after the last one.
func (w *walker) next() (*record, error) {
	off := w.pos()
	kind, err := w.r.R.ReadByte()
	if err != nil {
		return nil, err
	}
	if err := w.value(); err != nil {
		return nil, fmt.Errorf("record of type %d at offset %d: %w", kind, off, err)
	}
	w.rec = record{kind, off, w.buf.b.Bytes()}
	return &w.rec, nil
}

// value copies the next value into buf. What is declared costs nothing until it is
// read: no length is believed.
func (w *walker) value() error {
	w.buf.b.Reset()
	_, err := w.r.CopyNext(&w.buf)
	switch {
	case err == nil:
		return nil
	case w.in.err != nil:
		return w.in.err
	case errors.Is(err, errLarge):
		return damaged("more than %d MiB", maxRecord>>20)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, msgp.ErrShortBytes), errors.Is(err, io.ErrShortWrite):
		return damaged("the state ends within it")
	}
	return damaged("%v", err)
}

// counter counts what is read.
type counter struct {
	r   io.Reader
	n   int64
	err error
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

var errLarge = errors.New("record is too large")

// bounded is a buffer that takes maxRecord bytes.
type bounded struct{ b bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if b.b.Len()+len(p) > maxRecord {
		return 0, errLarge
	}
	return b.b.Write(p)
}

// leftOut is the extension of MessagePack that stands in records.bin for a value that
// was left out: eight bytes, big-endian, are its length.
const leftOut = 67

func appendLeftOut(b []byte, size int64) []byte {
	b = append(b, 0xd7, leftOut) // fixext 8
	return binary.BigEndian.AppendUint64(b, uint64(size))
}

// isLeftOut tells a decoded value that was left out, and what its length was.
func isLeftOut(v any) (int64, bool) {
	x, ok := v.(*msgp.RawExtension)
	if !ok || x.Type != leftOut || len(x.Data) != 8 {
		return 0, false
	}
	size := int64(binary.BigEndian.Uint64(x.Data))
	return size, size >= 0 && size <= 1<<60
}

// decode returns a value as Go has it: map[string]any, []any, string, []byte, numbers,
// bool, nil. It returns nil for what cannot be decoded so, what is not one value, and
// what is longer than maxDecoded.
func decode(p []byte) any {
	if len(p) > maxDecoded {
		return nil
	}
	if rest, ok := skip(p); !ok || len(rest) > 0 {
		return nil
	}
	v, rest, err := msgp.ReadIntfBytes(p)
	if err != nil || len(rest) > 0 {
		return nil
	}
	return v
}

// skip returns what follows the value that p begins with. ok is false where there is
// no whole value, or one that is nested too deeply.
func skip(p []byte) (rest []byte, ok bool) {
	r := bytes.NewReader(p)
	// Not as a Seeker, which can be moved behind its end.
	m := msgp.NewReaderBuf(struct{ io.Reader }{r}, make([]byte, 0, 512))
	m.SetMaxRecursionDepth(maxDepth)
	if m.Skip() != nil {
		return nil, false
	}
	return p[len(p)-r.Len()-m.Buffered():], true
}

// number is an unsigned number of any encoding.
func number(v any) uint64 {
	switch n := v.(type) {
	case uint64:
		return n
	case int64:
		if n >= 0 {
			return uint64(n)
		}
	}
	return 0
}

// text is a string of any encoding.
func text(v any) string {
	switch s := v.(type) {
	case string:
		return s
	case []byte:
		return string(s)
	}
	return ""
}

// pair is what a record of a key says.
type pair struct {
	key                              string
	flags, create, modify, lockIndex uint64
	session                          string
	namespace, partition             string
	value                            []byte // part of the record's bytes
	valueOff                         int64  // within the body
	absent                           bool   // left out; then size alone is known
	size                             int64
}

// parsePair reads a record of type KVS. It copies no value.
func parsePair(body []byte) (pair, error) {
	var p pair
	n, rest, err := msgp.ReadMapHeaderBytes(body)
	if err != nil {
		return p, damaged("a key's record: %v", err)
	}
	for range n {
		var name []byte
		if name, rest, err = msgp.ReadMapKeyZC(rest); err != nil {
			return p, damaged("a key's record: %v", err)
		}
		at := rest
		if rest, err = msgp.Skip(rest); err != nil {
			return p, damaged("a key's record: %s: %v", name, err)
		}
		if err := p.field(string(name), at[:len(at)-len(rest)], int64(len(body)-len(at))); err != nil {
			return p, err
		}
	}
	return p, nil
}

// field takes one field's encoded value, which begins at off.
func (p *pair) field(name string, raw []byte, off int64) error {
	if name == "Value" {
		return p.setValue(raw, off)
	}
	var to *uint64
	var str *string
	switch name {
	case "Flags":
		to = &p.flags
	case "CreateIndex":
		to = &p.create
	case "ModifyIndex":
		to = &p.modify
	case "LockIndex":
		to = &p.lockIndex
	case "Key":
		str = &p.key
	case "Session":
		str = &p.session
	case "Namespace":
		str = &p.namespace
	case "Partition":
		str = &p.partition
	default:
		return nil
	}
	if t := msgp.NextType(raw); t == msgp.MapType || t == msgp.ArrayType {
		return damaged("a key's record: %s is a %v", name, t)
	}
	v, _, err := msgp.ReadIntfBytes(raw)
	if err != nil {
		return damaged("a key's record: %s: %v", name, err)
	}
	if to != nil {
		*to = number(v)
	} else {
		*str = text(v)
	}
	return nil
}

func (p *pair) setValue(raw []byte, off int64) error {
	switch msgp.NextType(raw) {
	case msgp.NilType:
		return nil
	case msgp.StrType, msgp.BinType:
		v, _, err := msgp.ReadMapKeyZC(raw) // of either type
		if err != nil {
			return damaged("a key's value: %v", err)
		}
		p.value, p.size = v, int64(len(v))
		p.valueOff = off + int64(len(raw)-len(v))
		return nil
	case msgp.ExtensionType:
		if v, _, err := msgp.ReadIntfBytes(raw); err == nil {
			if p.size, p.absent = isLeftOut(v); p.absent {
				return nil
			}
		}
	}
	return damaged("a key's value is no string of bytes")
}

// at reads a file that is stored.
type at struct {
	ctx context.Context
	n   tree.Node
}

func (a at) ReadAt(p []byte, off int64) (int, error) { return a.n.ReadAt(a.ctx, p, off) }

// stream reads a stored file from its beginning.
func stream(ctx context.Context, n tree.Node) io.Reader {
	return io.NewSectionReader(at{ctx, n}, 0, n.Attr().Size)
}

// values decodes at most n values that follow each other and are all of p; nil if they
// are not.
func values(p []byte, n int) []any {
	var list []any
	for len(p) > 0 {
		rest, ok := skip(p)
		if !ok || len(list) == n {
			return nil
		}
		list = append(list, decode(p[:len(p)-len(rest)]))
		p = rest
	}
	return list
}
