package main

import "edged/buildroot/disk"

// board is an image: what differs from one machine to another, as data.
type board struct {
	name, arch string
	gpt        bool
	// cmdline is the kernel's, without root and slot.
	cmdline string
	// kernel is the kernel's file below the kernel's folder.
	kernel string
	// bootFiles are copied into the slot's folder: glob patterns below kernel's.
	bootFiles []string
	// firmware are files of the firmware's folder for the boot partition.
	firmware []string
	// initModules are loaded from an initial RAM disk, if there is one;
	// rootModules once the root is there. Dependencies are found.
	initModules, rootModules []string
}

const mib = 1 << 20

// Sizes of the partitions. The last one, for data, is made and grown by the
// device.
const (
	fatBytes  = 160 * mib
	rootBytes = 128 * mib
	dataBytes = 4 * mib
)

// Identities are fixed: two images of one commit are the same file.
const (
	fatID      = 0xED6EDB00
	mbrID      = 0xED6ED001
	dataUUID   = "ed6ed000-0000-4000-8000-00000000da7a"
	imageLabel = "EDGED"
)

var (
	gptID = disk.GUID{0xED, 0x6E, 0xD0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 0x64}
	espID = disk.GUID{0xED, 0x6E, 0xD0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 0x01}
)

// network is what Pods and Services need of a kernel whose network is modules.
var network = []string{
	"overlay", "bridge", "br_netfilter", "veth", "vxlan", "wireguard", "dummy", "macvlan", "ipvlan", "tun",
	"nf_tables", "nf_conntrack", "nf_conntrack_netlink", "nf_nat", "nft_chain_nat", "nft_ct", "nft_masq", "nft_nat", "nft_redir",
	"nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6", "nft_fib_inet", "nft_limit", "nft_log", "nft_numgen", "nft_hash",
	"nft_socket", "nft_tproxy", "nft_quota", "nft_connlimit", "nft_flow_offload", "nf_log_syslog",
}

var boards = []board{
	{
		name: "rpi", arch: "arm64", kernel: "vmlinuz",
		cmdline:   "console=tty1 console=serial0,115200 rootfstype=squashfs ro rootwait cgroup_enable=memory cgroup_memory=1 psi=1 panic=10 oops=panic loglevel=4",
		bootFiles: []string{"bcm271[0-2]*.dtb"},
		firmware:  []string{"bootcode.bin", "start.elf", "fixup.dat", "start4.elf", "fixup4.dat"},
	},
	{
		name: "amd64", arch: "amd64", gpt: true, kernel: "boot/vmlinuz-*",
		// gpt: use the copy at the end if a power cut came while the table grew.
		cmdline: "console=tty0 console=ttyS0,115200 rootfstype=squashfs ro gpt psi=1 panic=10 oops=panic loglevel=4",
		initModules: []string{
			"squashfs", "virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ata_piix", "nvme",
			"hv_vmbus", "hv_storvsc", "vmw_pvscsi", "xen-blkfront",
		},
		rootModules: append([]string{
			"virtio_net", "virtio-rng", "virtio_balloon", "vmxnet3", "hv_netvsc", "xen-netfront", "ena", "gve", "loop", "softdog", "button", "evdev",
		}, network...),
	},
}
