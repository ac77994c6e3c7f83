package gen

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Op is a way in which a file changes.
type Op string

// What happens to files. All but Chmod and Rename give the file a new time;
// Rename, Delete and Add give one to its directory.
const (
	Edit     Op = "edit"     // other bytes somewhere inside; the size stays
	Append   Op = "append"   // more bytes at the end
	Truncate Op = "truncate" // half of it is gone
	Touch    Op = "touch"    // the time only
	Chmod    Op = "chmod"    // a permission bit, the time stays
	Rename   Op = "rename"   // another name in the same directory
	Delete   Op = "delete"
	Add      Op = "add" // a new file beside it
)

// Ops lists all.
var Ops = []Op{Edit, Append, Truncate, Touch, Chmod, Rename, Delete, Add}

// Mutation is one change that was made. Paths are relative to the tree.
type Mutation struct {
	Op   Op
	Path string // of the file as it was
	To   string // Rename, Add: the new name
}

// maxPath keeps Mutate to what can be named by one path.
const maxPath = 3500

// Mutate changes about that fraction (0 to 1) of the regular files below dir,
// as time does, each once; the same tree and seed give the same changes. Call
// it with seeds 1, 2, 3, … for a tree that grows older. Files that nobody but
// root can write are left alone unless the process is root.
func Mutate(dir string, seed uint64, fraction float64) ([]Mutation, error) {
	dir = filepath.Clean(dir)
	var files []string
	root := os.Geteuid() == 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case len(path) > maxPath:
			return fs.SkipDir
		case !e.Type().IsRegular():
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if root || info.Mode()&0o600 == 0o600 {
			files = append(files, path[len(dir)+1:])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(seed, 0x3a7e))
	var done []Mutation
	for _, rel := range files {
		if rng.Float64() >= fraction {
			continue
		}
		// Most changes are edits; the others share the rest.
		op := Edit
		if rng.IntN(3) > 0 {
			op = Ops[rng.IntN(len(Ops))]
		}
		m, err := Apply(dir, op, rel, rng.Uint64())
		if err != nil {
			return done, err
		}
		done = append(done, m)
	}
	return done, nil
}

// Apply makes one change to the regular file rel below dir. An empty file that
// is to be edited or truncated is appended to.
func Apply(dir string, op Op, rel string, seed uint64) (Mutation, error) {
	rng := rand.New(rand.NewPCG(seed, 0xa991))
	at := Epoch.Add(24*time.Hour + time.Duration(rng.Int64N(int64(300*24*time.Hour))))
	path := filepath.Join(dir, rel)
	m := Mutation{Op: op, Path: rel}
	info, err := os.Lstat(path)
	if err != nil {
		return m, err
	}
	if !info.Mode().IsRegular() {
		return m, &fs.PathError{Op: "change", Path: path, Err: fs.ErrInvalid}
	}
	switch op {
	case Touch:
		return m, setTime(path, at)
	case Chmod:
		return m, os.Chmod(path, info.Mode()^0o010)
	case Edit, Append, Truncate:
		if info.Size() == 0 {
			m.Op = Append
		}
		if err := rewrite(path, m.Op, info.Size(), rng); err != nil {
			return m, err
		}
		return m, setTime(path, at)
	case Delete:
		err = os.Remove(path)
	case Rename, Add:
		if m.To, err = freeName(dir, rel, rng); err != nil {
			return m, err
		}
		to := filepath.Join(dir, m.To)
		if op == Rename {
			err = os.Rename(path, to)
		} else if err = os.WriteFile(to, appendContent(nil, rng, rng.IntN(50_000), text), 0o644); err == nil {
			err = errors.Join(os.Chmod(to, 0o644), setTime(to, at))
		}
	default:
		err = fmt.Errorf("%q is no change: want one of %v", op, Ops)
	}
	if err != nil {
		return m, err
	}
	return m, setTime(filepath.Dir(path), at)
}

// rewrite changes the contents of a file of that size.
func rewrite(path string, op Op, size int64, rng *rand.Rand) error {
	if op == Truncate {
		return os.Truncate(path, size/2)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	off, p := size, appendContent(nil, rng, 1+rng.IntN(5000), random)
	if op == Edit {
		off = rng.Int64N(size)
		p = p[:min(int64(len(p)), size-off, 200)]
		old := make([]byte, len(p))
		if _, err := f.ReadAt(old, off); err != nil {
			return errors.Join(err, f.Close())
		}
		p[0] = old[0] + 1 + byte(rng.IntN(255)) // never what was there
	}
	_, err = f.WriteAt(p, off)
	return errors.Join(err, f.Close())
}

// freeName returns a name beside rel that does not exist yet.
func freeName(dir, rel string, rng *rand.Rand) (string, error) {
	base := filepath.Base(rel)
	base = strings.ToValidUTF8(base[:min(len(base), 200)], "_")
	for {
		to := filepath.Join(filepath.Dir(rel), fmt.Sprintf("%s.%d", base, rng.IntN(1_000_000)))
		_, err := os.Lstat(filepath.Join(dir, to))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return to, nil
		case err != nil:
			return "", err
		}
	}
}
