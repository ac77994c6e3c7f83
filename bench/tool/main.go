package tool

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// Exit codes of the programs.
const (
	exitDone        = 0
	exitFailed      = 1 // also if the tool that the others are compared with failed in a step
	exitUsage       = 2
	exitInterrupted = 130
)

// Main is the program of that name: it runs it with the process's arguments until
// it is done or interrupted, and exits. See Run.
func Main[T any](name string, parse func([]string, io.Writer) (T, error), compare func(context.Context, T, io.Writer, io.Writer) (bool, error)) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := Run(ctx, name, parse, compare, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Run is the program of that name: it returns the exit code. parse reads the flags
// into what compare is called with; that reports whether the tool that the others
// are compared with has failed in a step, and removes what it made.
func Run[T any](ctx context.Context, name string, parse func([]string, io.Writer) (T, error), compare func(context.Context, T, io.Writer, io.Writer) (bool, error), args []string, stdout, stderr io.Writer) int {
	opt, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitDone
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return exitUsage
	}
	failed, err := compare(ctx, opt, stdout, stderr)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintf(stderr, "%s: interrupted; everything is unmounted and removed\n", name)
		return exitInterrupted
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return exitFailed
	case failed:
		return exitFailed
	}
	return exitDone
}

// Choose takes the given tools of those that are known, separated by commas, each of
// which must be there; or, if none is given, those that are. cutbank always is: it
// is built.
func Choose(given string, known []string) (chosen []string, err error) {
	names := known
	if given != "" {
		names = strings.Split(given, ",")
	}
	for _, name := range names {
		if !slices.Contains(known, name) || slices.Contains(chosen, name) {
			return nil, fmt.Errorf("-tools %s: each of %s at most once", given, strings.Join(known, ", "))
		}
		if name != "cutbank" {
			if _, err := exec.LookPath(name); err != nil {
				if given != "" {
					return nil, fmt.Errorf("-tools: %w", err)
				}
				continue
			}
		}
		chosen = append(chosen, name)
	}
	return chosen, nil
}
