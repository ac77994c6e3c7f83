// Package backendtest is for tests only: the contract that every
// backend.Backend must keep (Run), and wrappers that make one fail, stop and
// remember (Faulty, Recorder).
package backendtest
