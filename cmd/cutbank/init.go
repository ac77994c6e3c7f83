package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo"
)

type initFlags struct {
	chunkSize, frameSize              sizeFlag
	splitter, like, parity            string
	noPassword, appendOnly, noFencing bool
	lock                              spanFlag
	ownerKey                          string
	lag                               time.Duration
}

func (a *app) initCommand() *cobra.Command {
	s := initFlags{chunkSize: chunk.DefaultAvg, frameSize: 256 << 10}
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a repository in a new or empty folder, or in a bucket or container",
		Long: `init makes a repository in the folder that --repo names, which must be new or empty,
or in the bucket or container of a URL, which must be there, with nothing below the
URL's prefix:

  s3://BUCKET/PREFIX                   Amazon S3, or what AWS_ENDPOINT_URL names
  s3+https://HOST:PORT/BUCKET/PREFIX   anything that speaks like it
  s3+http://HOST:PORT/BUCKET/PREFIX    and without encryption on the way
  azure://CONTAINER/PREFIX             Azure Blob Storage, or AZURE_STORAGE_ENDPOINT
  azure+https://HOST:PORT/ACCOUNT/CONTAINER/PREFIX
  azure+http://HOST:PORT/ACCOUNT/CONTAINER/PREFIX

S3's credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from
AWS_PROFILE and the shared files of AWS, or from the machine's role; the region from
AWS_REGION or the profile; certificates to trust from AWS_CA_BUNDLE. Azure's are the
first of AZURE_STORAGE_KEY (with AZURE_STORAGE_ACCOUNT), AZURE_STORAGE_SAS_TOKEN,
AZURE_STORAGE_CONNECTION_STRING, AZURE_CLIENT_SECRET or
AZURE_CLIENT_CERTIFICATE_PATH (with AZURE_CLIENT_ID and AZURE_TENANT_ID), a
Kubernetes workload's identity, and the machine's. A URL holds none of them.

init tries out whether of several clients that create one object only one is told
that it did. Stores that ignore this (If-None-Match), and file systems that can
neither link files nor move directories, are refused. With --no-fencing they are
taken all the same: then prune never declares a silent writer dead, but waits until
it ends or "cutbank unlock" says that it is gone. Keys and settings are then to be
changed from one place at a time: of two changes at once one may undo the other, and
after two rotations what is stored may open to nobody.

Where listings may show a change only some time after it was made, --listing-lag 2m
says how long that takes: init, snapshot, forget and prune then wait for so long
where they rely on a listing. No store that is known to keep to S3 needs it. A folder
may be on a file system of the network (NFS, SMB), mounted by all machines that use
the repository: for those two minutes are taken by themselves.

With --lock 30d every object is locked for 30 days when it is stored (Object Lock in
COMPLIANCE mode), and again by "prune", "lock" and snapshots as long as a live
snapshot needs it: whoever has the credentials can overwrite or remove objects, but
what was there stays, --oldest-versions reads it, and "cutbank repair versions" puts
it back. The bucket must have been made with Object Lock, and without a default
retention. NOBODY can take a lock back, and what is forgotten stays, and is paid for,
until its lock has passed. A day at least, ten years at most. Buckets of S3 only.

The average chunk size is fixed for the repository's life. 64KiB suits databases
and mixed data; larger chunks cost less index and find less that is equal.

With --like the new repository gets the secrets and parameters of another one, so
that packed data can be copied between the two as it is. CUTBANK_LIKE_PASSWORD is
the other's password, if it is not that of the new one.

With --parity 2% each pack gets Reed-Solomon parity beside it, by which "cutbank
verify --read-data" heals up to 2% of it: bytes that rot, sectors that cannot be
read. A pack that is gone as a whole is not healed; a second repository is for
that.`,
		Example: `  cutbank init -r /backup
  CUTBANK_PASSWORD_FILE=/etc/cutbank.pw cutbank init -r /backup --chunker gear
  cutbank init -r /backup --parity 2%
  cutbank init -r /backup/second --like /backup/first
  cutbank init -r s3://bucket/backup
  cutbank init -r azure://container/backup
  cutbank init -r s3://locked-bucket/backup --lock 30d
  cutbank init -r /backup --append-only --owner-key /media/safe/owner.cred`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.init(c, &s) },
	}
	f := c.Flags()
	f.Var(&s.chunkSize, "chunk-size", "average size of a chunk, a power of two from 1KiB to 4MiB")
	f.StringVar(&s.splitter, "chunker", string(chunk.Rabin), "how to find the cuts: rabin or gear")
	f.Var(&s.frameSize, "frame-size", "how much is compressed together, 4KiB to 8MiB")
	f.StringVar(&s.parity, "parity", "", "parity for each pack, 1% to 100% of its size (default: none)")
	f.StringVar(&s.like, "like", "", "take secrets and parameters from this repository")
	f.BoolVar(&s.appendOnly, "append-only", false, "begin in append-only mode; see \"cutbank append-only\"")
	f.StringVar(&s.ownerKey, "owner-key", "", "the new file for the owner's credential, with --append-only")
	f.BoolVar(&s.noFencing, "no-fencing", false, "take a store that lets objects be created twice; see above")
	f.DurationVar(&s.lag, "listing-lag", 0, "how long listings may be out of date, such as 2m; see above")
	f.Var(&s.lock, "lock", "lock each object in the bucket for so long, such as 30d; nobody can undo it; see above")
	f.BoolVar(&s.noPassword, "no-password", false, "leave the key beside the data, open to whoever can read it")
	return c
}

