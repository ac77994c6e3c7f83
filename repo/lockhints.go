package repo

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cutbankfs/cutbank/index"
)

// lockHints is what this machine has been told of locks: of an object, until when
// it is locked at least. Locks only grow, so what it says stays true; without it
// the store is asked.
//
// It is kept in the local state as JSON: {"v":1,"until":{NAME:SECONDS}}, in seconds
// since 1970. What cannot be read is none.
type lockHints struct {
	file string // empty: it is not kept

	mu     sync.Mutex
	until  map[string]int64
	change bool
}

// maxHints bounds the file in bytes, and with it what is held of it.
const maxHints = 64 << 20

type hintsFile struct {
	V     int              `json:"v"`
	Until map[string]int64 `json:"until"`
}

func (r *Repo) openHints() *lockHints {
	h := &lockHints{until: map[string]int64{}}
	if r.opt.CacheDir == "" {
		return h
	}
	h.file = filepath.Join(index.RepoDir(r.opt.CacheDir, r.cfg.Repo.String()), "locks")
	if fi, err := os.Stat(h.file); err != nil || fi.Size() > maxHints {
		return h
	}
	p, err := os.ReadFile(h.file)
	var f hintsFile
	if err == nil && json.Unmarshal(p, &f) == nil && f.V == 1 && f.Until != nil {
		h.until = f.Until
	}
	return h
}

// known returns until when an object is locked at least; zero if nobody knows.
func (h *lockHints) known(name string) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s, ok := h.until[name]; ok {
		return time.Unix(s, 0)
	}
	return time.Time{}
}

func (h *lockHints) learn(name string, until time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if until.Unix() > h.until[name] {
		h.until[name], h.change = until.Unix(), true
	}
}

// save keeps what is not past.
func (h *lockHints) save(now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.file == "" || !h.change {
		return nil
	}
	maps.DeleteFunc(h.until, func(_ string, s int64) bool { return s < now.Unix() })
	p, err := json.Marshal(hintsFile{1, h.until})
	if err != nil || len(p) > maxHints {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(h.file), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(h.file), "locks-*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), h.file)
	}
	if err != nil {
		if rerr := os.Remove(f.Name()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		return err
	}
	h.change = false
	return nil
}
