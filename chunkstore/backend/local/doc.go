// Package local is the Backend in a folder of a file system.
//
// An object is the file of its name below the folder, mode 0600, in directories
// of mode 0700. It appears with link(2), all at once, and only after its bytes
// are on the disk; Put returns after its directory entry is, too. Until then it
// is a file in tmp/ whose name no object can have. So a crash at any moment
// leaves whole objects and perhaps a file in tmp/, which Sweep removes. Another one
// there, tmp/reserve~, keeps a mebibyte free for when the disk is full.
//
// The package never changes or replaces a file that is there, never writes
// outside its folder, and creates nothing when it is only read from.
//
// On network file systems a directory's listing may be old: Lag tells.
package local
