package identity

import (
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
)

const deviceKeyFile = "device.key"

// DeviceKey is the key that makes a device the one that it is. It never leaves the
// device.
type DeviceKey struct{ key *ecdsa.PrivateKey }

// NewDeviceKey makes the key of a device that has none yet; [Install] keeps it.
func NewDeviceKey() (DeviceKey, error) {
	key, err := newKey()
	if err != nil {
		return DeviceKey{}, fmt.Errorf("make the device's key: %w", err)
	}
	return DeviceKey{key}, nil
}

// DeviceKey is this device's.
func (i *Identity) DeviceKey() DeviceKey { return DeviceKey{i.key} }

// Derive returns 32 secret bytes that only this device has, for one use.
func (k DeviceKey) Derive(use string) ([]byte, error) {
	secret, err := k.key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("the device's key: %w", err)
	}
	return hkdf.Key(sha256.New, secret, nil, "edged device key: "+use, 32)
}
