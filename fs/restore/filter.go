package restore

import (
	"fmt"
	"path"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// filter decides which paths of an item are restored. Patterns are globs of
// doublestar's syntax over the whole path relative to the item's root: "*"
// stays within one element, "**" spans any number, none included.
type filter struct{ include, exclude []string }

func newFilter(include, exclude []string) (*filter, error) {
	clean := func(ps []string) ([]string, error) {
		out := make([]string, 0, len(ps))
		for _, p := range ps {
			c := strings.Trim(p, "/")
			if c == "" || !doublestar.ValidatePattern(c) {
				return nil, fmt.Errorf("%q is no valid pattern: write a path relative to what is restored, with *, **, ?, [a-z] or {a,b}", p)
			}
			out = append(out, c)
		}
		return out, nil
	}
	inc, err := clean(include)
	if err != nil {
		return nil, err
	}
	exc, err := clean(exclude)
	if err != nil {
		return nil, err
	}
	return &filter{inc, exc}, nil
}

// verdict tells about one path whose parents are known not to be excluded:
// whether it is restored itself, and whether something below it may be.
// under says that a parent is included.
func (f *filter) verdict(rel string, under bool) (included, descend bool) {
	for _, p := range f.exclude {
		if doublestar.MatchUnvalidated(p, rel) {
			return false, false
		}
	}
	if under || len(f.include) == 0 {
		return true, true
	}
	for _, p := range f.include {
		if doublestar.MatchUnvalidated(p, rel) {
			return true, true
		}
		descend = descend || mayMatchBelow(p, rel)
	}
	return false, descend
}

// root tells whether an item's root is included. A directory is included
// only with everything in it; a single file is matched by its name.
func (f *filter) root(name string, isDir bool) bool {
	if isDir {
		return len(f.include) == 0
	}
	in, _ := f.verdict(path.Base(name), false)
	return in
}

// mayMatchBelow tells whether pattern p can match a path below rel, so that
// whole branches need not be walked. It may say yes in vain, never no.
func mayMatchBelow(p, rel string) bool {
	if strings.ContainsAny(p, `{\`) { // alternatives may hold slashes
		base, _ := doublestar.SplitPattern(p)
		return base == "." || base == rel || strings.HasPrefix(rel, base+"/") || strings.HasPrefix(base, rel+"/")
	}
	for {
		pe, prest, more := strings.Cut(p, "/")
		if pe == "**" {
			return true
		}
		re, rrest, deeper := strings.Cut(rel, "/")
		if !doublestar.MatchUnvalidated(pe, re) {
			return false
		}
		if !deeper {
			return more
		}
		if !more {
			return false
		}
		p, rel = prest, rrest
	}
}
