package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// Kind is the kind "command".
var Kind = system.Kind{
	Name:  "command",
	Short: "anything that commands can dump, or that hooks can make hold still",
	Help: `A pre hook runs first. Then either the output of a command is kept as one file
(--stream and --as), or a directory (--dir). At the end the post hook runs, or, if
the snapshot was not kept, the abort hook. Commands are done by /bin/sh, and find in
their environment: CUTBANK_STEP (pre, stream, post, abort, version, cluster or
restore), CUTBANK_NAME, CUTBANK_MODE, CUTBANK_DATA (a line for each --data) and
CUTBANK_SCRATCH, a directory that is removed at the end; abort has CUTBANK_CRASHED=1
where it is a killed run that it cleans up after, restore has CUTBANK_FORCE=1 with
--force. A command counts as done if it exits with 0, of a pipe the last alone: write
bash -o pipefail -c 'tar -c . | gzip'. What one says on its standard error is shown.

  cutbank snapshot --system command --name ldap -- --stream slapcat --as all.ldif
  cutbank restore ldap/latest --system command -- --restore 'slapadd -q'
  cutbank snapshot --system command --name mail -- --pre 'doveadm stop' \
      --post 'systemctl start dovecot' --abort 'systemctl start dovecot' --dir /srv/mail`,
	Modes:    []system.Mode{system.Full, system.Light, system.Dataless},
	Restores: "the stream is piped into --restore; a directory is brought to --dir, and then --restore runs",
	Flags:    flags,
}

// System is what a recipe is about.
type System struct{ recipe recipe }

// what is captured, as the state file and the record tell it.
func (s *System) what() (from, name string) {
	if s.recipe.Dir != "" {
		return "dir", s.recipe.Dir
	}
	return "stream", s.recipe.As
}

// environ is the environment of commands: that of this process, without the secret
// that opens the repository, and with pairs.
func environ(pairs ...string) []string {
	return append(Environ(), pairs...)
}

// Environ returns the environment of this process without the passwords that open
// repositories, such as CUTBANK_PASSWORD and CUTBANK_TO_PASSWORD: no program of a
// system needs them.
func Environ() []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "CUTBANK_") || !strings.HasSuffix(name, "PASSWORD") {
			env = append(env, e)
		}
	}
	return env
}

// capture is a run of the hooks, of which the first is through.
type capture struct {
	s      *System
	opt    system.CaptureOptions
	info   system.Info
	state  *state // nil without hooks
	root   tree.Node
	stream *stream // nil for a directory
	closed bool
}

// Capture implements system.System.
func (s *System) Capture(ctx context.Context, opt system.CaptureOptions) (system.Capture, error) {
	r := &s.recipe
	command := pick(opt.Mode, r.Stream, r.StreamLight, r.StreamDataless)
	switch {
	case r.Dir != "" && opt.Mode == system.Light && len(opt.Data) == 0:
		return nil, fmt.Errorf("--mode light of a directory: say with --data of which files to keep the contents: %w", system.ErrRefused)
	case r.Dir == "" && command == "" && opt.Mode == system.Full:
		return nil, fmt.Errorf("say what to keep: --stream COMMAND and --as NAME, or --dir PATH: %w", system.ErrRefused)
	case r.Dir == "" && command == "":
		return nil, fmt.Errorf("--mode %s needs a command of its own, --stream-%s: %w", opt.Mode, opt.Mode, system.ErrRefused)
	}
	from, name := s.what()
	c := &capture{s: s, opt: opt}
	c.info = system.Info{Kind: Kind.Name, Facts: map[string]string{"from": from, from: name}}
	if err := c.begin(ctx); err != nil {
		return nil, err
	}
	err := c.pin(ctx, command)
	if err != nil {
		return nil, errors.Join(err, c.Close(context.WithoutCancel(ctx), false))
	}
	return c, nil
}

// begin clears what a killed run left, and writes down that this one begins.
func (c *capture) begin(ctx context.Context) (err error) {
	identity := func() error {
		c.info.Version, c.info.Cluster, err = c.s.identity(ctx, c.env, c.opt.Logf, c.opt.Warnf)
		return err
	}
	r := &c.s.recipe
	if r.Pre == "" && r.Post == "" && r.Abort == "" {
		return identity()
	}
	from, name := c.s.what()
	st, err := openState(c.opt.State, c.opt.Name, from+" "+name)
	if err != nil {
		return err
	}
	c.state = st
	if st.left != nil {
		if err := c.cleanUp(ctx, st); err != nil {
			st.leave()
			return err
		}
	}
	// A system that a killed run has stopped could not tell its version before.
	if err := identity(); err != nil {
		return errors.Join(err, st.end())
	}
	if err := st.begin(began{Name: c.opt.Name, Started: c.opt.Now().UTC(), PID: os.Getpid()}); err != nil {
		return errors.Join(err, st.end())
	}
	return nil
}

// cleanUp does what a run that was killed could not do.
func (c *capture) cleanUp(ctx context.Context, st *state) error {
	since := ""
	if !st.left.Started.IsZero() {
		since = fmt.Sprintf(" of process %d, begun %s,", st.left.PID, st.left.Started.UTC().Format(time.RFC3339))
	}
	if c.s.recipe.Abort == "" {
		c.opt.Warnf("the last run%s was ended between its hooks, and there is no abort hook to clean up after it", since)
		return nil
	}
	c.opt.Warnf("the last run%s was ended between its hooks: the abort hook runs first", since)
	if err := c.hook(ctx, "abort", c.s.recipe.Abort, "CUTBANK_CRASHED=1"); err != nil {
		return fmt.Errorf("cleaning up after the last run: %w; nothing was begun, and the next run tries again (where there is nothing to clean up: remove %s)", err, st.f.Name())
	}
	return nil
}

