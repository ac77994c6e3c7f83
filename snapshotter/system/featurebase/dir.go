package featurebase

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// captureDir takes in what "featurebase backup" wrote. What such a backup lacks, for
// the tool forgets a shard that failed, cannot be seen in it: only of the keys is it
// known how many there must be.
func (s *System) captureDir(ctx context.Context, opt system.CaptureOptions) (system.Capture, error) {
	// A walk does not follow links, and would find nothing below one.
	root, err := filepath.EvalSymlinks(s.opt.dir)
	if err != nil {
		return nil, fmt.Errorf("--dir: %w", err)
	}
	p, err := os.ReadFile(filepath.Join(root, "schema"))
	if err != nil {
		return nil, fmt.Errorf("--dir: no backup of featurebase: %w", err)
	}
	sch, err := parseSchema(p)
	if err == nil && s.opt.index != "" {
		sch, err = sch.only(s.opt.index)
	}
	if err == nil {
		err = sch.epochs(true, opt.Warnf)
	}
	if err != nil {
		return nil, fmt.Errorf("--dir %s: %w", root, err)
	}
	parts := map[file]part{}
	st, err := os.Stat(filepath.Join(root, "schema"))
	if err != nil {
		return nil, err
	}
	skipped := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return errors.Join(err, ctx.Err())
		}
		rel, err := filepath.Rel(root, path)
		if err != nil || rel == "schema" {
			return err
		}
		f, ok := parseFile(filepath.ToSlash(rel))
		if ok && !d.Type().IsRegular() {
			return fmt.Errorf("%s is no plain file, and what it stands for would be missing: %w", path, system.ErrIncomplete)
		}
		if !ok {
			opt.Warnf("%s is no part of a backup, and left out", path)
			return nil
		}
		if f.kind != allocFile && sch.index(f.index) == nil {
			if s.opt.index == "" {
				opt.Warnf("%s is of an index that the schema does not have, and left out", path)
			}
			return nil
		}
		bogus, err := takeIn(path, f, opt.Mode, parts)
		if bogus {
			skipped++
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if skipped > 0 {
		opt.Logf("%s with the text %q, which the tool writes where there is none: left out", plural(skipped, "dataframe"), disabled)
	}
	if opt.Mode == system.Light {
		return nil, fmt.Errorf("--dir has what it has: --mode full or dataless, or --index: %w", system.ErrRefused)
	}
	if opt.Mode == system.Full {
		if err := missingKeys(sch, parts); err != nil {
			return nil, err
		}
		odd(sch, parts, opt.Warnf)
	}
	c := &capture{info: system.Info{Kind: Kind.Name, Facts: map[string]string{"from": "a directory of featurebase backup", "indexes": strconv.Itoa(len(sch.indexes))}}}
	c.root, err = build(sch, parts, tree.TimeOf(st.ModTime()))
	return c, err
}

// odd warns of what a backup that was broken off may lack.
func odd(s *schema, parts map[file]part, warnf func(string, ...any)) {
	if _, ok := parts[file{kind: allocFile}]; !ok {
		warnf("there is no idalloc, the allocation of IDs: was the backup broken off?")
	}
	have := map[string]bool{}
	for f := range parts {
		have[f.index] = have[f.index] || f.kind == shardFile
	}
	for _, i := range s.indexes {
		if !have[i.Name] {
			warnf("index %s has no shards in this backup: right for one without records, or the backup was broken off", i.Name)
		}
	}
}

// takeIn checks one file of a backup and adds it; bogus is one that is none.
func takeIn(path string, f file, mode system.Mode, parts map[file]part) (bogus bool, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	data := onDisk(path)
	switch {
	case f.kind == dataframeFile && st.Size() == int64(len(disabled)+1):
		p, err := os.ReadFile(path)
		if err != nil || bytes.Equal(bytes.TrimSpace(p), []byte(disabled)) {
			return err == nil, err
		}
	case f.kind == shardFile:
		err = checkShard(data, st.Size())
	case f.kind != dataframeFile:
		err = checkBoltOnly(data, st.Size())
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case mode != system.Dataless:
		parts[f] = part{data, st.Size()}
	case f.kind == shardFile:
		parts[f] = part{nil, st.Size()}
	}
	return false, nil
}

// missingKeys fails if the keys of an index are not all there.
func missingKeys(s *schema, parts map[file]part) error {
	for _, i := range s.indexes {
		for n := range uint64(partitions) {
			f := file{kind: partitionFile, index: i.Name, n: n}
			if _, ok := parts[f]; i.Options.Keys && !ok {
				return fmt.Errorf("%s is missing: %w", f.path(), system.ErrIncomplete)
			}
		}
		for _, fi := range i.Fields {
			f := file{kind: fieldFile, index: i.Name, field: fi.Name}
			if _, ok := parts[f]; fi.Options.Keys && !ok {
				return fmt.Errorf("%s is missing: %w", f.path(), system.ErrIncomplete)
			}
		}
	}
	return nil
}
