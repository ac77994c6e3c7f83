package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

// What a user sees: results on stdout, all else on stderr; messages begin with
// "cutbank: ", in lower case, without a period, and say what to try next.

func (a *app) errorf(format string, args ...any) {
	fmt.Fprintf(a.stderr, "cutbank: %s\n", visible(fmt.Sprintf(format, args...)))
}

func (a *app) warnf(format string, args ...any) {
	fmt.Fprintf(a.stderr, "cutbank: warning: %s\n", visible(fmt.Sprintf(format, args...)))
}

// visible returns a message in which nothing can act on a terminal: it may hold what a
// server has said, or who made a snapshot.
func visible(text string) string {
	safe := func(r rune) bool { return unicode.IsPrint(r) || r == '\n' || r == '\t' }
	if utf8.ValidString(text) && strings.IndexFunc(text, func(r rune) bool { return !safe(r) }) < 0 {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		if safe(r) && (r != utf8.RuneError || n > 1) {
			b.WriteString(text[:n])
		} else {
			q := strconv.Quote(text[:n])
			b.WriteString(q[1 : len(q)-1])
		}
		text = text[n:]
	}
	return b.String()
}

// sayf prints what --quiet and --json leave out.
func (a *app) sayf(format string, args ...any) {
	if !a.quiet && !a.json {
		fmt.Fprintf(a.stdout, format+"\n", args...)
	}
}

// printf prints a result.
func (a *app) printf(format string, args ...any) {
	if !a.json {
		fmt.Fprintf(a.stdout, format, args...)
	}
}

// object is one line of --json: fields are added to v and type.
type object map[string]any

// jsonVersion is the version of everything that --json prints.
const jsonVersion = 1

// emit prints a line of JSON, if that was asked for.
func (a *app) emit(kind string, fields object) error {
	if !a.json {
		return nil
	}
	fields["v"], fields["type"] = jsonVersion, kind
	p, err := json.Marshal(map[string]any(fields))
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(append(p, '\n'))
	return err
}

// setPath adds a path: as a string, and without loss where it is not UTF-8.
func (o object) setPath(key, path string) object {
	o[key] = strings.ToValidUTF8(path, "\uFFFD")
	if !utf8.ValidString(path) {
		o[key+"_b64"] = base64.StdEncoding.EncodeToString([]byte(path))
	}
	return o
}

// quote returns a path as it can be shown: control characters and what is not
// UTF-8 are escaped, and then the whole is in quotes.
func quote(path string) string {
	if utf8.ValidString(path) && strings.IndexFunc(path, func(r rune) bool { return !unicode.IsPrint(r) && r != ' ' }) < 0 {
		return path
	}
	return strconv.Quote(path)
}

func (a *app) table(row func(w *tabwriter.Writer)) error {
	if a.json {
		return nil
	}
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row(w)
	if err := w.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) { // without the padding of empty cells
		if _, err := fmt.Fprintln(a.stdout, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// bytesText returns a number of bytes as people read it.
func bytesText(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if f /= 1024; f < 1024 {
			break
		}
	}
	if f < 10 {
		return fmt.Sprintf("%.2f %s", f, unit)
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}

// countText returns a number with thousands set apart.
func countText(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func durationText(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.2fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

func ratio(a, b uint64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// sizeFlag is a flag for a number of bytes: 64KiB, 1.5GiB, 1000.
type sizeFlag int64

func (f *sizeFlag) Type() string { return "SIZE" }

func (f *sizeFlag) String() string {
	if f == nil || *f == 0 {
		return ""
	}
	return sizeText(int64(*f))
}

func sizeText(n int64) string {
	for i, unit := range []string{"", "KiB", "MiB", "GiB", "TiB"} {
		if n < 1024 || n%1024 != 0 || i == 4 {
			return fmt.Sprintf("%d%s", n, unit)
		}
		n /= 1024
	}
	return ""
}

func (f *sizeFlag) Set(s string) error {
	n, err := parseSize(s)
	*f = sizeFlag(n)
	return err
}

// spanFlag is a flag for a span of time, longer than none: 90m, 12h, 3d, 2w.
type spanFlag time.Duration

func (f *spanFlag) Type() string { return "SPAN" }

func (f *spanFlag) String() string {
	if f == nil || *f == 0 {
		return ""
	}
	return spanText(time.Duration(*f))
}

// spanText writes a span of time as people give it.
func spanText(d time.Duration) string {
	s := d.String()
	if t, ok := strings.CutSuffix(s, "m0s"); ok {
		s = t + "m"
	}
	if t, ok := strings.CutSuffix(s, "h0m"); ok {
		s = t + "h"
	}
	return s
}

func (f *spanFlag) Set(s string) error {
	d, err := parseSpan(s)
	*f = spanFlag(d)
	return err
}

func parseSize(s string) (int64, error) {
	num := strings.TrimRightFunc(strings.TrimSpace(s), unicode.IsLetter)
	unit := strings.ToLower(strings.TrimSpace(s)[len(num):])
	v, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	if err != nil || v < 0 {
		return 0, fmt.Errorf("%q is no size: write it like 64KiB, 1.5GiB or 1000", s)
	}
	factors := map[string]float64{"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "kb": 1e3, "m": 1 << 20, "mib": 1 << 20, "mb": 1e6,
		"g": 1 << 30, "gib": 1 << 30, "gb": 1e9, "t": 1 << 40, "tib": 1 << 40, "tb": 1e12}
	f, ok := factors[unit]
	if !ok || v*f >= 1<<62 {
		return 0, fmt.Errorf("%q is no size: write it like 64KiB, 1.5GiB or 1000", s)
	}
	return int64(v * f), nil
}