// pin runs the pre hook and opens what is kept.
func (c *capture) pin(ctx context.Context, command string) (err error) {
	if err := c.hook(ctx, "pre", c.s.recipe.Pre); err != nil {
		return err
	}
	if c.s.recipe.Dir != "" {
		c.root, err = source.Open(c.s.recipe.Dir + "/")
		if err == nil && c.root.Attr().Kind != tree.Dir {
			err = fmt.Errorf("--dir %s is no directory", c.s.recipe.Dir)
		}
		return err
	}
	p := Proc{What: "the stream's command", Args: Shell(command), Env: c.env("stream"), Timeout: time.Duration(c.s.recipe.Timeout), Hold: c.lock(), Logf: c.opt.Logf, Warnf: c.opt.Warnf}
	if c.stream, err = startStream(ctx, p); err != nil {
		return err
	}
	c.root = streamRoot(c.s.recipe.As, c.stream, tree.TimeOf(c.opt.Now()))
	return nil
}

// hook runs one of the commands around; an empty one is done.
func (c *capture) hook(ctx context.Context, step, command string, more ...string) error {
	if command == "" {
		return nil
	}
	c.opt.Logf("running the %s hook", step)
	p := Proc{What: "the " + step + " hook", Args: Shell(command), Env: append(c.env(step), more...), Timeout: time.Duration(c.s.recipe.HookTimeout), Hold: c.lock(), Logf: c.opt.Logf, Warnf: c.opt.Warnf}
	return p.Run(ctx)
}

// lock is what keeps the next run from beginning while a command of this one, which
// was killed, is still at work; nil without hooks.
func (c *capture) lock() *os.File {
	if c.state == nil {
		return nil
	}
	return c.state.f
}

func (c *capture) env(step string) []string {
	return environ("CUTBANK_STEP="+step, "CUTBANK_NAME="+c.opt.Name, "CUTBANK_MODE="+string(c.opt.Mode),
		"CUTBANK_DATA="+strings.Join(c.opt.Data, "\n"), "CUTBANK_SCRATCH="+c.opt.Scratch)
}

// Root implements system.Capture.
func (c *capture) Root() tree.Node { return c.root }

// Live implements system.Live.
func (c *capture) Live() string { return c.s.recipe.Dir }

// Finish implements system.Capture.
func (c *capture) Finish(context.Context) (system.Info, error) {
	if c.stream != nil && !c.stream.whole() {
		return c.info, fmt.Errorf("the stream was not read to its end: %w", system.ErrIncomplete)
	}
	if c.stream == nil {
		return c.info, c.stillThere()
	}
	return c.info, nil
}

// stillThere fails if the directory was removed, unmounted or replaced while it was
// captured: what is missing then looks as if it had been removed on purpose.
func (c *capture) stillThere() error {
	now, err := source.Open(c.s.recipe.Dir + "/")
	if err != nil {
		return fmt.Errorf("--dir went away while it was captured: %v: %w", err, system.ErrIncomplete)
	}
	if a, b := c.root.Attr(), now.Attr(); a.Dev != b.Dev || a.Ino != b.Ino {
		return fmt.Errorf("--dir %s became another directory while it was captured: %w", c.s.recipe.Dir, system.ErrIncomplete)
	}
	return nil
}

// Close implements system.Capture.
func (c *capture) Close(ctx context.Context, kept bool) error {
	if c.closed {
		return nil
	}
	c.closed = true
	if c.stream != nil {
		c.stream.stop()
	}
	if c.state == nil {
		return nil
	}
	var err error
	if kept {
		err = c.hook(ctx, "post", c.s.recipe.Post)
	} else {
		err = c.hook(ctx, "abort", c.s.recipe.Abort)
	}
	if err != nil {
		c.state.leave()
		return fmt.Errorf("%w; the next run runs the abort hook first", err)
	}
	return c.state.end()
}

// identity asks the system for its version and what tells it from others.
func (s *System) identity(ctx context.Context, env func(string) []string, logf, warnf func(string, ...any)) (version, cluster string, err error) {
	ask := func(step, command string) (string, error) {
		if command == "" {
			return "", nil
		}
		p := Proc{What: "--" + step + "-cmd", Args: Shell(command), Env: env(step), Timeout: time.Duration(s.recipe.HookTimeout), Logf: logf, Warnf: warnf}
		out, err := p.Output(ctx)
		if err != nil {
			return "", err
		}
		out = strings.TrimSpace(out)
		if out == "" || len(out) > 200 || strings.ContainsAny(out, "\n\x00") {
			return "", fmt.Errorf("--%s-cmd printed %d bytes: want one line of at most 200", step, len(out))
		}
		return out, nil
	}
	if version, err = ask("version", s.recipe.Version); err != nil {
		return "", "", err
	}
	cluster, err = ask("cluster", s.recipe.Cluster)
	return version, cluster, err
}

var _ io.Reader = (*stream)(nil)
