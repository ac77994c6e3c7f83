package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"cutbank": main})
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
		Dir: dir,
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
