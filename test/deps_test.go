package test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rules say who may import whom: after "a < b", b may import a. What is not
// written is forbidden. The notation is that of go/build's deps_test.go, but a
// rule reaches no further than it says: "a < b" and "b < c" do not let c import
// a. "x/..." on the right is x and every package below it. Files named
// _test.go are free, except that nobody may import the tests' own packages from
// anything that is no test.
//
// Of the standard library only what reaches out of the process is ruled.
const rules = `
# The floors. A floor imports those below it that it names; seal, pack and
# backend know neither each other's callers nor the index.
chunkstore/chunk                                < chunkstore/seal;
chunkstore/chunk, chunkstore/seal               < chunkstore/pack;
chunkstore/backend                              < chunkstore/backend/local, chunkstore/backend/web, chunkstore/backend/s3, chunkstore/backend/azure;
chunkstore/backend/web                          < chunkstore/backend/s3, chunkstore/backend/azure;
chunkstore/chunk, chunkstore/seal, chunkstore/pack < chunkstore/parity;
chunkstore/chunk, chunkstore/seal, chunkstore/pack, chunkstore/parity, chunkstore/backend, chunkstore/diskcache < chunkstore;
chunkstore, chunkstore/chunk, chunkstore/seal, chunkstore/pack, chunkstore/backend < index;
chunkstore/chunk                                < repo/tree;
chunkstore, chunkstore/chunk, chunkstore/seal, chunkstore/pack, chunkstore/parity, chunkstore/backend, chunkstore/diskcache, index, repo/tree < repo;

# The way in. It never imports the way out.
repo/tree                                       < snapshotter/source;
chunkstore, chunkstore/chunk, chunkstore/pack, repo, repo/tree < snapshotter;
repo/tree                                       < snapshotter/system;
repo/tree, snapshotter/source, snapshotter/system < snapshotter/system/command;
repo/tree, snapshotter/system, snapshotter/system/command < snapshotter/system/etcd, snapshotter/system/postgresql;
snapshotter/source                              < snapshotter/system/postgresql;
snapshotter/system                              < snapshotter/system/bolt;
snapshotter/system/bolt                         < snapshotter/system/etcd, snapshotter/system/featurebase;
repo/tree, snapshotter/system                   < snapshotter/system/consul, snapshotter/system/featurebase;

# The way out. It never imports the way in, and only snapfs's callers know a
# repository: everything here is tested over live directories too.
chunkstore/chunk, repo/tree                     < fs/snapfs, fs/mount, fs/restore, fs/diff;
repo/tree                                       < fs/tarball;

# Who joins the rooms.
chunkstore, chunkstore/chunk, chunkstore/seal, chunkstore/pack, chunkstore/backend, chunkstore/backend/local, chunkstore/backend/s3, chunkstore/backend/azure, chunkstore/backend/web,
index, repo, repo/tree, snapshotter, snapshotter/source, snapshotter/system, snapshotter/system/command, snapshotter/system/consul, snapshotter/system/etcd, snapshotter/system/postgresql,
snapshotter/system/featurebase,
fs/snapfs, fs/mount, fs/restore, fs/diff, fs/tarball, bench/dedup < cmd/cutbank;
chunkstore/chunk, chunkstore/seal, repo/tree, snapshotter/source, test/gen < bench/...;
bench/tool                                      < bench/versus, bench/remote;

# What only tests (and bench, for its trees) may have.
chunkstore/backend                              < chunkstore/backend/backendtest;
net/http, os/exec, github.com/hanwen/go-fuse/v2 < chunkstore/backend/backendtest;

# Third-party modules: each in one room, or in those where it is the plain
# choice. Their reasons are in why.
github.com/restic/chunker, github.com/zeebo/blake3 < chunkstore/chunk;
github.com/klauspost/compress                   < chunkstore/seal;
github.com/klauspost/reedsolomon                < chunkstore/parity;
github.com/dgraph-io/badger/v4                  < index;
github.com/hanwen/go-fuse/v2                    < fs/mount;
golang.org/x/crypto                             < repo;
golang.org/x/sync                               < index;
google.golang.org/protobuf                      < chunkstore/pack, repo/tree, index;
github.com/tinylib/msgp                         < snapshotter/system/consul;
github.com/minio/minio-go/v7                    < chunkstore/backend/s3;
github.com/Azure/azure-sdk-for-go/sdk/azcore, github.com/Azure/azure-sdk-for-go/sdk/azidentity,
github.com/Azure/azure-sdk-for-go/sdk/storage/azblob < chunkstore/backend/azure;
github.com/bmatcuk/doublestar/v4                < fs/restore, cmd/cutbank;
github.com/spf13/cobra, github.com/schollz/progressbar/v3, github.com/go-git/go-git/v5, golang.org/x/term < cmd/cutbank;
golang.org/x/sys < chunkstore/backend/local, chunkstore/diskcache, index, snapshotter/source, snapshotter/system/command, fs/mount, fs/restore, cmd/cutbank, test/gen, bench/...;

# The standard library, where it reaches out of the process.
os/exec                                         < snapshotter/system/command, fs/mount, cmd/cutbank, bench/...;
net, net/http                                   < chunkstore/backend/web, chunkstore/backend/s3, snapshotter/system/consul, snapshotter/system/featurebase;
net/http                                        < chunkstore/backend/azure;
net/http                                        < cmd/cutbank;
net, net/http                                   < bench/remote;
`

