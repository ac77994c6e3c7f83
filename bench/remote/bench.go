package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/bench/tool"
)

// settle is how long the trees rest before the first snapshot: tools distrust
// files that changed in the last two seconds.
const settle = 3 * time.Second

// options are the flags.
type options struct {
	latency  time.Duration
	files    int // small ones
	bigFiles int
	bigBytes int64
	seed     uint64
	history  int           // so many more snapshots before the mount
	idle     time.Duration // how long a mount is left alone
	tools    []string      // in the order of columns; the first is the base
	cutbank  string        // a ready-made binary
	server   string        // URL; empty: start a gateway
	gateway  string
	trace    string // file
	tmp      string
	timeout  time.Duration
	json     bool
}

// bench is the state of the program.
type bench struct {
	opt     options
	dir     string // everything is below
	trees   [trees]tree
	parts   []*participant
	gateway *gateway
	trace   *trace
	setup   setup
	found   []measurement
	report  func(measurement) // is told each at once
	log     io.Writer
}

// measurement is one step of one tool. It is written as JSON with these names.
type measurement struct {
	V    int     `json:"v"`
	Type string  `json:"type"` // "measurement"; "sum" if it adds up others
	Step string  `json:"step"`
	Tool string  `json:"tool"`
	Wall float64 `json:"wall_seconds"`
	CPU  float64 `json:"cpu_seconds"` // through the mount that of the mount and of what reads it
	Peak int64   `json:"peak_bytes"`
	traffic
	Err  string `json:"error,omitempty"`   // if set, the numbers mean nothing
	Skip bool   `json:"skipped,omitempty"` // an earlier error is the reason
}

// setup is what was measured on.
type setup struct {
	V        int               `json:"v"`
	Type     string            `json:"type"` // "setup"
	Small    tool.Tally        `json:"small"`
	Big      tool.Tally        `json:"big"`
	Latency  float64           `json:"latency_seconds"`
	Seed     uint64            `json:"seed"`
	Base     string            `json:"base"` // ratios are to this tool's numbers
	Cores    int               `json:"cores"`
	Versions map[string]string `json:"versions"`
}

func (b *bench) logf(format string, args ...any) { fmt.Fprintf(b.log, format+"\n", args...) }

