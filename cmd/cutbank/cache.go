package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/index"
	"github.com/cutbankfs/cutbank/repo"
)

func (a *app) cacheCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "cache",
		Short: "Show or clear local state",
		Long: `cache shows and clears what cutbank keeps on this machine: for each repository a
copy of its index, once that has more than 150,000 chunks (some 10 GB of data); a
smaller one is read anew each time, in a fraction of a second; of a repository in the
network what was read of it, sealed as it is there, up to --disk-cache (2 GiB), what
was not wanted for the longest time going first, and never the last twentieth of the
disk; and for a write-only credential the pages of its last snapshots, without which
the next ones read every file.
It can be deleted at any time, by this command or by hand.`,
		Example: `  cutbank cache show
  cutbank cache clear`,
		Args: subcommand("show or clear"),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(&cobra.Command{
		Use:     "show",
		Short:   "Show how many bytes of local state each repository has",
		Long:    `show lists the repositories of which there is local state, by their IDs.`,
		Example: `  cutbank cache show --json`,
		Args:    exactly(0, "no arguments"),
		RunE:    func(*cobra.Command, []string) error { return a.cacheShow() },
	}, &cobra.Command{
		Use:   "clear [REPOSITORY-ID...]",
		Short: "Delete local state that nobody holds",
		Long: `clear deletes the local state of the given repositories, or of all. What running
processes have open stays until they end and it is cleared again.`,
		Example: `  cutbank cache clear
  cutbank cache clear 4f3a9c`,
		Args: between(0, -1, "repository IDs"),
		RunE: func(_ *cobra.Command, args []string) error { return a.cacheClear(args) },
	})
	return c
}

// defaultDiskCache is how many bytes of a repository in the network are kept on
// this machine: enough for the pages of millions of files.
const defaultDiskCache = 2 << 30

// usage returns the folder of local state and what lies in it.
func (a *app) usage() (string, map[string]int64, error) {
	dir, err := a.stateDir()
	if err != nil {
		return "", nil, err
	}
	if dir == "" {
		return "", nil, errors.New("no local state: --no-cache is given, or there is no home directory; --cache-dir names a folder")
	}
	used, err := index.Usage(dir)
	if err == nil {
		var pages map[string]int64
		if pages, err = repo.LocalPagesUsage(dir); used == nil {
			used = map[string]int64{}
		}
		for id, n := range pages {
			used[id] += n
		}
	}
	if err == nil {
		var frames map[string]int64
		frames, err = repo.LocalFramesUsage(dir)
		for id, n := range frames {
			used[id] += n
		}
	}
	if err != nil {
		return dir, used, fmt.Errorf("local state in %s: %w", dir, err)
	}
	return dir, used, nil
}

func (a *app) cacheShow() error {
	dir, used, err := a.usage()
	if err != nil {
		return err
	}
	ids := slices.Sorted(maps.Keys(used))
	total := int64(0)
	for _, id := range ids {
		total += used[id]
		if err := a.emit("cache", object{"repo": id, "bytes": used[id]}.setPath("path", index.RepoDir(dir, id))); err != nil {
			return err
		}
	}
	if err := a.table(func(w *tabwriter.Writer) {
		if len(ids) > 0 {
			fmt.Fprintln(w, "REPOSITORY\tSIZE")
		}
		for _, id := range ids {
			fmt.Fprintf(w, "%s\t%s\n", id, bytesText(uint64(used[id])))
		}
	}); err != nil {
		return err
	}
	a.sayf("%s in %s", bytesText(uint64(total)), quote(dir))
	return a.emit("cache-total", object{"bytes": total, "repos": len(ids)}.setPath("path", dir))
}

func (a *app) cacheClear(args []string) error {
	dir, used, err := a.usage()
	if err != nil {
		return err
	}
	ids, err := matching(slices.Sorted(maps.Keys(used)), args)
	if err != nil {
		return err
	}
	var errs []error
	freed, left := int64(0), int64(0)
	for _, id := range ids {
		n, err := index.Clear(dir, id)
		if err != nil {
			errs = append(errs, err)
		}
		pages, err := repo.ClearLocalPages(dir, id)
		if err != nil {
			errs = append(errs, err)
		}
		frames, err := repo.ClearLocalFrames(dir, id)
		if err != nil {
			errs = append(errs, err)
		}
		n += pages + frames
		freed += n
		left += used[id] - n
		if err := a.emit("cache-cleared", object{"repo": id, "freed": n, "left": used[id] - n}); err != nil {
			return err
		}
	}
	a.sayf("freed %s in %s", bytesText(uint64(freed)), quote(dir))
	if left > 0 {
		a.sayf("  %s are in use by running processes and stay", bytesText(uint64(left)))
	}
	return errors.Join(errs...)
}

// matching returns the IDs that start with one of the prefixes; all if there
// are none. A prefix must fit exactly one.
func matching(ids, prefixes []string) ([]string, error) {
	if len(prefixes) == 0 {
		return ids, nil
	}
	var found []string
	for _, p := range prefixes {
		n := 0
		for _, id := range ids {
			if strings.HasPrefix(id, p) {
				found = append(found, id)
				n++
			}
		}
		switch {
		case n == 0:
			return nil, fmt.Errorf("there is no local state of a repository %q; `cutbank cache show` lists them", p)
		case n > 1:
			return nil, fmt.Errorf("%q fits %d repositories: give more digits", p, n)
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}
