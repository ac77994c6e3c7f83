package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/fs/diff"
	"github.com/cutbankfs/cutbank/fs/restore"
	"github.com/cutbankfs/cutbank/repo"
)

// verifyFlags are what was asked for of `cutbank verify`.
type verifyFlags struct {
	readData, noHeal                         bool
	sample, maxAge, budget, against, receipt string
	seed                                     uint64
}

func (a *app) verifyCommand() *cobra.Command {
	var v verifyFlags
	c := &cobra.Command{
		Use:   "verify [SNAPSHOT...]",
		Short: "Look for damage",
		Long: `verify proves every object of the repository but the packs, and walks the trees of
all snapshots, or of the given ones: every page is read, and every chunk must lie
in a pack that exists. With --read-data every pack is read too, and every chunk
proven against its ID; with --sample a share of the packs; with --max-age those
that were not proven for that long.

What was read is remembered in the repository, pack by pack (needs the owner's
key), also if verify is interrupted. --budget ends the reading after a time or a
number of bytes; the packs that nobody has looked at yet come first, then those
that were looked at the longest time ago, so that short runs, one a night, get
round to all. A pack that was found damaged is told by every verify until it is
gone, or read again and found whole. ` + "`cutbank stats --verification`" + ` shows how much
was proven, and when.

Damage is named from chunk to file to snapshot to node, and gives exit code 3.

Where packs are read that have parity ("cutbank init --parity"), damage that it
covers is healed: what the pack held is stored anew, and prune removes the pack.
Damaged parity is made anew. With nothing but healed damage the exit code is 0,
and a warning is printed. --no-heal only looks.

With --against, a snapshot is compared with a live directory, byte by byte. With
--receipt, the files of an earlier restore are compared with what they were.
Differences give exit code 8.`,
		Example: `  cutbank verify -r /backup
  cutbank verify -r /backup --read-data
  cutbank verify -r /backup --max-age 30d --budget 1h
  cutbank verify -r /backup --budget 50GB
  cutbank verify -r /backup --sample 5%
  cutbank verify -r /backup --against latest:/etc /etc
  cutbank verify --receipt restore.jsonl`,
		Args: between(0, -1, "SNAPSHOTs, or a DIR with --against"),
		RunE: func(c *cobra.Command, args []string) error {
			a.diskCache = 0 // what is there is to be proven, not what was
			switch {
			case v.receipt != "":
				return a.verifyReceipt(c.Context(), v.receipt, args)
			case v.against != "":
				if len(args) != 1 {
					return usagef("--against SNAPSHOT takes one DIR to compare with")
				}
				return a.verifyAgainst(c.Context(), v.against, args[0])
			}
			opt, err := v.options(c.Flags().Changed("seed"))
			if err != nil {
				return err
			}
			return a.verify(c.Context(), opt, args)
		},
	}
	f := c.Flags()
	f.BoolVar(&v.readData, "read-data", false, "read every pack and prove every chunk")
	f.BoolVar(&v.noHeal, "no-heal", false, "change nothing in the repository's packs: heal no damage by parity")
	f.StringVar(&v.sample, "sample", "", "read this `SHARE` of the packs, such as 5%")
	f.Uint64Var(&v.seed, "seed", 0, "which packs --sample reads (default: others each time)")
	f.StringVar(&v.maxAge, "max-age", "", "read the packs that were not proven for this `SPAN`, such as 30d")
	f.StringVar(&v.budget, "budget", "", "stop reading packs after this time or so many bytes, such as 10m or 50GB")
	f.StringVar(&v.against, "against", "", "compare this SNAPSHOT[:PATH] with a live directory")
	f.StringVar(&v.receipt, "receipt", "", "compare the files of a restore with its receipt")
	c.MarkFlagsMutuallyExclusive("read-data", "sample", "max-age", "against", "receipt")
	c.MarkFlagsMutuallyExclusive("budget", "against", "receipt")
	return c
}

func (v *verifyFlags) options(seeded bool) (opt repo.CheckOptions, err error) {
	opt = repo.CheckOptions{ReadData: v.readData, Seed: v.seed}
	if v.sample != "" {
		if opt.Sample, err = parseShare(v.sample); err != nil {
			return opt, usagef("--sample: %v", err)
		}
		if !seeded {
			opt.Seed = uint64(now().UnixNano())
		}
	}
	if v.maxAge != "" {
		if opt.MaxAge, err = parseSpan(v.maxAge); err != nil {
			return opt, usagef("--max-age: %v", err)
		}
	}
	if v.budget != "" {
		if opt.Budget, opt.BudgetBytes, err = parseBudget(v.budget); err != nil {
			return opt, usagef("--budget: %v", err)
		}
		opt.ReadData = opt.ReadData || v.sample == "" && v.maxAge == ""
	}
	opt.Heal = !v.noHeal && (opt.ReadData || opt.Sample > 0 || opt.MaxAge > 0)
	return opt, nil
}

