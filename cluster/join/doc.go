// Package join lets a device into a cluster: the tokens that allow it, the
// request that uses one, and the answer that makes the device a member.
//
// It is not identity (cluster/identity makes and keeps the keys that are handed
// over) and not membership (the store's). It decides who may join, and moves
// what a member must have.
//
// Types: a [Token] is what an operator carries from one device to another; it
// names the cluster's CA by a hash of its key, so that the joining device knows
// whom it talks to before it says anything. [Tokens] keeps tokens in the
// cluster, hashed. [Server] answers, [Client] asks.
//
// Promises: a secret is never stored, logged or compared in variable time. A
// server whose certificate does not lead to the pinned CA gets nothing but a
// TLS alert. What a token may be used for ends with its expiry or its deletion,
// on the next request.
//
// Dangers: the answer holds the CA's key; it travels in the TLS connection that
// the token has authenticated and lies in a folder that is 0700.
//
// Goroutines: none of its own. May be imported by: cmd/edged.
//
// Sources: kubeadm's token discovery with CA pinning (KEP-130) and k3s's secure
// tokens, for what operators know.
package join
