package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/fs/diff"
	"github.com/cutbankfs/cutbank/fs/restore"
	"github.com/cutbankfs/cutbank/repo"
)

func (a *app) verifyCommand() *cobra.Command {
	var readData bool
	var sample, against, receipt string
	var seed uint64
	c := &cobra.Command{
		Use:   "verify [SNAPSHOT...]",
		Short: "Look for damage",
		Long: `verify proves every object of the repository but the packs, and walks the trees of
all snapshots, or of the given ones: every page is read, and every chunk must lie
in a pack that exists. With --read-data every pack is read too, and every chunk
proven against its ID; with --sample a share of the packs.

Damage is named from chunk to file to snapshot, and gives exit code 3.

With --against, a snapshot is compared with a live directory, byte by byte. With
--receipt, the files of an earlier restore are compared with what they were.
Differences give exit code 8.`,
		Example: `  cutbank verify -r /backup
  cutbank verify -r /backup --read-data
  cutbank verify -r /backup --sample 5%
  cutbank verify -r /backup --against latest:/etc /etc
  cutbank verify --receipt restore.jsonl`,
		Args: between(0, -1, "SNAPSHOTs, or a DIR with --against"),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case receipt != "":
				return a.verifyReceipt(c.Context(), receipt, args)
			case against != "":
				if len(args) != 1 {
					return usagef("--against SNAPSHOT takes one DIR to compare with")
				}
				return a.verifyAgainst(c.Context(), against, args[0])
			}
			opt := repo.CheckOptions{ReadData: readData, Seed: seed}
			if sample != "" {
				share, err := parseShare(sample)
				if err != nil {
					return usagef("--sample: %v", err)
				}
				opt.Sample = share
				if !c.Flags().Changed("seed") {
					opt.Seed = uint64(now().UnixNano())
				}
			}
			return a.verify(c.Context(), opt, args)
		},
	}
	f := c.Flags()
	f.BoolVar(&readData, "read-data", false, "read every pack and prove every chunk")
	f.StringVar(&sample, "sample", "", "read this share of the packs, such as 5%")
	f.Uint64Var(&seed, "seed", 0, "which packs --sample reads (default: others each time)")
	f.StringVar(&against, "against", "", "compare this SNAPSHOT[:PATH] with a live directory")
	f.StringVar(&receipt, "receipt", "", "compare the files of a restore with its receipt")
	c.MarkFlagsMutuallyExclusive("read-data", "sample", "against", "receipt")
	return c
}

func parseShare(s string) (float64, error) {
	num, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	if percent {
		v /= 100
	}
	if err != nil || !(v >= 0 && v <= 1) {
		return 0, fmt.Errorf("%q is no share: write it like 5%% or 0.05", s)
	}
	return v, nil
}

func (a *app) verify(ctx context.Context, opt repo.CheckOptions, args []string) error {
	r, err := a.repo(ctx)
	if err != nil {
		return err
	}
	if len(args) > 0 {
		snaps, err := r.Snapshots(ctx)
		if err != nil {
			a.warnf("%v", err)
		}
		for _, arg := range args {
			s, err := repo.Find(snaps, arg)
			if err != nil {
				return err
			}
			opt.Snapshots = append(opt.Snapshots, s)
		}
	}
	var p repo.CheckProgress
	opt.Progress = &p
	stop := a.showProgress("verify", func() status {
		return status{p.Bytes.Load(), p.BytesTotal.Load(), fmt.Sprintf("%d of %d packs, %d of %d snapshots", p.Packs.Load(), p.PacksTotal.Load(), p.Snapshots.Load(), p.SnapshotsTotal.Load())}
	}, nil)
	start := now()
	var jerr error
	res, err := r.Check(ctx, opt, func(d repo.Damage) {
		if e := a.damage(d); e != nil {
			jerr = e
		}
	})
	stop()
	if err == nil {
		err = jerr
	}
	if err != nil {
		return err
	}
	for _, name := range res.Unknown {
		a.warnf("%s is nothing of a repository's; it is left alone", name)
	}
	d := now().Sub(start)
	a.sayf("verified %s objects, %s packs, %s snapshots, %s pages", countText(res.Objects), countText(res.Packs), countText(res.Snapshots), countText(res.Pages))
	if res.Bytes > 0 {
		a.sayf("  read %s in packs, %s chunks", bytesText(res.Bytes), countText(res.Chunks))
	}
	if opt.Sample > 0 {
		a.sayf("  sample of %.3g%%, --seed %d reads the same packs", opt.Sample*100, opt.Seed)
	}
	if res.Damages == 0 {
		a.sayf("  no damage found, took %s", durationText(d))
	}
	if err := a.emit("verify", object{"objects": res.Objects, "packs": res.Packs, "orphans": res.Orphans, "chunks": res.Chunks, "pages": res.Pages,
		"snapshots": res.Snapshots, "bytes": res.Bytes, "damages": res.Damages, "seconds": d.Seconds(), "seed": opt.Seed}); err != nil {
		return err
	}
	if res.Damages > 0 {
		return fmt.Errorf("%d findings: %w", res.Damages, errDamaged)
	}
	return nil
}

