// Package diskcache keeps stored frames of packs on this machine's disk, for
// repositories across a network. It holds them as they are stored: sealed, so that
// nothing decrypted ever lies on the disk, and proven by who opens them. It never
// decrypts, and what it loses or spoils costs a request and nothing else. Package
// chunkstore fills it.
//
// Any number of processes share one directory. None relies on another one's
// coming to an end: each may be killed at any instant, and all of it, or any
// part, may be deleted at any time, while it is used.
//
// # On the disk
//
//	v1-state                     the lock, and what the folders hold
//	v1-xx/<pack>-<8 hex digits>  a stored frame, and nothing else: the pack's
//	                             name in hexadecimal, the frame's offset in it
//	v1-xx/tmp                    one that is being written
//
// The folder xx, 00 to ff, is a hash of pack and offset (FNV-1a, 32 bits, the
// lowest 8). A file's mtime is when it was last wanted. There is one file for each
// frame, of some 100 KB, and no larger pieces: to write one takes 0.4 ms, in the
// background, and to read one 0.06 ms, on a busy machine with ext4, where pieces of
// 4 MB are written twice as fast; but what is evicted then is what nobody wanted,
// and no neighbour of what somebody did, and nothing tells where in a piece a frame
// is.
//
// v1-state has 256 numbers of 8 bytes, little endian, the bytes that each folder
// holds at most, and 2 bytes, the folder where eviction goes on. A file counts as
// its length rounded up to 4 KiB. Who writes holds an exclusive flock on it, and
// counts up before it writes a file, so that a kill leaves a number too large and
// never one too small; a look into the folder, when something is to be evicted,
// puts it right. Where the file is missing or has another length the folders are
// looked through.
//
// # The limit
//
// The sum never exceeds the limit, over all processes that were given the same.
// When it would, frames are evicted: of 64 or more, those in as many folders as
// that takes, in turns, the half that was not wanted for the longest time. Nothing
// is written that would leave less than a twentieth of the disk, or 1 GiB, free.
package diskcache
