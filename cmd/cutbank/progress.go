package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// plainEvery is how often long work that has no terminal prints a line.
const plainEvery = 10 * time.Second

// progress shows how far long work is: a bar on a terminal, a line now and then
// elsewhere, an object a second with --json, nothing with --quiet.
type progress struct {
	a      *app
	state  func() status
	start  time.Time
	stop   chan struct{}
	wg     sync.WaitGroup
	what   string
	fields func() object
	counts bool // of something else than bytes
}

// status is how far work is. A total of 0 is not known.
type status struct {
	done, total uint64 // bytes, with showCount of what the text tells
	text        string
}

// showProgress begins to show; the returned function ends it.
func (a *app) showProgress(what string, state func() status, fields func() object) func() {
	return a.show(&progress{what: what, state: state, fields: fields})
}

// showCount is showProgress for work that is not measured in bytes.
func (a *app) showCount(what string, state func() status, fields func() object) func() {
	return a.show(&progress{what: what, state: state, fields: fields, counts: true})
}

func (a *app) show(p *progress) func() {
	if a.quiet {
		return func() {}
	}
	p.a, p.start, p.stop = a, now(), make(chan struct{})
	p.wg.Add(1)
	f, ok := a.stderr.(*os.File)
	switch {
	case a.json:
		go p.lines(time.Second, p.json)
	case ok && term.IsTerminal(int(f.Fd())):
		go p.bar(f)
	default:
		go p.lines(plainEvery, p.plain)
	}
	return func() {
		close(p.stop)
		p.wg.Wait()
	}
}

func (p *progress) lines(every time.Duration, print func()) {
	defer p.wg.Done()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
			print()
		}
	}
}

func (p *progress) json() {
	o := object{"what": p.what}
	if p.fields != nil {
		o = p.fields()
		o["what"] = p.what
	}
	s := p.state()
	o["done"], o["total"], o["seconds"] = s.done, s.total, now().Sub(p.start).Seconds()
	if err := p.a.emit("progress", o); err != nil {
		p.a.errorf("%v", err)
	}
}

func (p *progress) plain() { fmt.Fprintln(p.a.stderr, p.line(p.state(), now().Sub(p.start))) }

// line says in words how far work is after d.
func (p *progress) line(s status, d time.Duration) string {
	eta := etaText(s, d)
	if eta != "" {
		eta = ", " + eta + " left"
	}
	if p.counts {
		return p.what + ": " + s.text + eta
	}
	done := bytesText(s.done)
	if s.total > 0 {
		done += " of " + bytesText(s.total)
	}
	return fmt.Sprintf("%s: %s, %s/s%s, %s", p.what, done, bytesText(uint64(float64(s.done)/d.Seconds())), eta, s.text)
}

func etaText(s status, d time.Duration) string {
	if s.total <= s.done || s.done == 0 {
		return ""
	}
	return (time.Duration(float64(d) * float64(s.total-s.done) / float64(s.done))).Round(time.Second).String()
}

func (p *progress) bar(w io.Writer) {
	defer p.wg.Done()
	bar := progressbar.NewOptions64(-1, progressbar.OptionSetWriter(w), progressbar.OptionShowBytes(!p.counts), progressbar.OptionSetWidth(20),
		progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true), progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionUseANSICodes(true), progressbar.OptionFullWidth())
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		s := p.state()
		if s.total > 0 && bar.GetMax64() != int64(s.total) {
			bar.ChangeMax64(int64(s.total))
		}
		bar.Describe(p.what + ": " + s.text)
		if s.total == 0 || s.done < s.total {
			_ = bar.Set64(int64(s.done)) // a bar that cannot be drawn is no error
		}
		select {
		case <-p.stop:
			_ = bar.Finish()
			return
		case <-tick.C:
		}
	}
}
