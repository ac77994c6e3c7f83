package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// stream is the output of a running command. Its end is one only if the command
// says so by its exit code.
type stream struct {
	run  *Running
	out  *os.File
	done atomic.Bool // read to its end, and the command has exited with 0
}

func startStream(ctx context.Context, p Proc) (*stream, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	p.Stdout = w // a file: the command has it itself
	run, err := p.Start(ctx)
	if err != nil {
		r.Close()
		return nil, err
	}
	// Where the command has ended and what it left running holds its output open,
	// nothing else ends the wait for more.
	context.AfterFunc(run.ctx, func() {
		time.AfterFunc(grace, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	})
	return &stream{run: run, out: r}, nil
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.out.Read(p)
	if err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
		if werr := s.run.Wait(); werr != nil {
			return n, werr
		}
		if err != io.EOF {
			return n, fmt.Errorf("%s has ended, and something that it left running holds its output open: %w", s.run.p.What, err)
		}
		s.done.Store(true)
	}
	return n, err
}

func (s *stream) whole() bool { return s.done.Load() }

// stop ends the command, and whoever reads.
func (s *stream) stop() {
	s.run.Stop()
	s.out.Close()
}

// top is a root that holds one file.
type top struct {
	attr tree.Attr
	file *streamNode
}

// streamNode is a file of unknown size that is read once.
type streamNode struct {
	attr tree.Attr
	s    *stream
}

func streamRoot(name string, s *stream, mtime tree.Time) tree.Node {
	return &top{tree.Attr{Kind: tree.Dir, Mode: 0o755, Mtime: mtime, Nlink: 1},
		&streamNode{tree.Attr{Name: name, Kind: tree.File, Mode: 0o600, Mtime: mtime, Nlink: 1}, s}}
}

func (t *top) Attr() *tree.Attr                             { return &t.attr }
func (t *top) Xattrs(context.Context) ([]tree.Xattr, error) { return nil, nil }
func (t *top) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: ".", Err: syscall.EISDIR}
}

func (t *top) Lookup(_ context.Context, name string) (tree.Node, error) {
	if name == t.file.attr.Name {
		return t.file, nil
	}
	return nil, &fs.PathError{Op: "lookup", Path: name, Err: fs.ErrNotExist}
}

func (t *top) Entries(_ context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		if from <= 0 {
			yield(t.file, nil)
		}
	}
}

func (f *streamNode) Attr() *tree.Attr                             { return &f.attr }
func (f *streamNode) Xattrs(context.Context) ([]tree.Xattr, error) { return nil, nil }
func (f *streamNode) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: f.attr.Name, Err: err}
}

// Stream is what the snapshotter asks for where a file can be read once.
func (f *streamNode) Stream() io.Reader { return f.s }

func (f *streamNode) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, f.fail("read", syscall.ESPIPE)
}

func (f *streamNode) Lookup(context.Context, string) (tree.Node, error) {
	return nil, f.fail("lookup", syscall.ENOTDIR)
}

func (f *streamNode) Entries(context.Context, int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) { yield(nil, f.fail("readdir", syscall.ENOTDIR)) }
}
