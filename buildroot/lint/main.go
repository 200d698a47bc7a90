// Command lint checks the BR2_EXTERNAL tree of buildroot/external.
//
//	lint [-external DIR] [-buildroot DIR]
//
// Alone it checks what needs no Buildroot: that every defconfig is well formed and
// names files that are there, a kernel whose hash is there, and an image that is
// put together from what is built; that every symbol of the package's is defined
// where it is used. With a Buildroot tree that tree has its say too: every line of
// each defconfig survives `make defconfig`, check-package finds nothing, and
// show-info lists what would be downloaded.
//
// Promise: nothing is built and nothing downloaded.
//
// Sources: the Buildroot manual, "Customization"; genimage's README.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	external := flag.String("external", "buildroot/external", "`folder` of the tree")
	tree := flag.String("buildroot", "", "`folder` of a Buildroot tree")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	problems, err := check(*external)
	if err == nil && *tree != "" {
		var more []string
		more, err = ask(*tree, *external, os.Stdout)
		problems = append(problems, more...)
	}
	for _, p := range problems {
		fmt.Fprintln(os.Stderr, "lint:", p)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lint:", err)
	}
	if err != nil || len(problems) > 0 {
		os.Exit(1)
	}
	if *tree == "" {
		fmt.Println("lint: no Buildroot tree was given: its own checks were not run")
	}
}
