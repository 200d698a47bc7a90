package seal

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// RecordKey is where the store keeps the record. It is not an object: the API has
// nothing to say about it.
const RecordKey = "/edged/secrets"

const (
	recordVersion = 1
	// mostRevisions is how many revisions of the store a key may seal in.
	mostRevisions = 1 << 28
	wrapInfo      = "edged data key 1 "
)

// Device is one that may read Secrets.
type Device struct {
	Member    uint64 `json:"member"` // in the store
	Name      string `json:"name"`
	PublicKey []byte `json:"publicKey"`
}

// record is what the cluster knows of its data keys.
type record struct {
	Version int `json:"version"`
	// Sealing says that Secrets are written sealed.
	Sealing bool     `json:"sealing"`
	Devices []Device `json:"devices"`
	// Keys are the data keys; the first seals.
	Keys []wrappedKey `json:"keys"`
}

type wrappedKey struct {
	Name string `json:"name"`
	// Born is the store's revision when it was made.
	Born int64 `json:"born"`
	// For holds the key wrapped for each device, by its fingerprint.
	For map[string][]byte `json:"for"`
}

func parseRecord(data []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("the record of data keys: %w", err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("the record of data keys is of version %d, this edged understands %d: use a newer edged", r.Version, recordVersion)
	}
	if len(r.Keys) == 0 {
		return nil, errors.New("the record of data keys holds none")
	}
	return &r, nil
}

// fingerprint names a device's key.
func fingerprint(publicKey []byte) string {
	sum := sha256.Sum256(publicKey)
	return hex.EncodeToString(sum[:8])
}

// keyPair is the one that data keys are wrapped for, from 32 secret bytes of a
// device.
func keyPair(secret []byte) (hpke.PrivateKey, error) {
	return hpke.DHKEM(ecdh.X25519()).DeriveKeyPair(secret)
}

// PublicKey is what a device that is to be admitted tells: it belongs to the secret
// that it will give [New].
func PublicKey(secret []byte) ([]byte, error) {
	pair, err := keyPair(secret)
	if err != nil {
		return nil, fmt.Errorf("the device's key: %w", err)
	}
	return pair.PublicKey().Bytes(), nil
}

// wrap wraps k for a device.
func (k Key) wrap(publicKey []byte) ([]byte, error) {
	pub, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(publicKey)
	if err != nil {
		return nil, fmt.Errorf("a device's public key: %w", err)
	}
	return hpke.Seal(pub, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(wrapInfo+k.Name), k.Secret)
}

// unwrap is the key for the device of pair; ok is false if there is none for it.
func (w wrappedKey) unwrap(pair hpke.PrivateKey) (k Key, ok bool, err error) {
	sealed, ok := w.For[fingerprint(pair.PublicKey().Bytes())]
	if !ok {
		return Key{}, false, nil
	}
	secret, err := hpke.Open(pair, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(wrapInfo+w.Name), sealed)
	if err == nil && len(secret) != keyBytes {
		err = fmt.Errorf("it has %d bytes", len(secret))
	}
	if err != nil {
		return Key{}, false, fmt.Errorf("data key %s: %w", w.Name, err)
	}
	return Key{w.Name, secret}, true, nil
}

func (r *record) clone() *record {
	c := &record{Version: r.Version, Sealing: r.Sealing, Devices: slices.Clone(r.Devices)}
	for _, k := range r.Keys {
		c.Keys = append(c.Keys, wrappedKey{k.Name, k.Born, maps.Clone(k.For)})
	}
	return c
}

// has says whether the device is known as it is.
func (r *record) has(d Device) bool {
	return slices.ContainsFunc(r.Devices, func(o Device) bool {
		return o.Member == d.Member && o.Name == d.Name && bytes.Equal(o.PublicKey, d.PublicKey)
	})
}

// register makes a device known, in the place of what had its key or its member.
func (r *record) register(d Device) {
	r.Devices = slices.DeleteFunc(r.Devices, func(o Device) bool {
		return o.Member == d.Member || bytes.Equal(o.PublicKey, d.PublicKey)
	})
	r.Devices = append(r.Devices, d)
}

// put adds k, wrapped for nobody yet, as the one that seals.
func (r *record) put(k Key, born int64) {
	r.Keys = slices.Insert(r.Keys, 0, wrappedKey{k.Name, born, map[string][]byte{}})
}

// wrapAll wraps the keys that this device has for every device that lacks one, and
// forgets what they were wrapped for others. What it does not have it leaves alone.
func (r *record) wrapAll(ring map[string]Key) (changed bool, err error) {
	there := map[string]bool{}
	for _, d := range r.Devices {
		there[fingerprint(d.PublicKey)] = true
	}
	for i := range r.Keys {
		k, have := ring[r.Keys[i].Name]
		if !have {
			continue
		}
		for f := range r.Keys[i].For {
			if !there[f] {
				delete(r.Keys[i].For, f)
				changed = true
			}
		}
		for _, d := range r.Devices {
			f := fingerprint(d.PublicKey)
			if _, done := r.Keys[i].For[f]; done {
				continue
			}
			if r.Keys[i].For[f], err = k.wrap(d.PublicKey); err != nil {
				return false, fmt.Errorf("wrap for %s: %w", d.Name, err)
			}
			changed = true
		}
	}
	return changed, nil
}

// lacking are the devices that a key which this device has is not wrapped for.
func (r *record) lacking(ring map[string]Key) (names []string) {
	for _, d := range r.Devices {
		if slices.ContainsFunc(r.Keys, func(k wrappedKey) bool {
			_, have := ring[k.Name]
			return have && k.For[fingerprint(d.PublicKey)] == nil
		}) {
			names = append(names, d.Name)
		}
	}
	return names
}

// remove forgets the devices that are no members, of which that of own always is
// one, and returns their names.
func (r *record) remove(members []uint64, own []byte) (gone []string) {
	r.Devices = slices.DeleteFunc(r.Devices, func(d Device) bool {
		if slices.Contains(members, d.Member) || bytes.Equal(d.PublicKey, own) {
			return false
		}
		gone = append(gone, d.Name)
		return true
	})
	return gone
}

// complete says whether every member is known.
func (r *record) complete(members []uint64) bool {
	return !slices.ContainsFunc(members, func(m uint64) bool {
		return !slices.ContainsFunc(r.Devices, func(d Device) bool { return d.Member == m })
	})
}
