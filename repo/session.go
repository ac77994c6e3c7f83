package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// ErrDead says that this writer had been silent for so long that another
// declared it dead: its snapshot cannot be committed any more. A new run adopts
// what it had stored.
var ErrDead = errors.New("this writer was declared dead")

// DefaultHeartbeat is how often a session gives a sign of life.
const DefaultHeartbeat = 5 * time.Minute

// A Session writes one snapshot, by the writer's protocol (see the package's
// doc). It is safe for concurrent use, but Commit and Abort, one of which must
// be called, once.
type Session struct {
	ID     ID
	Writer *chunkstore.Writer

	r    *Repo
	stop context.CancelFunc
	wg   sync.WaitGroup
	n    int // heartbeats tried

	began time.Time
	found map[pack.Name]time.Time // when packs were stored that were there; nil: nothing is locked
}

// Begin announces a writer, learns what it may lean on, and adopts packs that
// an interrupted writer left without a segment.
func (r *Repo) Begin(ctx context.Context) (*Session, error) { return r.begin(ctx, nil) }

// begin is Begin for who copies chunks: packs of which lean says false are not
// leaned on, whatever they hold. A nil lean says true.
func (r *Repo) begin(ctx context.Context, lean func(pack.Name) bool) (*Session, error) {
	if err := r.MayWrite(ctx, ""); err != nil {
		return nil, err
	}
	if err := r.renewKeys(ctx); err != nil {
		return nil, err
	}
	id, err := r.newID()
	if err != nil {
		return nil, err
	}
	s := &Session{ID: id, r: r, began: r.opt.Now()}
	see := &view{r: r}
	for _, st := range beginOrder {
		if st == doAnnounce {
			err = s.announce(ctx)
		} else {
			err = see.do(ctx, st)
		}
		if err != nil {
			s.removeIntent(context.WithoutCancel(ctx)) // it may be there all the same
			return nil, err
		}
	}
	usable := see.usable()
	if r.vault != nil {
		s.found = map[pack.Name]time.Time{}
		for name := range usable {
			s.found[name] = see.packs[name].ModTime
		}
	}
	if err = r.adopt(ctx, usable); err == nil {
		err = r.keepTrusted(ctx, usable, lean)
	}
	if err != nil {
		s.removeIntent(context.WithoutCancel(ctx))
		return nil, err
	}
	s.Writer = r.store.NewWriter(id, func(n pack.Name) bool { _, ok := usable[n]; return ok })
	beat, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.wg.Add(1)
	go s.heartbeat(beat)
	return s, nil
}

// announce puts the intent, before any decision to deduplicate.
func (s *Session) announce(ctx context.Context) error {
	r := s.r
	if err := r.putJSON(ctx, intentName(s.ID), seal.KindIntent, seal.ForList, r.intent(s.ID, 0)); err != nil {
		return err
	}
	if sw, ok := r.b.(sweeper); ok {
		if _, err := sw.Sweep(r.opt.Now()); err != nil {
			r.opt.Logf("%v", err)
		}
	}
	return nil
}

// sweeper is a backend that removes what killed writers left half written.
type sweeper interface {
	Sweep(now time.Time) (int, error)
}

func (r *Repo) intent(id ID, beat int) Intent {
	return Intent{V: 1, ID: id, Started: r.opt.Now().UTC(), Beat: beat, Host: r.opt.Host, Program: r.opt.Program, PID: os.Getpid()}
}

func intentName(id ID) string { return "intents/" + id.String() }

// adopt learns what lies in usable packs that no segment lists, and publishes
// it: what an interrupted writer stored need not be stored again. A pack that
// does not prove itself is left alone.
func (r *Repo) adopt(ctx context.Context, usable map[pack.Name]int64) error {
	if _, err := r.ix.Sync(ctx); err != nil {
		if !unproven(err) {
			return err
		}
		// A damaged segment costs nothing but time: its packs list themselves.
		r.opt.Logf("%v; its packs are read instead, and `cutbank verify` tells more", err)
	}
	// There may be thousands, if segments were lost: not all are held at once.
	var adopted []*pack.Trailer
	publish := func() error {
		ts := adopted
		adopted = nil
		if len(ts) == 0 {
			return nil
		}
		return r.ix.Publish(ctx, ts)
	}
	if err := r.learn(ctx, usable, func(t *pack.Trailer) error {
		if adopted = append(adopted, t); len(adopted) < publishBatch {
			return nil
		}
		return publish()
	}); err != nil {
		return err
	}
	return publish()
}

