package slot

import (
	"errors"
	"fmt"
	"strings"

	"edged/buildroot/disk"
	"edged/buildroot/fat"
)

const (
	// Room is what a slot may take on the boot partition.
	Room = 56 << 20
	// EntriesRoom is for systemd-boot's entries.
	EntriesRoom = 64 << 10
	entriesDir  = "loader/entries"
	sectorBytes = disk.SectorBytes
)

// Other is the slot that is not s.
func Other(s string) string {
	if s == "a" {
		return "b"
	}
	return "a"
}

// Partition is the index of a slot's root in the table.
func Partition(s string) int {
	if s == "b" {
		return 2
	}
	return 1
}

// Cmdline is the kernel's command line of a slot.
func Cmdline(base, partUUID, s string) string {
	return fmt.Sprintf("%s root=PARTUUID=%s edged.slot=%s", base, partUUID, s)
}

// pad makes a text one sector long.
func pad(text string) []byte {
	if len(text) < sectorBytes {
		text += "#" + strings.Repeat(" ", sectorBytes-len(text)-2) + "\n"
	}
	return []byte(text)[:sectorBytes]
}

// ConfigTxt is config.txt or tryboot.txt for a slot.
func ConfigTxt(s string) []byte {
	return pad("# Written by edged: one sector, replaced in place.\narm_64bit=1\nenable_uart=1\ngpu_mem=16\ndtparam=watchdog=on\nkernel=vmlinuz\nos_prefix=" + s + "/\n")
}

// prefixOf is the slot that a config.txt names.
func prefixOf(text []byte) string {
	for _, line := range strings.Split(string(text), "\n") {
		if v, ok := strings.CutPrefix(line, "os_prefix="); ok {
			return strings.TrimSuffix(strings.TrimSpace(v), "/")
		}
	}
	return ""
}

// Entries are systemd-boot's: the preferred slot with the higher version, and
// as many tries as tries says if that is not zero.
func Entries(preferred string, tries int, cmdlines map[string]string) []fat.File {
	var out []fat.File
	for _, s := range []string{preferred, Other(preferred)} {
		cmdline, there := cmdlines[s]
		if !there {
			continue
		}
		name, version := "edged-"+s+".conf", 1
		if s == preferred {
			version = 2
			if tries > 0 {
				name = fmt.Sprintf("edged-%s+%d.conf", s, tries)
			}
		}
		text := fmt.Sprintf("title edged (slot %s)\nsort-key edged\nversion %d\nlinux /%s/vmlinuz\ninitrd /%s/initrd\noptions %s\n", s, version, s, s, cmdline)
		out = append(out, fat.File{Name: name, Data: pad(text)})
	}
	return out
}

// isPi tells the two kinds of boot partition apart.
func isPi(v *fat.Volume) (bool, error) {
	_, err := v.ReadFile("config.txt")
	if errors.Is(err, fat.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// IsTrial tells whether the running slot is not the one that is kept.
func IsTrial(v *fat.Volume, running string) (bool, error) {
	pi, err := isPi(v)
	if err != nil {
		return false, err
	}
	if pi {
		text, err := v.ReadFile("config.txt")
		return err == nil && prefixOf(text) != running, err
	}
	names, err := v.List(entriesDir)
	if err != nil {
		return false, err
	}
	for _, n := range names {
		if strings.HasPrefix(n, "edged-"+running+"+") {
			return true, nil
		}
	}
	return false, nil
}

// Commit keeps a slot: it is started from now on.
func Commit(d disk.Device, v *fat.Volume, s string) error {
	pi, err := isPi(v)
	if err != nil {
		return err
	}
	if pi {
		if err := v.Overwrite(d, "config.txt", ConfigTxt(s)); err != nil {
			return err
		}
		return d.Sync()
	}
	return setEntries(d, v, s, 0)
}

// Try lets the next start be of a slot, and the one after that too only if the
// slot was kept by then. It returns the argument that the reboot needs.
func Try(d disk.Device, v *fat.Volume, s string) (argument string, err error) {
	pi, err := isPi(v)
	if err != nil {
		return "", err
	}
	if !pi {
		return "", setEntries(d, v, s, 3)
	}
	if err := v.Overwrite(d, "tryboot.txt", ConfigTxt(s)); err != nil {
		return "", err
	}
	return "0 tryboot", d.Sync()
}

func setEntries(d disk.Device, v *fat.Volume, preferred string, tries int) error {
	cmdlines := map[string]string{}
	for _, s := range []string{"a", "b"} {
		text, err := v.ReadFile(s + "/cmdline.txt")
		if errors.Is(err, fat.ErrNotExist) {
			continue // never filled
		}
		if err != nil {
			return err
		}
		cmdlines[s] = strings.TrimSpace(string(text))
	}
	return v.ReplaceDir(d, entriesDir, EntriesRoom, Entries(preferred, tries, cmdlines), d.Sync)
}
