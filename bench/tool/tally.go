package tool

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
)

// Tally is what a tree holds. Two ways to read one tree must give the same.
type Tally struct {
	Files int64 `json:"files"` // regular ones; every name of a hard link counts
	Dirs  int64 `json:"dirs"`  // the top one included
	Links int64 `json:"links"` // symbolic
	Bytes int64 `json:"bytes"` // of regular files
}

func (t Tally) String() string {
	return fmt.Sprintf("%d files, %d directories, %d links, %d bytes", t.Files, t.Dirs, t.Links, t.Bytes)
}

// Want returns an error if the tally differs from what it should be.
func (t Tally) Want(whole Tally) error {
	if t != whole {
		return fmt.Errorf("holds %s; the source has %s", t, whole)
	}
	return nil
}

// Add counts one file.
func (t *Tally) Add(mode fs.FileMode, size int64) {
	switch mode.Type() {
	case 0:
		t.Files++
		t.Bytes += size
	case fs.ModeDir:
		t.Dirs++
	case fs.ModeSymlink:
		t.Links++
	}
}

// TallyDir counts a tree on disk.
func TallyDir(ctx context.Context, dir string) (Tally, error) {
	var t Tally
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			t.Add(info.Mode(), info.Size())
		}
		return err
	})
	return t, err
}

// TallyFind counts what `find -printf '%y %s\n'` prints.
func TallyFind(r io.Reader) (Tally, error) {
	kinds := map[string]fs.FileMode{"f": 0, "d": fs.ModeDir, "l": fs.ModeSymlink}
	var t Tally
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		kind, number, _ := strings.Cut(lines.Text(), " ")
		size, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return t, fmt.Errorf("find printed %q", lines.Text())
		}
		mode, ok := kinds[kind]
		if !ok {
			mode = fs.ModeIrregular
		}
		t.Add(mode, size)
	}
	return t, lines.Err()
}

// TallyTar counts what is in a tar archive, and so reads all of it.
func TallyTar(r io.Reader) (Tally, error) {
	var t Tally
	for tr := tar.NewReader(bufio.NewReaderSize(r, 1<<20)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return t, fmt.Errorf("the archive: %w", err)
		}
		t.Add(h.FileInfo().Mode(), h.Size)
	}
}
