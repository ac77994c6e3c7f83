// Package fs is only a name for the way out of a repository: the packages
// below it turn nodes of a file tree into mounts, restored directories,
// archives and differences. It holds no code and is never imported, so that no
// file has to choose between it and io/fs.
package fs
