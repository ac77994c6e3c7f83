// Package tree says what a file tree is: Attr and Node, the shape in which the
// way in (snapshotter) and the way out (fs) meet, and the pages in which a tree
// is stored. It never does I/O: pages come from and go to functions that the
// caller gives.
//
// # Pages
//
// A directory, a file's recipe and a witness are lists. A list is stored as a
// tree of pages of about 4 KiB; a page is a chunk, named by the keyed BLAKE3
// hash of its bytes under the repository's tree key. So equal directories are
// equal pages, in every snapshot and on every node, and a change in a directory
// of a million names writes a few pages.
//
//	1 byte    version: 1
//	1 byte    kind: 1 directory, 2 recipe, 3 witness, 4 extended attributes
//	1 byte    level: 0 leaf; above, the items are references to pages
//	uvarint   number of items
//	items, each: uvarint length, that many bytes
//
// Items of directories, witnesses and references are fields in the wire format
// of protocol buffers, in ascending order, zero left out, unknown fields kept.
//
// A page ends behind an item when it has at least 1 KiB of items and the item's
// hash says so (hash < 2^64 * bytes of the item / 3072), or when the next item
// would make it longer than 16 KiB. The hash is the first 8 bytes, little
// endian, of the page's or chunk's ID; for names, FNV-1a of the name, and for
// extents without an ID, the length, both through the finaliser of MurmurHash3.
// So boundaries depend on nearby items only. In a recipe a page may end behind an
// extent that is a record, 4 KiB or less, from 64 bytes on, and in the pages above
// those from 256 bytes on: such pages have about 256 bytes and
// 1 KiB, for of many records a few change. The root of a list is its only
// page, or the page that refers to all others; an empty list has none.
//
// Reference:
//
//	1 bytes   ID of the page
//	2 bytes   last name below (directory, witness)
//	3 varint  items in the leaves below
//	4 varint  nodes below: names, and all that is below them (directory)
//	5 varint  regular files among them
//	6 varint  directories among them
//	7 varint  bytes: sizes of those files (directory), length (recipe)
//
// Directory entry:
//
//	 1 bytes   name
//	 2 varint  kind: 1 directory, 2 file, 3 symlink, 4 FIFO, 5 socket,
//	           6 character device, 7 block device
//	 3 varint  mode: permission bits, setuid, setgid, sticky (07777)
//	 4 varint  uid
//	 5 varint  gid
//	 6 varint  mtime, seconds since 1970, zigzag
//	 7 varint  mtime, nanoseconds
//	 8 varint  size of a file
//	 9 varint  bytes of a file that are holes
//	10 bytes   target of a symlink
//	11 varint  device number (Linux makedev)
//	12 varint  number of names that the file had, if not 1
//	13 bytes   hard link: path of the first name of the same file, from the
//	           scope's root, slash-separated
//	14 varint  flags: 1 changed while it was read, 2 root of a scope; of what
//	           a repair wrote: 4 names of this directory were lost, 8 extended
//	           attributes were lost
//	15 bytes   an extended attribute, repeated: 1 name, 2 value
//	16 bytes   ID of the page with the extended attributes, if beyond 256 bytes
//	17 bytes   extent, repeated, four at most
//	18 bytes   ID of the root of the recipe, if it has more than four extents
//	20 bytes   ID of the root of a directory's pages
//	21 varint  children of a directory
//	22 varint  nodes below a directory
//	23 varint  regular files among them
//	24 varint  directories among them
//	25 varint  bytes of those files
//
// The scope of a hard link is the tree, or the nearest directory above with
// flag 2 (a member of a cluster snapshot), so that members are equal pages
// wherever they stand. Device, inode and ctime are not here: they are in the
// witness.
//
// Extent (item of a recipe, and field 17):
//
//	1 byte    kind | end << 4: kind 1 data, 2 zero, 3 hole, 4 absent, 5 lost;
//	          end 0 file, 1 splitter, 2 maximum, 3 zero run, 4 source,
//	          5 a record of the source
//	uvarint   length, at least 1
//	32 bytes  ID of the chunk, for kind 1
//
// Witness item, for one name of a directory:
//
//	1 bytes   name
//	2 varint  inode
//	3 varint  ctime, seconds, zigzag
//	4 varint  ctime, nanoseconds
//	5 varint  device
//	6 bytes   ID of the root of a directory's own witness
//
// A node's number is its place in a preorder walk, the root being 0. As entries
// and references count what is below them, a number is found by descending.
package tree
