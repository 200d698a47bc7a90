package main

import (
	"bufio"
	"os"
	"strings"
	"testing"
)

// TestReleasedPagesComeBackAlone: what is released of the binary is mapped page by page
// where the kernel can, also after another release.
func TestReleasedPagesComeBackAlone(t *testing.T) {
	if !mapSparsely(nil) {
		t.Skip("the kernel cannot")
	}
	for range 2 {
		if err := releaseMemory(); err != nil {
			t.Fatal(err)
		}
		if flags := codeFlags(t); !strings.Contains(flags+" ", " uw ") { // userfaultfd watches writes
			t.Errorf("flags of the binary's code: %s", flags)
		}
	}
}

// codeFlags are what proc(5) tells of the mapping of the binary's code.
func codeFlags(t *testing.T) string {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	code := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if fields := strings.Fields(sc.Text()); len(fields) == 6 && strings.Contains(fields[0], "-") {
			code = fields[1] == "r-xp" && fields[5] == exe
		} else if code && fields[0] == "VmFlags:" {
			return sc.Text()
		}
	}
	t.Fatal("no mapping of the binary's code")
	return ""
}