// check says whether the flags go together.
func (s *initFlags) check(c *cobra.Command) error {
	if s.chunkSize < 1<<10 || s.chunkSize > 4<<20 {
		return usagef("--chunk-size %s: want a power of two from 1KiB to 4MiB", sizeText(int64(s.chunkSize)))
	}
	if s.frameSize < 4<<10 || s.frameSize > 8<<20 {
		return usagef("--frame-size %s: want 4KiB to 8MiB", sizeText(int64(s.frameSize)))
	}
	if s.chunkSize&(s.chunkSize-1) != 0 {
		return usagef("--chunk-size %s: want a power of two, such as 64KiB", sizeText(int64(s.chunkSize)))
	}
	for _, name := range []string{"chunk-size", "chunker", "frame-size"} {
		if s.like != "" && c.Flags().Changed(name) {
			return usagef("--like takes over --%s: give only one of them", name)
		}
	}
	if _, err := repo.ParseLag(s.lag.String()); err != nil {
		return usagef("--listing-lag %s: want a time such as 90s or 2m, up to 1h", s.lag)
	}
	if c.Flags().Changed("lock") {
		if err := repo.CheckLock(time.Duration(s.lock)); err != nil {
			return usagef("--lock: %v", err)
		}
		if s.noFencing {
			return usagef("--lock and --no-fencing exclude each other: a lock keeps nobody from creating an object twice")
		}
	}
	if s.appendOnly != (s.ownerKey != "") {
		return usagef("--append-only and --owner-key FILE go together")
	}
	if s.appendOnly {
		return checkNew(s.ownerKey)
	}
	return nil
}

// init makes a repository.
func (a *app) init(c *cobra.Command, s *initFlags) error {
	percent, err := repo.ParseParity(s.parity)
	if err != nil {
		return usagef("--%v", err)
	}
	if err := s.check(c); err != nil {
		return err
	}
	in := repo.InitOptions{FrameSize: int(s.frameSize), Parity: percent, Probe: true, NoFencing: s.noFencing, ListingLag: s.lag, Lock: time.Duration(s.lock), Provisional: s.appendOnly}
	if s.like != "" {
		if in.Like, err = a.openLike(c, s.like); err != nil {
			return err
		}
		defer in.Like.Close()
	} else if in.Params, err = chunk.NewParams(chunk.SplitterKind(s.splitter), int(s.chunkSize), rand.Reader); err != nil {
		return usagef("%v", err)
	}
	if !s.noPassword {
		if in.Password, err = a.askPassword("password for the new repository: ", true); err != nil {
			return err
		}
	}
	b, err := a.newBackendAt(a.repoPath)
	if err != nil {
		return err
	}
	opt, err := a.options()
	if err != nil {
		return err
	}
	r, err := repo.Init(c.Context(), b, in, opt)
	if errors.Is(err, backend.ErrUnfenced) {
		return fmt.Errorf("%w; see --no-fencing in `cutbank init --help`", err)
	}
	if err != nil {
		return err
	}
	a.open = r
	if err := a.tellInit(r, s); err != nil || !s.appendOnly {
		return err
	}
	return a.initAppendOnly(c.Context(), r, s.ownerKey)
}

// tellInit says what was made.
func (a *app) tellInit(r *repo.Repo, s *initFlags) error {
	if s.lock != 0 {
		a.warnf("every object is locked for %s from now on, and for longer while a snapshot needs it: NOBODY can undo that, neither you nor the store; what is stored is paid for that long", spanText(time.Duration(s.lock)))
	}
	if s.noPassword {
		a.warnf("the key lies beside the data: whoever can read %s can read every snapshot in it", a.repoPath)
	}
	cfg := r.Config()
	a.sayf("made repository %s in %s: %s chunks of %s on average", cfg.Repo, a.repoPath, cfg.Splitter.Kind, sizeText(int64(cfg.Splitter.Avg)))
	return a.emit("init", object{"repo": cfg.Repo.String(), "path": a.repoPath, "chunker": cfg.Splitter.Kind, "chunk_size": cfg.Splitter.Avg,
		"frame_size": cfg.FrameSize, "parity": cfg.ParityPercent(), "password": !s.noPassword, "fencing": !cfg.NoFencing, "listing_lag": s.lag.Seconds(), "lock_seconds": cfg.LockPeriod().Seconds()})
}

// openLike opens the repository whose secrets a new one shall share. Its
// password may differ from the new one's: CUTBANK_LIKE_PASSWORD.
func (a *app) openLike(c *cobra.Command, path string) (*repo.Repo, error) {
	b, err := a.backendAt(path)
	if err != nil {
		return nil, err
	}
	opt, err := a.options()
	if err != nil {
		return nil, err
	}
	if p := os.Getenv("CUTBANK_LIKE_PASSWORD"); p != "" {
		opt.Password = func() (string, error) { return p, nil }
	}
	r, err := repo.Open(c.Context(), b, opt)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usagef("--like: %v", err)
	}
	return r, err
}
