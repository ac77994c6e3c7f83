package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/snapshotter"
)

// unlisted are sentinels that need no row of their own, and why.
var unlisted = map[string]string{
	"restore.ErrReceipt": "exit code 1: a file that is no receipt is like any other wrong file",
}

// TestExitsComplete: every sentinel of the module is in the table of exit codes.
func TestExitsComplete(t *testing.T) {
	table, err := os.ReadFile("exit.go")
	if err != nil {
		t.Fatal(err)
	}
	re := regexp.MustCompile(`(?m)^\s*(?:var )?(Err[A-Z]\w*)\s*=\s*(?:errors\.New|fmt\.Errorf)`)
	found := 0
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "backendtest") {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		pkg := filepath.Base(filepath.Dir(path))
		for _, m := range re.FindAllStringSubmatch(string(src), -1) {
			found++
			name := pkg + "." + m[1]
			if _, ok := unlisted[name]; !ok && !strings.Contains(string(table), name) {
				t.Errorf("%s (%s) has no exit code", name, path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 8 {
		t.Errorf("found only %d sentinels: the search is broken", found)
	}
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{usagef("x"), 2},
		{fmt.Errorf("a: %w", chunk.ErrCorrupt), 3},
		{fmt.Errorf("a: %w", chunk.ErrMissing), 3},
		{fmt.Errorf("a: %w", fs.ErrNotExist), 4},
		{repo.ErrNoRepo, 4},
		{repo.ErrKey, 5},
		{repo.ErrFormat, 6},
		{snapshotter.ErrPartial, 7},
		{errPartialRestore, 7},
		{errors.Join(chunk.ErrCorrupt, repo.ErrKey), 3},
		{errInterrupted, 130},
		{errExposed, 3},
		{fmt.Errorf("a: %w", backend.ErrLocked), 1},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("exitCode(%v) = %d, want %d", c.err, got, c.want)
		}
	}
}
