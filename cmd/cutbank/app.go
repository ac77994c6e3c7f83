package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo"
)

// app is one run of the program.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	ending         context.Context // done grace after the command was to end; nil: never

	repoPath, passwordCommand, cacheDir string
	credential                          string // a file
	noCache, json, quiet, verbose       bool
	asStored                            bool // without views
	secrets                             bool // show what views mask
	oldest                              bool // read the oldest versions
	cacheLimit, diskCache               sizeFlag
	diskPages                           bool // keep no contents of files on the disk
	cpuProfile, memProfile              string
	level                               seal.Level
	frameCache                          int64
	heartbeat                           time.Duration

	caCert                     string // a file
	limitUpload, limitDownload sizeFlag

	profile       *os.File
	givenPassword string // handed down by a parent process
	misled        error  // that help was asked for by mistake

	transports map[string]*http.Transport // of places in the network that were opened, by the file of certificates
	open       *repo.Repo
}

func (a *app) close() error {
	err := a.stopProfile()
	if a.open == nil {
		return err
	}
	return errors.Join(err, a.open.Close())
}

// now is the program's only clock.
func now() time.Time { return time.Now() }

func (a *app) logf(format string, args ...any) {
	if a.verbose {
		a.errorf(format, args...)
	}
}

func (a *app) options() (repo.Options, error) {
	dir, err := a.stateDir()
	if err != nil {
		return repo.Options{}, err
	}
	cred, err := a.readCredential()
	if err != nil {
		return repo.Options{}, err
	}
	return repo.Options{Password: a.password, Credential: cred, CacheDir: dir, CacheLimit: int64(a.cacheLimit), DiskCache: int64(a.diskCache), DiskPages: a.diskPages, Level: a.level, FrameCache: a.frameCache, Heartbeat: a.heartbeat,
		NoOpenKeys: a.passwordGiven(), Host: hostName(), Program: programVersion(), Random: rand.Reader, Now: now, Logf: a.logf}, nil
}

// stateDir returns the folder for local state, empty for none.
func (a *app) stateDir() (string, error) {
	if a.noCache {
		return "", nil
	}
	if a.cacheDir != "" {
		return filepath.Abs(a.cacheDir)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		return "", nil // no home: no local state
	}
	return filepath.Join(base, "cutbank"), nil
}

// readCredential returns what --credential names; nil if it names nothing.
func (a *app) readCredential() ([]byte, error) { return a.credentialIn("--credential", a.credential) }

// credentialIn returns what is in the file that a flag names; nil if it names none.
func (a *app) credentialIn(flag, file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	fi, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if fi.Mode().IsRegular() && fi.Mode().Perm()&0o077 != 0 {
		a.warnf("%s can be read by others: `chmod 600` keeps it a secret", quote(file))
	}
	p, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return append([]byte{}, p...), nil // empty is not nil: it is no credential
}

// repo opens the repository, once, with a key that can read it.
func (a *app) repo(ctx context.Context) (*repo.Repo, error) {
	r, err := a.anyRepo(ctx)
	if err != nil {
		return nil, err
	}
	return r, r.Readable()
}

// anyRepo opens the repository, once, for what a write-only credential can do
// too.
func (a *app) anyRepo(ctx context.Context) (*repo.Repo, error) {
	if a.open != nil {
		return a.open, nil
	}
	b, err := a.place()
	if err != nil {
		return nil, err
	}
	opt, err := a.options()
	if err != nil {
		return nil, err
	}
	r, err := repo.Open(ctx, b, opt)
	if errors.Is(err, repo.ErrNoRepo) || errors.Is(err, chunk.ErrCorrupt) {
		if hint := a.coveredHint(ctx, b); hint != "" {
			return nil, fmt.Errorf("%w%s", err, hint)
		}
	}
	if errors.Is(err, repo.ErrNoRepo) {
		return nil, fmt.Errorf("%w; `cutbank init -r %s` makes one", err, a.repoPath)
	}
	if errors.Is(err, repo.ErrKey) && !errors.Is(err, errNoPassword) && a.credential != "" {
		return nil, fmt.Errorf("--credential %s: %w", quote(a.credential), err)
	}
	if errors.Is(err, repo.ErrKey) && !errors.Is(err, errNoPassword) {
		return nil, fmt.Errorf("%w: check CUTBANK_PASSWORD, CUTBANK_PASSWORD_FILE or --password-command", err)
	}
	if err != nil {
		return nil, err
	}
	a.open = r
	return r, nil
}

