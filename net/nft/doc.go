// Package nft applies packet filter rules: each owner declares the whole
// content that it wants in the nftables table "edged", and the package brings
// the kernel there with one transaction that holds only the differences.
//
// It is not the owner of any rule: net/proxy and net/policy are, each of a
// section of the table, which is all chains and sets whose names begin with the
// section's name and a dash. It is the only package that knows the nftables
// library, and therefore has its own words for rules.
//
// # Types
//
// A [Ruleset] holds [Chain] and [Set] values. A chain's rules are lists of
// statements ([Stmt]) made by functions of this package; each prints in nft's
// language, so that golden files can be read, and `nft list table inet edged`
// shows the same. A
// set's elements come in parts ([Part]); a part is immutable, and the same
// pointer means that nothing changed, so that one Service's change costs one
// Service's work.
//
// [Admit] is the one thing that the package does outside of the table: two rules
// in each foreign chain that would drop packets of Pods; [Withdraw] undoes it.
//
// # Promises
//
// [Table.Apply] is atomic: the kernel shows the old content or the new, and
// packets see no state in between. It returns nil only if the kernel was asked
// afterwards and has the new content: netlink's acknowledgements have been seen
// to say yes to a transaction that was refused. After an error the next Apply
// starts from what the kernel holds. Elements of dynamic sets (those that
// packets write, such as session affinity) survive a restart of the daemon.
//
// # Dangers
//
// Anybody with the right to do so may flush our table; [Table.Intact] finds out.
//
// # Goroutines
//
// None. A Table is safe for concurrent use.
//
// May be imported by net/{proxy,policy,cniplugin} and cmd/edged.
//
// Sources: linux/netfilter/nf_tables.h; nft(8); KEP-3866 (nftables kube-proxy).
package nft
