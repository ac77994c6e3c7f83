package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// hidden is an error that says nothing by itself: a mark for the exit code.
type hidden struct{ code int }

func (hidden) Error() string { return "" }

var (
	errUsage       error = &hidden{2}
	errSilent      error = &hidden{1} // everything has been said
	errDifferent   error = &hidden{8}
	errRefused     error = &hidden{9}
	errInterrupted       = errors.New("interrupted; nothing is left half done, run again to go on")
	errExposed     error = &hidden{3} // of locks; all has been said
	errDamaged           = fmt.Errorf("damage was found: %w", chunk.ErrCorrupt)
)

// exits is the table of exit codes: the first row that an error is, counts.
var exits = []struct {
	code int
	what string
	errs []error
}{
	{0, "done", nil},
	{2, "the command line is wrong", []error{errUsage}},
	{130, "interrupted by Ctrl-C, SIGTERM or SIGHUP; nothing is left half done", []error{errInterrupted}},
	{7, "the snapshot or restore is done, but partial: some files could not be read or written", []error{snapshotter.ErrPartial}},
	{8, "differences were found (diff, verify --against, verify --receipt)", []error{errDifferent}},
	{9, "refused: it would delete or replace much, or go where it does not belong; see the message", []error{errRefused, system.ErrRefused}},
	{6, "the repository was written by a newer cutbank", []error{repo.ErrFormat, seal.ErrVersion, tree.ErrVersion}},
	{3, "stored data is damaged or missing, or was not locked", []error{errExposed, chunk.ErrCorrupt, chunk.ErrMissing}},
	{5, "wrong password or key, or one that may not do this", []error{repo.ErrKey, seal.ErrNoKey, repo.ErrRefused}},
	{4, "no repository, snapshot or path of that name", []error{repo.ErrNoRepo, fs.ErrNotExist}},
	{1, "anything else", []error{repo.ErrDead, system.ErrIncomplete, backend.ErrUnfenced, backend.ErrNotDone, backend.ErrUnclear, backend.ErrLocked, backend.ErrOldest, repo.ErrReadOnly, repo.ErrNoLock, fs.ErrExist, fs.ErrPermission, errSilent}},
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	var child *childError
	if errors.As(err, &child) {
		return child.code
	}
	for _, row := range exits {
		for _, e := range row.errs {
			if errors.Is(err, e) {
				return row.code
			}
		}
	}
	return 1
}

func exitTable() string {
	var b strings.Builder
	b.WriteString("Exit codes:\n")
	for _, row := range exits {
		fmt.Fprintf(&b, "  %3d  %s\n", row.code, row.what)
	}
	return b.String()
}
