package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
)

func (a *app) tagCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "tag",
		Short: "Add, remove or list tags of snapshots",
		Long: `tag looks after the tags of snapshots. Tags choose snapshots (snapshots --tag, forget
--tag), keep them (forget --keep-tag), and are directories of the mount
(tags/TAG).`,
		Example: `  cutbank tag add -r /backup web/latest release
  cutbank tag remove -r /backup 4f3a9c 81d2aa release
  cutbank tag list -r /backup`,
		Args: subcommand("add, remove or list"),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.tagAddCommand(), a.tagRemoveCommand(), a.tagListCommand())
	return c
}

func (a *app) tagAddCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "add SNAPSHOT... TAG",
		Short:   "Add a tag to snapshots",
		Long:    `add adds a tag to snapshots: 1 to 64 of A-Z a-z 0-9 . _ -`,
		Example: `  cutbank tag add -r /backup web/latest db/latest release`,
		Args:    between(2, -1, "one SNAPSHOT or more, and a TAG"),
		RunE: func(c *cobra.Command, args []string) error {
			args, tag := args[:len(args)-1], args[len(args)-1]
			if err := repo.CheckLabel(tag); err != nil {
				return usagef("%v", err)
			}
			return a.mark(c.Context(), args, repo.Mark{Op: repo.MarkTag, Value: tag}, func(s *repo.Snapshot) bool { return slices.Contains(s.Tags, tag) }, "has tag "+tag)
		},
	}
}

func (a *app) tagRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "remove SNAPSHOT... TAG",
		Short:   "Remove a tag from snapshots",
		Long:    `remove takes a tag from snapshots, also one that they were made with.`,
		Example: `  cutbank tag remove -r /backup web/latest release`,
		Args:    between(2, -1, "one SNAPSHOT or more, and a TAG"),
		RunE: func(c *cobra.Command, args []string) error {
			args, tag := args[:len(args)-1], args[len(args)-1]
			if tag == "" {
				return usagef("an empty TAG names none")
			}
			return a.mark(c.Context(), args, repo.Mark{Op: repo.MarkUntag, Value: tag}, func(s *repo.Snapshot) bool { return !slices.Contains(s.Tags, tag) }, "does not have tag "+quote(tag))
		},
	}
}

func (a *app) tagListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list [SNAPSHOT...]",
		Short: "List the tags, and which snapshots have them",
		Long:  `list shows the tags of all snapshots, or of the SNAPSHOTs, and who has them.`,
		Example: `  cutbank tag list -r /backup
  cutbank tag list -r /backup web/latest --json`,
		Args: between(0, -1, "SNAPSHOTs"),
		RunE: func(c *cobra.Command, args []string) error { return a.listTags(c.Context(), args) },
	}
}

func (a *app) listTags(ctx context.Context, args []string) error {
	r, err := a.repo(ctx)
	if err != nil {
		return err
	}
	snaps, damage := r.Snapshots(ctx)
	if len(args) > 0 {
		if snaps, err = pick(snaps, args); err != nil {
			return withDamage(err, damage)
		}
	}
	byTag := map[string][]*repo.Snapshot{}
	for _, s := range snaps {
		for _, tag := range s.Tags {
			byTag[tag] = append(byTag[tag], s)
		}
	}
	tags := slices.Sorted(maps.Keys(byTag))
	for _, tag := range tags {
		var ids []string
		for _, s := range byTag[tag] {
			ids = append(ids, s.ID.String())
		}
		if err := a.emit("tag", object{"tag": tag, "snapshots": ids}); err != nil {
			return err
		}
	}
	if err := a.table(func(w *tabwriter.Writer) {
		for _, tag := range tags {
			var has []string
			for _, s := range byTag[tag] {
				has = append(has, snapshotName(s))
			}
			fmt.Fprintf(w, "%s\t%s\n", tag, strings.Join(has, " "))
		}
	}); err != nil {
		return err
	}
	if len(tags) == 0 {
		a.sayf("no tags: `cutbank tag add SNAPSHOT TAG` adds one")
	}
	return damage
}