// otherError tells why the repository that --to or --from names does not open.
func (a *app) otherError(flag, path string, err error) error {
	sources := fmt.Sprintf("CUTBANK_%s_PASSWORD, --%s-password-file or --%s-password-command", strings.ToUpper(flag), flag, flag)
	switch {
	case errors.Is(err, errNoPassword):
		return &wrapped{fmt.Sprintf("--%s %s: a password is needed: set %s", flag, quote(path), sources), err}
	case errors.Is(err, repo.ErrKey):
		return fmt.Errorf("--%s %s: %w: check %s", flag, quote(path), err, sources)
	}
	return fmt.Errorf("--%s %s: %w", flag, quote(path), err)
}

// synced opens the repository and reads what the index does not know yet.
func (a *app) synced(ctx context.Context) (*repo.Repo, error) {
	r, err := a.repo(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.Sync(ctx); err != nil {
		if !errors.Is(err, chunk.ErrCorrupt) && !errors.Is(err, seal.ErrNoKey) {
			return nil, err
		}
		a.warnf("%v; `cutbank verify` tells what it affects", err)
	}
	return r, nil
}

// passwordGiven reports whether there is a source of the password but the
// prompt.
func (a *app) passwordGiven() bool {
	return a.givenPassword != "" || a.passwordCommand != "" || os.Getenv("CUTBANK_PASSWORD") != "" || os.Getenv("CUTBANK_PASSWORD_FILE") != ""
}

// hostName is what this machine calls itself; empty if it does not know.
func hostName() string {
	name, _ := os.Hostname()
	return name
}

// defaultName is the host's name, or, where that would pass for a snapshot's ID
// as those of containers do, one made of it.
func defaultName() string {
	name := hostName()
	if repo.CheckName(name) != nil && repo.CheckName("host-"+name) == nil {
		return "host-" + name
	}
	return name
}

// password gets the password of an existing repository.
func (a *app) password() (string, error) { return a.askPassword("password: ", false) }

// askPassword takes the first source that is set.
func (a *app) askPassword(prompt string, twice bool) (string, error) {
	switch {
	case a.givenPassword != "":
		return a.givenPassword, nil
	case a.passwordCommand != "":
		return a.commandPassword("--password-command", a.passwordCommand)
	case os.Getenv("CUTBANK_PASSWORD") != "":
		return os.Getenv("CUTBANK_PASSWORD"), nil
	case os.Getenv("CUTBANK_PASSWORD_FILE") != "":
		p, err := os.ReadFile(os.Getenv("CUTBANK_PASSWORD_FILE"))
		if err != nil {
			return "", fmt.Errorf("CUTBANK_PASSWORD_FILE: %w", err)
		}
		return firstLine(p, "the file named by CUTBANK_PASSWORD_FILE is empty")
	}
	return a.promptPassword(prompt, twice)
}

// commandPassword gets a password from a command that a flag gives.
func (a *app) commandPassword(flag, command string) (string, error) {
	cmd := exec.Command("/bin/sh", "-c", command)
	cmd.Stderr = a.stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %q: %w", flag, command, err)
	}
	return firstLine(out, flag+" printed nothing")
}

// errNoPassword says that none is to be had.
var errNoPassword error = noPassword{}

type noPassword struct{}

func (noPassword) Error() string {
	return "a password is needed: set CUTBANK_PASSWORD, CUTBANK_PASSWORD_FILE or --password-command"
}
func (noPassword) Unwrap() error { return repo.ErrKey }

func firstLine(p []byte, none string) (string, error) {
	line, _, _ := bytes.Cut(p, []byte("\n"))
	if s := strings.TrimSuffix(string(line), "\r"); s != "" {
		return s, nil
	}
	return "", errors.New(none)
}

func (a *app) promptPassword(prompt string, twice bool) (string, error) {
	f, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return "", errNoPassword
	}
	read := func(prompt string) (string, error) {
		fmt.Fprint(a.stderr, prompt)
		p, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.stderr)
		return string(p), err
	}
	s, err := read(prompt)
	if err != nil || !twice {
		return s, err
	}
	again, err := read("the same again: ")
	if err != nil {
		return "", err
	}
	if s != again {
		return "", errors.New("the two passwords differ: try again")
	}
	if s == "" {
		return "", errors.New("an empty password protects nothing: give one, or --no-password")
	}
	return s, nil
}
