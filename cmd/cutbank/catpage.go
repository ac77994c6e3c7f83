package main

import (
	"context"
	"encoding/base64"
	"fmt"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

var pageKinds = map[tree.PageKind]string{tree.DirPage: "directory", tree.RecipePage: "recipe", tree.WitnessPage: "witness", tree.XattrPage: "xattrs"}

var extentKinds = map[tree.ExtentKind]string{tree.Data: "data", tree.Zero: "zero", tree.Hole: "hole", tree.Absent: "absent", tree.Lost: "lost"}

var extentEnds = map[tree.End]string{tree.EndFile: "file", tree.EndSplitter: "splitter", tree.EndMax: "maximum", tree.EndZero: "zero run", tree.EndSource: "source", tree.EndRecord: "record"}

// catPage shows a page of a tree.
func (a *app) catPage(ctx context.Context, s *objectFlags, digits string) error {
	id, err := chunk.ParseID(digits)
	if err != nil {
		return usagef("%v", err)
	}
	r, err := a.synced(ctx)
	if err != nil {
		return err
	}
	b, err := r.Store().Page(ctx, id)
	if err != nil {
		if _, derr := r.Store().Data(ctx, id); derr == nil {
			return usagef("%s is a file's chunk and no page: try chunk:%s", id, id)
		}
		return err
	}
	if s.raw {
		_, err := a.stdout.Write(b)
		return err
	}
	pg, err := tree.ParsePage(b)
	if err != nil {
		return fmt.Errorf("page %s: %w", id, err)
	}
	if a.json {
		return a.emit("page", pageObject(id, len(b), pg))
	}
	a.printPage(id, len(b), pg)
	return nil
}

func pageObject(id chunk.ID, size int, pg *tree.Page) object {
	items := []object{}
	for i := range pg.Refs {
		r := &pg.Refs[i]
		items = append(items, object{"page": r.ID.String(), "items": r.Items, "nodes": r.Below.Nodes, "files": r.Below.Files, "dirs": r.Below.Dirs,
			"bytes": r.Below.Bytes}.setPath("last", r.Last))
	}
	for i := range pg.Entries {
		items = append(items, entryObject(&pg.Entries[i]))
	}
	items = append(items, extentObjects(pg.Extents)...)
	for i := range pg.Witness {
		w := &pg.Witness[i]
		items = append(items, object{"ino": w.Ino, "dev": w.Dev}.setPath("name", w.Name).setTime("ctime", w.Ctime).setID("root", w.Root))
	}
	items = append(items, xattrObjects(pg.Xattrs)...)
	return object{"id": id.String(), "kind": pageKinds[pg.Kind], "level": pg.Level, "size": size, "items": items}
}

// setID adds an ID, unless it is none.
func (o object) setID(key string, id chunk.ID) object {
	if !id.IsZero() {
		o[key] = id.String()
	}
	return o
}

func entryObject(e *tree.Entry) object {
	o := nodeObject("", &e.Attr)
	delete(o, "path")
	o.setPath("name", e.Name).setID("xattr_page", e.XattrPage).setID("recipe", e.Recipe).setID("root", e.Root)
	if e.Link != "" {
		o.setPath("link", e.Link)
	}
	if len(e.Xattrs) > 0 {
		o["xattrs"] = xattrObjects(e.Xattrs)
	}
	if len(e.Extents) > 0 {
		o["extents"] = extentObjects(e.Extents)
	}
	if e.Kind == tree.Dir {
		o["children"], o["nodes"], o["files"], o["dirs"], o["bytes"] = e.Children, e.Below.Nodes, e.Below.Files, e.Below.Dirs, e.Below.Bytes
		o["scope"] = e.Scope
	}
	if len(e.Extra) > 0 {
		o["extra_b64"] = base64.StdEncoding.EncodeToString(e.Extra)
	}
	return o
}

func extentObjects(xs []tree.Extent) []object {
	var list []object
	for _, x := range xs {
		list = append(list, object{"offset": x.Off, "length": x.Len, "kind": extentKinds[x.Kind], "end": extentEnds[x.End]}.setID("chunk", x.ID))
	}
	return list
}

func (a *app) printPage(id chunk.ID, size int, pg *tree.Page) {
	a.printf("page:%s: %s, level %d, %d bytes\n", id, pageKinds[pg.Kind], pg.Level, size)
	for i := range pg.Refs {
		r := &pg.Refs[i]
		a.printf("page:%s  %d items, %d nodes, %d bytes, up to %s\n", r.ID, r.Items, r.Below.Nodes, r.Below.Bytes, quote(r.Last))
	}
	for i := range pg.Entries {
		a.printEntry(&pg.Entries[i])
	}
	a.printExtents(pg.Extents)
	for i := range pg.Witness {
		w := &pg.Witness[i]
		a.printf("%s  inode %d, device %d, ctime %d.%09d\n", quote(w.Name), w.Ino, w.Dev, w.Ctime.Sec, w.Ctime.Nsec)
		a.printID("its directory", "page:", w.Root)
	}
	for _, x := range pg.Xattrs {
		a.printf("%s=%q\n", quote(x.Name), x.Value)
	}
}

func (a *app) printEntry(e *tree.Entry) {
	a.printf("%s\n", longLine(e.Name, &e.Attr))
	if e.Link != "" {
		a.printf("    hard link of %s\n", quote(e.Link))
	}
	for _, x := range e.Xattrs {
		a.printf("    %s=%q\n", quote(x.Name), x.Value)
	}
	a.printID("xattrs", "page:", e.XattrPage)
	a.printID("recipe", "page:", e.Recipe)
	a.printID("directory", "page:", e.Root)
	if e.Kind == tree.Dir {
		a.printf("    %d children, below %d nodes, %d files, %d directories, %d bytes\n", e.Children, e.Below.Nodes, e.Below.Files, e.Below.Dirs, e.Below.Bytes)
	}
	a.printExtents(e.Extents)
}

func (a *app) printID(what, prefix string, id chunk.ID) {
	if !id.IsZero() {
		a.printf("    %s %s%s\n", what, prefix, id)
	}
}

func (a *app) printExtents(xs []tree.Extent) {
	for _, x := range xs {
		a.printf("    %d +%d %s, ended by %s", x.Off, x.Len, extentKinds[x.Kind], extentEnds[x.End])
		if !x.ID.IsZero() {
			a.printf(" chunk:%s", x.ID)
		}
		a.printf("\n")
	}
}