// why says what each third-party module is for. A module without a reason, or
// whose reason nobody needs any more, fails the test.
var why = map[string]string{
	"github.com/restic/chunker":                            "the splitter: Rabin fingerprints, proven by years of restic",
	"github.com/zeebo/blake3":                              "chunk IDs, closing hashes, key derivation: BLAKE3 in assembly",
	"github.com/klauspost/compress":                        "zstd without cgo",
	"github.com/klauspost/reedsolomon":                     "Reed-Solomon parity, in assembly",
	"github.com/dgraph-io/badger/v4":                       "the index cache: its table format, mapped and with Bloom filters",
	"github.com/hanwen/go-fuse/v2":                         "the kernel's FUSE protocol, raw",
	"golang.org/x/crypto":                                  "argon2id, for passwords",
	"golang.org/x/sync":                                    "errgroup, where segments are read side by side",
	"google.golang.org/protobuf":                           "protowire only: the wire format of trailers, segments and pages",
	"github.com/minio/minio-go/v7":                         "S3: signatures, credentials of every kind, the dialects of its servers",
	"github.com/Azure/azure-sdk-for-go/sdk/azcore":         "azblob's and azidentity's options, requests and errors",
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity":     "tokens of service principals, workloads and machines",
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob": "Azure Blob Storage: signatures, requests, listings",
	"github.com/tinylib/msgp":                              "MessagePack, of which Consul's states are made; minio-go has it already",
	"github.com/bmatcuk/doublestar/v4":                     "globs with **, as users of rsync and git expect",
	"github.com/spf13/cobra":                               "commands, flags, completion",
	"github.com/schollz/progressbar/v3":                    "a progress bar that copes with what is no terminal",
	"github.com/go-git/go-git/v5":                          "gitignore patterns only",
	"golang.org/x/term":                                    "passwords without an echo, and what is a terminal",
	"golang.org/x/sys":                                     "system calls that the standard library lacks",
}

// ruled are the packages of the standard library that need a rule.
var ruled = []string{"os/exec", "net", "net/http", "unsafe", "plugin", "C", "net/http/pprof"}

// testOnly may be imported by files of tests and by bench.
var testOnly = []string{"chunkstore/backend/backendtest", "test/gen"}

const module = "github.com/cutbankfs/cutbank"

// importer is one package with what its files import, tests apart.
type importer struct {
	imports map[string]string // path or module -> the file that imports it
}

func TestWhoImportsWhom(t *testing.T) {
	allowed, err := parseRules(rules)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	pkgs := packages(t)
	for _, pkg := range slices.Sorted(maps.Keys(pkgs)) {
		for _, imp := range slices.Sorted(maps.Keys(pkgs[pkg].imports)) {
			file := pkgs[pkg].imports[imp]
			if slices.Contains(testOnly, imp) && !strings.HasPrefix(pkg, "bench") {
				t.Errorf("%s: %s is for tests only", file, imp)
				continue
			}
			if !may(allowed, pkg, imp) {
				t.Errorf("%s: %s may not import %s: move the code, or write the rule and its reason into deps_test.go", file, pkg, imp)
			}
			used[imp] = true
		}
	}
	for mod := range why {
		if !used[mod] {
			t.Errorf("nothing imports %s any more: take out its rule and its reason", mod)
		}
	}
	for imp := range used {
		if isModule(imp) && why[imp] == "" {
			t.Errorf("%s has no reason: why says what it is for", imp)
		}
	}
	wings(t, allowed)
}

// wings checks the rules themselves: the two ways must not know each other,
// whatever is written.
func wings(t *testing.T, allowed map[string][]string) {
	for pkg, imports := range allowed {
		for _, imp := range imports {
			in, out := strings.HasPrefix(pkg, "snapshotter"), strings.HasPrefix(pkg, "fs/")
			if in && strings.HasPrefix(imp, "fs/") || out && strings.HasPrefix(imp, "snapshotter") {
				t.Errorf("the rules let %s import %s: the wings meet in tree.Node only", pkg, imp)
			}
		}
	}
}