// close ends what still runs and removes everything.
func (b *bench) close() error {
	var errs []error
	for _, p := range b.parts {
		errs = append(errs, p.unmount(), p.proxy.close())
	}
	if b.gateway != nil {
		b.gateway.close()
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// prepare makes the trees, starts the server, and finds the tools.
func (b *bench) prepare(ctx context.Context) error {
	if err := b.room(); err != nil {
		return err
	}
	b.logf("making %d small files, and %d MB in %d big ones", b.opt.files, b.opt.bigBytes/1e6, b.opt.bigFiles)
	w := newWriter(b.opt.seed)
	var err error
	if b.trees[small], err = w.smallFiles(ctx, filepath.Join(b.dir, "small"), b.opt.files); err != nil {
		return err
	}
	if b.trees[big], err = w.bigFiles(ctx, filepath.Join(b.dir, "big"), b.opt.bigFiles, b.opt.bigBytes); err != nil {
		return err
	}
	var bucket tool.Bucket
	if b.opt.server != "" {
		bucket, err = parseServer(b.opt.server, os.Getenv)
	} else {
		bucket, err = b.ownServer(ctx)
	}
	if err != nil {
		return err
	}
	b.setup = setup{V: 1, Type: "setup", Small: b.trees[small].whole, Big: b.trees[big].whole, Latency: b.opt.latency.Seconds(),
		Seed: b.opt.seed, Base: b.opt.tools[0], Cores: runtime.NumCPU(), Versions: map[string]string{}}
	for _, name := range b.opt.tools {
		if err := b.join(ctx, name, bucket); err != nil {
			return err
		}
	}
	return sleep(ctx, settle)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// room returns an error if the disk is too small: for the trees, a repository of
// each tool, in the worst case, with its cache, and one restore at a time.
func (b *bench) room() error {
	var st unix.Statfs_t
	if err := unix.Statfs(b.dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: b.dir, Err: err}
	}
	size := b.opt.bigBytes + int64(b.opt.files)*largest
	free, need := int64(st.Bavail)*st.Bsize, size*int64(2+2*len(b.opt.tools))
	if free < need {
		return fmt.Errorf("%s has %d MB free, and %d MB may be needed: use -big, -files, fewer -tools or another -tmp", b.opt.tmp, free/1e6, need/1e6)
	}
	return nil
}

func (b *bench) ownServer(ctx context.Context) (tool.Bucket, error) {
	bin, err := findGateway(b.opt.gateway)
	if err != nil {
		return tool.Bucket{}, err
	}
	if b.gateway, err = startGateway(ctx, bin, filepath.Join(b.dir, "server")); err != nil {
		return tool.Bucket{}, err
	}
	return b.gateway.bucket, nil
}

// join adds a tool, with a proxy of its own in front of the bucket.
func (b *bench) join(ctx context.Context, name string, bucket tool.Bucket) error {
	given := ""
	if name == "cutbank" {
		given = b.opt.cutbank
	}
	bin, err := tool.Find(ctx, name, given, filepath.Join(b.dir, "bin"))
	if err != nil {
		return err
	}
	p := &participant{name: name}
	if p.proxy, err = startProxy(name, bucket.Host, b.opt.latency, b.trace); err != nil {
		return err
	}
	b.parts = append(b.parts, p)
	bucket.Host = p.proxy.host
	for i := range p.tools {
		opt := tool.Options{Bin: bin, Base: filepath.Join(b.dir, "tool", name), Tree: b.trees[i].dir, Label: labels[i], At: &bucket}
		if p.tools[i], err = tool.New(name, opt); err != nil {
			return err
		}
	}
	b.setup.Versions[name], err = p.tools[small].About(ctx)
	return err
}

// measure does everything. An error is one that makes it pointless to go on; a
// tool's failure is a measurement.
func (b *bench) measure(ctx context.Context) error {
	for i, s := range steps {
		for j := range b.parts {
			// Nobody always goes first.
			if err := b.step(ctx, s, b.parts[(i+j)%len(b.parts)]); err != nil {
				return err
			}
		}
	}
	return nil
}

// try does a step, and checks it outside of what is measured.
func (b *bench) try(ctx context.Context, s step, p *participant) (m measurement, err error) {
	if p.out != nil {
		return m, fmt.Errorf("%w: an earlier step failed", errSkipped)
	}
	if s.cold || isMount(s.key) {
		if err := p.unmount(); err != nil {
			return m, err
		}
	}
	if s.cold {
		if err := p.forget(); err != nil {
			return m, err
		}
	}
	// What one tool has written must not be paid for by the next.
	syscall.Sync()
	ctx, cancel := context.WithTimeoutCause(ctx, b.opt.timeout, fmt.Errorf("stopped after %v, see -timeout", b.opt.timeout))
	defer cancel()
	b.trace.begin(p.name, s.key)
	before := p.proxy.count()
	d, err := s.do(ctx, b, p)
	m.traffic = p.proxy.count().since(before)
	m.Wall, m.CPU, m.Peak = d.usage.Wall.Seconds(), d.usage.CPU.Seconds(), d.usage.Peak
	b.trace.begin(p.name, "")
	if err == nil && d.check != nil {
		err = d.check(ctx)
	}
	return m, err
}

// isMount tells whether a step mounts: what was mounted before must go.
func isMount(key string) bool { return key == "mount" || key == "mount-again" || key == "mount-one" }

// step does one step with one tool and keeps what was measured.
func (b *bench) step(ctx context.Context, s step, p *participant) error {
	m, err := b.try(ctx, s, p)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	m.V, m.Type, m.Step, m.Tool = 1, "measurement", s.key, p.name
	if err != nil {
		m.Err, m.Skip = err.Error(), errors.Is(err, errSkipped)
		b.logf("%s: %s failed: %v", s.title, p.name, err)
	} else {
		b.logf("%s: %s: %d requests, %.1f MB, %.2f s", s.title, p.name, m.Requests, float64(m.Up+m.Down)/1e6, m.Wall)
	}
	b.found = append(b.found, m)
	b.report(m)
	return nil
}