// learn makes known what lies in packs that the index does not know, and calls
// learned for each. Packs that vanished or do not prove themselves are taken out
// of the map.
func (r *Repo) learn(ctx context.Context, packs map[pack.Name]int64, learned func(*pack.Trailer) error) error {
	for name, size := range packs {
		info, ok, err := r.ix.Pack(name)
		if err != nil {
			return err
		}
		if ok && info.Size != size {
			r.opt.Logf("pack %s has %d bytes, its trailer said %d: what it held is stored again", name, size, info.Size)
			delete(packs, name)
			continue
		}
		if ok && r.ix.Listed(name) {
			continue
		}
		t, err := r.ix.Adopt(ctx, name, size)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			if !errors.Is(err, fs.ErrNotExist) {
				r.opt.Logf("pack %s is left alone: %v", name, err)
			}
			delete(packs, name)
			continue
		}
		if err := learned(t); err != nil {
			return err
		}
	}
	return nil
}

// unproven reports whether an object was passed over because it is damaged, or
// signed by who is not known.
func unproven(err error) bool {
	return errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, seal.ErrNoKey)
}

// Sync reads what has been published since the last time. Where segments are
// damaged, the packs that they listed are read themselves; the error then tells
// of the damage, and all that can be known is known. So they are where the oldest
// versions are read: small segments are not locked for ever, and may be gone.
func (r *Repo) Sync(ctx context.Context) error {
	// A writer that is new signs segments that did not prove themselves before.
	err := r.syncBeside(ctx)
	if _, oldest := r.b.(*backend.OldestOf); !oldest && (err == nil || !unproven(err)) {
		return err
	}
	if err != nil && !unproven(err) {
		return err
	}
	packs := map[pack.Name]int64{}
	for info, lerr := range r.b.List(ctx, "packs/") {
		if lerr != nil {
			return lerr
		}
		if n, ok := pack.ParseObject(info.Name); ok {
			packs[n] = info.Size
		}
	}
	if lerr := r.learn(ctx, packs, func(*pack.Trailer) error { return nil }); lerr != nil {
		return lerr
	}
	return err
}

// syncBeside reads writers, and then what the index does not know. Across a network
// both at once: as a rule no writer is new, and else the index is asked again.
func (r *Repo) syncBeside(ctx context.Context) error {
	sync := func() error {
		_, err := r.ix.Sync(ctx)
		return err
	}
	if backend.Transfers(r.b) <= 1 {
		if err := r.readWriters(ctx); err != nil {
			return err
		}
		return sync()
	}
	before := r.writerNames()
	synced := make(chan error, 1)
	go func() { synced <- sync() }()
	err := r.readWriters(ctx)
	first := <-synced
	if err != nil {
		return err
	}
	if maps.Equal(before, r.writerNames()) {
		return first
	}
	return sync()
}

// heartbeat tells the pruners that this writer lives.
func (s *Session) heartbeat(ctx context.Context) {
	defer s.wg.Done()
	every := s.r.opt.Heartbeat
	if every == 0 {
		every = DefaultHeartbeat
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// A name is used once, also if nobody knows whether it was: a beat that
		// got stuck at one name would let this writer seem dead.
		s.n++
		if err := s.r.putJSON(ctx, fmt.Sprintf("%s.%d", intentName(s.ID), s.n), seal.KindIntent, seal.ForList, s.r.intent(s.ID, s.n)); err != nil {
			s.r.opt.Logf("heartbeat: %v", err)
		}
	}
}

