// Package pack is the file format of packs: header, frames, trailer. It turns
// structs to bytes and back and never does I/O, compresses or encrypts a frame:
// that is package seal.
//
// # A pack file
//
// All fixed numbers are little endian.
//
//	 0   7  "cutbank"
//	 7   1  'P'
//	 8   2  format version: 1
//	10   1  kind: 1 data (chunks of files), 2 meta (pages of trees)
//	11   1  0
//	12   4  epoch of the wrapped key
//	16  16  writer that signed
//	32  16  session: the ID of the snapshot that was being written
//	48   2  length w of the wrapped key
//	50   w  the pack's random 32-byte key, wrapped (HPKE) for the epoch
//	        frames, each: 4 bytes length of the stored frame, the stored frame
//	        trailer, sealed: 12-byte nonce, AES-256-GCM under the list key
//	        derived for the pack's object name, which is the additional data too
//	     4  length of the sealed trailer
//	    32  BLAKE3 hash of all before
//
// The closing hash finds rot without any key. The writer's signature stands in
// the trailer, which repeats the header: so a reader proves what a pack lists
// with one small read, and a trailer proves itself in an index segment too. The
// frames are proven by their own AEAD, and the chunks by their IDs. Nothing here
// is bound to one repository: between repositories that share their secrets frames
// are taken over as they are, into packs of other names.
//
// # The trailer
//
// The plain trailer is a version byte, 1, and then fields in the wire format of
// protocol buffers: a varint tag (number << 3 | type), and a varint (type 0) or
// a varint length and bytes (type 2). Fields come in ascending order, fields
// that are zero are left out, and fields of unknown number are kept as they are.
// An index segment holds the same bytes once more, so it has all that a reader
// needs to read one frame with one request.
//
//	1  bytes   name of the pack, 16 bytes
//	2  varint  kind
//	3  varint  epoch
//	4  bytes   writer, 16 bytes
//	5  bytes   session, 16 bytes
//	6  bytes   wrapped key
//	7  varint  size of the pack file in bytes
//	8  bytes   a frame, once for each, in order, none without a chunk:
//	           1  varint  offset of the stored frame in the file
//	           2  varint  length of the stored frame
//	           3  varint  length of the plain frame
//	           4  bytes   its chunks in order, each: uvarint length << 3 | kind,
//	                      the ID (32 bytes), and for kind 1 the base's ID
//	99 bytes   the last field: Ed25519 signature of "cutbank pack", 0, the
//	           pack's object name, 0, and the BLAKE3 hash of the plain trailer
//	           up to here
//
// Chunk kinds: 0 plain; 1 delta against a base chunk (reserved: no version 1
// program writes it, and readers keep it but give it no location). A chunk of
// another kind makes the trailer unreadable, for its length is unknown.
package pack
