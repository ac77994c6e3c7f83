package main

import (
	"errors"
	"os"
	"runtime"
	"runtime/pprof"
)

// startProfile begins the profiles that the flags ask for.
func (a *app) startProfile() error {
	if a.cpuProfile == "" {
		return nil
	}
	f, err := os.Create(a.cpuProfile)
	if err != nil {
		return err
	}
	a.profile = f
	return pprof.StartCPUProfile(f)
}

// stopProfile writes them.
func (a *app) stopProfile() error {
	var err error
	if a.profile != nil {
		pprof.StopCPUProfile()
		err = a.profile.Close()
	}
	if a.memProfile == "" {
		return err
	}
	f, merr := os.Create(a.memProfile)
	if merr != nil {
		return errors.Join(err, merr)
	}
	runtime.GC()
	return errors.Join(err, pprof.Lookup("heap").WriteTo(f, 0), f.Close())
}
