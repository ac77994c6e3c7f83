package chunk

import "io"

// End tells why a piece ended where it did. The values are part of the stored
// format, and those of tree.End.
type End uint8

const (
	EndFile     End = 0 // at the end of the stream
	EndSplitter End = 1 // the splitter cut
	EndMax      End = 2 // the chunk was as long as chunks may be
	EndZero     End = 3 // a run of zeros began or ended
	EndSource   End = 4 // the source said so; a Cutter never does
)

// Piece is a chunk or a run of zeros.
type Piece struct {
	Data []byte // the chunk, valid until the Cutter is used again; nil if Zero
	Len  int64  // bytes, at least 1
	Zero bool   // Len zero bytes, at least ZeroRun
	End  End
}

// minBuffer is the smallest buffer: reads of this size cost little a byte, and
// it stays in the processor's cache.
const minBuffer = 1 << 20

// maxEmptyReads is how often a reader may return neither bytes nor an error.
const maxEmptyReads = 100

// A Cutter cuts a stream into pieces, by the rules of the package's doc. It
// holds a buffer of 1 MiB, or of twice the maximum chunk if that is more, and
// is meant to be reused. It is not safe for concurrent use.
type Cutter struct {
	params   Params
	splitter Splitter
	reader   io.Reader
	err      error // what ended the reader; io.EOF if it was the end

	buf        []byte
	start, end int        // buf[start:end] is read and not yet returned
	zeros      zeroFinder // of what begins at start
}

// NewCutter returns a Cutter that has nothing to read until Reset. The error is
// that of p.Validate.
func NewCutter(p Params) (*Cutter, error) {
	s, err := NewSplitter(p)
	if err != nil {
		return nil, err
	}
	return &Cutter{params: p, splitter: s, err: io.EOF}, nil
}

// Reset lets the Cutter cut what r has, from its current position on. What was
// not yet returned of the previous reader is dropped.
func (c *Cutter) Reset(r io.Reader) {
	c.splitter.Reset()
	c.reader, c.err = r, nil
	c.start, c.end, c.zeros = 0, 0, zeroFinder{}
}

// Next returns the next piece. At the end of the stream the error is io.EOF; an
// error of the reader is returned as it is, instead of the piece that it
// interrupted, and again until Reset.
func (c *Cutter) Next() (Piece, error) {
	if !c.fill(1) {
		return Piece{}, c.err
	}
	for scanned := 0; ; {
		// What the splitter may see: no byte of a run that is or may become
		// long enough to be a piece.
		have := c.buf[c.start:c.end]
		limit, found := c.zeros.next(have)
		if found && limit == 0 {
			return c.zeroPiece()
		}
		if c.err == io.EOF && !found {
			limit = len(have)
		}
		if n := c.splitter.Next(have[scanned:limit]); n >= 0 {
			return c.take(scanned+n, c.cutEnd(scanned+n)), nil
		}
		scanned = limit
		switch {
		case found:
			c.splitter.Reset()
			return c.take(limit, EndZero), nil
		case c.err == io.EOF:
			return c.take(limit, EndFile), nil
		}
		if !c.fill(len(have) + 1) {
			if err := c.broken(); err != nil {
				return Piece{}, err
			}
		}
	}
}

// Guess tries to take the next want bytes as a chunk without looking for its
// end. The caller promises that they were cut so before, under the same
// parameters and with EndSplitter or EndMax, if ok says that they are the same
// bytes. ok is called at most once, must not keep its argument, and is not
// called where these bytes cannot be the next piece.
//
// If the bytes are the next piece, Guess returns it and true: exactly the piece
// that Next would have returned. Otherwise it returns false and has consumed
// nothing. An error is one of the reader, as from Next; the end of the stream
// is none, but a guess that does not come true.
func (c *Cutter) Guess(want int64, ok func(data []byte) bool) (Piece, bool, error) {
	if want < int64(c.params.Min) || want > int64(c.params.Max) {
		return Piece{}, false, nil
	}
	n := int(want)
	if !c.fill(n) {
		return Piece{}, false, c.broken()
	}
	if n < c.params.Max && !c.splitter.cutBehind(c.buf[c.start+n-window:c.start+n]) {
		return Piece{}, false, nil // saves ok, which hashes
	}
	for {
		have := c.buf[c.start:c.end]
		limit, found := c.zeros.next(have)
		if limit >= n {
			break
		}
		if found {
			return Piece{}, false, nil
		}
		// Zeros up to the end of what is read may yet become a long run.
		if !c.fill(len(have) + 1) {
			if err := c.broken(); err != nil {
				return Piece{}, false, err
			}
			break
		}
	}
	if !ok(c.buf[c.start : c.start+n : c.start+n]) {
		return Piece{}, false, nil
	}
	return c.take(n, c.cutEnd(n)), true, nil
}

// cutEnd says why a chunk of n bytes that the splitter cut ended.
func (c *Cutter) cutEnd(n int) End {
	if n == c.params.Max {
		return EndMax
	}
	return EndSplitter
}

func (c *Cutter) take(n int, end End) Piece {
	data := c.buf[c.start : c.start+n : c.start+n]
	c.start += n
	c.zeros.skip(n)
	return Piece{Data: data, Len: int64(n), End: end}
}

// zeroPiece consumes the zeros that come next, to the first other byte.
func (c *Cutter) zeroPiece() (Piece, error) {
	var total int64
	for {
		n := leadingZeros(c.buf[c.start:c.end])
		total += int64(n)
		c.start += n
		if c.start < c.end {
			return Piece{Len: total, Zero: true, End: EndZero}, nil
		}
		if !c.fill(1) {
			if err := c.broken(); err != nil {
				return Piece{}, err
			}
			return Piece{Len: total, Zero: true, End: EndFile}, nil
		}
	}
}

// broken returns the error that ended the reader, if it was not its end; what
// is in the buffer is then dropped.
func (c *Cutter) broken() error {
	if c.err == io.EOF {
		return nil
	}
	c.start = c.end
	return c.err
}

// fill reads until at least n bytes are in the buffer, and reports whether they
// are. n is at most the maximum chunk and ZeroRun.
func (c *Cutter) fill(n int) bool {
	if c.buf == nil {
		c.buf = make([]byte, max(minBuffer, 2*c.params.Max))
	}
	if c.start == c.end {
		c.start, c.end = 0, 0
	}
	for empty := 0; c.end-c.start < n && c.err == nil; {
		if c.end == len(c.buf) {
			c.end = copy(c.buf, c.buf[c.start:c.end])
			c.start = 0
		}
		var m int
		m, c.err = c.reader.Read(c.buf[c.end:])
		c.end += m
		if empty++; m > 0 {
			empty = 0
		} else if empty == maxEmptyReads && c.err == nil {
			c.err = io.ErrNoProgress
		}
	}
	return c.end-c.start >= n
}
