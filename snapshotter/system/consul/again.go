package consul

import (
	"context"
	"io"
	"runtime"
	"sync"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// window is how much of an archive that is being written again is kept, for readers
// that do not read quite in order: 4 MiB.
const window = 4 << 20

// writer is an archive that is written again whenever it is read. Nothing of it touches
// a disk. It is fast for who reads in order; who goes back by more than the window has
// it begin anew.
type writer struct {
	ctx   context.Context
	a     *archive
	again again
	state tree.Node

	mu        sync.Mutex
	out       *io.PipeReader  // what is being written; nil: nothing
	forgotten runtime.Cleanup // closes out
	digest    *digest
	buf       []byte // the last bytes that were read, up to at
	at        int64
}

// ReadAt implements io.ReaderAt.
func (w *writer) ReadAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for n < len(p) && off < w.again.Size {
		m, err := w.piece(p[n:], off)
		n, off = n+m, off+int64(m)
		if err != nil {
			w.stop()
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// piece reads at least one byte at off, which is below the size.
func (w *writer) piece(p []byte, off int64) (int, error) {
	if off < w.at-int64(len(w.buf)) || w.out == nil && off >= w.at {
		w.start()
	}
	for off >= w.at {
		if err := w.more(); err != nil {
			return 0, err
		}
	}
	return copy(p, w.buf[int64(len(w.buf))-(w.at-off):]), nil
}

func (w *writer) start() {
	w.stop()
	r, pw := io.Pipe()
	w.out, w.digest, w.buf, w.at = r, newDigest(), nil, 0
	a, state := w.a, stream(w.ctx, w.state)
	go func() {
		pw.CloseWithError(a.write(pw, state))
	}()
	// Who reads the beginning alone, and forgets the view then, leaves nobody waiting.
	w.forgotten = runtime.AddCleanup(w, func(r *io.PipeReader) { r.Close() }, r)
}

func (w *writer) stop() {
	if w.out != nil {
		w.forgotten.Stop()
		w.out.Close() // ends who writes
		w.out = nil
	}
}

// more reads the next bytes into the window. With the last of them what was written is
// compared with what was taken.
func (w *writer) more() error {
	const step = 64 << 10
	if len(w.buf)+step > window+window/2 {
		w.buf = append(w.buf[:0], w.buf[len(w.buf)-window:]...)
	}
	n := len(w.buf)
	w.buf = append(w.buf, make([]byte, step)...)
	m, err := io.ReadFull(w.out, w.buf[n:])
	w.buf = w.buf[:n+m]
	w.at += int64(m)
	w.digest.Write(w.buf[n:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return err
	}
	if err == nil && w.at < w.again.Size || w.at == w.again.Size && w.digest.hex() == w.again.SHA256 {
		return nil
	}
	return damaged("%s: what is written again is not what was taken, since this program compresses otherwise; %s, %s and %s are unharmed, and restore takes them",
		archiveFile, metaFile, stateFile, sumsFile)
}
