// Package harness boots the very image files of edged under qemu-system and
// looks at them from outside, as their users do: serial console, Kubernetes API,
// power switch.
//
// A [Machine] is a copy of an image, larger than the image, and a QEMU that runs
// it. For a Raspberry Pi image the harness is the firmware too, since QEMU has
// none: it reads config.txt, or once tryboot.txt, takes kernel and command line
// out of the slot's folder, and puts what a Pi's device tree says before that. A
// machine can have its disk served over NBD by the harness ([Disk]), so that a
// power cut loses, reorders and tears what was not flushed. Several machines can be on
// one network ([Fleet]).
//
// Dangers: emulation without KVM: nothing is measured here, time-outs are wide.
//
// May be imported by nothing; its tests are the product. They need
// EDGED_IMAGES=<folder with edged-*.img>.
//
// Sources: QEMU's manual; NBD protocol (NetworkBlockDevice/nbd, doc/proto.md).
package harness
