package mount

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

type ctxType = context.Context

var errDamage = fmt.Errorf("chunk 1234: %w", chunk.ErrCorrupt)

// logLines is a Logf for tests.
type logLines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logLines) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.b, format+"\n", args...)
}

func (l *logLines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestErrno(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{chunk.ErrCorrupt, syscall.EIO},
		{chunk.ErrMissing, syscall.EIO},
		{fmt.Errorf("%w: %w", chunk.ErrMissing, fs.ErrNotExist), syscall.EIO},
		{fmt.Errorf("%w: %w", syscall.ENOENT, chunk.ErrCorrupt), syscall.EIO},
		{context.Canceled, syscall.EINTR},
		{fmt.Errorf("reading: %w", context.Canceled), syscall.EINTR},
		{context.DeadlineExceeded, syscall.EIO},
		{fs.ErrNotExist, syscall.ENOENT},
		{&fs.PathError{Op: "lookup", Path: "x", Err: fs.ErrNotExist}, syscall.ENOENT},
		{fs.ErrExist, syscall.EEXIST},
		{fs.ErrPermission, syscall.EACCES},
		{fs.ErrInvalid, syscall.EINVAL},
		{fs.ErrClosed, syscall.EBADF},
		{errors.ErrUnsupported, syscall.EOPNOTSUPP},
		{syscall.EPERM, syscall.EPERM},
		{syscall.ENOTDIR, syscall.ENOTDIR},
		{&fs.PathError{Op: "read", Path: "x", Err: syscall.ENODATA}, syscall.ENODATA},
		{syscall.ENOSYS, syscall.EOPNOTSUPP},
		{syscall.Errno(0), syscall.EIO},
		{syscall.Errno(512), syscall.EIO},
		{io.ErrUnexpectedEOF, syscall.EIO},
		{errors.New("anything"), syscall.EIO},
	} {
		if got := errnoOf(tt.err); got != tt.want {
			t.Errorf("errnoOf(%v) = %v, want %v", tt.err, got, tt.want)
		}
	}
}

// TestErrnoComplete finds every sentinel of package chunk and of io/fs in
// their sources and expects it in the table.
func TestErrnoComplete(t *testing.T) {
	have := map[string]bool{}
	src, err := parser.ParseFile(token.NewFileSet(), "errno.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(src, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			have[sel.Sel.Name] = true
		}
		return true
	})
	files, err := filepath.Glob("../../chunkstore/chunk/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal("no sources of package chunk", err)
	}
	want := map[string]bool{"ErrNotExist": true, "ErrExist": true, "ErrPermission": true, "ErrInvalid": true, "ErrClosed": true, "ErrUnsupported": true}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		src, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for name, o := range src.Scope.Objects {
			if o.Kind == ast.Var && strings.HasPrefix(name, "Err") {
				want[name] = true
			}
		}
	}
	for name := range want {
		if !have[name] {
			t.Errorf("errno.go does not say what %s is to the kernel", name)
		}
	}
}