// damage prints one finding: object, or chunk -> file -> snapshot.
func (a *app) damage(d repo.Damage) error {
	o := object{"error": d.Err.Error()}
	var line []string
	if d.Object != "" {
		o["object"] = d.Object
		line = append(line, d.Object)
	}
	if !d.Chunk.IsZero() {
		o["chunk"] = d.Chunk.String()
		line = append(line, "chunk "+d.Chunk.Short())
	}
	if d.Path != "" {
		o.setPath("path", d.Path)
		line = append(line, quote(d.Path))
	}
	if d.Snapshot != nil {
		o["snapshot"], o["name"], o["dir"] = d.Snapshot.ID.String(), d.Snapshot.Name, d.Snapshot.Dir
		line = append(line, d.Snapshot.Name+"/"+d.Snapshot.Dir)
	}
	a.printf("damage: %s: %v\n", strings.Join(line, " -> "), d.Err)
	return a.emit("damage", o)
}

func (a *app) verifyReceipt(ctx context.Context, file string, args []string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	target := ""
	switch len(args) {
	case 0:
		for l, err := range restore.ReadReceipt(f) {
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			target = l.Target
			break
		}
		if _, err := f.Seek(0, 0); err != nil {
			return err
		}
	case 1:
		target = args[0]
	default:
		return usagef("--receipt FILE takes one DIR at most")
	}
	n := 0
	for m, err := range restore.Check(ctx, f, target) {
		if errors.Is(err, restore.ErrReceipt) {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err != nil {
			return err
		}
		n++
		a.printf("%s\n", m)
		if err := a.emit("difference", object{"what": m.What, "want": m.Want, "got": m.Got}.setPath("path", m.Path)); err != nil {
			return err
		}
	}
	if n > 0 {
		return fmt.Errorf("%w%d differences between %s and its receipt", errDifferent, n, quote(target))
	}
	a.sayf("%s is as its receipt says", quote(target))
	return a.emit("receipt", object{"differences": 0}.setPath("target", target))
}

// verifyAgainst reads both sides: that IDs are equal says nothing of whether
// what is stored can be read.
func (a *app) verifyAgainst(ctx context.Context, arg, dir string) error {
	if _, live := liveArg(arg); live {
		return usagef("--against %q is no SNAPSHOT[:PATH]", arg)
	}
	args := []string{arg, "dir:" + dir}
	sides, err := a.sides(ctx, args)
	if errors.Is(err, fs.ErrNotExist) && !strings.Contains(arg, ":") {
		// The snapshot has no such directory: DIR is a copy of the whole.
		args[0] = arg + ":/"
		var whole error
		if sides, whole = a.sides(ctx, args); whole != nil {
			return err
		}
		err = nil
	}
	if err != nil {
		return err
	}
	p := &changes{a: a}
	if err := p.run(ctx, sides[0].node, sides[1].node, diff.Options{Content: true}); err != nil {
		return err
	}
	return p.finish(args[0], dir)
}
