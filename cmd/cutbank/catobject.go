package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/index"
	"github.com/cutbankfs/cutbank/repo"
)

type objectFlags struct {
	header, trailer, raw bool
	frame                int
}

func (a *app) catObjectCommand() *cobra.Command {
	var s objectFlags
	c := &cobra.Command{
		Use:   "cat-object NAME",
		Short: "Show a stored object, opened and decoded",
		Long: `cat-object shows what the repository stores, floor by floor, for who has to find out
what is wrong. NAME is the name of an object, as the files of the repository are
called, or a page or chunk by its ID:

  config/N  keys/ID  writers/ID  intents/ID  marks/ID-N  condemned/ID  forgotten/ID
  ledger/ID                 the body as JSON; secrets are left out
  snapshots/ID              a record, or the tombstone of a writer that was given up
  index/ID                  a segment: the packs that it lists
  packs/XX/ID               a pack: its header and frames; --header or --trailer
                            alone; --frame N the chunks of one frame
  page:ID                   a page of a directory, recipe, witness or xattrs
  chunk:ID                  where a chunk or page lies

A record names the page of its tree; pages name pages and chunks; chunk: tells
pack and frame. --raw writes plain bytes: of a frame, page or chunk, or an
object's body.`,
		Example: `  cutbank cat-object -r /backup config/1
  cutbank cat-object -r /backup page:5fd1...
  cutbank cat-object -r /backup packs/4f/4f3a... --frame 3
  cutbank cat-object -r /backup chunk:81d2... --raw | xxd | head`,
		Args: exactly(1, "the name of one object"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := s.check(args[0], c.Flags().Changed("frame")); err != nil {
				return err
			}
			return a.buffered(func() error { return a.catObject(c.Context(), &s, args[0]) })
		},
	}
	f := c.Flags()
	f.BoolVar(&s.header, "header", false, "of a pack: the header only")
	f.BoolVar(&s.trailer, "trailer", false, "of a pack: the whole trailer, with all chunks")
	f.IntVar(&s.frame, "frame", -1, "of a pack: this frame, from 0 on")
	f.BoolVar(&s.raw, "raw", false, "write plain bytes")
	c.MarkFlagsMutuallyExclusive("header", "trailer", "frame")
	return c
}

// check refuses flags that mean nothing for an object.
func (s *objectFlags) check(name string, frame bool) error {
	isPack := strings.HasPrefix(name, "packs/")
	switch {
	case !isPack && (s.header || s.trailer || frame):
		return usagef("--header, --trailer and --frame are for packs/XX/ID")
	case frame && s.frame < 0:
		return usagef("--frame %d: frames count from 0 on", s.frame)
	case s.raw && isPack && !frame:
		return usagef("--raw needs --frame N: the pack itself is a file of the repository")
	case s.raw && (strings.HasPrefix(name, "keys/") || strings.HasPrefix(name, "config/")):
		return usagef("--raw: %s holds secrets, which are not shown", name)
	}
	return nil
}

// objectKinds tells what may lie under each prefix.
var objectKinds = map[string][]seal.Kind{
	"config": {seal.KindConfig}, "keys": {seal.KindKey}, "writers": {seal.KindWriter}, "index": {seal.KindSegment}, "intents": {seal.KindIntent},
	"snapshots": {seal.KindSnapshot, seal.KindTombstone}, "marks": {seal.KindMark}, "condemned": {seal.KindCondemned},
	"forgotten": {seal.KindForgotten}, "ledger": {seal.KindLedger}, "parity": {seal.KindParity}, "packs": nil,
}

// isObjectName reports whether an argument looks like an object's name.
func isObjectName(name string) bool {
	prefix, rest, ok := strings.Cut(name, "/")
	if _, known := objectKinds[prefix]; ok && known {
		return backend.ValidName(name) && rest != ""
	}
	prefix, rest, ok = strings.Cut(name, ":")
	return ok && (prefix == "page" || prefix == "chunk") && rest != ""
}

func (a *app) catObject(ctx context.Context, s *objectFlags, name string) error {
	if !isObjectName(name) {
		return usagef("%q is no object: use config/N, keys/ID, snapshots/ID, index/ID, packs/XX/ID, page:ID, chunk:ID and so on; see `cutbank cat-object --help`", name)
	}
	if hex, ok := strings.CutPrefix(name, "page:"); ok {
		return a.catPage(ctx, s, hex)
	}
	if hex, ok := strings.CutPrefix(name, "chunk:"); ok {
		return a.catChunk(ctx, s, hex)
	}
	r, err := a.anyRepo(ctx)
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, "packs/") {
		p, ok := pack.ParseObject(name)
		if !ok {
			return usagef("%q is no pack: use packs/XX/ID, where XX are the first two of the ID's 32 digits", name)
		}
		return a.catPack(ctx, s, r, p)
	}
	p, err := r.Backend().Get(ctx, name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the repository has no object %s: %w", name, fs.ErrNotExist)
	}
	if err != nil {
		return err
	}
	o, err := openObject(r.SecretKeys(), name, p)
	if err != nil {
		return err
	}
	return a.printObject(s, name, len(p), o)
}

