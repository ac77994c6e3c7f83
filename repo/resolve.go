package repo

import (
	"context"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
)

var (
	nameRE = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
	hexRE  = regexp.MustCompile(`^[0-9a-f]+$`)
	timeRE = regexp.MustCompile(`^\d{4}-\d\d-\d\dT`)
	bareRE = regexp.MustCompile(`^[0-9a-f]{8,}$`)
)

// CheckName says what is wrong with a snapshot's name, if anything is.
func CheckName(name string) error {
	switch {
	case !nameRE.MatchString(name) || name == "." || name == "..":
		return fmt.Errorf("snapshot name %q: use 1 to 64 of A-Z a-z 0-9 . _ -", name)
	case name == "ids" || name == "tags" || name == "latest":
		return fmt.Errorf("snapshot name %q is taken by the mount's own directories: choose another", name)
	case bareRE.MatchString(name):
		return fmt.Errorf("snapshot name %q looks like a snapshot's ID: choose one with another character, or of less than 8", name)
	}
	return nil
}

// checkNames says what is wrong with a record's names: they become names of
// directories. What is only unwise is for who makes a snapshot to refuse.
func (s *Snapshot) checkNames() error {
	for i, name := range append([]string{s.Name, s.Label}, s.Tags...) {
		if (name != "" || i != 1) && (!nameRE.MatchString(name) || name == "." || name == "..") {
			return fmt.Errorf("name, label or tag %q", name)
		}
	}
	if len(s.Members) > maxMembers {
		return fmt.Errorf("%d members", len(s.Members))
	}
	return nil
}

// maxMembers bounds what a record of a few bytes for each member makes its readers
// keep.
const maxMembers = 1 << 16

// CheckLabel says what is wrong with a label or tag.
func CheckLabel(label string) error {
	if timeRE.MatchString(label) {
		return fmt.Errorf("label or tag %q looks like a snapshot's TIME: choose another", label)
	}
	if !nameRE.MatchString(label) || label == "." || label == ".." || label == "latest" {
		return fmt.Errorf("label or tag %q: use 1 to 64 of A-Z a-z 0-9 . _ -, but not `latest`", label)
	}
	return nil
}

// SplitPath splits SNAPSHOT:PATH; the path is empty if there is none.
func SplitPath(arg string) (snapshot, path string) {
	snapshot, path, _ = strings.Cut(arg, ":")
	return snapshot, path
}

// Resolve finds the snapshot that SNAPSHOT means: an ID's prefix, latest,
// NAME/latest, NAME/TIME or NAME/LABEL. None is fs.ErrNotExist.
func (r *Repo) Resolve(ctx context.Context, arg string) (*Snapshot, error) {
	snaps, err := r.Snapshots(ctx)
	s, ferr := Find(snaps, arg)
	if ferr != nil && err != nil {
		return nil, fmt.Errorf("%w; and %w", ferr, err)
	}
	return s, ferr
}

// Find is Resolve over a list that is sorted oldest first.
func Find(snaps []*Snapshot, arg string) (*Snapshot, error) {
	none := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w; `cutbank snapshots` lists what there is", append(args, fs.ErrNotExist)...)
	}
	if arg == "latest" {
		if len(snaps) == 0 {
			return nil, none("snapshot %q", arg)
		}
		return snaps[len(snaps)-1], nil
	}
	name, which, ok := strings.Cut(arg, "/")
	if ok {
		var found *Snapshot
		for _, s := range snaps {
			if s.Name != name {
				continue
			}
			if which == s.Label && s.Label != "" && found != nil {
				return nil, fmt.Errorf("label %q is that of %s and of %s: give an ID", arg, found.ID, s.ID)
			}
			if which == "latest" || which == s.Dir || which == s.Label && s.Label != "" {
				found = s
			}
		}
		if found == nil {
			return nil, none("snapshot %q", arg)
		}
		return found, nil
	}
	if !hexRE.MatchString(arg) {
		return nil, none("snapshot %q is no ID, `latest`, NAME/latest, NAME/TIME or NAME/LABEL", arg)
	}
	var found *Snapshot
	for _, s := range snaps {
		if strings.HasPrefix(s.ID.String(), arg) {
			if found != nil {
				return nil, fmt.Errorf("snapshot ID %q fits several: give more digits", arg)
			}
			found = s
		}
	}
	if found == nil {
		return nil, none("snapshot %q", arg)
	}
	return found, nil
}
