//go:build runc

// Package runc pins the OCI runtime; ../payload/build.sh builds its command.
package runc

import _ "github.com/opencontainers/runc"
