package main

import (
	"crypto/rand"
	"fmt"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/backend/local"
)

func TestMain(m *testing.M) {
	if lag, err := time.ParseDuration(os.Getenv("CUTBANK_TEST_LAG")); err == nil {
		openFolder = func(dir string) (backend.Backend, error) {
			f, err := local.Open(dir)
			return lagging{f, lag}, err
		}
	}
	kinds = append(kinds, &shelf)
	testscript.Main(m, map[string]func(){"cutbank": main})
}

// lagging is a folder whose listings lag so long, and not as long as file systems
// of its kind may.
type lagging struct {
	*local.Folder
	lag time.Duration
}

func (l lagging) Lag() time.Duration { return l.lag }

func (l lagging) Careless() backend.Backend {
	l.Folder.Careless()
	return l
}

// required reports whether CUTBANK_REQUIRE says that a test must not be
// skipped for want of what.
func required(what string) bool {
	for _, r := range strings.Split(os.Getenv("CUTBANK_REQUIRE"), ",") {
		if r == what {
			return true
		}
	}
	return false
}

func params(dir string) testscript.Params {
	return testscript.Params{
		Dir:  dir,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"s3server": serveS3, "share": share, "thief": steal},
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir+"/.home")
			env.Setenv("XDG_CACHE_HOME", "")
			env.Setenv("XDG_STATE_HOME", "")
			env.Setenv("CUTBANK_PASSWORD", "correct horse")
			env.Setenv("CUTBANK_REPO", env.WorkDir+"/repo")
			return os.Mkdir(env.WorkDir+"/.home", 0o700)
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "fuse":
				f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
				if err == nil {
					f.Close()
				}
				if err != nil && required("fuse") {
					return false, fmt.Errorf("CUTBANK_REQUIRE names fuse: %w", err)
				}
				return err == nil, nil
			}
			if path, ok := strings.CutPrefix(cond, "exists:"); ok {
				_, err := os.Stat(path)
				if err != nil && required("fuse") {
					return false, fmt.Errorf("CUTBANK_REQUIRE leaves no test out: %w", err)
				}
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
	}
}

// serveS3 starts a server that speaks S3 in the test's process, with a bucket of
// the name "bucket", and sets S3 to its URL. "s3server careless" ignores
// If-None-Match, "s3server archive" keeps versions and locks objects, "s3server
// unlockable" keeps only versions. The commands of the script get credentials for it.
func serveS3(ts *testscript.TestScript, neg bool, args []string) {
	s := &backendtest.S3{Mem: backend.NewMem(), Bucket: "bucket", Unconditional: slices.Contains(args, "careless")}
	if slices.Contains(args, "archive") || slices.Contains(args, "unlockable") {
		s.Archive = &backendtest.Archive{Unlockable: slices.Contains(args, "unlockable")}
	}
	srv := httptest.NewServer(s)
	ts.Defer(srv.Close)
	ts.Setenv("S3", "s3+"+srv.URL+"/bucket")
	ts.Setenv("AWS_ACCESS_KEY_ID", "id")
	ts.Setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
}

// share mounts the first folder at each of the others, as so many machines would
// have it from the network: "share nolink 300ms nas a b". With nolink there are no
// hard links, and no renames that spare what is there; with bare no directory can
// be moved, either. Each mount keeps what it saw for the time that is given.
func share(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 4 {
		ts.Fatalf("usage: share nolink|bare LAG FOLDER MOUNTPOINT...")
	}
	lag, err := time.ParseDuration(args[1])
	ts.Check(err)
	for _, mnt := range args[3:] {
		faults := &backendtest.FolderFaults{Link: syscall.EOPNOTSUPP, RenameFlag: syscall.EINVAL, Lag: lag}
		if args[0] == "bare" {
			faults.RenameDir = syscall.EPERM
		}
		unmount, err := backendtest.ServeFolder(ts.MkAbs(args[2]), ts.MkAbs(mnt), faults)
		ts.Check(err)
		ts.Defer(func() { ts.Check(unmount()) })
	}
	ts.Setenv("CUTBANK_TEST_LAG", args[1])
}

// services are the scripts that need a server, and where it is: the test's variable,
// which CUTBANK_REQUIRE may ask for by a name, and the script's.
var services = []struct{ script, from, require, to string }{
	{"s3", "CUTBANK_TEST_S3", "s3", "S3"},
	{"unfenced", "CUTBANK_TEST_S3_UNFENCED", "unfenced", "S3"},
	{"azure", "CUTBANK_TEST_AZURE", "azure", "AZURE"},
	{"lock", "CUTBANK_TEST_S3_LOCK", "s3", "S3"},
}

// TestServices runs testdata/services/*.txtar against servers that `make
// test-services` starts.
func TestServices(t *testing.T) {
	for _, s := range services {
		t.Run(s.script, func(t *testing.T) {
			url := os.Getenv(s.from)
			if url == "" && required(s.require) {
				t.Fatalf("%s is not set, and CUTBANK_REQUIRE asks for %s", s.from, s.require)
			}
			if url == "" {
				t.Skipf("LEFT OUT: %s is not set; `make test-services` starts a server and runs this", s.from)
			}
			if s.script == "lock" {
				makeLocked(t, url)
			}
			p := params("")
			p.Files = []string{"testdata/services/" + s.script + ".txtar"}
			setup := p.Setup
			p.Setup = func(env *testscript.Env) error {
				if err := setup(env); err != nil {
					return err
				}
				env.Setenv(s.to, url+"/"+strings.ToLower(rand.Text()))
				for _, kv := range os.Environ() {
					if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "AWS_") || strings.HasPrefix(name, "AZURE_") {
						env.Setenv(name, value)
					}
				}
				return nil
			}
			testscript.Run(t, p)
		})
	}
}

// TestScripts runs testdata/*.txtar: what users type, and what they see.
func TestScripts(t *testing.T) {
	short(t)
	testscript.Run(t, params("testdata"))
}

// short skips what runs the program hundreds of times, each of which derives a key
// from a password: under -race that takes many minutes.
func short(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("short: the program runs as processes")
	}
}

// TestReadme runs the README's examples as they stand there, with the file
// system's root moved into a temporary folder.
func TestReadme(t *testing.T) {
	short(t)
	p, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(p), "## In daily use\n")
	if !ok {
		t.Fatal("README.md has no section on daily use")
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	script := []string{"[!fuse] skip 'needs /dev/fuse'", "mkdir etc/nginx home mnt var/lib/postgresql",
		"cp pw etc/cutbank.pw", "cp pw etc/nginx/nginx.conf", "cp pw home/notes", "cp pw var/lib/postgresql/base", "env CUTBANK_PASSWORD="}
	root := regexp.MustCompile(`([ =])/(\w)`)
	n := 0
	for line := range strings.Lines(rest) {
		cmd, ok := strings.CutPrefix(line, "    ")
		if !ok {
			continue
		}
		cmd, _, _ = strings.Cut(cmd, "#")
		cmd = root.ReplaceAllString(strings.TrimSpace(cmd), "${1}$$WORK/$2")
		cmd = strings.ReplaceAll(cmd, "latest:/", "latest:$WORK/")
		if env, ok := strings.CutPrefix(cmd, "export "); ok {
			script = append(script, "env "+env)
			continue
		}
		script = append(script, cmd)
		n++
	}
	if n < 10 {
		t.Fatalf("README.md has %d examples, which cannot be all", n)
	}
	dir := t.TempDir()
	text := strings.Join(script, "\n") + "\n-- pw --\nsecret\n"
	if err := os.WriteFile(dir+"/readme.txtar", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, params(dir))
}
