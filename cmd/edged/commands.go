package main

// commands is the table of subcommands, one file each.
func commands() map[string]command {
	return map[string]command{
		"ca":         {"replace the cluster's CA", runCA},
		"check":      {"tell whether this machine is fit, and what is missing", runCheck},
		"flash":      {"write an image to a card", runFlash},
		"image":      {"import, list and remove container images", runImage},
		"init":       {"be the first process of edged's image", runInit},
		"kubeconfig": {"print a kubeconfig for another machine", runKubeconfig},
		"recover":    {"make this device a cluster of its own when the others are lost", runRecover},
		"member":     {"list, remove and promote the devices of the cluster", runMember},
		"reset":      {"remove everything that edged made on this machine", runReset},
		"run":        {"start this device", runRun},
		"secrets":    {"tell how Secrets are sealed, give them another key, export and import keys", runSecrets},
		"snapshot":   {"save the cluster's state to a file, and restore it", runSnapshot},
		"status":     {"show this device", runStatus},
		"store":      {"run the store alone, in the place of an etcd", runStore},
		"token":      {"make, list and delete the tokens that let devices join", runToken},
		"upgrade":    {"write a new system to the other slot and try it, or replace the daemon alone", runUpgrade},
		"version":    {"print the version", runVersion},
	}
}
