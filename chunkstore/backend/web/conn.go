package web

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// conn is a connection that is lost when nothing moves in either direction for
// stall, and that keeps to the limits.
type conn struct {
	net.Conn
	stall    time.Duration
	up, down *limiter
	sent     atomic.Int64 // since something was last read
}

// The kernel takes this much before it has sent it, over a line that may be this
// slow: for so long an answer is not overdue.
const (
	buffered = 4 << 20
	slowLine = 16 << 10 // bytes a second
)

func (c *conn) overdue() time.Time {
	return time.Now().Add(c.stall + time.Duration(min(c.sent.Load(), buffered))*time.Second/slowLine)
}

// Write implements net.Conn. While something is sent the answer is not overdue:
// both deadlines move on.
func (c *conn) Write(p []byte) (n int, err error) {
	for {
		part := p[n:min(len(p), n+c.up.piece(len(p)))]
		wait := c.up.take(len(part))
		if err := c.SetDeadline(c.overdue().Add(wait)); err != nil {
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
	if err := c.SetReadDeadline(c.overdue()); err != nil {
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