func TestRulesAreStrict(t *testing.T) {
	allowed, err := parseRules("chunkstore, fs/snapfs < index; # comment\n index < repo/...;")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pkg, imp string
		want     bool
	}{
		{"index", "chunkstore", true}, {"index", "fs/snapfs", true}, {"index", "fs", false}, {"chunkstore", "index", false},
		{"repo", "index", true}, {"repo/tree", "index", true}, {"repository", "index", false}, {"repo", "chunkstore", false}, // no further than it says
		{"repo", "fmt", true}, {"repo", "os/exec", false}, {"repo", "github.com/some/thing", false},
	} {
		if got := may(allowed, c.pkg, c.imp); got != c.want {
			t.Errorf("may %s import %s? got %v", c.pkg, c.imp, got)
		}
	}
	for _, bad := range []string{"a < b < c;", "a;", "a < b", "< b;", "a <;"} {
		if _, err := parseRules(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// parseRules returns what each package may import.
func parseRules(text string) (map[string][]string, error) {
	var clean strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		clean.WriteString(line + "\n")
	}
	allowed := map[string][]string{}
	all := strings.Split(clean.String(), ";")
	if last := strings.TrimSpace(all[len(all)-1]); last != "" {
		return nil, fmt.Errorf("rule %q does not end with a semicolon", last)
	}
	for _, rule := range all[:len(all)-1] {
		sides := strings.Split(rule, "<")
		if len(sides) != 2 {
			return nil, fmt.Errorf("rule %q: want one <", strings.TrimSpace(rule))
		}
		for _, pkg := range strings.Split(sides[1], ",") {
			for _, imp := range strings.Split(sides[0], ",") {
				pkg, imp := strings.TrimSpace(pkg), strings.TrimSpace(imp)
				if pkg == "" || imp == "" {
					return nil, fmt.Errorf("rule %q: a name is missing", strings.TrimSpace(rule))
				}
				allowed[pkg] = append(allowed[pkg], imp)
			}
		}
	}
	return allowed, nil
}

// may reports whether pkg may import imp. What is of the standard library and
// not ruled is free.
func may(allowed map[string][]string, pkg, imp string) bool {
	if !isModule(imp) && !slices.Contains(ruled, imp) && isStandard(imp) {
		return true
	}
	for who, what := range allowed {
		below, tree := strings.CutSuffix(who, "/...")
		if (who == pkg || tree && (pkg == below || strings.HasPrefix(pkg, below+"/"))) && slices.Contains(what, imp) {
			return true
		}
	}
	return false
}

// isModule reports whether an import is a third-party one: only these have a
// dot in the first element.
func isModule(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	return strings.Contains(first, ".")
}

// isStandard is for imports without a dot: own ones begin with a room's name.
func isStandard(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	return !slices.Contains(rooms, first)
}

// packages parses the imports of every file of the module that is no test.
func packages(t *testing.T) map[string]*importer {
	t.Helper()
	modules := required(t)
	pkgs := map[string]*importer{}
	for _, file := range goFiles(t) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		pkg := path.Dir(file)
		if pkgs[pkg] == nil {
			pkgs[pkg] = &importer{map[string]string{}}
		}
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if own, ok := strings.CutPrefix(imp, module+"/"); ok {
				imp = own
			} else if isModule(imp) {
				imp = moduleOf(imp, modules)
			}
			pkgs[pkg].imports[imp] = file
		}
	}
	if len(pkgs) < 10 {
		t.Fatalf("only %d packages were found below %s", len(pkgs), root)
	}
	return pkgs
}

// moduleOf returns the module of go.mod that an import path belongs to.
func moduleOf(imp string, modules []string) string {
	best := imp
	for _, m := range modules {
		if (imp == m || strings.HasPrefix(imp, m+"/")) && (best == imp || len(m) > len(best)) {
			best = m
		}
	}
	return best
}

// required lists the modules of go.mod.
func required(t *testing.T) []string {
	t.Helper()
	p, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(p)) {
		fields := strings.Fields(strings.TrimPrefix(line, "require "))
		if len(fields) >= 2 && isModule(fields[0]) && strings.HasPrefix(fields[1], "v") {
			list = append(list, fields[0])
		}
	}
	return list
}

// root is the module's folder, seen from this one.
const root = ".."

// goFiles lists the module's Go files, slash-separated, from the root on.
func goFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	err := fs.WalkDir(os.DirFS(root), ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_") || d.Name() == "testdata"):
			return fs.SkipDir
		case !d.IsDir() && strings.HasSuffix(p, ".go"):
			files = append(files, p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
