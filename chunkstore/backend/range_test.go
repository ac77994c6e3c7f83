package backend_test

import (
	"errors"
	"io"
	"io/fs"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// TestRange: a file that claims to be enormous, as sparse ones may, must not take
// the memory of who reads it.
func TestRange(t *testing.T) {
	const huge = 1 << 46
	for _, tt := range []struct {
		size, off, n, want int64
		err                error
	}{
		{10, 0, -1, 10, nil}, {10, 4, -1, 6, nil}, {10, 4, 3, 3, nil}, {10, 10, -1, 0, nil},
		{10, 11, -1, 0, io.ErrUnexpectedEOF}, {10, 4, 7, 0, io.ErrUnexpectedEOF}, {10, -1, 2, 0, fs.ErrInvalid},
		{huge, 0, -1, 0, fs.ErrInvalid}, {huge, 5, huge - 5, 0, fs.ErrInvalid}, {huge, 5, 10, 10, nil}, {backend.MaxGet, 0, -1, backend.MaxGet, nil},
	} {
		if got, err := backend.Range("x", tt.size, tt.off, tt.n); got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%+v: %d, %v", tt, got, err)
		}
	}
}
