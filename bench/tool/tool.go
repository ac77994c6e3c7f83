package tool

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Tool is one program and how it is asked for each step. It keeps all its state
// on this machine below one folder. The n-th snapshot is the n-th call of
// Snapshot, from 1 on.
type Tool struct {
	Name  string
	Bin   string
	base  string
	label string
	env   []string

	Version  []string
	Init     [][]string
	Snapshot func(n int) []string
	List     []string // prints something Count understands
	Count    func(list []byte) (int, error)

	Restore  func(n int, target string) []string // runs in target
	Restored func(target string) string          // where the tree then is
	Verify   []string
	ReadData []string

	Mount   func(n int, dir string) []string // stays in the foreground until SIGINT
	Mounted func(dir string) string          // where the tree is, empty as long as it is not
	Umount  func(dir string) []string        // nil: a SIGINT ends the mount
}

// Bucket is a place for repositories behind S3's protocol, without encryption on
// the way. Every tool takes a prefix of its own name there.
type Bucket struct {
	Host           string // and port
	Name           string
	Region         string
	Access, Secret string
}

// Repo is the folder of a repository that is in none of the buckets, whichever
// tool's it is; Cache is that of what a tool can do without.
func (t *Tool) Repo() string  { return filepath.Join(t.base, "repo") }
func (t *Tool) Cache() string { return filepath.Join(t.base, "cache") }

// Command returns a process of the tool.
func (t *Tool) Command(args []string) Command {
	return Command{Args: append([]string{t.Bin}, args...), Env: t.env}
}

// password protects repositories that live for minutes.
const password = "beside"

// makers builds the tools that are known. A nil Bucket is the folder Repo.
var makers = map[string]func(t *Tool, tree string, at *Bucket){
	"cutbank": cutbankTool,
	"restic":  resticTool,
	"kopia":   kopiaTool,
	"borg":    borgTool,
}

// Names are those of the tools that New knows, in the order of columns.
var Names = []string{"cutbank", "restic", "kopia", "borg"}

// Remote are those of them that work with a Bucket.
var Remote = []string{"cutbank", "restic", "kopia"}

// Options say what a Tool works on.
type Options struct {
	Bin   string  // the program
	Base  string  // folder for all that it keeps on this machine; made if it is not there
	Tree  string  // absolute path of what it makes snapshots of
	Label string  // tells its snapshots from those of other trees in the repository
	At    *Bucket // where the repository is; nil: below Base
}

// New prepares one of Names, with its folders. Several may share a Base, and so
// a repository.
func New(name string, opt Options) (*Tool, error) {
	if makers[name] == nil || opt.At != nil && !slices.Contains(Remote, name) {
		return nil, fmt.Errorf("%s: not known how to run it there", name)
	}
	t := &Tool{Name: name, Bin: opt.Bin, base: opt.Base, label: opt.Label}
	home, tmp := filepath.Join(t.base, "home"), filepath.Join(t.base, "tmp")
	for _, dir := range []string{t.Cache(), home, tmp} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	// Nothing of the user's own settings: each tool starts as newly installed.
	t.env = []string{
		"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "USER=bench", "HOME=" + home, "TMPDIR=" + tmp,
		"XDG_CACHE_HOME=" + t.Cache(), "XDG_CONFIG_HOME=" + home, "XDG_STATE_HOME=" + home,
	}
	if at := opt.At; at != nil {
		// Who is not told the region asks for it: a request each time.
		t.env = append(t.env, "AWS_ACCESS_KEY_ID="+at.Access, "AWS_SECRET_ACCESS_KEY="+at.Secret,
			"AWS_REGION="+at.Region, "AWS_DEFAULT_REGION="+at.Region)
	}
	makers[name](t, opt.Tree, opt.At)
	return t, nil
}

// Go is the go command: what GO names, as in the Makefile.
func Go() string {
	if bin := os.Getenv("GO"); bin != "" {
		return bin
	}
	return "go"
}

// Find returns the absolute path of one of Names: of the given binary, else of
// what is on the PATH. Cutbank it builds into dir instead, from the module of the
// current folder.
func Find(ctx context.Context, name, given, dir string) (string, error) {
	if given == "" && name == "cutbank" {
		bin := filepath.Join(dir, name)
		_, err := Command{Args: []string{Go(), "build", "-trimpath", "-o", bin, "github.com/cutbankfs/cutbank/cmd/cutbank"}}.Run(ctx, nil)
		return bin, err
	}
	if given == "" {
		given = name
	}
	bin, err := exec.LookPath(given)
	if err != nil {
		return "", err
	}
	return filepath.Abs(bin)
}

// About returns what the tool says of its version.
func (t *Tool) About(ctx context.Context) (string, error) {
	out, err := t.Command(t.Version).Output(ctx)
	first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return first, err
}

