package restore

import (
	"bytes"
	"context"

	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

// zeros does a range that reads as zeros: a hole, or zeros that were written.
func (t *transfer) zeros(e tree.Extent) error {
	hole := e.Kind == tree.Hole || t.w.r.opt.Sparse
	if !hole {
		t.data += e.Len
	}
	same := t.seed >= 0 && e.Off+e.Len <= t.seedSize && t.seedIsZero(e.Off, e.Off+e.Len)
	if t.dry {
		if !same {
			t.differs = true
			if !hole {
				t.written += e.Len
			}
		}
		return nil
	}
	if err := t.hashZeros(e.Len); err != nil {
		return err
	}
	switch {
	case t.inPlace && hole:
		if end := min(e.Off+e.Len, t.seedSize); e.Off < end {
			if from, _ := dataFrom(t.out, e.Off, end); from < end {
				t.differs = t.differs || !same
				if err := t.punch(e.Off, end-e.Off); err != nil {
					return err
				}
			}
		}
		t.holes = true
	case same && (t.inPlace || !t.differs):
	default:
		if err := t.begin(); err != nil {
			return err
		}
		if hole {
			t.holes = true
		} else if err := t.writeZeros(e.Off, e.Len); err != nil {
			return err
		}
	}
	t.seen += e.Len
	t.report()
	return nil
}

// seedIsZero tells whether the seed reads as zeros; its holes are not read.
func (t *transfer) seedIsZero(off, end int64) bool {
	for off < end {
		from, to := dataFrom(t.seed, off, end)
		for from < to {
			if t.ctx.Err() != nil {
				return false
			}
			p := t.w.buffer(&t.w.old, min(to-from, blockSize))
			if preadAll(t.seed, p, from) != nil || !isZero(p) {
				return false
			}
			from += int64(len(p))
		}
		off = to
	}
	return true
}

func isZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[:len(p)-1], p[1:])
}

// run0 returns the length of p's first run of whole pages, aligned in the
// file, that are all zero, or are not.
func run0(p []byte, off int64) (n int, zero bool) {
	for n < len(p) {
		m := min(len(p)-n, int(pageSize-(off+int64(n))%pageSize))
		z := m == pageSize && isZero(p[n:n+m])
		if n == 0 {
			zero = z
		} else if z != zero {
			break
		}
		n += m
	}
	return n, zero
}

func (t *transfer) punch(off, n int64) error {
	err := unix.Fallocate(t.out, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		return t.writeZeros(off, n)
	}
	return err
}

var zeroBlock [blockSize]byte

func (t *transfer) writeZeros(off, n int64) error {
	for n > 0 {
		if err := context.Cause(t.ctx); err != nil {
			return err
		}
		c := min(n, blockSize)
		if err := pwriteAll(t.out, zeroBlock[:c], off); err != nil {
			return err
		}
		t.written += c
		off, n = off+c, n-c
	}
	return nil
}

func (t *transfer) hashZeros(n int64) error {
	for n > 0 {
		if err := context.Cause(t.ctx); err != nil {
			return err
		}
		c := min(n, blockSize)
		t.hash.Write(zeroBlock[:c])
		n -= c
	}
	return nil
}
