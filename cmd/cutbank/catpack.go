package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo"
)

// chunkCount counts the chunks that a pack lists.
func chunkCount(t *pack.Trailer) (chunks int, plain uint64) {
	for i := range t.Frames {
		chunks += len(t.Frames[i].Chunks)
		plain += uint64(t.Frames[i].Plain)
	}
	return chunks, plain
}

func packObject(t *pack.Trailer) object {
	chunks, plain := chunkCount(t)
	return object{"name": t.Name.Object(), "kind": t.Kind.String(), "epoch": t.Epoch, "writer": hex.EncodeToString(t.Writer[:]),
		"session": hex.EncodeToString(t.Session[:]), "size": t.Size, "frames": len(t.Frames), "chunks": chunks, "plain": plain}
}

func packText(t *pack.Trailer) string {
	chunks, plain := chunkCount(t)
	return fmt.Sprintf("%s, %d bytes, %d frames, %d chunks, %d bytes plain, key epoch %d, writer %x, session %x", t.Kind, t.Size, len(t.Frames), chunks, plain, t.Epoch, t.Writer, t.Session)
}

// frameObject is a frame as --json tells it, with its chunks if so wanted.
func frameObject(n int, f *pack.Frame, chunks bool) object {
	o := object{"frame": n, "offset": f.Off, "stored": f.Stored, "plain": f.Plain, "chunks": len(f.Chunks)}
	if chunks {
		list := []object{}
		start := f.Start(0)
		for _, c := range f.Chunks {
			x := object{"id": c.ID.String(), "start": start, "length": c.Len, "kind": c.Kind}
			if c.Kind == pack.Delta {
				x["base"] = c.Base.String()
			}
			list = append(list, x)
			start += c.Len
		}
		o["list"] = list
	}
	return o
}

func (a *app) catPack(ctx context.Context, s *objectFlags, r *repo.Repo, name pack.Name) error {
	read := func(off, n int64) ([]byte, error) { return r.Backend().Get(ctx, name.Object(), off, n) }
	size, err := packSize(ctx, r, name)
	if err != nil {
		return err
	}
	if s.header {
		return a.catHeader(name, size, read)
	}
	t, err := pack.ReadTrailer(r.SecretKeys(), name, size, read)
	if err != nil {
		return err
	}
	if s.frame >= 0 {
		if s.frame >= len(t.Frames) {
			return fmt.Errorf("%s has %d frames, numbered from 0: no frame %d: %w", name.Object(), len(t.Frames), s.frame, fs.ErrNotExist)
		}
		return a.catFrame(s, r, t, s.frame, read)
	}
	if a.json {
		o := packObject(t)
		list := []object{}
		for i := range t.Frames {
			list = append(list, frameObject(i, &t.Frames[i], s.trailer))
		}
		o["list"] = list
		return a.emit("pack", o)
	}
	a.printf("%s: %s\n", name.Object(), packText(t))
	for i := range t.Frames {
		a.printFrame(t.Kind, i, &t.Frames[i], s.trailer)
	}
	return nil
}

// packSize asks the repository itself, not the index, which may be wrong.
func packSize(ctx context.Context, r *repo.Repo, name pack.Name) (int64, error) {
	for info, err := range r.Backend().List(ctx, name.Object()) {
		if err != nil {
			return 0, err
		}
		if info.Name == name.Object() {
			return info.Size, nil
		}
	}
	return 0, fmt.Errorf("the repository has no pack %s: %w", name.Object(), fs.ErrNotExist)
}

func (a *app) catHeader(name pack.Name, size int64, read pack.ReadAt) error {
	p, err := read(0, min(size, pack.MaxHeader))
	if err != nil {
		return err
	}
	h, n, err := pack.ParseHeader(p)
	if err != nil {
		return fmt.Errorf("%s: %w", name.Object(), err)
	}
	a.printf("%s: %s, %d bytes, header %d bytes, key epoch %d, wrapped key %d bytes, writer %x, session %x\n", name.Object(), h.Kind, size, n, h.Epoch,
		len(h.Wrapped), h.Writer, h.Session)
	return a.emit("pack-header", object{"name": name.Object(), "kind": h.Kind.String(), "size": size, "header": n, "epoch": h.Epoch, "wrapped": len(h.Wrapped),
		"writer": hex.EncodeToString(h.Writer[:]), "session": hex.EncodeToString(h.Session[:])})
}

// chunkPrefix is how cat-object takes what a pack of that kind holds.
func chunkPrefix(kind pack.Kind) string {
	if kind == pack.Meta {
		return "page:"
	}
	return "chunk:"
}

