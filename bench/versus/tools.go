package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// tool is one program and how it is asked for each step. The n-th snapshot of a
// run is the n-th call of snapshot, from 1 on.
type tool struct {
	name string
	bin  string
	base string // folder of all that the tool keeps in this run
	env  []string

	version  []string
	init     [][]string
	snapshot func(n int) []string
	list     []string // prints something count understands
	count    func(list []byte) (int, error)

	restore  func(n int, target string) []string // runs in target
	restored func(target string) string          // where the tree then is
	verify   []string
	readData []string

	mount   func(n int, dir string) []string // stays in the foreground until SIGINT
	mounted func(dir string) string          // where the tree is, empty as long as it is not
	umount  func(dir string) []string        // nil: a SIGINT ends the mount
}

// Folders below base, the same for all tools.
func (t *tool) repo() string  { return filepath.Join(t.base, "repo") }
func (t *tool) cache() string { return filepath.Join(t.base, "cache") }

// command returns a process of the tool.
func (t *tool) command(args []string) command {
	return command{args: append([]string{t.bin}, args...), env: t.env}
}

// password protects repositories that live for minutes.
const password = "beside"

// makers builds the tools that are known, for a tree.
var makers = map[string]func(t *tool, tree string){
	"cutbank": cutbankTool,
	"restic":  resticTool,
	"kopia":   kopiaTool,
	"borg":    borgTool,
}

// toolNames is the order of columns.
var toolNames = []string{"cutbank", "restic", "kopia", "borg"}

// newTool prepares a tool for a run, with its folders.
func newTool(name, bin, base, tree string) (*tool, error) {
	t := &tool{name: name, bin: bin, base: base}
	for _, dir := range []string{t.cache(), filepath.Join(base, "home"), filepath.Join(base, "tmp")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	// Nothing of the user's own settings: each tool starts as newly installed.
	t.env = []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "USER=bench", "HOME=" + filepath.Join(base, "home"), "TMPDIR=" + filepath.Join(base, "tmp"),
		"XDG_CACHE_HOME=" + t.cache(), "XDG_CONFIG_HOME=" + filepath.Join(base, "home"), "XDG_STATE_HOME=" + filepath.Join(base, "home"),
	}
	makers[name](t, tree)
	return t, nil
}

// below returns a function that joins a path to a folder.
func below(path string) func(string) string {
	return func(dir string) string { return filepath.Join(dir, path) }
}

// exists returns path if it is there.
func exists(path string) string {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return path
	}
	return ""
}

func cutbankTool(t *tool, tree string) {
	t.env = append(t.env, "CUTBANK_REPO="+t.repo(), "CUTBANK_PASSWORD="+password, "CUTBANK_CACHE_DIR="+t.cache())
	t.version = []string{"version"}
	t.init = [][]string{{"init"}}
	t.snapshot = func(int) []string { return []string{"snapshot", "--quiet", "--name", "bench", tree} }
	t.list = []string{"snapshots", "--json"}
	t.count = countLines(func(line []byte) bool {
		var v struct{ Type string }
		return json.Unmarshal(line, &v) == nil && v.Type == "snapshot"
	})
	t.restore = func(_ int, target string) []string {
		return []string{"restore", "--quiet", "--no-receipt", "latest", target}
	}
	t.restored = below(tree)
	t.verify = []string{"verify", "--quiet"}
	t.readData = []string{"verify", "--quiet", "--read-data"}
	t.mount = func(_ int, dir string) []string { return []string{"mount", dir} }
	t.mounted = func(dir string) string { return exists(filepath.Join(dir, "bench", "latest", tree)) }
	t.umount = func(dir string) []string { return []string{"umount", "--quiet", dir} }
}

