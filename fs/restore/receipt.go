package restore

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"time"
	"unicode/utf8"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// ReceiptLine is a line of a receipt, one JSON object. The first has type
// "receipt", the last "end", and each between is of type "entry": a path that
// was restored or found as it should be, in the order of being finished.
//
// The last line holds the BLAKE3-256 hash of all bytes before it: a receipt
// that was cut short or changed is known as such. It is no signature; who
// must trust a receipt keeps it where others cannot write.
type ReceiptLine struct {
	V    int    `json:"v"`
	Type string `json:"type"`

	// Of "receipt".
	Time   string `json:"time,omitempty"`   // RFC 3339, UTC
	Target string `json:"target,omitempty"` // also of a symlink "entry": where it points
	Source string `json:"source,omitempty"`

	// Of "entry". Path is below the target; "." is the target. What is not
	// UTF-8 stands exactly in the _b64 field, and readable in the other.
	Path      string `json:"path,omitempty"`
	PathB64   string `json:"path_b64,omitempty"`
	TargetB64 string `json:"target_b64,omitempty"`
	Kind      string `json:"kind,omitempty"` // "dir", "file", "symlink", …
	Size      int64  `json:"size,omitempty"` // of a file
	Mode      string `json:"mode,omitempty"` // octal, with setuid, setgid, sticky
	UID       uint32 `json:"uid,omitempty"`
	GID       uint32 `json:"gid,omitempty"`
	MtimeS    int64  `json:"mtime_s,omitempty"` // seconds since 1970
	MtimeNS   uint32 `json:"mtime_ns,omitempty"`
	Rdev      uint64 `json:"rdev,omitempty"`
	// BLAKE3 is the hash of a file's contents, or of a receipt's bytes before
	// its last line, in hexadecimal. A file without it was trusted by size
	// and time, and not read; Options.Verify reads all.
	BLAKE3 string `json:"blake3,omitempty"`

	// Of "end".
	Entries int64 `json:"entries,omitempty"`
	Files   int64 `json:"files,omitempty"`
	Bytes   int64 `json:"bytes,omitempty"`
}

const (
	receiptVersion = 1
	maxLine        = 1 << 20
)

// newLine describes a node at path. sum may be nil.
func newLine(path string, a *tree.Attr, sum []byte) *ReceiptLine {
	l := &ReceiptLine{V: receiptVersion, Type: "entry", Kind: a.Kind.String(),
		Mode: fmt.Sprintf("%04o", a.Mode&0o7777), UID: a.UID, GID: a.GID,
		MtimeS: a.Mtime.Sec, MtimeNS: a.Mtime.Nsec}
	l.Path, l.PathB64 = encodeName(path)
	switch a.Kind {
	case tree.File:
		l.Size, l.BLAKE3 = a.Size, hex.EncodeToString(sum)
	case tree.Symlink:
		l.Target, l.TargetB64 = encodeName(a.Target)
		l.Mode = ""
	case tree.CharDevice, tree.BlockDevice:
		l.Rdev = a.Rdev
	}
	return l
}

func encodeName(s string) (text, b64 string) {
	if utf8.ValidString(s) {
		return s, ""
	}
	return string(bytes.ToValidUTF8([]byte(s), []byte("\uFFFD"))), base64.StdEncoding.EncodeToString([]byte(s))
}

func decodeName(text, b64 string) (string, error) {
	if b64 == "" {
		return text, nil
	}
	b, err := base64.StdEncoding.DecodeString(b64)
	return string(b), err
}

// receiptWriter writes a receipt; without w it does nothing.
type receiptWriter struct {
	w       io.Writer
	buf     *bufio.Writer
	hash    hash.Hash
	entries int64
	err     error // the first; nothing is written after it
}

func (rw *receiptWriter) start(target, source string) {
	if rw.w == nil {
		return
	}
	rw.hash = chunk.NewDigest()
	rw.buf = bufio.NewWriterSize(io.MultiWriter(rw.w, rw.hash), 64<<10)
	rw.put(&ReceiptLine{V: receiptVersion, Type: "receipt", Time: time.Now().UTC().Format(time.RFC3339), Target: target, Source: source})
}

func (rw *receiptWriter) put(l *ReceiptLine) {
	b, err := json.Marshal(l)
	if err == nil && rw.err == nil {
		_, err = rw.buf.Write(append(b, '\n'))
	}
	if rw.err == nil {
		rw.err = err
	}
}

func (rw *receiptWriter) line(l *ReceiptLine) {
	if rw.w != nil {
		rw.entries++
		rw.put(l)
	}
}

func (rw *receiptWriter) end(t Totals) {
	if rw.w == nil || rw.err != nil {
		return
	}
	if rw.err = rw.buf.Flush(); rw.err != nil {
		return
	}
	l := &ReceiptLine{V: receiptVersion, Type: "end", Entries: rw.entries, Files: t.Files, Bytes: t.Bytes,
		BLAKE3: hex.EncodeToString(rw.hash.Sum(nil))}
	rw.put(l)
	if rw.err == nil {
		rw.err = rw.buf.Flush()
	}
}

// ErrReceipt says that a file is no whole receipt.
var ErrReceipt = errors.New("no whole receipt")

// ReadReceipt yields the lines of a receipt, the first and the last included.
// An error ends the sequence; it wraps ErrReceipt if the receipt is cut
// short, changed, or of another version. Only after the last line is known
// that the ones before are as they were written.
func ReadReceipt(r io.Reader) iter.Seq2[*ReceiptLine, error] {
	return func(yield func(*ReceiptLine, error) bool) {
		sc := bufio.NewScanner(r)
		sc.Buffer(make([]byte, 64<<10), maxLine)
		sum := chunk.NewDigest()
		n, entries := int64(0), int64(0)
		bad := func(format string, args ...any) {
			yield(nil, fmt.Errorf("line %d: "+format+": %w", append(append([]any{n}, args...), ErrReceipt)...))
		}
		ended := false
		for sc.Scan() {
			n++
			var l ReceiptLine
			if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
				bad("%v", err)
				return
			}
			switch {
			case ended:
				bad("something follows the last line")
				return
			case l.V != receiptVersion:
				bad("version %d is unknown", l.V)
				return
			case (n == 1) != (l.Type == "receipt"):
				bad("type %q is not expected here", l.Type)
				return
			case l.Type == "entry":
				entries++
			case l.Type == "end":
				ended = true
				if l.BLAKE3 != hex.EncodeToString(sum.Sum(nil)) || l.Entries != entries {
					bad("its lines are not those that were written")
					return
				}
			}
			sum.Write(sc.Bytes())
			sum.Write([]byte{'\n'})
			if !yield(&l, nil) {
				return
			}
		}
		if err := sc.Err(); err != nil && !errors.Is(err, bufio.ErrTooLong) {
			yield(nil, err)
		} else if !ended {
			bad("it ends too early")
		}
	}
}
