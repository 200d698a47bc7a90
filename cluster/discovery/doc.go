// Package discovery lets devices that were told the same cluster name and the
// same secret find each other on their links and become one cluster, with
// nobody there.
//
// It is not join (tokens that people carry) and not membership (the store's). It
// agrees on who founds a cluster, hands fresh devices to one that exists, and
// tells where members are.
//
// # Types
//
// [Discovery] is a device's part: [Discovery.Form] turns a fresh device into a
// founder or one that was let in, [Discovery.Serve] is what a member does for
// others. [Machine] is the agreement, pure: messages and times in, messages out.
// [Genesis] is what is agreed on.
//
// # Finding: RFC 6762 and 6763
//
// A device is the instance <id>._edged._tcp.local on every link that is up and
// multicasts, over IPv4 and IPv6. Fresh devices ask, with growing pauses. Members
// answer questions and tell twice when a link or an address of theirs appears;
// else they send nothing and have no timer. One that knows no leader asks. What
// is told carries an HMAC over id, addresses and ports: others on the link cannot
// fill the table of devices. A name and addresses are all that it tells.
//
// # Speaking
//
// All else goes through TLS 1.3 on the API's port, told apart by ALPN. The TLS
// certificates prove nothing. Both sides then show HMACs of the connection's
// exported keying material (RFC 8446, 7.5; RFC 9266) under a key made from the
// secret, the dialler first: one in the middle has other material on each side.
// The secret is never sent; a stranger gets a handshake and a closed connection,
// may have few of those at a time, and after ten wrong proofs none for a minute.
// Who answers a device's dial can try guesses of the secret at home, at the price
// of [pbkdf2Rounds] hashes each: the secret has to be a long random text.
//
// # Agreeing: why never two
//
// Single-decree Paxos (Lamport, Paxos Made Simple) over devices that belong to no
// cluster. A device is a random id, made once and kept. It promises a ballot, and
// accepts a proposal, on disk before it says so. A proposal's value is the whole
// founding, [Genesis]: the keys and the voters, not only who leads it. It is
// decided when a quorum accepted it; the quorum is at least --bootstrap-expect
// (n) of the devices and more than half of those that the proposer and all who
// promised know of.
//
// Two quorums of n have a device in common if at most 2n-1 devices were ever
// started fresh with that name. That device has promised the later ballot after
// it accepted the earlier, so that whoever proposes later has been told the
// earlier founding and proposes it again, or it promised the later before, and
// the earlier could not be decided. So all that is ever decided is one Genesis,
// whatever is lost, late or rebooted. With more devices than 2n-1 it is the second
// part of the rule that keeps quorums from missing each other: it holds if
// devices of a link hear each other while they settle (2 s without a new one).
// Who wants it certain sets n above half of the devices.
//
// A device that is of a cluster takes no part: it answers that it is. Fresh
// devices that hear one do not propose any more, they ask to be let in, whatever
// they promised. That makes no second cluster: what they promised stays on their
// disk until they are in.
//
// A founder that dies. There is no founder: every voter of a decided Genesis has
// the keys and starts the store with the same first members, and a majority of
// them goes on. Whoever accepted also counts: it asks the others what they
// accepted and knows when it is decided, though the proposer died with the last
// word. If it died before enough devices accepted, nothing was founded, and the
// next ballot, by any device, carries the same founding on. If n devices are no
// more there, because one died for good, nothing is founded until another takes
// its place: that is what n asks for. With n of one or two there is one voter,
// and if it dies for good before another has joined, its cluster died with it;
// `edged reset` on the others.
//
// A voter that learns late (it was off when it was decided) is told by any member
// of it, and starts as the voter that it is. It has voted for nothing yet.
//
// # On disk
//
// <data-dir>/forming.json, 0600: id, promise, what was accepted (its keys are the
// cluster's). It is removed when the device is of a cluster. A copy of a card made
// after its first start is a second device with one id: not supported.
//
// # Dangers
//
// Devices that know the secret are trusted: one of them that lies can found a
// second cluster. Two clusters of one name on one link are told in the log, and
// fresh devices wait.
//
// # Goroutines
//
// [Discovery.Form] has one that owns the Machine, one per device found and one
// per connection; [Discovery.Serve] one for mDNS and one per connection. Two read
// sockets, one the kernel's notices. All end with the context.
//
// May be imported by: cmd/edged.
package discovery
