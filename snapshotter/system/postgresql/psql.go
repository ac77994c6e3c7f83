package postgresql

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"strings"
)

// conninfo names a database so that no name can be taken for something else.
func conninfo(database string) string {
	return "dbname='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(database) + "'"
}

// literal quotes a string for SQL.
func literal(s string) string {
	if strings.Contains(s, `\`) {
		return "E'" + strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(s) + "'"
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

// ident quotes a name for SQL.
func ident(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// query asks a database, and returns rows of columns of text.
func (s *System) query(ctx context.Context, database, sql string) ([][]string, error) {
	out, err := s.tools.Ask(ctx, "psql", "-XAtqw", "-v", "ON_ERROR_STOP=1", "-F", "\x1f", "-R", "\x1e", "-d", conninfo(database), "-c", sql)
	if err != nil {
		return nil, err
	}
	var rows [][]string
	if out = strings.TrimSuffix(out, "\n"); out == "" {
		return nil, nil
	}
	for row := range strings.SplitSeq(out, "\x1e") {
		rows = append(rows, strings.Split(row, "\x1f"))
	}
	return rows, nil
}

// sql has statements done, in one transaction.
func (s *System) sql(ctx context.Context, statements string) error {
	return s.tools.Run(ctx, "psql", "-Xqw", "-v", "ON_ERROR_STOP=1", "-d", conninfo(s.database), "-c", statements)
}

// psql has a file done in one transaction, as a restricted one: what stands behind a
// backslash in what somebody else has written is not done, for it could be a program.
func (s *System) psql(ctx context.Context, database, file string) error {
	own, theirs := rand.Text(), ""
	tmp := file + ".restricted"
	first := true
	err := rewrite(file, tmp, func(line string) string {
		// pg_dump has its own: nothing else but the end is allowed from ours on.
		command, key, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch {
		case command == `\restrict` && theirs == "" && key != "":
			theirs, line = key, ""
		case command == `\unrestrict` && theirs != "" && key == theirs:
			line = ""
		}
		if first {
			first, line = false, `\restrict `+own+"\n"+line
		}
		return line
	})
	defer func() { _ = os.Remove(tmp) }()
	if err != nil {
		return err
	}
	return s.tools.Run(ctx, "psql", "-Xqw", "-v", "ON_ERROR_STOP=1", "-1", "-o", "/dev/null", "-d", conninfo(database), "-f", tmp)
}

// rewrite copies a file into a new one, line by line, as change has them.
func rewrite(from, to string, change func(line string) string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	r, w := bufio.NewReader(in), bufio.NewWriter(out)
	for err == nil {
		var line string
		if line, err = r.ReadString('\n'); line != "" {
			_, _ = w.WriteString(change(line)) // Flush tells
		}
	}
	if err == io.EOF {
		err = nil
	}
	return errors.Join(err, w.Flush(), out.Close())
}
