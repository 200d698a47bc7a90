package main

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ask lets a Buildroot tree judge.
func ask(buildroot, external string, out io.Writer) (problems []string, err error) {
	if external, err = filepath.Abs(external); err != nil {
		return nil, err
	}
	// It passes over folders without a word.
	args := []string{"-b"}
	if err := filepath.WalkDir(external, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			args = append(args, path)
		}
		return err
	}); err != nil {
		return nil, err
	}
	text, err := exec.Command(filepath.Join(buildroot, "utils", "check-package"), args...).CombinedOutput()
	if err != nil {
		problems = append(problems, fmt.Sprintf("check-package: %v\n%s", err, text))
	}
	for _, b := range boards {
		more, err := askAbout(buildroot, external, "edged_"+b+"_defconfig", out)
		if err != nil {
			return problems, fmt.Errorf("%s: %w", b, err)
		}
		problems = append(problems, more...)
	}
	return problems, nil
}

func askAbout(buildroot, external, name string, out io.Writer) (problems []string, err error) {
	dir, err := os.MkdirTemp("", "edged-buildroot-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	// Nothing may be fetched.
	run := func(target string) ([]byte, error) {
		cmd := exec.Command("make", "-s", "-C", buildroot, "O="+dir, "BR2_EXTERNAL="+external, "BR2_PRIMARY_SITE_ONLY=y", "BR2_PRIMARY_SITE=file:///nonexistent", target)
		cmd.Stderr = os.Stderr
		return cmd.Output()
	}
	if _, err := run(name); err != nil {
		return nil, err
	}
	want, err := os.ReadFile(filepath.Join(external, "configs", name))
	if err != nil {
		return nil, err
	}
	have, err := os.ReadFile(filepath.Join(dir, ".config"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(want)) {
		if !strings.Contains("\n"+string(have), "\n"+line) {
			problems = append(problems, fmt.Sprintf("%s: Buildroot does not take %q", name, strings.TrimSpace(line)))
		}
	}
	info, err := run("show-info")
	if err != nil {
		return problems, err
	}
	var packages map[string]struct {
		Downloads []struct {
			Source string `json:"source"`
		} `json:"downloads"`
	}
	if err := json.Unmarshal(info, &packages); err != nil {
		return problems, fmt.Errorf("show-info: %w", err)
	}
	if _, there := packages["edged"]; !there {
		problems = append(problems, name+": show-info does not know edged")
	}
	downloads := 0
	for _, p := range packages {
		downloads += len(p.Downloads)
	}
	_, err = fmt.Fprintf(out, "%s: %d packages, %d downloads\n", name, len(packages), downloads)
	return problems, err
}
