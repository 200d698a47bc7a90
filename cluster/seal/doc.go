// Package seal keeps the values of Secrets unreadable in the store, and so on every
// card, in every log page and in every snapshot of it.
//
// It is not the keys of devices (cluster/identity) and knows nothing of what a
// Secret means: it changes bytes on their way between the registry and the store.
//
// Types. [Keys] is this device's ring of data keys. [Keys.Wrap] puts it between a
// registry and its store: what is written below /registry/secrets/ is sealed, what
// is read from there is opened. One record of the store, [RecordKey], holds the
// data keys, each wrapped for each device's key; its first key seals. [Keys.Run]
// makes this device known in it, [Keys.Lead] is the leader's part: it wraps for
// devices that came, makes another key when one has gone, seals anew in the
// background what an earlier key or none has sealed, and forgets keys that seal
// nothing.
//
// Forms. A value is Kubernetes' own envelope for encryption at rest,
// "k8s:enc:aesgcm:v1:<key>:", then nonce and AES-256-GCM bound to the Secret's key
// in the store: a kube-apiserver with the data key reads it ([Keys.Export]). A data
// key is wrapped by HPKE (RFC 9180: X25519, HKDF-SHA256, AES-256-GCM) for a key pair
// that is derived from the device's own.
//
// Promises. A Secret is written only if the record is, in the same transaction,
// still the one that its key was taken from: after a rotation nothing is sealed
// under the key before, whatever a slow device knows, and once the cluster seals
// nothing is written in the clear. A new cluster seals from its first Secret on; one
// that older daemons were part of when every member has told that it can read
// sealed Secrets. A key is forgotten only when nothing is sealed under it. Reading
// needs this device's own replica alone.
//
// Dangers. Who has a device's card has its key, and what is wrapped for it
// (docs/security.md). A device that comes to a key late reads the store again.
//
// Nonces are random: a key seals at most 2^28 revisions of the store before the
// leader makes another, so that two of them are equal with a chance below 2^-40.
//
// Goroutines: [Keys.Run] and [Keys.Lead] are one each, owned by their callers. May
// be imported by: cmd/edged.
//
// Sources: k8s.io/apiserver/pkg/storage/value/encrypt/aes; Kubernetes' documentation
// of encryption at rest; RFC 9180; NIST SP 800-38D section 8.3.
package seal
