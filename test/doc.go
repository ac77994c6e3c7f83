// Package test holds the tests of the whole house: who may import whom, whole
// trees in and out again, a fault at every call, a crash after every Put, every
// byte flipped, real processes killed, a line that loses requests and answers, and repositories of earlier versions.
//
// It exports nothing and nobody imports it. Trees come from test/gen; seeds are
// fixed or printed. A test that lacks something (FUSE, rsync, root) says so and
// is skipped, unless CUTBANK_REQUIRE, a list with commas, names what it lacks:
// then it fails. Storage servers are built and started by services/run.sh (make
// test-services); the tests of the rooms find them by CUTBANK_TEST_S3. CUTBANK_SLOW=1 runs everything in full size.
package test
