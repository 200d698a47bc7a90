package main

// commands is the table of subcommands, one file each.
func commands() map[string]command {
	return map[string]command{
		"version": {"print the version", runVersion},
	}
}
