// Module kernel pins the Raspberry Pi kernel and firmware of the image. It
// stands apart so that 80 MB of blobs are no part of the daemon's module.
module edged/buildroot/image/kernel

go 1.26.6

require (
	github.com/gokrazy/firmware v0.0.0-20260522070551-527ce0ed43cf
	github.com/gokrazy/kernel.rpi v0.0.0-20251127164438-9778ec0261de
)
