package harness

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Memory is what one process holds, in bytes, from smaps_rollup.
type Memory struct {
	PID            int
	Command        string
	PSS, RSS, Anon int64
}

// Memory lists the processes of the device. Containers' own processes are told
// from edged's by their command.
func (d *Device) Memory() ([]Memory, error) {
	pids, err := d.m.pids()
	if err != nil {
		return nil, err
	}
	var out []Memory
	for _, pid := range pids {
		m, err := readMemory(pid)
		if err != nil {
			continue // the process ended meanwhile
		}
		out = append(out, m)
	}
	return out, nil
}

func readMemory(pid int) (Memory, error) {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return Memory{}, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return Memory{}, err
	}
	defer f.Close()
	m := Memory{PID: pid, Command: strings.TrimSpace(string(comm))}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "Pss:":
			m.PSS = kib << 10
		case "Rss:":
			m.RSS = kib << 10
		case "Pss_Anon:":
			m.Anon = kib << 10
		}
	}
	return m, nil
}

// CPUSeconds is the processor time that the process has used.
func CPUSeconds(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	user, err := strconv.ParseInt(f[11], 10, 64)
	if err != nil {
		return 0, err
	}
	sys, err := strconv.ParseInt(f[12], 10, 64)
	return float64(user+sys) / 100, err // USER_HZ is 100 on every Linux port
}
