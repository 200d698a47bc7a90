// Package kernel names the modules whose files the image holds; it has no code.
package kernel

import (
	_ "github.com/gokrazy/firmware"
	_ "github.com/gokrazy/kernel.rpi"
)
