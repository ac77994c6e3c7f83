package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/go-git/go-git/v5/plumbing/format/gitignore"
	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter"
)

// filter decides what a snapshot leaves out.
type filter struct {
	roots   []filterRoot
	oneFS   bool
	mode    string             // snapshotter.Full, Light or Dataless
	own     map[[2]uint64]bool // device and inode of directories of ours
	mounts  map[uint64]bool    // devices of mounts of cutbank
	unfit   map[string]bool    // lines of --data that no file has fit so far
	skipped int
}

// filterRoot is a snapshotted path; patterns are relative to it.
type filterRoot struct {
	path  string // without the leading slash
	dev   uint64
	match gitignore.Matcher // nil: nothing is left out
	data  gitignore.Matcher // of a light snapshot: what is kept with its contents
	rules []rule            // those of data
}

// rule is a line, and the pattern that it is for one path.
type rule struct {
	line string
	gitignore.Pattern
}

// parseIgnore reads patterns in the syntax of gitignore(5), one a line.
// The matcher is nil where there are none, or all are for the others.
func parseIgnore(lines []string, root string, others []filterRoot) gitignore.Matcher {
	return matcher(parseRules(lines, root, others))
}

func matcher(rules []rule) gitignore.Matcher {
	var ps []gitignore.Pattern
	for _, r := range rules {
		ps = append(ps, r.Pattern)
	}
	if len(ps) == 0 {
		return nil
	}
	return gitignore.NewMatcher(ps)
}

// parseRules reads patterns. They count from the root at that path; one that begins
// with the path itself, as people write it, counts from the file system's root.
func parseRules(lines []string, root string, others []filterRoot) []rule {
	var rules []rule
	for _, l := range lines {
		if strings.TrimSpace(l) == "" || strings.HasPrefix(l, "#") {
			continue
		}
		not, p := "", l
		if rest, ok := strings.CutPrefix(l, "!"); ok {
			not, p = "!", rest
		}
		if rest, ok := strings.CutPrefix(p, "/"+root+"/"); ok && root != "" {
			p = "/" + rest
		} else if meant(p, others) {
			continue // for another path
		}
		rules = append(rules, rule{l, gitignore.ParsePattern(not+p, nil)})
	}
	return rules
}

// keepData has a light snapshot keep the contents of what the lines say, which count
// from a path.
func (f *filter) keepData(root *filterRoot, from string, lines []string) {
	root.rules = parseRules(lines, from, f.roots)
	root.data = matcher(root.rules)
	f.unfit = map[string]bool{}
	for _, l := range lines {
		f.unfit[l] = !strings.HasPrefix(l, "!")
	}
}

// fit notes the lines of --data that a file fits.
func (f *filter) fit(rel []string, rules []rule) {
	for _, r := range rules {
		if f.unfit[r.line] && r.Match(rel, false) == gitignore.Exclude {
			delete(f.unfit, r.line)
		}
	}
}

// meant reports whether a pattern begins with one of the paths.
func meant(pattern string, roots []filterRoot) bool {
	for _, r := range roots {
		if r.path != "" && strings.HasPrefix(pattern, "/"+r.path+"/") {
			return true
		}
	}
	return false
}

func readLines(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var lines []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		lines = append(lines, strings.TrimSuffix(s.Text(), "\r"))
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return lines, nil
}

// forget leaves out a directory of cutbank's own.
func (f *filter) forget(path string) {
	var st unix.Stat_t
	if path != "" && unix.Stat(path, &st) == nil {
		if f.own == nil {
			f.own = map[[2]uint64]bool{}
		}
		f.own[[2]uint64{st.Dev, st.Ino}] = true
	}
}

// forgetMounts leaves out what is mounted by cutbank.
func (f *filter) forgetMounts() {
	p, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return // no such file, no such mounts to be found
	}
	f.mounts = map[uint64]bool{}
	for line := range strings.Lines(string(p)) {
		left, right, ok := strings.Cut(line, " - ")
		fields := strings.Fields(left)
		if !ok || len(fields) < 3 || !strings.HasPrefix(right, "fuse.cutbank ") {
			continue
		}
		var major, minor uint32
		if n, err := fmt.Sscanf(fields[2], "%d:%d", &major, &minor); n == 2 && err == nil {
			f.mounts[unix.Mkdev(major, minor)] = true
		}
	}
}

// take is the filter itself.
func (f *filter) take(path string, a *tree.Attr) snapshotter.Take {
	if a.Kind == tree.Dir && (f.own[[2]uint64{a.Dev, a.Ino}] || f.mounts[a.Dev]) {
		f.skipped++
		return snapshotter.Skip
	}
	root, rel := f.root(path)
	if root == nil || rel == "" {
		return f.part([]string{a.Name}, root, a)
	}
	if root.match != nil && root.match.Match(strings.Split(rel, "/"), a.Kind == tree.Dir) {
		f.skipped++
		return snapshotter.Skip
	}
	if f.oneFS && a.Kind == tree.Dir && a.Dev != root.dev {
		return snapshotter.Shallow
	}
	return f.part(strings.Split(rel, "/"), root, a)
}

// part tells whether what is taken is taken with its contents.
func (f *filter) part(rel []string, root *filterRoot, a *tree.Attr) snapshotter.Take {
	if a.Kind == tree.File && root != nil && len(f.unfit) > 0 {
		f.fit(rel, root.rules)
	}
	switch {
	case f.mode == snapshotter.Dataless,
		f.mode == snapshotter.Light && (root == nil || root.data == nil || !root.data.Match(rel, a.Kind == tree.Dir)):
		return snapshotter.Bare
	}
	return snapshotter.Whole
}

// root finds the innermost snapshotted path that path lies in, and the rest.
func (f *filter) root(path string) (*filterRoot, string) {
	var best *filterRoot
	left := ""
	for i := range f.roots {
		r := &f.roots[i]
		rest, ok := path, r.path == ""
		if path == r.path {
			rest, ok = "", true
		} else if !ok {
			rest, ok = strings.CutPrefix(path, r.path+"/")
		}
		if ok && (best == nil || len(r.path) > len(best.path)) {
			best, left = r, rest
		}
	}
	return best, left
}

// nested returns two paths of which one lies in the other, if there are any.
func (f *filter) nested() (outer, inner string, ok bool) {
	for _, a := range f.roots {
		for _, b := range f.roots {
			if a.path != b.path && (a.path == "" || strings.HasPrefix(b.path, a.path+"/")) {
				return "/" + a.path, "/" + b.path, true
			}
		}
	}
	return "", "", false
}
