// Package test holds the tests of the whole house: who may import whom, whole
// trees in and out again, a fault at every call, a crash after every Put, every
// byte flipped, real processes killed, a line that does to requests what networks
// do, listings that lag, and repositories of earlier versions.
//
// It exports nothing and nobody imports it. Trees come from test/gen; seeds are
// fixed or printed. A test that lacks something (FUSE, rsync, root) says so and
// is skipped, unless CUTBANK_REQUIRE, a list with commas, names what it lacks:
// then it fails. CUTBANK_SLOW=1 runs everything in full size.
//
// Storage servers are got and started by services/run.sh (make test-services). The
// tests of the rooms find them by variables that hold the URL of a bucket:
// CUTBANK_TEST_S3, CUTBANK_TEST_S3_LOCK with Object Lock and versions,
// CUTBANK_TEST_S3_UNFENCED, where objects can be created twice, and
// CUTBANK_TEST_AZURE.
package test