func (a *app) printFrame(in pack.Kind, n int, f *pack.Frame, chunks bool) {
	a.printf("frame %d at %d: %d bytes stored, %d plain, %d chunks\n", n, f.Off, f.Stored, f.Plain, len(f.Chunks))
	if !chunks {
		return
	}
	start := f.Start(0)
	for _, c := range f.Chunks {
		kind := ""
		if c.Kind == pack.Delta {
			kind = " delta of " + c.Base.String()
		}
		a.printf("  %s%s at %d, %d bytes%s\n", chunkPrefix(in), c.ID, start, c.Len, kind)
		start += c.Len
	}
}

// catFrame opens a frame and tells of each chunk whether its bytes are the
// right ones.
func (a *app) catFrame(s *objectFlags, r *repo.Repo, t *pack.Trailer, n int, read pack.ReadAt) error {
	f := &t.Frames[n]
	fail := func(err error) error { return fmt.Errorf("%s, frame %d: %w", t.Name.Object(), n, err) }
	stored, err := read(int64(f.Off), int64(f.Stored))
	if err != nil {
		return fail(err)
	}
	key, err := pack.FrameKey(r.SecretKeys(), t.Name, t.Epoch, t.Wrapped)
	if err != nil {
		return fail(err)
	}
	plain, err := key.Open(nil, uint32(n), stored)
	if err != nil {
		return fail(err)
	}
	if s.raw {
		_, err := a.stdout.Write(plain)
		return err
	}
	if a.json {
		o := frameObject(n, f, true)
		o["pack"] = t.Name.Object()
		if err := a.emit("frame", o); err != nil {
			return err
		}
	} else {
		a.printf("%s: ", t.Name.Object())
		a.printFrame(t.Kind, n, f, true)
	}
	if err := proveChunks(r.SecretKeys(), t.Kind, f, plain); err != nil {
		return fail(err)
	}
	return nil
}

// proveChunks compares a plain frame with what the trailer says of it.
func proveChunks(k *seal.Keys, kind pack.Kind, f *pack.Frame, plain []byte) error {
	parts, err := seal.ParseFrame(plain)
	if err != nil {
		return err
	}
	if len(parts) != len(f.Chunks) {
		return fmt.Errorf("it holds %d chunks, the trailer says %d: %w", len(parts), len(f.Chunks), chunk.ErrCorrupt)
	}
	h := k.Data
	if kind == pack.Meta {
		h = k.Tree
	}
	var errs []error
	for i, c := range f.Chunks {
		if c.Kind == pack.Plain && h.Sum(parts[i]) != c.ID {
			errs = append(errs, fmt.Errorf("chunk %s holds other bytes: %w", c.ID, chunk.ErrCorrupt))
		}
	}
	return errors.Join(errs...)
}

// catChunk tells where a chunk or page lies.
func (a *app) catChunk(ctx context.Context, s *objectFlags, digits string) error {
	id, err := chunk.ParseID(digits)
	if err != nil {
		return usagef("%v", err)
	}
	r, err := a.synced(ctx)
	if err != nil {
		return err
	}
	if s.raw {
		p, err := a.chunkBytes(ctx, r, id)
		if err != nil {
			return err
		}
		_, err = a.stdout.Write(p)
		return err
	}
	locs, err := r.Index().Lookup(id, nil)
	if err != nil {
		return err
	}
	if len(locs) == 0 {
		return fmt.Errorf("chunk %s is in no pack that the index lists: %w", id, chunk.ErrMissing)
	}
	list := []object{}
	a.printf("chunk:%s: %d bytes\n", id, locs[0].Len)
	for _, l := range locs {
		kind := ""
		if info, ok, err := r.Index().Pack(l.Pack); err == nil && ok {
			kind = info.Kind.String()
		}
		a.printf("  %s --frame %d: %s, from byte %d of %d plain; stored at %d, %d bytes\n", l.Pack.Object(), l.Frame, kind, l.Start, l.Plain, l.Off, l.Stored)
		list = append(list, object{"pack": l.Pack.Object(), "kind": kind, "frame": l.Frame, "start": l.Start, "plain": l.Plain, "offset": l.Off, "stored": l.Stored})
	}
	return a.emit("chunk", object{"id": id.String(), "length": locs[0].Len, "locations": list})
}

// chunkBytes returns the bytes of a file's chunk, or of a page.
func (a *app) chunkBytes(ctx context.Context, r *repo.Repo, id chunk.ID) ([]byte, error) {
	p, err := r.Store().Data(ctx, id)
	if err == nil || !errors.Is(err, chunk.ErrCorrupt) {
		return p, err
	}
	// A page's bytes do not fit under the key of data.
	if q, perr := r.Store().Page(ctx, id); perr == nil {
		return q, nil
	}
	return nil, err
}
