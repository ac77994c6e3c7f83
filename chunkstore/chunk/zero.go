package chunk

import "encoding/binary"

// zeroFinder looks for the first run of at least ZeroRun zero bytes in a
// stream that arrives bit by bit. It looks at few bytes of data that hold no
// long runs: any long run that starts at pos or behind covers byte
// pos+ZeroRun-1, or starts behind it.
type zeroFinder struct {
	pos int // no long run starts before
}

// next looks at data, which starts with what the previous call got and has
// more. If there is a long run, it returns its first index and true; else the
// index of the zeros that data ends with, which may yet become a long run, and
// false. It need not be called again after true.
func (f *zeroFinder) next(data []byte) (int, bool) {
	for f.pos+ZeroRun <= len(data) {
		zeros := trailingZeros(data[f.pos : f.pos+ZeroRun])
		if zeros == ZeroRun {
			return f.pos, true
		}
		f.pos += ZeroRun - zeros
	}
	return len(data) - trailingZeros(data[f.pos:]), false
}

// skip says that the stream now starts n bytes later. A run that is cut by that
// is known to be short, so what is left of it is, too.
func (f *zeroFinder) skip(n int) { f.pos = max(0, f.pos-n) }

// leadingZeros counts the zero bytes that p starts with.
func leadingZeros(p []byte) int {
	n := 0
	for len(p)-n >= 8 && binary.LittleEndian.Uint64(p[n:]) == 0 {
		n += 8
	}
	for n < len(p) && p[n] == 0 {
		n++
	}
	return n
}

// trailingZeros counts the zero bytes that p ends with.
func trailingZeros(p []byte) int {
	n := len(p)
	for n >= 8 && binary.LittleEndian.Uint64(p[n-8:]) == 0 {
		n -= 8
	}
	for n > 0 && p[n-1] == 0 {
		n--
	}
	return len(p) - n
}
