package consul

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestImportTimes: an archive has the time that it tells, but for one that is to come.
func TestImportTimes(t *testing.T) {
	now := time.UnixMilli(1795244068292).Add(time.Hour)
	written := now.Add(-time.Minute).Truncate(time.Second)
	later := now.Add(time.Minute).Truncate(time.Second)
	for _, c := range []struct {
		id            string
		written, want time.Time
	}{
		{"2-340-1795244068292", written, now.Add(-time.Hour)},
		{"2-340-1795244068292", later, now.Add(-time.Hour)},
		{"2-340-221845392000000", written, written}, // in the year 9000
		{fmt.Sprint("2-340-", int64(1)<<50), written, written},
		{"2-340-221845392000000", later, now},
		{"what", written, written}, {"2-340--5", written, written},
	} {
		p := state(t, kv("a", "1"))
		m := fmt.Sprintf(`{"Version":1,"ID":%q,"Index":340,"Term":2,"Size":%d}`+"\n", c.id, len(p))
		file := filepath.Join(t.TempDir(), "x.snap")
		if err := os.WriteFile(file, pack(t, []member{{"meta.json", m}, {"state.bin", string(p)}, {"SHA256SUMS", sums(m, string(p))}}, "", ""), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, c.written, c.written); err != nil {
			t.Fatal(err)
		}
		opt := capturing(t)
		opt.Now = func() time.Time { return now }
		got, made, err := Import(context.Background(), file, opt)
		if err != nil || !made.Equal(c.want) {
			t.Errorf("%s: %v, %v, want %v", c.id, made, err, c.want)
			continue
		}
		if err := got.Close(context.Background(), false); err != nil {
			t.Error(err)
		}
	}
}

// TestImportEnds: somebody who waits no longer does not wait for a long archive.
func TestImportEnds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.snap")
	if err := os.WriteFile(file, realArchive(t), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := Import(ctx, file, capturing(t)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestImportSum: two archives that say the same of themselves are told apart.
func TestImportSum(t *testing.T) {
	infos := map[string]bool{}
	for _, value := range []string{"1", "2"} {
		file := filepath.Join(t.TempDir(), "x.snap")
		if err := os.WriteFile(file, archiveOf(t, state(t, kv("a", value))), 0o600); err != nil {
			t.Fatal(err)
		}
		c, _, err := Import(context.Background(), file, capturing(t))
		if err != nil {
			t.Fatal(err)
		}
		info, err := c.Finish(context.Background())
		if err = errors.Join(err, c.Close(context.Background(), false)); err != nil || info.Kind != kindID {
			t.Fatal(info, err)
		}
		infos[fmt.Sprint(info)] = true
	}
	if len(infos) != 2 {
		t.Errorf("%v", infos)
	}
}
