package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// snapshots has etcdctl and edged take one of the device's state, etcdutl read
// both, and the device begin anew with etcdctl's.
func (p *place) snapshots() error {
	etcdctl, etcdutl := filepath.Join(filepath.Dir(p.bin), "etcdctl"), filepath.Join(filepath.Dir(p.bin), "etcdutl")
	byEtcdctl, byEdged := p.file("etcdctl.snapshot"), p.file("edged.snapshot")
	if out, err := p.kubectl(0, "-n", "default", "create", "configmap", "kept", "--from-literal=a=b"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if _, err := p.d.Run(etcdctl, "--endpoints=https://127.0.0.1:2379", "--cacert="+p.pki("ca.crt"), "--cert="+p.file("admin.crt"),
		"--key="+p.file("admin.key"), "snapshot", "save", byEtcdctl); err != nil {
		return err
	}
	if _, err := p.d.Edged("snapshot", "save", byEdged, "--run-dir", p.d.RunDir()); err != nil {
		return err
	}
	for _, file := range []string{byEtcdctl, byEdged} {
		out, err := p.d.Run(etcdutl, "snapshot", "status", "--write-out=simple", file)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %s", filepath.Base(file), out)
	}
	if out, err := p.kubectl(0, "-n", "default", "create", "configmap", "after", "--from-literal=a=b"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	identity, err := p.uid("kept")
	if err != nil {
		return err
	}
	p.d.Stop()
	if err := os.RemoveAll(filepath.Join(p.d.DataDir(), "store")); err != nil {
		return err
	}
	if _, err := p.d.Edged("snapshot", "restore", byEtcdctl, "--data-dir", p.d.DataDir(), "--run-dir", p.d.RunDir()); err != nil {
		return err
	}
	p.d.Start()
	p.d.WaitReady()
	again, err := p.uid("kept")
	if err != nil {
		return err
	}
	if again != identity {
		return fmt.Errorf("what the snapshot holds has another UID: %q, was %q", again, identity)
	}
	if out, err := p.uid("after"); err == nil || !strings.Contains(out, "NotFound") {
		return fmt.Errorf("the snapshot holds what was made after it: %v %s", err, out)
	}
	return p.tour(0, "restored")
}

// uid is that of a ConfigMap of the device.
func (p *place) uid(name string) (string, error) {
	return p.kubectl(0, "-n", "default", "get", "configmap", name, "-o", "jsonpath={.metadata.uid}")
}