// parseBudget reads a span of time or a number of bytes. "10m" are minutes: a
// size ends with a B.
func parseBudget(s string) (time.Duration, int64, error) {
	if strings.HasSuffix(strings.ToLower(s), "b") {
		n, err := parseSize(s)
		if err == nil && n == 0 {
			err = errors.New("nothing could be read")
		}
		return 0, n, err
	}
	d, err := parseSpan(s)
	if err != nil {
		err = fmt.Errorf("%q is no budget: write it like 10m, 2h, 500MB or 50GB", s)
	}
	return d, 0, err
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

// verifyCache is the bytes of decoded frames kept: a walk reads each page once,
// and those of a frame one after the other.
const verifyCache = 16 << 20

func (a *app) verify(ctx context.Context, opt repo.CheckOptions, args []string) error {
	if a.frameCache == 0 {
		a.frameCache = verifyCache
	}
	r, err := a.repo(ctx)
	if err != nil {
		return err
	}
	if opt.Snapshots, err = a.snapshotsNamed(ctx, r, args); err != nil {
		return err
	}
	var p repo.CheckProgress
	opt.Progress = &p
	stop := a.showProgress("verify", func() status {
		return status{p.Bytes.Load(), p.BytesTotal.Load(), fmt.Sprintf("%d of %d packs, %d of %d snapshots", p.Packs.Load(), p.PacksTotal.Load(), p.Snapshots.Load(), p.SnapshotsTotal.Load())}
	}, nil)
	start := now()
	var jerr error
	said := &damageLines{a: a}
	res, err := r.Check(ctx, opt, func(d repo.Damage) {
		if e := said.tell(d); e != nil {
			jerr = e
		}
	})
	said.more()
	stop()
	if err == nil {
		err = jerr
	}
	if err != nil {
		return err
	}
	for _, err := range res.Refused {
		a.warnf("a snapshot that counts for nothing: %v", err)
	}
	for _, name := range res.Unknown {
		a.warnf("%s is nothing of a repository's; it is left alone", name)
	}
	if err := a.printVerify(&res, opt, now().Sub(start)); err != nil {
		return err
	}
	if res.Damages > 0 {
		return fmt.Errorf("%d findings: %w; `cutbank repair --dry-run` tells what can be brought back", res.Damages, errDamaged)
	}
	return nil
}

func (a *app) printVerify(res *repo.CheckResult, opt repo.CheckOptions, d time.Duration) error {
	if res.LedgerErr != nil {
		a.warnf("what was found of packs is not remembered: %v", res.LedgerErr)
	}
	a.sayf("verified %s objects, %s packs, %s snapshots, %s pages", countText(res.Objects), countText(res.Packs), countText(res.Snapshots), countText(res.Pages))
	if res.Read > 0 {
		a.sayf("  read %s in %s, %s chunks", bytesText(res.Bytes), packsText(res.Read), countText(res.Chunks))
	}
	if opt.Sample > 0 {
		a.sayf("  sample of %.3g%%, --seed %d reads the same packs", opt.Sample*100, opt.Seed)
	}
	if res.Left > 0 {
		a.sayf("  the budget is used up; %s, %s, left for the next runs", packsText(res.Left), bytesText(res.LeftBytes))
	}
	if res.Coverage != nil && (res.Read > 0 || opt.MaxAge > 0) {
		a.sayf("  %s", coverageText(res.Coverage, now()))
	}
	switch {
	case res.Damages > 0:
	case res.Healed > 0:
		a.warnf("the storage damages data: %d findings, of which nothing is lost; look after the disk, and run prune", res.Healed)
	default:
		a.sayf("  no damage found, took %s", durationText(d))
	}
	o := object{"objects": res.Objects, "packs": res.Packs, "orphans": res.Orphans, "chunks": res.Chunks, "pages": res.Pages,
		"snapshots": res.Snapshots, "bytes": res.Bytes, "read": res.Read, "left": res.Left, "left_bytes": res.LeftBytes,
		"damages": res.Damages, "healed": res.Healed, "known": res.Known, "seconds": d.Seconds(), "seed": opt.Seed, "remembered": res.Read > 0 && res.LedgerErr == nil}
	if res.Coverage != nil {
		o["coverage"] = coverageObject(res.Coverage)
	}
	return a.emit("verify", o)
}

// damageLines prints findings. Of the chunks of one file that come one after the
// other only the first is shown to people, and how many there are more.
type damageLines struct {
	a     *app
	file  string // and in which snapshot
	hides int
}

func (l *damageLines) tell(d repo.Damage) error {
	file := ""
	if d.Path != "" && d.Snapshot != nil {
		file = d.Snapshot.ID.String() + d.Path
	}
	if !l.a.json && file != "" && file == l.file {
		l.hides++
		return nil
	}
	l.more()
	l.file = file
	return l.a.damage(d)
}

func (l *damageLines) more() {
	if l.hides > 0 {
		l.a.printf("  and %s more of that file\n", countText(uint64(l.hides)))
	}
	l.hides = 0
}

// damage prints one finding: object, or chunk -> file -> snapshot -> node.
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
	if d.Node != "" {
		o["node"] = d.Node
		line = append(line, d.Node)
	}
	what := "damage"
	if d.Healed {
		what, o["healed"] = "healed", true
	}
	if d.Known {
		what, o["known"] = "lost", true
	}
	a.printf("%s: %s: %s\n", what, strings.Join(line, " -> "), strings.TrimPrefix(d.Err.Error(), d.Object+": "))
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
