// Package net is a shelf: it holds the packages of the data path and no code
// of its own, and nothing imports it.
//
//	bridge     the Linux bridge, veth pairs and addresses of this device's Pods
//	nft        the nftables table "edged", declared whole, applied by difference
//	proxy      Services, host ports and masquerade as nftables maps
//	dns        cluster DNS on the cluster DNS address
package net
