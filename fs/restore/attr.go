package restore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

// attrs is what a node wants to be, apart from its contents.
type attrs struct {
	*tree.Attr
	xattrs []tree.Xattr
}

func attrsOf(ctx context.Context, n tree.Node) (attrs, error) {
	xs, err := n.Xattrs(ctx)
	if err != nil {
		return attrs{}, fmt.Errorf("extended attributes: %w", err)
	}
	return attrs{n.Attr(), xs}, nil
}

// differs tells whether something of h, now as st says, is not as a wants and
// could be made so.
func (r *run) differs(h handle, a attrs, st stat) bool {
	mode := a.Mode & 0o7777
	if r.super && (st.uid != a.UID || st.gid != a.GID) {
		return true
	}
	if !r.super {
		mode = safeMode(a.Attr, st)
	}
	if a.Kind != tree.Symlink && st.mode != mode {
		return true
	}
	if st.mtime != a.Mtime {
		return true
	}
	return r.xattrs(h, a.xattrs, true) == errDiffers
}

// apply makes h what a wants. The order matters: chown clears setuid and
// capabilities; an access ACL rewrites the group bits; setting any of them
// must not come after the mode, nor anything after the time. It goes on after
// an error and returns the first.
func (r *run) apply(h handle, a attrs) error {
	var first error
	note := func(what string, err error) {
		if err != nil && first == nil {
			first = fmt.Errorf("%s: %w", what, err)
		}
	}
	mode := a.Mode & 0o7777
	if err := r.chown(h, a.Attr); err != nil {
		note(fmt.Sprintf("owner %d:%d", a.UID, a.GID), err)
		mode &^= 0o6000 // whatever the owner is, it is not the one meant
	} else if !r.super && mode&0o6000 != 0 {
		st, err := h.stat()
		note("stat", err)
		mode = safeMode(a.Attr, st)
	}
	note("extended attributes", r.xattrs(h, a.xattrs, false))
	if a.Kind != tree.Symlink {
		note("mode", h.chmod(mode))
	}
	note("modification time", h.setMtime(a.Mtime))
	return first
}

// safeMode is a's mode for a file whose owner is what st says: without bits
// that would lend the rights of somebody who was not meant.
func safeMode(a *tree.Attr, st stat) uint32 {
	mode := a.Mode & 0o7777
	if st.uid != a.UID {
		mode &^= 0o4000
	}
	if st.gid != a.GID && a.Kind != tree.Dir { // of a directory it lends nothing
		mode &^= 0o2000
	}
	return mode
}

// chown sets the owner; who is not root sets what the system lets it.
func (r *run) chown(h handle, a *tree.Attr) error {
	err := h.chown(int(a.UID), int(a.GID))
	if err == nil || r.super {
		return err
	}
	_ = h.chown(-1, int(a.GID)) // a group of ours, perhaps
	return nil
}

// errDiffers is xattrs' answer to a question, never shown.
var errDiffers = fmt.Errorf("extended attributes differ")

// xattrs makes h's extended attributes those of want, or, if ask is set,
// returns errDiffers where it would have to change one.
func (r *run) xattrs(h handle, want []tree.Xattr, ask bool) error {
	have, err := h.listXattrs()
	if err != nil {
		return err
	}
	var first error
	for _, x := range want {
		if slices.Contains(have, x.Name) && h.hasXattr(x.Name, x.Value) {
			continue
		}
		if strings.ContainsRune(x.Name, 0) || x.Name == "" {
			err = fmt.Errorf("the name %q is refused", x.Name)
		} else if !r.super && !strings.HasPrefix(x.Name, "user.") && !strings.HasPrefix(x.Name, "system.") {
			continue // as rsync: only root can
		} else if ask {
			return errDiffers
		} else if err = h.setXattr(x.Name, x.Value); err == unix.EACCES {
			// A read-only file of our own; its mode is set after this.
			if err = h.chmod(0o700); err == nil {
				err = h.setXattr(x.Name, x.Value)
			}
		}
		if err != nil && first == nil {
			first = fmt.Errorf("%s: %w", x.Name, err)
		}
	}
	for _, name := range have {
		if !r.mayRemoveXattr(name) || slices.ContainsFunc(want, func(x tree.Xattr) bool { return x.Name == name }) {
			continue
		}
		if ask {
			return errDiffers
		}
		if err := h.removeXattr(name); err != nil && first == nil {
			first = fmt.Errorf("%s: %w", name, err)
		}
	}
	return first
}

// mayRemoveXattr tells which attributes the snapshot decides about. Others,
// such as a security label, are the system's own.
func (r *run) mayRemoveXattr(name string) bool {
	switch {
	case strings.HasPrefix(name, "user."), strings.HasPrefix(name, "system.posix_acl_"):
		return true
	case strings.HasPrefix(name, "trusted."), name == "security.capability":
		return r.super
	}
	return false
}
