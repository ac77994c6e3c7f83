// Command cutbank keeps snapshots of directories in a deduplicated, compressed,
// encrypted repository, and mounts them.
//
// This package is thin: flags, output and exit codes, one file for each
// subcommand. What the commands print with --json is specified in README.md
// beside this file.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

const (
	// patience is how long after Ctrl-C it is said what there is to wait for.
	patience = 2 * time.Second
	// grace is how long after it places in the network have time to recover, as
	// they always have.
	grace = 10 * time.Second
)

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	hangup := !signal.Ignored(syscall.SIGHUP) // as nohup has it
	if hangup {
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, func() {
		if hangup { // a terminal that is closed says so more than once
			signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
		}
		stop() // a second signal of another kind ends the process at once
		time.Sleep(patience)
		fmt.Fprintln(os.Stderr, "cutbank: interrupted; what is on its way is finished first, it serves the next run; Ctrl-C again ends at once")
	})
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the program: it returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ending, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	context.AfterFunc(ctx, func() { time.AfterFunc(grace, end) })
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, ending: ending}
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = a.misled
	}
	if cerr := a.close(); err == nil {
		err = cerr
	}
	if err == nil {
		return 0
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, syscall.EINTR)) {
		err = errInterrupted
	}
	if !errors.Is(err, errSilent) && !errors.Is(err, errExposed) {
		a.errorf("%v%s", err, a.ownerHint(err))
	}
	return exitCode(err)
}

