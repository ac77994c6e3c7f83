package repo

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/diskcache"
	"github.com/cutbankfs/cutbank/index"
)

// framesUse is where the stored frames of a repository are kept, in its directory
// for local state.
const framesUse = "frames"

// diskCache opens the cache of stored frames; nil if none are kept.
func (r *Repo) diskCache() *diskcache.Cache {
	if r.opt.CacheDir == "" || r.opt.DiskCache <= 0 || backend.Transfers(r.b) <= 1 {
		return nil
	}
	return diskcache.Open(filepath.Join(index.RepoDir(r.opt.CacheDir, r.cfg.Repo.String()), framesUse), r.opt.DiskCache)
}

// LocalFramesUsage returns how many bytes the stored frames below cacheDir take, by
// the name of the repository's directory. No cacheDir is no usage.
func LocalFramesUsage(cacheDir string) (map[string]int64, error) {
	all, err := os.ReadDir(cacheDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	used := map[string]int64{}
	for _, e := range all {
		dir := filepath.Join(cacheDir, e.Name(), framesUse)
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			continue
		}
		n, err := diskcache.Usage(dir)
		if err != nil {
			return used, err
		}
		used[e.Name()] = n
	}
	return used, nil
}

// ClearLocalFrames removes the stored frames of a repository, whoever uses them,
// and returns how many bytes it removed.
func ClearLocalFrames(cacheDir, repoID string) (freed int64, err error) {
	if !filepath.IsLocal(repoID) || repoID != filepath.Base(repoID) || repoID == "." {
		return 0, fmt.Errorf("%q is no repository ID", repoID)
	}
	return diskcache.Clear(filepath.Join(index.RepoDir(cacheDir, repoID), framesUse))
}
