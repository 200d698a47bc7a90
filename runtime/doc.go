// Package runtime is a shelf: this device's Pods and what runs them. It holds
// no code and is never imported.
package runtime
