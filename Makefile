# make build   bin/cutbank
# make demo    the main job on a small real tree: init, snapshot, mount, list, unmount
# make test    all tests that are quick and need no network
# make check   formatting and linters
# make race    the tests with the race detector, without those that run the program as processes
# make test-services   the tests that need storage servers: gets them, starts and stops them
# make test-systems    the tests of running systems, against real servers: starts them
# make slow    the tests that take minutes: every byte flipped, a million names, crashes
# make soak    processes beside each other, killed and stopped at random, for SOAK
# make model   STATES states of the model of writers and pruners, for each setup
# make fuzz    every fuzz target for FUZZTIME: runs (50000x) or time (10s)
# make bench   cutbank beside other tools that are on the PATH
# make remote  the same on a server far away: needs versitygw, which make test-services builds

GO       ?= go
FUZZTIME ?= 50000x
SOAK     ?= 15m
STATES   ?= 40000000
BENCH    ?=

.PHONY: build demo test test-services test-systems check race slow soak model fuzz bench remote clean

build:
	$(GO) build -trimpath -o bin/cutbank ./cmd/cutbank

demo: build
	./test/demo.sh ./bin/cutbank

test:
	$(GO) test -timeout 20m ./...
	@./test/lacks.sh

test-services:
	GO="$(GO)" ./test/services/run.sh

test-systems:
	GO="$(GO)" ./test/systems/run.sh

check:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "gofmt would change these"; exit 1; }
	$(GO) vet ./...
	staticcheck ./...

race:
	$(GO) test -race -short -timeout 20m ./...

# Those that do more then; the longest first.
slow:
	CUTBANK_SLOW=1 $(GO) test -timeout 30m $(shell grep -rl --include='*_test.go' CUTBANK_SLOW . | xargs -n1 dirname | sort -ru)

soak:
	CUTBANK_SOAK=$(SOAK) $(GO) test -timeout 0 -count 1 -run TestSoak -v ./test

model:
	CUTBANK_STATES=$(STATES) $(GO) test -timeout 0 -count 1 -run TestModel -v ./repo

fuzz:
	GO="$(GO)" FUZZTIME=$(FUZZTIME) ./test/fuzz.sh

bench:
	$(GO) run ./bench/versus $(BENCH)

remote:
	$(GO) run ./bench/remote $(BENCH)

clean:
	rm -rf bin
