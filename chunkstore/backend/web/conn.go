package web

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// conn is a connection that is lost when nothing moves in either direction for
// too long, and that keeps to the limits.
type conn struct {
	net.Conn
	opt      Options
	forget   func() bool // lets go of Ending
	up, down *limiter
	sent     atomic.Int64 // since something was last read
}

// The kernel takes this much before it has sent it, over a line that may be this
// slow: for so long an answer is not overdue.
const (
	buffered = 4 << 20
	slowLine = 16 << 10 // bytes a second
)

func newConn(nc net.Conn, opt Options, up, down *limiter) *conn {
	c := &conn{Conn: nc, opt: opt, up: up, down: down}
	c.forget = context.AfterFunc(opt.Ending, func() {
		_ = c.SetDeadline(time.Now().Add(opt.Hurry)) // who is stuck in a call already; a closed one needs none
	})
	return c
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// expect sets deadlines for what is to move next, wait from now at the earliest.
func (c *conn) expect(set func(time.Time) error, wait time.Duration) error {
	for {
		hurried := c.opt.Ending.Err() != nil
		due := c.opt.Stall + time.Duration(min(c.sent.Load(), buffered))*time.Second/slowLine
		if hurried {
			due = min(due, c.opt.Hurry)
		}
		if err := set(time.Now().Add(due + wait)); err != nil || hurried == (c.opt.Ending.Err() != nil) {
			return err
		}
	}
}

// Write implements net.Conn. While something is sent the answer is not overdue:
// both deadlines move on.
func (c *conn) Write(p []byte) (n int, err error) {
	for {
		part := p[n:min(len(p), n+c.up.piece(len(p)))]
		wait := c.up.take(len(part))
		if err := c.expect(c.SetDeadline, wait); err != nil {
			return n, err
		}
		time.Sleep(wait)
		c.sent.Add(int64(len(part)))
		m, err := c.Conn.Write(part)
		if n += m; err != nil || n >= len(p) {
			return n, err
		}
	}
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	if err := c.expect(c.SetReadDeadline, 0); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p[:min(len(p), c.down.piece(len(p)))])
	if n > 0 {
		c.sent.Store(0)
	}
	time.Sleep(c.down.take(n))
	return n, err
}

// limiter spreads bytes over time. A nil limiter does not.
type limiter struct {
	rate float64 // bytes a second
	mu   sync.Mutex
	free time.Time // when all that was taken has passed
}

// burst is how much may pass at once after a pause.
const burst = 100 * time.Millisecond

func newLimiter(rate int64) *limiter {
	if rate <= 0 {
		return nil
	}
	return &limiter{rate: float64(rate)}
}

// piece is how many of n bytes to take at once, so that connections take turns.
func (l *limiter) piece(n int) int {
	if l == nil {
		return n
	}
	return min(n, max(512, min(64<<10, int(l.rate*burst.Seconds()))))
}

// take takes n bytes and returns how long to wait until they may pass.
func (l *limiter) take(n int) time.Duration {
	if l == nil || n <= 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if earliest := now.Add(-burst); l.free.Before(earliest) {
		l.free = earliest
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	return max(0, l.free.Sub(now))
}
