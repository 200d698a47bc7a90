// Command box is what the test containers run: one small program with a few
// habits, so that the tests need no image from anywhere.
package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	for _, step := range os.Args[1:] {
		do(strings.SplitN(step, "=", 2))
	}
}

func do(step []string) {
	arg := ""
	if len(step) > 1 {
		arg = step[1]
	}
	number, _ := strconv.Atoi(arg)
	switch step[0] {
	case "print":
		fmt.Println(arg)
	case "error":
		fmt.Fprintln(os.Stderr, arg)
	case "exit":
		os.Exit(number)
	case "sleep":
		d, _ := time.ParseDuration(arg)
		time.Sleep(d)
	case "forever": // ends with SIGTERM, as a server would
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		fmt.Println("up")
		<-term
		os.Exit(0)
	case "deaf": // ignores SIGTERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("up")
		time.Sleep(time.Hour)
	case "cat":
		_, _ = io.Copy(os.Stdout, os.Stdin)
	case "upper": // answers line by line
		var line string
		for {
			if _, err := fmt.Scanln(&line); err != nil {
				return
			}
			fmt.Println(strings.ToUpper(line))
		}
	case "env":
		fmt.Println(os.Getenv(arg))
	case "id":
		groups, _ := os.Getgroups()
		fmt.Println(os.Getuid(), os.Getgid(), groups)
	case "read":
		data, err := os.ReadFile(arg)
		if err != nil {
			fmt.Println(err)
		}
		fmt.Print(string(data))
	case "write":
		path, text, _ := strings.Cut(arg, ":")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			fmt.Println(err)
		}
	case "spam": // that many bytes in lines of 64, numbered
		for n := 0; n < number; n += 64 {
			fmt.Printf("%063d\n", n/64)
		}
	case "eat": // that many MiB of memory
		hog := make([]byte, number<<20)
		for i := 0; i < len(hog); i += 4096 {
			hog[i] = 1
		}
		fmt.Println(len(hog))
	case "fork": // a child that outlives this program's interest in it
		_, err := os.StartProcess("/proc/self/exe", []string{"box", "sleep=1h"}, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}})
		if err != nil {
			fmt.Println(err)
		}
	case "pid":
		fmt.Println(os.Getpid())
	case "wait": // for a file to appear
		for {
			if _, err := os.Stat(arg); err == nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}