// ownerHint tells where the owner's key is if a password is refused that has not
// got it.
func (a *app) ownerHint(err error) string {
	if a.open == nil || !errors.Is(err, seal.ErrNoKey) || !a.open.Config().AppendOnly || a.open.Readable() != nil {
		return ""
	}
	if k := a.open.SecretKeys(); k.Self() == k.Owner() {
		return ""
	}
	return "; append-only mode is on: --credential takes the owner's file"
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "cutbank",
		Short: "Snapshots of directories, deduplicated, encrypted, and mounted",
		Long: `cutbank keeps snapshots of directories in a repository: deduplicated by content,
compressed, encrypted; and mounts every snapshot as plain, read-only directories.

The repository is named by --repo or CUTBANK_REPO. The password comes from
--password-command, CUTBANK_PASSWORD, CUTBANK_PASSWORD_FILE, or a prompt. A
credential from "cutbank writer add" takes its place: --credential or
CUTBANK_CREDENTIAL.

A SNAPSHOT is an ID's first digits, "latest", NAME/latest, NAME/TIME or
NAME/LABEL; SNAPSHOT:PATH names something inside.

` + exitTable(),
		Example: `  cutbank init -r /backup
  cutbank snapshot -r /backup /etc /home
  cutbank mount -r /backup /mnt
  cutbank restore -r /backup latest:/etc/hosts /tmp/restored`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := "see `cutbank --help`"
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				hint = fmt.Sprintf("did you mean `cutbank %s`?", near[0])
			}
			return usagef("unknown command %q; %s", args[0], hint)
		},
		RunE:                       func(c *cobra.Command, _ []string) error { return c.Help() },
		SuggestionsMinimumDistance: 2,
	}
	f := root.PersistentFlags()
	f.StringVarP(&a.repoPath, "repo", "r", os.Getenv("CUTBANK_REPO"), "the repository: a folder, or a URL as s3://BUCKET/PREFIX or azure://CONTAINER/PREFIX (CUTBANK_REPO)")
	f.StringVar(&a.passwordCommand, "password-command", "", "command whose first line of output is the password")
	f.StringVar(&a.credential, "credential", os.Getenv("CUTBANK_CREDENTIAL"), "file with a credential to open the repository with (CUTBANK_CREDENTIAL)")
	f.StringVar(&a.cacheDir, "cache-dir", os.Getenv("CUTBANK_CACHE_DIR"), "folder for local state (CUTBANK_CACHE_DIR; default: the user's cache folder)")
	f.BoolVar(&a.noCache, "no-cache", false, "keep no local state")
	f.Var(&a.cacheLimit, "cache-limit", "bytes that the copy of the index takes on this machine at most")
	a.diskCache = defaultDiskCache
	f.Var(&a.diskCache, "disk-cache", "bytes of a repository in the network kept on this machine, sealed as they are there; 0 for none")
	f.StringVar(&a.caCert, "ca-cert", "", "file with certificates, PEM, to trust beside the system's (for S3 also AWS_CA_BUNDLE)")
	f.Var(&a.limitUpload, "limit-upload", "bytes a second to send to places in the network at most")
	f.Var(&a.limitDownload, "limit-download", "bytes a second to read from places in the network at most")
	f.BoolVar(&a.oldest, "oldest-versions", false, "read what was first stored, whatever was overwritten or removed since, from a bucket that keeps versions; see \"cutbank repair versions\"")
	f.BoolVar(&a.json, "json", false, "print JSON, an object a line")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print nothing but results and errors")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "tell what happens in the background")
	f.StringVar(&a.cpuProfile, "cpu-profile", "", "write a CPU profile to this file, for pprof")
	f.StringVar(&a.memProfile, "mem-profile", "", "write a heap profile to this file, at the end")
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if err := c.ValidateFlagGroups(); err != nil {
			return usagef("%s; see `%s --help`", excludedText(err.Error()), c.CommandPath())
		}
		return a.startProfile()
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%v%s; see `%s --help`", err, systemHint(c), c.CommandPath())
	})
	help := root.HelpFunc()
	root.SetHelpFunc(func(c *cobra.Command, args []string) {
		// Of many systems -h is the host: who forgot the -- is not to take this for
		// a snapshot.
		if hint := systemHint(c); hint != "" && slices.Contains(args, "-h") {
			a.misled = usagef("-h asks for help%s; see `%s --help`", hint, c.CommandPath())
			return
		}
		help(c, args)
	})
	root.AddCommand(
		a.initCommand(), a.snapshotCommand(), a.snapshotsCommand(), a.mountCommand(), a.umountCommand(),
		a.restoreCommand(), a.verifyCommand(), a.repairCommand(), a.copyCommand(), a.lsCommand(), a.catCommand(), a.findCommand(), a.diffCommand(),
		a.systemsCommand(), a.importCommand(), a.statsCommand(), a.forgetCommand(), a.pruneCommand(), a.unlockCommand(), a.lockCommand(), a.tagCommand(), a.pinCommand(), a.unpinCommand(), a.expireCommand(), a.inspectCommand(), a.catObjectCommand(), a.keyCommand(), a.writerCommand(), a.appendOnlyCommand(), a.cacheCommand(),
		a.benchCommand(), a.versionCommand(),
	)
	return root
}

// exactly and atLeast are argument checks that say what is expected.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return usagef("%s takes %s, but there %s; see `%s --help`", c.CommandPath(), what, argumentsText(len(args)), c.CommandPath())
		}
		return nil
	}
}

// subcommand is the check of a command that does nothing by itself.
func subcommand(of string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("%s has no subcommand %q, only %s; see `%s --help`", c.CommandPath(), args[0], of, c.CommandPath())
		}
		return nil
	}
}

func argumentsText(n int) string {
	switch n {
	case 0:
		return "is no argument"
	case 1:
		return "is 1 argument"
	}
	return fmt.Sprintf("are %d arguments", n)
}

// excludedText names flags that exclude each other, of which cobra says at the end
// which were given: "[budget receipt] were all set".
func excludedText(s string) string {
	_, list, ok := strings.Cut(s, "; [")
	list, _, end := strings.Cut(list, "] were all set")
	if !ok || !end {
		return s
	}
	return "--" + strings.Join(strings.Fields(list), " and --") + " exclude each other"
}

func between(low, high int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < low || high >= 0 && len(args) > high {
			return usagef("%s takes %s, but there %s; see `%s --help`", c.CommandPath(), what, argumentsText(len(args)), c.CommandPath())
		}
		return nil
	}
}

func usagef(format string, args ...any) error {
	return fmt.Errorf("%w%w", errUsage, fmt.Errorf(format, args...))
}
