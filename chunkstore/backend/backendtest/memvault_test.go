package backendtest

import (
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

func TestMemVault(t *testing.T) {
	RunVault(t, func(*testing.T) backend.Vault { return MemVault{&Archive{}} })
}
