// Command init is the first process of edged's image: buildroot/pid1 and
// nothing else, so that it costs a device a few megabytes. `edged init` is the
// same, inside the daemon's binary.
package main

import "edged/buildroot/pid1"

func main() { pid1.Main() }
