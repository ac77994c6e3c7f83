package featurebase

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// errStalled is why a request was given up.
var errStalled = errors.New("nothing moves")

// flow gives one request up when the other side takes and sends nothing any more: a
// process that is stopped, or a machine behind a network that swallows, ends no
// connection.
type flow struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	after  time.Duration
	timer  *time.Timer
}

// newFlow returns a context for the request, and what watches over it, not yet at work.
func newFlow(ctx context.Context, after time.Duration) (context.Context, *flow) {
	ctx, cancel := context.WithCancelCause(ctx)
	f := &flow{ctx: ctx, cancel: cancel, after: after, timer: time.AfterFunc(after, func() { cancel(errStalled) })}
	f.timer.Stop()
	return ctx, f
}

func (f *flow) end() {
	f.timer.Stop()
	f.cancel(nil)
}

// why says what an error that came of giving up means.
func (f *flow) why(err error) error {
	if err != nil && err != io.EOF && context.Cause(f.ctx) == errStalled {
		return fmt.Errorf("%w for %s", errStalled, f.after)
	}
	return err
}

// outgoing is the body of a request: between two reads the other side must take what it
// was given.
type outgoing struct {
	*flow
	r io.Reader
}

// Read implements io.Reader.
func (o *outgoing) Read(p []byte) (int, error) {
	o.timer.Stop()
	n, err := o.r.Read(p)
	if err == nil {
		o.timer.Reset(o.after)
	}
	return n, err
}

// incoming is the body of an answer: while it is read something must come.
type incoming struct {
	*flow
	body io.ReadCloser
}

// Read implements io.Reader.
func (i *incoming) Read(p []byte) (int, error) {
	i.timer.Reset(i.after)
	n, err := i.body.Read(p)
	i.timer.Stop()
	return n, i.why(err)
}

// Close implements io.Closer.
func (i *incoming) Close() error {
	err := i.body.Close()
	i.end()
	return err
}
