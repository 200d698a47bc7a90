// Package e2e holds the end-to-end tests: real devices, driven by kubectl and
// client-go, with faults. It is not a place for tests of one package.
//
// Most tests share one device and keep to a namespace of their own; those that
// kill, reboot or damage a device start one for themselves.
//
// Imported by nobody; may import test/harness.
package e2e
