// Package identity holds who this device is: the cluster's certificate
// authority, the device's own key and certificates, the key that signs
// ServiceAccount tokens, and the kubeconfig of the administrator.
//
// It is not authentication: what a certificate or a token allows is decided in
// apiserver/authn and apiserver/authz. It does not join clusters either.
//
// [Open] reads the folder, makes what is missing, and returns an [Identity].
// Keys and certificates are PEM files; private keys are 0600 in a folder that
// is 0700. Every file is replaced atomically, so a power cut at any instant
// leaves a folder that the next Open completes; a file that is there but cannot
// be read is an error that names it, never silently replaced, because a new CA
// would lock out every device and user of the old one.
//
// Time. Small devices boot in 1970. Certificates are therefore valid from the
// epoch on, so that one issued by a device whose clock is right is good on one
// whose clock is not, and lifetimes count from the later of the clock and
// [BuildTime]. Leaf certificates live in memory and are issued again when less
// than a third of their life is left, which is looked at in each handshake: a
// clock that jumps forward or a device that slept needs no timer to notice.
//
// Replacing the CA. [Identity.NewSuccessor] makes a new CA that the one before
// has signed; each device takes it up with [Identity.Adopt], and from then on
// shows certificates that lead to both: whoever knows only the old CA goes on
// without noticing, however late it hears of the new one. Both are trusted until
// [Identity.DropOld]. ca.crt holds the CA that signs, then the certificates by
// which the old one vouches for it, then the old one; ca.key the key of the first
// among its keys.
//
// Concurrency: an Identity's methods may be called from any goroutine.
// Goroutines: [Identity.Run] is one, owned by the caller; it renews the
// administrator's kubeconfig and ends with its context.
//
// May be imported by cmd/edged and cluster/. Imports nothing of ours but
// internal.
package identity
