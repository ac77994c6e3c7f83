// Package seal turns bytes into their stored form and back: compressed by
// zstd, then sealed by AES-256-GCM. What it opens it has proven: the AEAD's tag
// for frames, signature and name for objects. It holds the keys of a repository
// and says what each of them opens. It never does I/O and knows no file names
// but those that are handed to it for binding.
//
// # Frames
//
// A frame is a run of chunks that is compressed and sealed together. Its plain
// form is
//
//	uvarint   number of chunks n
//	n uvarint lengths of the chunks in bytes
//	          the chunks, one behind the other
//
// and its stored form is the AES-256-GCM sealing, under the key of its pack,
// with the frame's number in the pack as nonce (12 bytes, big endian) and the
// pack's name as additional data, of
//
//	1 byte    0: the plain form follows as it is; 1: compressed as one zstd frame
//	          (RFC 8878) with its content size
//
// so a stored frame is 17 bytes longer than what it carries.
//
// # Objects
//
// Everything in a repository that is no pack is an object, in one envelope. All
// numbers are little endian.
//
//	 0   7  "cutbank"
//	 7   1  kind, a letter (see Kind)
//	 8   2  format version: 1
//	10   1  sealing: 0 clear, 1 list key, 2 epoch key
//	11   1  compression: 0 none, 1 zstd
//	12   4  key epoch, for sealing 2; else 0
//	16  16  who signed: ID of a writer; zero: unsigned
//	32   2  length w of the wrapped key; 0 but for sealing 2
//	34   w  a random 32-byte key, wrapped for the epoch (HPKE)
//	     4  length n of the body
//	     n  body; for sealing 1 and 2: 12-byte nonce, AES-256-GCM ciphertext; plain
//	        at most 8 MiB of a record or an intent, 64 MiB of a segment, 256 MiB
//	        of others
//	    64  Ed25519 signature of "cutbank object", 0, the repository's ID, "/",
//	        the object's name, 0, and the BLAKE3 hash of all before; zero where
//	        unsigned
//	    32  BLAKE3 hash of all before
//
// For sealing 1 the key is BLAKE3-derived from the list key and the object's
// name; the additional data is the repository's ID, "/" and the name. So an
// object under another's name, or in another repository, does not open.
//
// HPKE (RFC 9180) is used in base mode with MLKEM768-X25519, HKDF-SHA256 and
// AES-256-GCM; its info is the constant wrapInfo and the name of the pack or
// object. A wrapped 32-byte key takes 1,168 bytes. What is sealed for a Recipient
// has the constant grantInfo and a name as info; the seed of its key pair is a
// secret's 32 bytes, as they would be those of an epoch's private key.
//
// # Who can open what
//
// The ring (see Ring) holds the secrets. A whole ring opens everything. A ring
// without the epochs' private keys and without the owner's seed belongs to a
// write-only node: it can name chunks (so it deduplicates), read what lists
// chunks (trailers, segments, intents), and seal new packs and records, but
// opens no frame of others and no record.
package seal
