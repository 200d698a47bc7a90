// Package slot is what two slots of a system need: which one starts, trying the
// other once, keeping it, and the file that an upgrade comes in.
//
// The boot partition has a folder for each slot, a and b, with room of its own.
// A Raspberry Pi's firmware reads config.txt, and once after `reboot "0 tryboot"`
// tryboot.txt; both are one sector that names a slot, so keeping a slot is writing
// one sector. systemd-boot counts the tries of an entry whose name has a counter;
// the folder of entries has room of its own and its directory is one sector, so
// keeping a slot is that sector.
//
// Promise: [Apply] touches the slot that is not running; nothing is tried before
// signature and every hash were right. A power cut leaves the running slot as it
// is.
//
// Dangers: versions are not compared: whoever holds the key may go back to an
// older system.
//
// May be imported by buildroot/... and cmd/edged. Starts no goroutines.
//
// Sources: Raspberry Pi documentation, config.txt ("os_prefix", "tryboot");
// UAPI group, Boot Loader Specification and Automatic Boot Assessment.
package slot
