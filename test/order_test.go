package test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rooms are the folders at the top.
var rooms = []string{"bench", "chunkstore", "cmd", "fs", "index", "repo", "snapshotter", "test"}

// topFiles is what else may stand there. What the build makes is not listed in
// git and may be there too.
var topFiles = []string{
	".ci", ".git", ".gitattributes", ".github", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md",
	"bin", "go.mod", "go.sum", "staticcheck.conf",
}

func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case slices.Contains(rooms, name) && e.IsDir(), slices.Contains(topFiles, name):
		default:
			t.Errorf("%s does not belong at the top: rooms are %s", name, strings.Join(rooms, ", "))
		}
	}
}

// maxLines is how long a file may be: what is longer holds two things.
const maxLines = 600

func TestFilesAreShort(t *testing.T) {
	for _, file := range goFiles(t) {
		p, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(p, []byte("\n")); n >= maxLines {
			t.Errorf("%s has %d lines: split it, %d are the limit", file, n, maxLines)
		}
	}
}

func TestPackagesAreDocumented(t *testing.T) {
	docs := map[string]bool{}
	for _, file := range goFiles(t) {
		dir := filepath.Dir(file)
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		docs[dir] = docs[dir] || f.Doc != nil && len(f.Doc.Text()) > 40
	}
	for dir, ok := range docs {
		if !ok {
			t.Errorf("package %s has no comment that says what it holds and what it never does", dir)
		}
	}
}

// chance is what makes a run differ from the next one: the clock and
// randomness.
var chance = map[string][]string{
	"time":         {"Now", "Since", "Until"},
	"crypto/rand":  nil, // all of it
	"math/rand":    nil,
	"math/rand/v2": nil,
}

// chances are where they are used, outside of cmd and bench: everybody else is
// handed a clock and a source of randomness, so that tests repeat.
var chances = map[string]string{
	"chunkstore/backend/mem.go time":                        "the default clock; tests set another",
	"chunkstore/backend/local/put.go crypto/rand":           "names of temporary files, which no format sees",
	"chunkstore/backend/local/sweep.go crypto/rand":         "bytes that only take space",
	"chunkstore/backend/backendtest/folder.go time":         "how old a listing is, of a file system for tests",
	"chunkstore/backend/backendtest/racers.go math/rand/v2": "when a process is killed; the seed is printed",
	"fs/mount/server.go time":                               "times of the live directories, which belong to no snapshot",
	"fs/mount/top.go time":                                  "times of the live directories, which belong to no snapshot",
	"fs/restore/worker.go crypto/rand":                      "names of temporary links, which nothing sees when they are done",
	"fs/restore/receipt.go time":                            "a receipt says when it was written",
	"index/db.go crypto/rand":                               "the default source of segment names; repo hands its own down",
	"snapshotter/system/postgresql/psql.go crypto/rand":     "the word that ends psql's restricted mode, which nothing sees when it is done",
	"repo/checkpacks.go math/rand/v2":                       "which packs a sample reads, from the seed it is given",
	"chunkstore/backend/remote.go math/rand/v2":             "pauses of different length",
	"chunkstore/backend/web/conn.go time":                   "deadlines and rates of connections, over in seconds",
	"test/gen/content.go math/rand/v2":                      "seeded",
	"test/gen/gen.go math/rand/v2":                          "seeded",
	"test/gen/mutate.go math/rand/v2":                       "seeded",
	"chunkstore/backend/web/busy.go time":                   "how long a server asks to be left alone, minutes at most",
	"chunkstore/backend/backendtest/archive.go time":        "the default clock of a server; tests set another",
	"chunkstore/backend/backendtest/vault.go time":          "real servers' locks pass by their own clocks",
	"chunkstore/backend/s3/vault.go time":                   "what a store refuses after a lock has passed is not refused for the lock",
}

func TestNobodyAsksTheClock(t *testing.T) {
	used := map[string]bool{}
	for _, file := range goFiles(t) {
		if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(file, "cmd/") || strings.HasPrefix(file, "bench/") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range chancesIn(f) {
			key := file + " " + imp
			used[key] = true
			if chances[key] == "" {
				t.Errorf("%s uses %s: take a clock or a source of randomness from the caller, or give the reason in order_test.go", file, imp)
			}
		}
	}
	for key := range chances {
		if !used[key] {
			t.Errorf("%s: not so any more, take the line out", key)
		}
	}
}

// chancesIn lists the packages of chance that a file makes use of.
func chancesIn(f *ast.File) []string {
	names := map[string]string{} // as the file calls it -> import path
	var found []string
	for _, spec := range f.Imports {
		imp, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		funcs, ok := chance[imp]
		if ok && funcs == nil {
			found = append(found, imp)
		} else if ok {
			name := filepath.Base(imp)
			if spec.Name != nil {
				name = spec.Name.Name
			}
			names[name] = imp
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			x, ok := sel.X.(*ast.Ident)
			if imp := names[identName(x, ok)]; imp != "" && slices.Contains(chance[imp], sel.Sel.Name) && !slices.Contains(found, imp) {
				found = append(found, imp)
			}
		}
		return true
	})
	return found
}

func identName(x *ast.Ident, ok bool) string {
	if !ok {
		return ""
	}
	return x.Name
}