func resticTool(t *tool, tree string) {
	t.env = append(t.env, "RESTIC_REPOSITORY="+t.repo(), "RESTIC_PASSWORD="+password, "RESTIC_CACHE_DIR="+t.cache())
	t.version = []string{"version"}
	t.init = [][]string{{"init"}}
	t.snapshot = func(int) []string { return []string{"backup", "--quiet", "--host", "bench", tree} }
	t.list = []string{"snapshots", "--json"}
	t.count = countArray
	t.restore = func(_ int, target string) []string {
		return []string{"restore", "--quiet", "latest", "--target", target}
	}
	t.restored = below(tree)
	t.verify = []string{"check", "--quiet"}
	t.readData = []string{"check", "--quiet", "--read-data"}
	t.mount = func(_ int, dir string) []string { return []string{"mount", dir} }
	t.mounted = func(dir string) string { return exists(filepath.Join(dir, "snapshots", "latest", tree)) }
}

func kopiaTool(t *tool, tree string) {
	t.env = append(t.env, "KOPIA_PASSWORD="+password, "KOPIA_CONFIG_PATH="+filepath.Join(t.base, "home", "repository.config"),
		"KOPIA_CACHE_DIRECTORY="+t.cache(), "KOPIA_LOG_DIR="+filepath.Join(t.base, "home", "logs"), "KOPIA_CHECK_FOR_UPDATES=false")
	t.version = []string{"--version"}
	t.init = [][]string{
		{"repository", "create", "filesystem", "--path", t.repo(), "--override-hostname", "bench", "--override-username", "bench"},
		// Its default is not to compress at all; sizes would compare nothing.
		{"policy", "set", "--global", "--compression", "zstd-fastest"},
	}
	t.snapshot = func(int) []string { return []string{"snapshot", "create", "--no-progress", tree} }
	t.list = []string{"snapshot", "list", "--json", "--show-identical"}
	t.count = countArray
	t.restore = func(_ int, target string) []string {
		return []string{"restore", "--no-progress", "--snapshot-time", "latest", tree, target}
	}
	t.restored = below(".")
	t.verify = []string{"snapshot", "verify", "--no-progress"}
	t.readData = []string{"snapshot", "verify", "--no-progress", "--verify-files-percent=100"}
	t.mount = func(_ int, dir string) []string { return []string{"mount", "all", dir} }
	// USER@HOST, the path in a form of its own, the time: the newest sorts last.
	t.mounted = func(dir string) string {
		found, err := filepath.Glob(filepath.Join(dir, "bench@bench", "*", "*"))
		if err != nil || len(found) == 0 {
			return ""
		}
		slices.Sort(found)
		return exists(found[len(found)-1])
	}
}

func borgTool(t *tool, tree string) {
	t.env = append(t.env, "BORG_REPO="+t.repo(), "BORG_PASSPHRASE="+password, "BORG_BASE_DIR="+filepath.Join(t.base, "home"),
		"BORG_CACHE_DIR="+t.cache())
	archive := func(n int) string { return "::bench-" + strconv.Itoa(n) }
	t.version = []string{"--version"}
	t.init = [][]string{{"init", "--encryption", "repokey-blake2"}}
	t.snapshot = func(n int) []string { return []string{"create", archive(n), tree} }
	t.list = []string{"list", "--short"}
	t.count = countLines(func([]byte) bool { return true })
	t.restore = func(n int, _ string) []string { return []string{"extract", archive(n)} }
	t.restored = below(tree)
	// Its plain check reads all data too.
	t.verify = []string{"check", "--archives-only"}
	t.readData = []string{"check", "--verify-data"}
	t.mount = func(n int, dir string) []string { return []string{"mount", "--foreground", archive(n), dir} }
	t.mounted = func(dir string) string { return exists(filepath.Join(dir, tree)) }
	t.umount = func(dir string) []string { return []string{"umount", dir} } // it may not hear a SIGINT
}

// countArray counts the elements of a JSON array.
func countArray(list []byte) (int, error) {
	var v []json.RawMessage
	if err := json.Unmarshal(list, &v); err != nil {
		return 0, fmt.Errorf("its list of snapshots is no JSON array: %w", err)
	}
	return len(v), nil
}

// countLines counts the lines that fit.
func countLines(fit func([]byte) bool) func([]byte) (int, error) {
	return func(list []byte) (int, error) {
		n := 0
		for line := range bytes.Lines(list) {
			if line = bytes.TrimSpace(line); len(line) > 0 && fit(line) {
				n++
			}
		}
		return n, nil
	}
}