// openObject opens an object of any kind that its name allows.
func openObject(k *seal.Keys, name string, p []byte) (*seal.Object, error) {
	o, err := seal.Parse(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	prefix, _, _ := strings.Cut(name, "/")
	ok := false
	for _, kind := range objectKinds[prefix] {
		ok = ok || kind == o.Kind
	}
	if !ok {
		return nil, fmt.Errorf("%s: is an object of kind %q: %w", name, o.Kind, chunk.ErrCorrupt)
	}
	if o.Kind == seal.KindKey {
		return o, nil // may be unsigned; its body protects itself
	}
	if err := k.Open(name, o); err != nil {
		if errors.Is(err, seal.ErrVersion) {
			err = fmt.Errorf("%w: %w", repo.ErrFormat, err)
		}
		return nil, err
	}
	return o, nil
}

func (a *app) printObject(s *objectFlags, name string, size int, o *seal.Object) error {
	if s.raw {
		_, err := a.stdout.Write(o.Body)
		return err
	}
	if o.Kind == seal.KindSegment {
		seg, err := index.ParseSegment(o.Body)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return a.printSegment(name, size, o, seg)
	}
	body, err := maskedBody(o.Kind, o.Body)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	head := envelope(name, size, o)
	head["body"] = body
	if a.json {
		return a.emit("object", head)
	}
	a.printEnvelope(name, size, o)
	p, err := json.MarshalIndent(body, "", "  ")
	if err != nil {
		return err
	}
	a.printf("%s\n", p)
	return nil
}

var sealingNames = map[seal.Sealing]string{seal.Clear: "clear", seal.ForList: "list", seal.ForEpoch: "epoch"}

// envelope is what an object's envelope says, as --json tells it.
func envelope(name string, size int, o *seal.Object) object {
	return object{"name": name, "kind": string(rune(o.Kind)), "format": o.Version, "sealing": sealingNames[o.Sealing], "compressed": o.Compressed,
		"epoch": o.Epoch, "writer": o.Writer.String(), "size": size, "body_size": len(o.Body)}
}

func (a *app) printEnvelope(name string, size int, o *seal.Object) {
	how := sealingNames[o.Sealing] + " key"
	switch o.Sealing {
	case seal.Clear:
		how = "nothing"
	case seal.ForEpoch:
		how = fmt.Sprintf("key epoch %d", o.Epoch)
	}
	by := "signed by " + o.Writer.String()
	if o.Writer == (seal.WriterID{}) {
		by = "unsigned"
	}
	a.printf("%s: kind %c, format %d, %d bytes, sealed by %s, %s\n", name, o.Kind, o.Version, size, how, by)
}

// shownFields are the only fields that are shown of objects that hold
// secrets: what a newer version adds may be one.
var shownFields = map[seal.Kind][]string{
	seal.KindKey: {"v", "id", "created", "label", "kdf", "passes", "memory_kib", "threads", "role", "epoch"},
	seal.KindConfig: {"v", "repo", "created", "splitter", "splitter.kind", "splitter.min", "splitter.avg", "splitter.max", "frame_size", "pack_size",
		"append_only", "lock", "parity", "epochs", "removed_keys"},
}

// maskedBody decodes a body that is JSON and masks what is secret in it. A body
// of another kind is described.
func maskedBody(kind seal.Kind, body []byte) (any, error) {
	var v any
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		if kind == seal.KindParity {
			return fmt.Sprintf("%d bytes", len(body)), nil
		}
		return nil, fmt.Errorf("its body is no JSON: %w", chunk.ErrCorrupt)
	}
	shown, secret := shownFields[kind]
	if !secret {
		return v, nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("its body is no JSON object: %w", chunk.ErrCorrupt)
	}
	mask(m, "", shown)
	return m, nil
}

// mask replaces the values of the fields that are not shown.
func mask(m map[string]any, prefix string, shown []string) {
	for key, v := range m {
		name := prefix + key
		ok := false
		for _, s := range shown {
			ok = ok || s == name
		}
		if !ok {
			m[key] = "(secret, not shown)"
		} else if inner, is := v.(map[string]any); is {
			mask(inner, name+".", shown)
		}
	}
}

func (a *app) printSegment(name string, size int, o *seal.Object, seg *index.Segment) error {
	if a.json {
		head := envelope(name, size, o)
		packs := []object{}
		for _, t := range seg.Packs {
			packs = append(packs, packObject(t))
		}
		head["replaced"], head["dropped"], head["packs"] = namesOf(seg.Replaced), namesOf(seg.Dropped), packs
		return a.emit("segment", head)
	}
	a.printEnvelope(name, size, o)
	for _, n := range seg.Replaced {
		a.printf("replaces %s\n", n.Object())
	}
	for _, n := range seg.Dropped {
		a.printf("dropped  %s\n", n.Object())
	}
	for _, t := range seg.Packs {
		a.printf("pack     %s: %s\n", t.Name.Object(), packText(t))
	}
	return nil
}

func namesOf[N interface{ Object() string }](names []N) []string {
	list := []string{}
	for _, n := range names {
		list = append(list, n.Object())
	}
	return list
}
