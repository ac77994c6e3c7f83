package restore

import "fmt"

// merger walks the names of a target's directory beside those of a node's.
type merger struct {
	have   []string // sorted; the extra ones gather in front
	i, n   int      // next one to look at; extra ones so far
	last   string
	begun  bool
	exists bool // the target has the name given to next
}

func (r *run) merger(d *dir) (*merger, error) {
	m := &merger{}
	if d.fd < 0 || d.made {
		return m, nil
	}
	ns, err := names(d.fd)
	if err != nil {
		return nil, err
	}
	m.have, d.temps = splitTemps(ns)
	return m, nil
}

// splitTemps takes the names of temporary files out of ns.
func splitTemps(ns []string) (rest, temps []string) {
	rest = ns[:0]
	for _, n := range ns {
		if isTemp(n) {
			temps = append(temps, n)
		} else {
			rest = append(rest, n)
		}
	}
	return rest, temps
}

// next goes on to the node's next name. An error says that the name cannot be
// used, or that names are not in order: then nothing can be called extra.
func (m *merger) next(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if m.begun && name <= m.last {
		return fmt.Errorf("%q follows %q: the stored directory is damaged", name, m.last)
	}
	m.begun, m.last, m.exists = true, name, false
	for m.i < len(m.have) && m.have[m.i] < name {
		m.have[m.n] = m.have[m.i]
		m.i, m.n = m.i+1, m.n+1
	}
	if m.i < len(m.have) && m.have[m.i] == name {
		m.i++
		m.exists = true
	}
	if isTemp(name) { // the snapshot holds a file of such a name
		m.exists = true
	}
	return nil
}

// rest returns the names that the node does not have.
func (m *merger) rest() []string {
	return append(m.have[:m.n], m.have[m.i:]...)
}