// Commit stores what is open and then the record: from then on the snapshot
// exists. rec's ID and what was stored are set. If the writer was declared dead it is ErrDead, and
// nothing is lost but the need to run again.
func (s *Session) Commit(ctx context.Context, rec *Snapshot) error {
	if err := s.Writer.Close(); err != nil {
		s.end(ctx)
		return err
	}
	if err := s.r.MayWrite(ctx, rec.Name); err != nil { // it may have been revoked meanwhile
		s.end(ctx)
		return err
	}
	if s.r.vault != nil {
		// What is committed is locked: nothing is that could not be.
		if err := s.r.keepLocked(ctx, s.Writer.Leaned(), s.found, s.began); err != nil {
			s.end(ctx)
			return err
		}
	}
	rec.V, rec.ID = 1, s.ID
	stats := s.Writer.Stats()
	rec.Stats.NewBytes, rec.Stats.Stored = stats.NewBytes, stats.Stored
	body, err := json.Marshal(rec)
	if err != nil {
		s.end(ctx)
		return err
	}
	name := "snapshots/" + s.ID.String()
	p, err := s.r.k.Seal(name, seal.KindSnapshot, seal.ForEpoch, body, s.r.opt.Random)
	if err != nil {
		s.end(ctx)
		return err
	}
	for _, st := range endOrder {
		switch st {
		case doCommit:
			err = s.put(ctx, name, p)
		case doWithdraw:
			s.end(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// put creates the record, if absent: the one name that committing and declaring
// dead race for.
func (s *Session) put(ctx context.Context, name string, p []byte) error {
	err, asked := ctx.Err(), false
	if err == nil {
		asked, err = true, s.r.b.Put(ctx, name, p)
	}
	if err == nil {
		return nil
	}
	got, gerr := s.r.b.Get(context.WithoutCancel(ctx), name, 0, -1)
	// A Put that was cancelled on its way is as unclear as any: whoever cancels
	// it cannot call back what was sent.
	sure := errors.Is(gerr, fs.ErrNotExist) && (!asked || definite(err))
	switch settle(gerr == nil, bytes.Equal(got, p), sure) {
	case success: // the answer was lost, the record was not
		return nil
	case lost:
		s.end(ctx)
		return fmt.Errorf("snapshot %s: %w: run again, what was stored is adopted", s.ID, ErrDead)
	case failed:
		s.end(ctx)
		return err
	}
	s.halt()
	return fmt.Errorf("snapshot %s: unclear whether it was committed; `cutbank snapshots` will tell: %w", s.ID, err)
}

// definite reports whether a Put that failed so has left nothing that might
// still arrive. A last answer that is clear says nothing of those before it.
func definite(err error) bool {
	if errors.Is(err, backend.ErrUnclear) {
		return false
	}
	for _, e := range []error{backend.ErrNotDone, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, fs.ErrPermission, syscall.ENOTDIR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// wait lets a backend's listings catch up.
func (r *Repo) wait(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	r.opt.Logf("waiting %s for the listings of %s", d, r.b)
	return sleep(ctx, d)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Abort gives the session up: what it stored stays for the next, the intent
// goes.
func (s *Session) Abort(ctx context.Context) {
	if err := s.Writer.Close(); err != nil {
		s.r.opt.Logf("%v", err)
	}
	s.end(ctx)
}

func (s *Session) halt() {
	s.stop()
	s.wg.Wait()
}

func (s *Session) end(ctx context.Context) {
	s.halt()
	s.removeIntent(context.WithoutCancel(ctx))
}

// removeIntent removes the heartbeats first: without its intent a heartbeat
// would stay for ever. Where one request fails for a reason that may pass, the
// others would wait as long for nothing.
func (s *Session) removeIntent(ctx context.Context) {
	var names []string
	for i := range s.n {
		names = append(names, fmt.Sprintf("%s.%d", intentName(s.ID), i+1))
	}
	for _, name := range append(names, intentName(s.ID)) {
		if err := s.r.b.Remove(ctx, name); err != nil {
			s.r.opt.Logf("%v", err)
			if backend.Transient(err) {
				return
			}
		}
	}
}
