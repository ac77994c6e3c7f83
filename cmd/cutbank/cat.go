package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// catBuffer is how much of a file is read and written at once.
const catBuffer = 1 << 20

func (a *app) catCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "cat SNAPSHOT:PATH",
		Short: "Print one file",
		Long: `cat writes the contents of a file to standard output. Every byte is proven before
it is written: where the stored file is damaged, the output ends, and the exit
code is 3.

With --json the contents come as objects of type "data", and an object of type
"cat" tells that they are whole.`,
		Example: `  cutbank cat -r /backup latest:/etc/fstab
  cutbank cat -r /backup dump/latest:/all.sql | psql`,
		Args: exactly(1, "one SNAPSHOT:PATH"),
		RunE: func(c *cobra.Command, args []string) error { return a.cat(c.Context(), args[0]) },
	}
	a.storedFlag(c)
	return c
}

func (a *app) cat(ctx context.Context, arg string) error {
	_, p, n, err := a.node(ctx, arg)
	if err != nil {
		return err
	}
	at := n.Attr()
	switch at.Kind {
	case tree.File:
	case tree.Dir:
		return fmt.Errorf("%s is a directory; `cutbank ls %s` lists it", quote("/"+p), quote(arg))
	case tree.Symlink:
		return fmt.Errorf("%s is a symlink to %s; give the path of a file", quote("/"+p), quote(at.Target))
	default:
		return fmt.Errorf("%s is a %s and has no contents", quote("/"+p), at.Kind)
	}
	digest := chunk.NewDigest()
	write := a.stdout.Write
	if a.json {
		off := int64(0)
		write = func(b []byte) (int, error) {
			digest.Write(b)
			err := a.emit("data", object{"offset": off, "bytes_b64": base64.StdEncoding.EncodeToString(b)})
			off += int64(len(b))
			return len(b), err
		}
	}
	if err := copyNode(ctx, n, write); err != nil {
		return fmt.Errorf("%s: %w", quote("/"+p), err)
	}
	return a.emit("cat", object{"size": at.Size, "blake3": fmt.Sprintf("%x", digest.Sum(nil))}.setPath("path", "/"+p))
}

// copyNode writes a file's contents, from its beginning to its end.
func copyNode(ctx context.Context, n tree.Node, write func([]byte) (int, error)) error {
	size := n.Attr().Size
	buf := make([]byte, min(catBuffer, max(size, 1)))
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		k, err := n.ReadAt(ctx, buf, off)
		if k > 0 {
			if _, werr := write(buf[:k]); werr != nil {
				return fmt.Errorf("writing the output: %w", werr)
			}
			off += int64(k)
		}
		switch {
		case errors.Is(err, io.EOF):
			if off < size {
				return fmt.Errorf("the contents end at byte %d of %d: %w", off, size, chunk.ErrCorrupt)
			}
		case errors.Is(err, syscall.EIO): // a range that a repair gave up
			return fmt.Errorf("at byte %d of %d: %w: %w", off, size, bare(err), chunk.ErrMissing)
		case err != nil:
			return fmt.Errorf("at byte %d of %d: %w", off, size, bare(err))
		}
	}
	return nil
}
