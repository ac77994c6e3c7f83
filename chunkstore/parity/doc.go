// Package parity makes the parity of packs, and rebuilds damaged packs by it. It
// never does I/O, needs no key, and is the only package that knows
// github.com/klauspost/reedsolomon.
//
// Parity heals what rots: flipped bits, sectors that cannot be read, lost
// extents, a file that is cut short or has grown. It does not bring back a pack
// that is gone, or of which more than the parity's share is damaged: a second
// repository does. A run of damaged bytes is healed up to the share that was
// asked for, less one shard, wherever it lies. Damage that is
// scattered costs a shard for each place: of 2 % in a pack of 32 MiB, 20 flipped
// bytes anywhere in the pack and its parity are healed in 99 of 100 cases, half
// of the cases are healed with 45; of 5 %, 87 and 137.
//
// Whether parity helped is proven, never believed: what Rebuild returns has the
// size and the closing hash of the pack. Who signed the pack, and what is in
// it, is proven by its reader as for any other pack. So parity from a stranger
// can do nothing but not help.
//
// # The object
//
// The object parity/<name of the pack, 32 hexadecimal digits> is in the envelope
// of package seal: kind 'R', sealing 0 (what can be computed of a pack by anyone
// who sees it is no secret), no compression, signed by who put it. It is put
// after its pack, so a pack may be without; and it is removed after its pack.
//
// An object that rots loses its closing hash and its signature, and is of use
// all the same: readers look for the body where the envelope of a clear object
// has it, from byte 38 on to 96 bytes before the end, and prove its parts
// themselves. The body is
//
//	head
//	table
//	parity shards
//	the table again
//	the head again
//
// and either head is enough, and for each shard either of its hashes. All
// numbers are little endian. The head is
//
//	 0   1  version: 1
//	 1   1  k, data shards of a stripe: 1 to 255
//	 2   1  m, parity shards of a stripe: 1 to 255, k+m at most 256
//	 3   1  0
//	 4   4  S, bytes of a shard: 512 to 1 MiB
//	 8   8  size of the pack's file, 1 GiB at most
//	16  16  name of the pack
//	32  32  closing hash of the pack, its last 32 bytes
//	64  32  BLAKE3 hash of the 64 bytes before
//
// The pack's file is cut into D = size/S data shards, rounded up; they make N =
// D/k stripes, rounded up. Data shard j is the shard j/N of stripe j mod N, and
// parity shard j is the parity shard j/N of stripe j mod N: neighbours are in
// different stripes, so a run of damage is shared out over all of them. A data
// shard that the pack is too short for, and the rest of its last one, count as
// zeros. The table has D+N*m hashes: the first 16 bytes of the BLAKE3 hash of
// each data shard (of the last one without the zeros), and then of each parity
// shard. They only tell where damage is.
//
// Each byte of parity shard r (0 to m-1) of a stripe is the sum over its data
// shards c of their bytes at that place, each times the inverse of (k+r) XOR c:
// a systematic Cauchy code in GF(2^8) with the polynomial 0x11d, in which
// addition is XOR. Any m shards of a stripe may be damaged.
//
// A writer takes k, m and S so that m/k is at least the share that was asked
// for, m is at least 2, and S is 8 KiB, or less in small packs, down to 512
// bytes: the power of two near which shards and hashes together are smallest.
//
// # What it costs
//
// Size of the object, time of Compute and of Rebuild for a pack of 32 MiB on
// one core of a virtual machine with AVX-512, by
//
//	go test -run '^$' -bench . ./chunkstore/parity
//
//	asked for   size     Compute              Rebuild, one byte    all it covers
//	1 %          1.4 %   22 ms, 1.5 GB/s
//	2 %          2.5 %   24 ms, 1.4 GB/s      62 ms, 540 MB/s      80 ms, 420 MB/s
//	5 %          5.7 %   29 ms, 1.2 GB/s
//	10 %        10.5 %   38 ms, 0.9 GB/s
//	100 %      100.8 %  141 ms, 0.2 GB/s
//
// of which 20 ms are hashing. Small packs cost more: 2 % takes 3.2 % of 1 MiB,
// 6 % of 100 KiB, 20 % of 10 KiB, as two shards and all hashes are the least.
// A snapshot of 340 MB of small files took 2.6 s of processor time without parity
// and 2.7 s with 2 %. What the writer pays is measured, too, by
//
//	go test -run '^$' -bench Parity ./chunkstore
package parity