// CheckCount returns an error if the tool does not list that many snapshots.
func (t *Tool) CheckCount(ctx context.Context, want int) error {
	list, err := t.Command(t.List).Output(ctx)
	if err != nil {
		return err
	}
	got, err := t.Count(list)
	if err == nil && got != want {
		err = fmt.Errorf("%s lists %d snapshots after making %d", t.Name, got, want)
	}
	return err
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

func cutbankTool(t *Tool, tree string, at *Bucket) {
	repo := t.Repo()
	if at != nil {
		repo = "s3+http://" + at.Host + "/" + at.Name + "/cutbank"
	}
	t.env = append(t.env, "CUTBANK_REPO="+repo, "CUTBANK_PASSWORD="+password, "CUTBANK_CACHE_DIR="+t.Cache())
	t.Version = []string{"version"}
	t.Init = [][]string{{"init"}}
	t.Snapshot = func(int) []string { return []string{"snapshot", "--quiet", "--name", t.label, tree} }
	t.List = []string{"snapshots", "--json"}
	t.Count = countLines(func(line []byte) bool {
		var v struct{ Type string }
		return json.Unmarshal(line, &v) == nil && v.Type == "snapshot"
	})
	t.Restore = func(_ int, target string) []string {
		return []string{"restore", "--quiet", "--no-receipt", t.label + "/latest", target}
	}
	t.Restored = below(tree)
	t.Verify = []string{"verify", "--quiet"}
	t.ReadData = []string{"verify", "--quiet", "--read-data"}
	t.Mount = func(_ int, dir string) []string { return []string{"mount", dir} }
	t.Mounted = func(dir string) string { return exists(filepath.Join(dir, t.label, "latest", tree)) }
	t.Umount = func(dir string) []string { return []string{"umount", "--quiet", dir} }
}

func resticTool(t *Tool, tree string, at *Bucket) {
	repo := t.Repo()
	if at != nil {
		repo = "s3:http://" + at.Host + "/" + at.Name + "/restic"
	}
	t.env = append(t.env, "RESTIC_REPOSITORY="+repo, "RESTIC_PASSWORD="+password, "RESTIC_CACHE_DIR="+t.Cache())
	t.Version = []string{"version"}
	t.Init = [][]string{{"init"}}
	t.Snapshot = func(int) []string { return []string{"backup", "--quiet", "--host", t.label, tree} }
	t.List = []string{"snapshots", "--json"}
	t.Count = countArray
	t.Restore = func(_ int, target string) []string {
		return []string{"restore", "--quiet", "--host", t.label, "latest", "--target", target}
	}
	t.Restored = below(tree)
	t.Verify = []string{"check", "--quiet"}
	t.ReadData = []string{"check", "--quiet", "--read-data"}
	t.Mount = func(_ int, dir string) []string { return []string{"mount", dir} }
	t.Mounted = func(dir string) string { return exists(filepath.Join(dir, "hosts", t.label, "latest", tree)) }
}

func kopiaTool(t *Tool, tree string, at *Bucket) {
	t.env = append(t.env, "KOPIA_PASSWORD="+password, "KOPIA_CONFIG_PATH="+filepath.Join(t.base, "home", "repository.config"),
		"KOPIA_CACHE_DIRECTORY="+t.Cache(), "KOPIA_LOG_DIR="+filepath.Join(t.base, "home", "logs"), "KOPIA_CHECK_FOR_UPDATES=false")
	t.Version = []string{"--version"}
	create := []string{"repository", "create", "filesystem", "--path", t.Repo()}
	if at != nil {
		create = []string{"repository", "create", "s3", "--endpoint", at.Host, "--disable-tls", "--bucket", at.Name, "--prefix", "kopia/", "--region", at.Region}
	}
	t.Init = [][]string{
		append(create, "--override-hostname", "bench", "--override-username", "bench"),
		// Its default is not to compress at all; sizes would compare nothing.
		{"policy", "set", "--global", "--compression", "zstd-fastest"},
	}
	t.Snapshot = func(int) []string { return []string{"snapshot", "create", "--no-progress", tree} }
	t.List = []string{"snapshot", "list", "--json", "--show-identical"}
	t.Count = countArray
	t.Restore = func(_ int, target string) []string {
		return []string{"restore", "--no-progress", "--snapshot-time", "latest", tree, target}
	}
	t.Restored = below(".")
	t.Verify = []string{"snapshot", "verify", "--no-progress"}
	t.ReadData = []string{"snapshot", "verify", "--no-progress", "--verify-files-percent=100"}
	t.Mount = func(_ int, dir string) []string { return []string{"mount", "all", dir} }
	// USER@HOST, the path in a form of its own, the time: the newest sorts last.
	t.Mounted = func(dir string) string {
		found, err := filepath.Glob(filepath.Join(dir, "bench@bench", "*", "*"))
		if err != nil || len(found) == 0 {
			return ""
		}
		slices.Sort(found)
		return exists(found[len(found)-1])
	}
}

func borgTool(t *Tool, tree string, _ *Bucket) {
	t.env = append(t.env, "BORG_REPO="+t.Repo(), "BORG_PASSPHRASE="+password, "BORG_BASE_DIR="+filepath.Join(t.base, "home"),
		"BORG_CACHE_DIR="+t.Cache())
	archive := func(n int) string { return "::" + t.label + "-" + strconv.Itoa(n) }
	t.Version = []string{"--version"}
	t.Init = [][]string{{"init", "--encryption", "repokey-blake2"}}
	t.Snapshot = func(n int) []string { return []string{"create", archive(n), tree} }
	t.List = []string{"list", "--short"}
	t.Count = countLines(func([]byte) bool { return true })
	t.Restore = func(n int, _ string) []string { return []string{"extract", archive(n)} }
	t.Restored = below(tree)
	// Its plain check reads all data too.
	t.Verify = []string{"check", "--archives-only"}
	t.ReadData = []string{"check", "--verify-data"}
	t.Mount = func(n int, dir string) []string { return []string{"mount", "--foreground", archive(n), dir} }
	t.Mounted = func(dir string) string { return exists(filepath.Join(dir, tree)) }
	t.Umount = func(dir string) []string { return []string{"umount", dir} } // it may not hear a SIGINT
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
